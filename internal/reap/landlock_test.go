//go:build linux

package reap

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"example.com/hangup/internal/proctest"
)

func init() { proctest.Program("scopes", scopes) }

// scopes goes into signal scopes from whatever thread there is, the main one among
// them, which is to stay outside: its number is that of the process.
func scopes([]string) {
	runtime.GOMAXPROCS(1)
	onMain := 0
	for range 200 {
		done := make(chan bool)
		go func() { done <- unix.Gettid() == unix.Getpid() }()
		if <-done {
			onMain++
		}
		check(InScope(func() error {
			if unix.Gettid() == unix.Getpid() {
				return fmt.Errorf("on the main thread")
			}
			if err := unix.Kill(unix.Getppid(), 0); err != unix.EPERM {
				return fmt.Errorf("its parent can be signalled: %v", err)
			}
			return nil
		}))
	}
	check(unix.Kill(unix.Getppid(), 0)) // all of that is over
	fmt.Println("kept out,", onMain > 0)
}

func needScope(t *testing.T) {
	t.Helper()
	if err := TrySignalScope(); err != nil {
		proctest.Lack(t, "signals are not kept in here: Linux 6.12 with Landlock is needed")
	}
}

func TestInScope(t *testing.T) {
	needScope(t)
	proctest.Check(t)
	argv, env := proctest.Command("scopes")
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = env
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "kept out, true\n" {
		t.Errorf("%v: %s", err, out)
	}
}

// A shim that is told of a scope, and is in none, would kill everyone of its user. It
// does not begin.
func TestNoScopeNoShim(t *testing.T) {
	shim := proctest.Shim(t)
	proctest.Check(t)
	pair, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
	defer ours.Close()
	defer theirs.Close()
	self, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		t.Fatal(err)
	}
	server := os.NewFile(uintptr(self), "server")
	defer server.Close()
	cmd := exec.Command(shim, "scoped-shim")
	cmd.Env, cmd.ExtraFiles = proctest.Env(), []*os.File{theirs, server}
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 1 || !strings.Contains(string(out), errNoScope.Error()) {
		t.Errorf("%v: %s", err, out)
	}
}
