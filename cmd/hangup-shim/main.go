//go:build linux && !portable

// Hangup-shim is the small process above every worker of hangup, and, in its
// other role, above the server itself. It is started by hangup; there is nothing
// to configure.
package main

import (
	"os"
	"runtime"
	"strings"

	"example.com/hangup/internal/reap"
)

const usage = `usage:
  hangup-shim supervise -- PATH [ARG…]   start the server PATH, end everything with it
  hangup-shim shim|scoped-shim [BASE]    hold a worker's processes (started by the server)
  hangup-shim version
`

// The kernel ties the server's life to the thread that starts it: the main
// thread, which never ends before the process does.
func init() { runtime.LockOSThread() }

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	switch {
	case len(args) >= 3 && args[0] == "supervise" && args[1] == "--":
		return reap.Supervise(args[2:])
	case (len(args) == 1 || len(args) == 2) && (args[0] == "shim" || args[0] == "scoped-shim") && reap.StartedByServer():
		return reap.Shim(strings.Join(args[1:], ""), args[0] == "scoped-shim")
	case len(args) == 1 && args[0] == "pause": // what the server tries a shim with
		return reap.Pause()
	case len(args) == 1 && args[0] == "version":
		os.Stdout.WriteString("hangup-shim " + reap.Build + "\n")
		return 0
	}
	os.Stderr.WriteString(usage)
	return 2
}
