//go:build !linux

package kind

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// pipe makes a pipe that no child inherits by itself: none is started between the two
// calls that it takes where there is no pipe2.
func pipe(fds *[2]int) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if err := unix.Pipe(fds[:]); err != nil {
		return err
	}
	unix.CloseOnExec(fds[0])
	unix.CloseOnExec(fds[1])
	return nil
}
