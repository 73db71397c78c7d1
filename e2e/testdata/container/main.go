// Command container is a worker for a tree with no other program in it: what it
// needs for children it is itself.
package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"example.com/hangup/worker"
)

func main() {
	if len(os.Args) > 1 {
		child(os.Args[1])
		return
	}
	err := worker.Serve(worker.Tasks{
		"echo": func(_ context.Context, c *worker.Call) (any, error) {
			var in any
			err := c.Decode(&in)
			return in, err
		},
		"write": func(context.Context, *worker.Call) (any, error) { // where it may and where it may not
			answers := map[string]bool{}
			for _, dir := range []string{"/", "/app", "/tmp"} {
				answers[dir] = os.WriteFile(dir+"/written", nil, 0o600) == nil
			}
			return answers, nil
		},
		"orphans": func(_ context.Context, c *worker.Call) (any, error) {
			var n int
			if err := c.Decode(&n); err != nil {
				return nil, err
			}
			for range n / 100 {
				if err := start("leaves").Wait(); err != nil {
					return nil, err
				}
			}
			return n, nil
		},
		"tree": func(context.Context, *worker.Call) (any, error) {
			start("stays")
			start("leaves one").Wait()
			time.Sleep(time.Hour)
			return nil, nil
		},
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// start runs this program as a child in a session of its own.
func start(role string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], role)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		panic(err)
	}
	return cmd
}

func child(role string) {
	switch role {
	case "stays":
		signal.Ignore(syscall.SIGTERM, syscall.SIGHUP, syscall.SIGINT)
		time.Sleep(time.Hour)
	case "leaves one": // an orphan that stays
		start("stays")
	case "leaves": // a hundred that do not: bare forks, because programs in Go take their time to start
		for range 100 {
			pid, _, err := syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
			if pid == 0 && err == 0 {
				syscall.RawSyscall(syscall.SYS_EXIT_GROUP, 0, 0, 0)
			}
			if err != 0 {
				os.Exit(1)
			}
		}
	}
}
