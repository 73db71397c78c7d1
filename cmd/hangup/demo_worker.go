package main

import (
	"context"
	_ "embed"
	"fmt"
	"io"
	"os/exec"

	"github.com/creack/pty"

	"example.com/hangup/worker"
)

// demoPython is the same worker in Python.
//
//go:embed demo.py
var demoPython []byte

// demoScript is the interactive program: a shell that ignores hang-ups and
// requests to end, with a background child in a session of its own. Both
// inherit that.
const demoScript = `trap '' HUP TERM INT; if command -v setsid >/dev/null; then setsid sleep 1000 & else sleep 1000 & fi; exec sh -i`

// demoProcesses is how many processes the call has then: worker, shell and sleep.
const demoProcesses = 3

// demoWorker serves the tasks of the demo.
func demoWorker() error {
	return worker.Serve(worker.Tasks{
		"hello": func(_ context.Context, call *worker.Call) (any, error) {
			var name string
			if err := call.Decode(&name); err != nil {
				return nil, err
			}
			return fmt.Sprintf("hello, %s, from a Go worker", name), nil
		},
		"terminal": func(context.Context, *worker.Call) (any, error) {
			terminal, err := pty.Start(exec.Command("sh", "-c", demoScript))
			if err != nil {
				return nil, err
			}
			_, err = io.Copy(io.Discard, terminal) // until the program ends
			return "the program ended", err
		},
	})
}
