//go:build !linux

package listen

import (
	"os"

	"golang.org/x/sys/unix"
)

// reach is the path of the socket: no path leads through an open directory here.
func (f *socketFile) reach() string { return f.path }

// restrict can do nothing before the socket has a file.
func restrict(int) error { return nil }

// restrictFile lets nobody but this user connect, just after the socket was made.
// Until then it has the mode that the umask leaves, in which, with the usual ones,
// nobody else may write, and to connect is to write.
func restrictFile(dir *os.File, name string) error {
	return unix.Fchmodat(int(dir.Fd()), name, socketMode, unix.AT_SYMLINK_NOFOLLOW)
}

// peerUID is the user who connected, or -1.
func peerUID(socket int) int {
	cred, err := unix.GetsockoptXucred(socket, unix.SOL_LOCAL, unix.LOCAL_PEERCRED)
	if err != nil {
		return -1
	}
	return int(cred.Uid)
}
