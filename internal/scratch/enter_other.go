//go:build !linux

package scratch

import "golang.org/x/sys/unix"

// anybody is the owner of a directory to enter, where that does not matter.
const anybody = -1

// enter opens the directory name of dir, if it belongs to that user, for its entries to
// be read and removed. Modes that forbid it are changed.
func enter(dir int, name string, owner int) (int, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(dir, name, flags, 0)
	if err == unix.EACCES && owner == anybody {
		if err = unix.Fchmodat(dir, name, 0o700, unix.AT_SYMLINK_NOFOLLOW); err == nil {
			fd, err = unix.Openat(dir, name, flags, 0)
		}
	}
	if err != nil {
		return -1, err
	}
	var is unix.Stat_t
	err = unix.Fstat(fd, &is)
	if err == nil && owner != anybody && int(is.Uid) != owner {
		err = unix.EPERM
	}
	if err == nil && is.Mode&0o700 != 0o700 {
		err = unix.Fchmod(fd, 0o700)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}
