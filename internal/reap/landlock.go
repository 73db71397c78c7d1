//go:build linux

package reap

import (
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

// TrySignalScope finds out whether signals can be kept in, on a thread that is thrown
// away.
func TrySignalScope() error {
	tried := make(chan error)
	go func() {
		runtime.LockOSThread() // for good
		err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
		if err == nil {
			err = isolate()
		}
		tried <- err
	}()
	return <-tried
}

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
