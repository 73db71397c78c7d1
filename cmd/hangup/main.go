// Command hangup runs work in worker processes for HTTP callers and ends it,
// with every process that it started, when its caller hangs up.
//
// Each verb has a file of its own; root.go holds the list of them and what an
// error of theirs becomes. Package daemon is the service itself.
package main

import "os"

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
