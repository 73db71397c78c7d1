package proc_test

import (
	"os"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"example.com/hangup/internal/proctest"
)

func init() {
	if os.Geteuid() != 0 {
		proctest.Program("forker", forker)
	}
}

// forker starts sessions from eight threads, as fast as it can and up to a bound.
func forker([]string) {
	const threads, each, limit = 8, 500, 400
	if err := unix.Setrlimit(unix.RLIMIT_NPROC, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
		panic(err)
	}
	var all sync.WaitGroup
	for range threads {
		all.Go(func() {
			runtime.LockOSThread()
			for range each {
				syscall.ForkExec("/bin/sh", []string{"sh", "-c", "(setsid sleep 1000 &) ; exec sleep 1000"},
					&syscall.ProcAttr{Sys: &syscall.SysProcAttr{Setsid: true}})
			}
		})
	}
	all.Wait()
	select {}
}
