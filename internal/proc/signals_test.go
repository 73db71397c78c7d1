//go:build linux && !portable

package proc_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"example.com/hangup/internal/event"
	"example.com/hangup/internal/proc"
	"example.com/hangup/internal/proctest"
)

func init() {
	proctest.Program("nosy", nosy)
	if os.Geteuid() == 0 || os.Geteuid()/1000 == proctest.ThrowAway/1000 {
		proctest.Program("victims", victims)
	}
}

// nosy tries to signal, trace, read and limit another process, and says how that went;
// its own limits are its own.
//
//	args: pid
func nosy(args []string) {
	pid, err := strconv.Atoi(args[0])
	must(err)
	_, read := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	limited := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{}, nil)
	must(unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 64, Max: 64}))
	fmt.Println(unix.Kill(pid, 0), unix.PtraceSeize(pid), limited, read != nil)
}

// victims is a server with a tree that is to live, beside one that kills all it may.
//
//	args: shim
func victims(args []string) {
	must(unix.Setrlimit(unix.RLIMIT_NPROC, &unix.Rlimit{Cur: 200, Max: 200}))
	host, err := proc.Open(proc.Options{Shim: args[0]})
	must(err)
	sibling, err := host.Start(context.Background(), sh("exec "+sleep))
	must(err)
	killer, err := host.Start(context.Background(), sh("kill -9 -1; exit 7"))
	must(err)
	fmt.Println("killer", killer.Status().Exit, killer.Wait(context.Background()).Proof)
	select {
	case <-sibling.Done():
		fmt.Println("the sibling is dead")
	default:
		fmt.Println("the sibling lives")
	}
	sibling.Kill()
	fmt.Println("sibling", sibling.Wait(context.Background()).Proof)
	fmt.Println("close", host.Close())
}

// scoped ends a test that needs signals to be kept in, where they are not.
func scoped(t *testing.T, host *proc.Host) {
	t.Helper()
	for _, layer := range host.Containment().Layers {
		if layer.Name == "signals" && !layer.On {
			proctest.Lack(t, "%s", layer.Detail)
		}
	}
}

// TestKillEverybody: a worker that kills every process it may signal reaches nobody
// but its own tree: not its sibling, its shim, nor its server, who are the same user.
func TestKillEverybody(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can make a user that may be killed as a whole")
	}
	scoped(t, open(t))
	shim := proctest.Shim(t)
	argv, env := proctest.Command("victims", shim)
	dir, err := os.MkdirTemp(filepath.Dir(shim), "victims-") // where the user can reach it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	self := filepath.Join(dir, "test")
	for _, err := range []error{os.Chmod(dir, 0o755), duplicate(self, argv[0])} {
		if err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(self, argv[1:]...)
	cmd.Env, cmd.Stderr = env, os.Stderr
	uid := uint32(proctest.ThrowAway + os.Getpid()%1000)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	s := &served{t: t, cmd: cmd, stdout: bufio.NewScanner(stdout)}
	for _, want := range []string{"killer 7 ECHILD", "the sibling lives", "sibling ECHILD", "close <nil>"} {
		if got := s.line(); got != want {
			t.Errorf("%s\nwant %s", got, want)
		}
	}
}

// TestSiblingsAreApart: a worker cannot signal, trace, read or limit another of its user,
// unless it may have new privileges.
func TestSiblingsAreApart(t *testing.T) {
	host := open(t)
	scoped(t, host)
	want := event.Signals
	if os.Geteuid() == 0 {
		want = event.NoIsolation
	}
	if got := host.Containment().Isolation; got != want {
		t.Errorf("isolation %s, want %s", got, want)
	}
	sibling := start(t, host, sh("exec "+sleep))
	argv, env := proctest.Command("nosy", strconv.Itoa(sibling.Pid()))
	spec := proc.Spec{Argv: argv, Env: env, Files: []*os.File{nil, nil, os.Stderr}}
	// The kernel lets root read what it may not trace.
	if got, want := output(t, host, spec), fmt.Sprintln(unix.EPERM, unix.EPERM, unix.EPERM, os.Geteuid() != 0); got != want {
		t.Errorf("%swant %s", got, want)
	}
	spec.NewPrivileges = true
	if got := output(t, host, spec); len(got) < 5 || got[:5] != "<nil>" {
		t.Errorf("with new privileges: %s", got)
	}
	sibling.Kill()
	ended(t, sibling)
}

// TestNoCore: nobody leaves a core, whatever limits the server was started with.
func TestNoCore(t *testing.T) {
	host := open(t)
	spec := sh("ulimit -Sc; ulimit -Hc")
	if got := output(t, host, spec); got != "0\n0\n" {
		t.Errorf("the worker's limits of a core are %q", got)
	}
	tree := start(t, host, sh("exec "+sleep))
	var limit unix.Rlimit
	if err := unix.Prlimit(tree.ShimPid(), unix.RLIMIT_CORE, nil, &limit); err != nil || limit != (unix.Rlimit{}) {
		if os.Geteuid() == 0 { // others may not look at what is not dumpable
			t.Errorf("the shim's are %+v (%v)", limit, err)
		}
	}
	tree.Kill()
	ended(t, tree)
}
