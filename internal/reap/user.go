//go:build linux

package reap

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// credential is nil for a worker that is who the shim is.
func credential(u User) *syscall.Credential {
	if !u.Set {
		return nil
	}
	return &syscall.Credential{Uid: uint32(u.UID), Gid: uint32(u.GID), Groups: supplementary(u)}
}

func supplementary(u User) []uint32 {
	list := make([]uint32, len(u.Groups))
	for i, group := range u.Groups {
		list[i] = uint32(group)
	}
	return list
}

// mayEnter tells whether a user may have dir as its working directory. It leaves
// the thread with the user's reach.
func mayEnter(dir string, u User) bool {
	if dir == "" {
		dir = "."
	}
	if actAs(u) != nil {
		return true // it cannot be told
	}
	fd, err := unix.Open(dir+"/.", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		unix.Close(fd)
	}
	return err != unix.EACCES
}

// actAs has this thread reach files, and look into processes, as a user does. For
// signals it stays who it is. The thread is to be thrown away.
func actAs(u User) error {
	list := supplementary(u)
	var first unsafe.Pointer
	if len(list) > 0 {
		first = unsafe.Pointer(&list[0])
	}
	// The call itself, which is of this thread: syscall.Setgroups is of them all.
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(list)), uintptr(first), 0); errno != 0 {
		return errno
	}
	if err := unix.Setfsgid(u.GID); err != nil {
		return err
	}
	if err := unix.Setfsuid(u.UID); err != nil {
		return err
	}
	return unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) // which the change has reset
}
