//go:build linux

package reap

import (
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// start starts the worker in the cgroup, unless that is nil. It leaves its thread marked, with the privileges and
// the signal mask of the worker: the goroutine must end after it, still locked,
// and the thread is thrown away with it.
func start(m Start, files []int, cgroup *group) Message {
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
		if m.Scoped {
			if err := isolate(); err != nil {
				return failed(StageScope, err)
			}
		}
	}
	var none unix.Sigset_t
	unix.PthreadSigmask(unix.SIG_SETMASK, &none, nil)
	attr := &syscall.ProcAttr{Dir: m.Dir, Env: m.Env, Sys: &syscall.SysProcAttr{Setsid: true, Credential: credential(m.User)}}
	for _, fd := range files {
		attr.Files = append(attr.Files, uintptr(fd))
	}
	if cgroup != nil {
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, cgroup.dir
	}
	pid, err := syscall.ForkExec(m.Path, m.Argv, attr)
	if err != nil {
		if err == unix.EACCES && m.User.Set && !mayEnter(m.Dir, m.User) {
			return failed(StageDir, err)
		}
		return failed(StageExec, err)
	}
	return Started{pid}
}

func failed(stage Stage, err error) Message { return StartFailed{stage, errnoOf(err)} }

func errnoOf(err error) syscall.Errno {
	errno, ok := err.(syscall.Errno)
	if !ok {
		errno = unix.EINVAL
	}
	return errno
}
