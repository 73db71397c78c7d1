//go:build !portable

package proc_test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"example.com/hangup/internal/proctest"
)

// errnos are the system calls that are made on the way of a start and a kill, and how
// each may fail. EAGAIN from a socket would be a lie that no kernel tells.
var errnos = map[int]struct {
	name  string
	fails []syscall.Errno
}{
	unix.SYS_READ:              {"read", []syscall.Errno{unix.EINTR, unix.EIO}},
	unix.SYS_PREAD64:           {"pread64", []syscall.Errno{unix.EIO}},
	unix.SYS_WRITE:             {"write", []syscall.Errno{unix.EINTR, unix.EIO}},
	unix.SYS_OPENAT:            {"openat", []syscall.Errno{unix.EMFILE, unix.ENOMEM}},
	unix.SYS_FSTAT:             {"fstat", []syscall.Errno{unix.ENOMEM}},
	unix.SYS_NEWFSTATAT:        {"newfstatat", []syscall.Errno{unix.ENOMEM}},
	unix.SYS_READLINKAT:        {"readlinkat", []syscall.Errno{unix.ENOMEM}},
	unix.SYS_FACCESSAT:         {"faccessat", []syscall.Errno{unix.ENOMEM}},
	unix.SYS_FACCESSAT2:        {"faccessat2", []syscall.Errno{unix.ENOMEM}},
	unix.SYS_GETDENTS64:        {"getdents64", []syscall.Errno{unix.EINTR, unix.ENOMEM}},
	unix.SYS_FCNTL:             {"fcntl", []syscall.Errno{unix.EMFILE}},
	unix.SYS_DUP3:              {"dup3", []syscall.Errno{unix.EINTR, unix.EMFILE}},
	unix.SYS_PIPE2:             {"pipe2", []syscall.Errno{unix.EMFILE}},
	unix.SYS_SOCKETPAIR:        {"socketpair", []syscall.Errno{unix.EMFILE}},
	unix.SYS_GETSOCKOPT:        {"getsockopt", []syscall.Errno{unix.ENOBUFS}},
	unix.SYS_SENDMSG:           {"sendmsg", []syscall.Errno{unix.EINTR, unix.ENOBUFS}},
	unix.SYS_RECVMSG:           {"recvmsg", []syscall.Errno{unix.EINTR, unix.ENOMEM}},
	unix.SYS_EPOLL_CTL:         {"epoll_ctl", []syscall.Errno{unix.ENOMEM, unix.ENOSPC}},
	unix.SYS_PPOLL:             {"ppoll", []syscall.Errno{unix.EINTR, unix.ENOMEM}},
	unix.SYS_CLOSE_RANGE:       {"close_range", []syscall.Errno{unix.EINTR, unix.ENOMEM}},
	unix.SYS_CLONE:             {"clone", []syscall.Errno{unix.EAGAIN, unix.ENOMEM}},
	unix.SYS_CLONE3:            {"clone3", []syscall.Errno{unix.EAGAIN, unix.ENOMEM}},
	unix.SYS_EXECVE:            {"execve", []syscall.Errno{unix.EAGAIN, unix.ENOMEM}},
	unix.SYS_MKDIRAT:           {"mkdirat", []syscall.Errno{unix.ENOSPC, unix.ENOMEM}},
	unix.SYS_UNLINKAT:          {"unlinkat", []syscall.Errno{unix.EBUSY, unix.ENOMEM}},
	unix.SYS_FLOCK:             {"flock", []syscall.Errno{unix.EINTR, unix.ENOLCK}},
	unix.SYS_CHDIR:             {"chdir", []syscall.Errno{unix.ENOMEM}},
	unix.SYS_SETSID:            {"setsid", []syscall.Errno{unix.EPERM}},
	unix.SYS_SETPGID:           {"setpgid", []syscall.Errno{unix.EPERM}},
	unix.SYS_SETUID:            {"setuid", []syscall.Errno{unix.EAGAIN, unix.EPERM}},
	unix.SYS_SETGID:            {"setgid", []syscall.Errno{unix.EPERM}},
	unix.SYS_SETRESUID:         {"setresuid", []syscall.Errno{unix.EAGAIN, unix.EPERM}},
	unix.SYS_SETRESGID:         {"setresgid", []syscall.Errno{unix.EPERM}},
	unix.SYS_SETGROUPS:         {"setgroups", []syscall.Errno{unix.EPERM, unix.ENOMEM}},
	unix.SYS_SCHED_SETAFFINITY: {"sched_setaffinity", []syscall.Errno{unix.EINVAL, unix.EPERM}},
	unix.SYS_PRCTL:             {"prctl", []syscall.Errno{unix.EPERM}},
	unix.SYS_PRLIMIT64:         {"prlimit64", []syscall.Errno{unix.EPERM}},
	unix.SYS_GETPGID:           {"getpgid", []syscall.Errno{unix.ESRCH}},
	unix.SYS_GETSID:            {"getsid", []syscall.Errno{unix.ESRCH}},
	unix.SYS_KILL:              {"kill", []syscall.Errno{unix.EPERM, unix.ESRCH}},
	unix.SYS_PIDFD_OPEN:        {"pidfd_open", []syscall.Errno{unix.EMFILE}},
	unix.SYS_PIDFD_SEND_SIGNAL: {"pidfd_send_signal", []syscall.Errno{unix.EPERM}},
	unix.SYS_WAIT4:             {"wait4", []syscall.Errno{unix.EINTR}}, // ECHILD would be a false proof
	unix.SYS_WAITID:            {"waitid", []syscall.Errno{unix.EINTR}},

	unix.SYS_LANDLOCK_CREATE_RULESET: {"landlock_create_ruleset", []syscall.Errno{unix.EMFILE, unix.ENOMEM}},
	unix.SYS_LANDLOCK_RESTRICT_SELF:  {"landlock_restrict_self", []syscall.Errno{unix.EPERM, unix.ENOMEM}},

	unix.SYS_GETRLIMIT:  {"getrlimit", nil},  // cannot fail as it is called
	unix.SYS_LSEEK:      {"lseek", nil},      // back to the beginning of a directory, which cannot fail
	unix.SYS_ARCH_PRCTL: {"arch_prctl", nil}, // the runtime's own
	unix.SYS_GETEUID:    {"geteuid", nil},    // cannot fail
}

