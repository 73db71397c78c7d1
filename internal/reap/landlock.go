//go:build linux

package reap

import (
	"errors"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ScopeABI is the first version of Landlock that keeps signals in.
const ScopeABI = 6

// LandlockABI returns the kernel's version of Landlock; an error says that it has none.
func LandlockABI() (int, error) {
	const version = 1 // LANDLOCK_CREATE_RULESET_VERSION: tell the version, make nothing
	abi, _, errno := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, version)
	if errno != 0 {
		return 0, errno
	}
	return int(abi), nil
}

// TrySignalScope finds out whether signals can be kept in.
func TrySignalScope() error { return InScope(keepLimitsOwn) }

// InScope has do run in a signal scope of its own: on a thread that is thrown away
// afterwards. What do starts is in the scope for good, and without new privileges.
func InScope(do func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good
		if unix.Gettid() == unix.Getpid() {
			// To the kernel the main thread is the process: were it in the scope, what is
			// started there could signal this process. Nobody else runs on it meanwhile.
			defer runtime.UnlockOSThread()
			done <- InScope(do)
			return
		}
		err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
		if err == nil {
			err = keepSignalsIn()
		}
		if err == nil {
			err = do()
		}
		done <- err
	}()
	return <-done
}

// errNoScope is that of a shim which was to be in a signal scope, and is not.
var errNoScope = errors.New("the server can be signalled from here: this is no signal scope")

// inScope makes sure that signals of this process go no further than to what it
// starts: they do not reach the server, whose child and of whose user it is.
func inScope() error {
	switch err := unix.PidfdSendSignal(ServerFD, 0, nil, 0); err {
	case unix.EPERM:
		return nil
	case nil:
		return errNoScope
	default:
		return err
	}
}

// killScope kills all there is in the signal scope of this process, but itself. The
// kernel lets nobody fork meanwhile: it is one step, that nothing below can outrun.
// Outside a scope this would be the end of everyone.
func killScope() { unix.Kill(-1, unix.SIGKILL) }

// isolate keeps this thread, and all that it will start, from others of its user.
func isolate() error {
	if err := keepSignalsIn(); err != nil {
		return err
	}
	return keepLimitsOwn()
}

// keepSignalsIn has this thread, and all that it will start, signal nobody else, nor
// trace anybody else. It can still be signalled. The kernel takes this from a thread
// that has set no_new_privs.
func keepSignalsIn() error {
	// struct landlock_ruleset_attr; what is not handled stays allowed.
	attr := struct{ handledFiles, handledNetwork, scoped uint64 }{scoped: unix.LANDLOCK_SCOPE_SIGNAL}
	fd, _, errno := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr), 0)
	if errno != 0 {
		return errno
	}
	defer unix.Close(int(fd)) // close-on-exec, as the kernel makes it
	if _, _, errno := unix.RawSyscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); errno != 0 {
		return errno
	}
	return nil
}
