package proctest

import "syscall"

// Kill signals one process. What is no pid is answered as a process that is gone is:
// 0, which lists have for a worker that is just starting, would be the process group
// of the tests, and -1 everybody.
func Kill(pid int, sig syscall.Signal) error {
	if pid < 2 {
		return syscall.ESRCH
	}
	return syscall.Kill(pid, sig)
}
