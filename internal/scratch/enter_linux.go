package scratch

import (
	"strconv"

	"golang.org/x/sys/unix"
)

// anybody is the owner of a directory to enter, where that does not matter.
const anybody = -1

// enter opens the directory name of dir, if it belongs to that user, for its entries to
// be read and removed. Modes that forbid it are changed: on the very directory that is
// opened, because a name may lead elsewhere a moment later.
func enter(dir int, name string, owner int) (int, error) {
	at, err := unix.Openat(dir, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(at)
	var is unix.Stat_t
	if err := unix.Fstat(at, &is); err != nil {
		return -1, err
	}
	if owner != anybody && int(is.Uid) != owner {
		return -1, unix.EPERM
	}
	if is.Mode&0o700 != 0o700 {
		if err := unix.Chmod("/proc/self/fd/"+strconv.Itoa(at), 0o700); err != nil {
			return -1, err
		}
	}
	return unix.Openat(at, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}
