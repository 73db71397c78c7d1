package kind

import "golang.org/x/sys/unix"

// pipe makes a pipe that no child inherits by itself.
func pipe(fds *[2]int) error { return unix.Pipe2(fds[:], unix.O_CLOEXEC) }
