package proctest

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Fault is one system call that fails, once: the Nth of that kind that all
// processes of that role make together. strace -e inject counts for each thread by
// itself, and a program in Go has many: there, one fault becomes one in each.
type Fault struct {
	Made
	Nth   int // 0: none fails
	Errno syscall.Errno
}

// Made is a system call, by its number, and the role of who made it.
type Made struct {
	Role string
	Call int
}

// Faults are the system calls of a program, and of all that it starts.
type Faults struct {
	role  func(argv []string) string
	fault Fault
	ended chan struct{}

	mu       sync.Mutex
	made     map[Made]int
	injected bool
}

// exempt are calls that never fail here. Most are those of which the Go runtime
// does not survive that they fail; that is as good as kill -9, and tested as such.
// A close that fails has closed all the same.
var exempt = []int{
	unix.SYS_MMAP, unix.SYS_MUNMAP, unix.SYS_MADVISE, unix.SYS_MPROTECT, unix.SYS_BRK, unix.SYS_MINCORE,
	unix.SYS_FUTEX, unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_CLOCK_GETTIME, unix.SYS_SCHED_YIELD, unix.SYS_SCHED_GETAFFINITY,
	unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK, unix.SYS_TGKILL, unix.SYS_RESTART_SYSCALL,
	unix.SYS_RSEQ, unix.SYS_SET_ROBUST_LIST, unix.SYS_SET_TID_ADDRESS, unix.SYS_GETRANDOM, unix.SYS_GETTID, unix.SYS_GETPID, unix.SYS_GETPPID,
	unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_PWAIT, unix.SYS_EVENTFD2,
	unix.SYS_CLOSE, unix.SYS_EXIT, unix.SYS_EXIT_GROUP,
}

// Watch has the kernel tell the system calls of cmd, which was not started yet, and
// of all that it will start: those that fault is about, or all when there is none.
// They are counted by the role that role makes of a process's argv; a process whose
// role is "" is left in peace. None of them can gain privileges.
func Watch(t testing.TB, cmd *exec.Cmd, role func(argv []string) string, fault Fault) *Faults {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	mode, calls := "all", exempt
	if fault.Nth > 0 {
		mode, calls = "only", []int{fault.Call}
	}
	list := strings.Trim(strings.ReplaceAll(fmt.Sprint(calls), " ", ","), "[]")
	filter := Build(t, "filter", "./internal/proctest/testdata/filter")
	cmd.Args = append([]string{filter, mode, list, cmd.Path}, cmd.Args[1:]...)
	cmd.Path = filter
	theirs := os.NewFile(uintptr(pair[1]), "filter")
	cmd.ExtraFiles = []*os.File{theirs}

	f := &Faults{role: role, fault: fault, ended: make(chan struct{}), made: make(map[Made]int)}
	go f.serve(pair[0])
	t.Cleanup(func() {
		theirs.Close()
		<-f.ended
	})
	return f
}

// Made tells how many calls of each kind were made so far.
func (f *Faults) Made() map[Made]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.made)
}

// Injected tells whether the call was made, and has failed.
func (f *Faults) Injected() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.injected
}

// notification and response are struct seccomp_notif and seccomp_notif_resp.
type notification struct {
	id         uint64
	pid, flags uint32
	call       int32
	arch       uint32
	ip         uint64
	args       [6]uint64
}

type response struct {
	id    uint64
	value int64
	err   int32
	flags uint32
}

// serve decides about every call. It ends when nobody is left to make one.
func (f *Faults) serve(socket int) {
	defer close(f.ended)
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(socket, make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
	unix.Close(socket)
	if err != nil || n == 0 {
		return // the filter says why
	}
	messages, _ := unix.ParseSocketControlMessage(oob[:n])
	listeners, _ := unix.ParseUnixRights(&messages[0])
	listener := uintptr(listeners[0])
	defer unix.Close(listeners[0])
	for {
		polled := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
		if _, err := unix.Poll(polled, -1); err == unix.EINTR {
			continue
		}
		if polled[0].Revents&unix.POLLIN == 0 {
			return
		}
		var n notification
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, listener, unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&n))); errno != 0 {
			continue // killed meanwhile
		}
		r := response{id: n.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
		if f.fails(n) {
			r.flags, r.err = 0, -int32(f.fault.Errno)
		}
		unix.Syscall(unix.SYS_IOCTL, listener, unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&r)))
	}
}

// fails counts a call, and tells whether it is to fail.
func (f *Faults) fails(n notification) bool {
	switch a := n.args; { // more that the runtime does not survive
	case n.call == unix.SYS_CLONE && a[0]&unix.CLONE_THREAD != 0,
		n.call == unix.SYS_FCNTL && a[0] <= 2 && a[1] == unix.F_GETFD,                    // are the standard three there?
		n.call == unix.SYS_EPOLL_CTL && a[2] == a[0]+1,                                   // what wakes its poller, opened right behind it
		(n.call == unix.SYS_READ || n.call == unix.SYS_WRITE) && a[2] == 8 && a[0] <= 20: // waking it
		return false
	}
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", n.pid))
	if err != nil {
		return false
	}
	var argv []string
	for arg := range bytes.SplitSeq(bytes.TrimSuffix(line, []byte{0}), []byte{0}) {
		argv = append(argv, string(arg))
	}
	made := Made{f.role(argv), int(n.call)}
	if made.Role == "" {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.made[made]++
	if made != f.fault.Made || f.made[made] != f.fault.Nth {
		return false
	}
	f.injected = true
	return true
}
