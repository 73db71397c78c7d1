package listen

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// reach is a path of the socket that leads through the open directory, and is short.
func (f *socketFile) reach() string {
	return "/proc/self/fd/" + strconv.Itoa(int(f.dir.Fd())) + "/" + f.name
}

// restrict lets nobody but this user connect. The mode that a socket has before it is
// bound is that of its file.
func restrict(socket int) error { return unix.Fchmod(socket, socketMode) }

// restrictFile has nothing left to do.
func restrictFile(*os.File, string) error { return nil }

// peerUID is the user who connected, or -1.
func peerUID(socket int) int {
	cred, err := unix.GetsockoptUcred(socket, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return -1
	}
	return int(cred.Uid)
}
