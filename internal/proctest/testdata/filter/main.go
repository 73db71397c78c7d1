// Command filter has the kernel tell the system calls of a program, and of all that
// it starts, and hands the listener out over descriptor 3.
//
//	filter only|all CALLS PROGRAM [ARG…]
//
// CALLS are numbers, with commas: those that are told, or those that are not.
package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const socket = 3

func main() {
	err := run(os.Args[1], os.Args[2], os.Args[3:])
	fmt.Fprintln(os.Stderr, "filter:", err)
	os.Exit(1)
}

func run(mode, calls string, argv []string) error {
	listed, other := uint32(unix.SECCOMP_RET_USER_NOTIF), uint32(unix.SECCOMP_RET_ALLOW)
	if mode == "all" {
		listed, other = other, listed
	}
	const number = 0 // of the call: the first field of what a filter looks at
	filter := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: number}}
	for field := range strings.SplitSeq(calls, ",") {
		call, err := strconv.Atoi(field)
		if err != nil {
			return err
		}
		filter = append(filter,
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(call), Jf: 1},
			unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: listed})
	}
	filter = append(filter, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: other})
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	unix.CloseOnExec(socket)

	// The filter is this thread's, and so the program's that it becomes. Another thread
	// hands out the listener. Until somebody listens, this one can make no call, which
	// every wait of Go may come to: they wait for each other by looking.
	runtime.GOMAXPROCS(2)
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	var listening, listener, sent atomic.Int64
	go func() {
		runtime.LockOSThread()
		listening.Store(1)
		for listener.Load() == 0 {
		}
		if fd := int(listener.Load()); fd > 0 {
			unix.Sendmsg(socket, []byte{0}, unix.UnixRights(fd), nil, 0)
		}
		sent.Store(1)
		select {}
	}()
	for listening.Load() == 0 {
	}
	fd, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_NEW_LISTENER|unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		listener.Store(-1)
		return fmt.Errorf("cannot install a filter: %w", errno)
	}
	listener.Store(int64(fd))
	for sent.Load() == 0 {
	}
	return syscall.Exec(argv[0], argv, os.Environ()) // closes the listener, too
}