// role tells the processes of a careful server apart; what it starts is nobody's. A
// child between fork and exec has the role of its parent.
func role(argv []string) string {
	switch {
	case len(argv) > 1 && path.Base(argv[0]) == "hangup-shim":
		return map[string]string{"supervise": "supervisor", "shim": "shim", "scoped-shim": "shim"}[argv[1]]
	case path.Base(argv[0]) == "careful":
		return "server"
	}
	return ""
}

// careful runs the program of that name to its end, with a fault, and returns what
// it said and how it ended.
func careful(t *testing.T, fault proctest.Fault) (*proctest.Faults, string, error) {
	t.Helper()
	shim := proctest.Shim(t)
	program := proctest.Build(t, "careful", "./internal/proc/testdata/careful")
	proctest.Build(t, "filter", "./internal/proctest/testdata/filter")
	proctest.Check(t)
	cmd := exec.Command(shim, "supervise", "--", program, shim)
	cmd.Env = proctest.Env()
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = in, in
	faults := proctest.Watch(t, cmd, role, fault)
	err = cmd.Start()
	in.Close()
	if err != nil {
		t.Fatal(err)
	}
	// Who still holds the pipe is still there.
	out.SetReadDeadline(time.Now().Add(proctest.Patience))
	said, err := io.ReadAll(out)
	if err != nil {
		t.Errorf("it hangs: %v", err)
		cmd.Process.Signal(syscall.SIGQUIT) // its server tells its goroutines, and ends
		time.AfterFunc(proctest.Patience, func() { cmd.Process.Kill() })
		out.SetReadDeadline(time.Now().Add(proctest.Patience))
		more, _ := io.ReadAll(out)
		said = append(said, more...)
	}
	return faults, string(said), cmd.Wait()
}

// TestFaults: each system call on the way of a start and a kill, in supervisor,
// server and shim, fails once, at each of its occurrences. Nothing hangs, leaks or
// survives, and no verdict is wrong; what could not be done is told, and can be done the next
// time. HANGUP_TEST_FAULTS says how many of all these are tried; 0 is all of them.
func TestFaults(t *testing.T) {
	sample := 40
	if value := os.Getenv("HANGUP_TEST_FAULTS"); value != "" {
		var err error
		if sample, err = strconv.Atoi(value); err != nil {
			t.Fatalf("HANGUP_TEST_FAULTS=%q is no number", value)
		}
	}
	var all []proctest.Fault
	t.Run("none", func(t *testing.T) {
		faults, said, err := careful(t, proctest.Fault{})
		if err != nil || said != "end\n" {
			t.Fatalf("without any fault: %v\n%s", err, said)
		}
		for made, n := range faults.Made() {
			call, known := errnos[made.Call]
			if !known {
				t.Errorf("%s makes the system call %d: say how it may fail", made.Role, made.Call)
			}
			if made.Role == "server" && (made.Call == unix.SYS_READ || made.Call == unix.SYS_WRITE) {
				continue // its own pipes, which are no business of a Host
			}
			for _, errno := range call.fails {
				for nth := range n {
					all = append(all, proctest.Fault{Made: made, Nth: nth + 1, Errno: errno})
				}
			}
		}
	})
	slices.SortFunc(all, func(a, b proctest.Fault) int { return strings.Compare(title(a), title(b)) })
	seed := rand.Uint64()
	if value := os.Getenv("HANGUP_TEST_SEED"); value != "" {
		seed, _ = strconv.ParseUint(value, 10, 64)
	}
	rand.New(rand.NewPCG(seed, 0)).Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	if sample == 0 {
		sample = len(all)
	}
	t.Logf("HANGUP_TEST_SEED=%d: %d faults of %d", seed, min(sample, len(all)), len(all))
	tried := 0
	for _, fault := range all[:min(sample, len(all))] {
		t.Run(title(fault), func(t *testing.T) {
			faults, said, err := careful(t, fault)
			if faults.Injected() { // how often a call is made is not always the same
				tried++
			}
			ended := false
			for line := range strings.Lines(said) {
				ended = line == "end\n"
				if !ended && !strings.HasPrefix(line, "cannot ") && !strings.HasPrefix(line, "hangup-shim: cannot ") && !strings.HasPrefix(line, "filter: ") {
					t.Errorf("it says %q", line)
				}
			}
			// Ended early is ended with an error, told.
			if ended != (err == nil) || said == "" {
				t.Errorf("it ends with %v, and says %q", err, said)
			}
		})
	}
	t.Logf("%d of them were made, and failed", tried)
}

func title(f proctest.Fault) string {
	return fmt.Sprintf("%s/%s/%d/%s", f.Role, errnos[f.Call].name, f.Nth, unix.ErrnoName(f.Errno))
}
