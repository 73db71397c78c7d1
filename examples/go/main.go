// Command go is a worker in Go: one task that takes a while, and can be given up.
//
//	go build -o examples/go/primes ./examples/go
//	bin/hangup serve --config examples/go/hangup.yaml
//	curl localhost:8080/execute/primes --json '{"below": 100000000}'
package main

import (
	"context"
	"fmt"
	"os"

	"example.com/hangup/worker"
)

func main() {
	if err := worker.Serve(worker.Tasks{"primes": primes}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// primes counts the primes below a number, and tells how far it is.
func primes(ctx context.Context, call *worker.Call) (any, error) {
	var in struct{ Below int }
	if err := call.Decode(&in); err != nil {
		return nil, err
	}
	found := 0
	for n := 2; n < in.Below; n++ {
		if n%1_000_000 == 0 {
			if err := call.Progress(map[string]int{"done": n, "total": in.Below}); err != nil {
				return nil, err
			}
		}
		if ctx.Err() != nil { // the caller hung up, and stop.cooperative gives time to stop by ourselves
			return nil, context.Cause(ctx)
		}
		if isPrime(n) {
			found++
		}
	}
	return map[string]int{"primes": found}, nil
}

func isPrime(n int) bool {
	for d := 2; d*d <= n; d++ {
		if n%d == 0 {
			return false
		}
	}
	return true
}
