package reap

import (
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// start starts the worker. It leaves its thread marked, with the privileges and
// the signal mask of the worker: the goroutine must end after it, still locked,
// and the thread is thrown away with it.
func start(m Start, files []int) Message {
	runtime.LockOSThread()
	if m.Dir != "" {
		// Asked beforehand: ForkExec would not say what could not be found.
		dir, err := unix.Open(m.Dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err == nil {
			unix.Close(dir)
			err = unix.Access(m.Dir, unix.X_OK)
		}
		if err != nil {
			return failed(StageDir, err)
		}
	}
	if err := bind(m.Limits); err != nil {
		return failed(StageLimits, err)
	}
	if !m.NewPrivileges {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return failed(StagePrivileges, err)
		}
	}
	var none unix.Sigset_t
	unix.PthreadSigmask(unix.SIG_SETMASK, &none, nil)
	attr := &syscall.ProcAttr{Dir: m.Dir, Env: m.Env, Sys: &syscall.SysProcAttr{Setsid: true, Credential: credential(m.User)}}
	for _, fd := range files {
		attr.Files = append(attr.Files, uintptr(fd))
	}
	// A cgroup of the worker's own is entered here: attr.Sys.UseCgroupFD.
	pid, err := syscall.ForkExec(m.Path, m.Argv, attr)
	if err != nil {
		if err == unix.EACCES && m.User.Set && !mayEnter(m.Dir, m.User) {
			return failed(StageDir, err)
		}
		return failed(StageExec, err)
	}
	return Started{pid}
}

// credential is nil for a worker that is who the shim is.
func credential(u User) *syscall.Credential {
	if !u.Set {
		return nil
	}
	return &syscall.Credential{Uid: uint32(u.UID), Gid: uint32(u.GID), Groups: groups(u)}
}

func groups(u User) []uint32 {
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
	list := groups(u)
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

func failed(stage Stage, err error) Message {
	errno, ok := err.(syscall.Errno)
	if !ok {
		errno = unix.EINVAL
	}
	return StartFailed{stage, errno}
}
