//go:build linux && !portable

package proc_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"example.com/hangup/internal/proc"
	"example.com/hangup/internal/proctest"
	"example.com/hangup/internal/reap"
)

// A served is the program "server" at work.
type served struct {
	t                    *testing.T
	cmd                  *exec.Cmd
	stdin                io.Writer
	stdout               *bufio.Scanner
	server, shim, worker int
}

// serve starts a server with two trees, under a supervisor or not.
func serve(t *testing.T, supervised bool, patience time.Duration) *served {
	t.Helper()
	shim := proctest.Shim(t)
	proctest.Check(t)
	argv, env := proctest.Command("server", shim, patience.String())
	if supervised {
		argv = append([]string{shim, "supervise", "--"}, argv...)
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env, cmd.Stderr = env, os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := &served{t: t, cmd: cmd, stdin: stdin, stdout: bufio.NewScanner(stdout)}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			cmd.Process.Kill()
			cmd.Wait()
		}
	})
	for _, number := range []*int{&s.server, &s.shim, &s.worker} {
		line := s.line()
		_, digits, _ := strings.Cut(line, " ")
		if *number, err = strconv.Atoi(digits); err != nil {
			t.Fatalf("the server says %q", line)
		}
	}
	// The last of them may still be on its way from fork to exec.
	if !proctest.Eventually(func() bool { return marked() == 20 }) {
		t.Fatalf("the trees have %d processes, want 20", marked())
	}
	return s
}

func (s *served) line() string {
	s.t.Helper()
	if !s.stdout.Scan() {
		s.t.Fatalf("the server says no more: %v", s.stdout.Err())
	}
	return s.stdout.Text()
}

// ask has the server do something and returns what it says of it.
func (s *served) ask(what string) string {
	s.t.Helper()
	fmt.Fprintln(s.stdin, what)
	return s.line()
}

// marked counts the processes of the trees that are alive, wherever they are.
func marked() int {
	count := 0
	paths, _ := filepath.Glob("/proc/[0-9]*")
	for _, path := range paths {
		pid, _ := strconv.Atoi(filepath.Base(path))
		if pid != os.Getpid() && name(pid) == "sleep" && proctest.Marked(pid) {
			count++
		}
	}
	return count
}

// gone makes sure that no tree is left a second after the killing.
func gone(t *testing.T, since time.Time) {
	t.Helper()
	if !proctest.Eventually(func() bool { return marked() == 0 }) {
		t.Fatalf("%d processes left", marked())
	}
	if took := time.Since(since); took > time.Second {
		t.Errorf("gone after %v, want within a second", took)
	}
}

// A shim that was killed or hangs loses its tree to the supervisor, which alone
// can tell when it is gone. The other tree lives on, and so does the host.
func TestShimIsLost(t *testing.T) {
	tests := []struct {
		name   string
		signal syscall.Signal
		kill   bool
	}{
		{"killed", syscall.SIGKILL, false},
		{"hangs in a stop", syscall.SIGSTOP, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := serve(t, true, 0) // the default
			if err := proctest.Kill(s.shim, test.signal); err != nil {
				t.Fatal(err)
			}
			if test.kill {
				fmt.Fprintln(s.stdin, "kill")
			}
			// How many were reaped for it is open: the supervisor looks by itself, too.
			if got, want := s.ask("verdict"), `empty=true proof="supervisor" reason=""`; got != want {
				t.Errorf("verdict %s\n   want %s", got, want)
			}
			if got := s.ask("other"); got != "10" {
				t.Errorf("the other tree has %s processes, want 10", got)
			}
			if left := marked(); left != 10 {
				t.Errorf("%d processes are left, want those 10", left)
			}
			if got := s.ask("start"); got != "6 ECHILD" {
				t.Errorf("the next start says %q", got)
			}
			if got := s.ask("close"); got != "<nil>" {
				t.Errorf("Close: %s", got)
			}
			if left := marked(); left != 0 {
				t.Errorf("%d processes are left after Close", left)
			}
			if code := exitCode(s.cmd.Wait()); code != 3 {
				t.Errorf("the supervisor exits %d, want the server's 3", code)
			}
		})
	}
}

func exitCode(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return 0
}

// Without a supervisor nobody can prove anything about the tree of a lost shim.
func TestShimIsLostWithoutSupervisor(t *testing.T) {
	host := open(t)
	tree := start(t, host, sh("exec "+sleep))
	if err := proctest.Kill(tree.ShimPid(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	verdict := tree.Wait(t.Context())
	if verdict.Empty || verdict.Reason != "its shim has ended, and there is no supervisor" {
		t.Errorf("verdict %+v", verdict)
	}
	if err := host.Close(); err == nil {
		t.Error("Close has nothing to say of the tree it left behind")
	}
	proctest.Kill(tree.Pid(), syscall.SIGKILL)
}

// Whoever is killed with -9, no process of any tree is left after a second.
func TestKillNine(t *testing.T) {
	tests := []struct {
		name       string
		supervised bool
		victim     func(*served) int
		want       int // the exit code of the first process; -1: it was killed
	}{
		{"server under its supervisor", true, func(s *served) int { return s.server }, 128 + 9},
		{"supervisor", true, func(s *served) int { return s.cmd.Process.Pid }, -1},
		{"server without a supervisor", false, func(s *served) int { return s.server }, -1},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := serve(t, test.supervised, proctest.Patience)
			since := time.Now()
			if err := proctest.Kill(test.victim(s), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			gone(t, since)
			if code := exitCode(s.cmd.Wait()); code != test.want {
				t.Errorf("exit code %d, want %d", code, test.want)
			}
		})
	}
}

// A server that is stopped keeps its trees.
func TestStoppedServerKeepsTrees(t *testing.T) {
	s := serve(t, true, proctest.Patience)
	if err := proctest.Kill(s.server, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if !proctest.Eventually(func() bool {
		stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.server))
		return strings.Contains(string(stat), ") T ")
	}) {
		t.Fatal("the server does not stop")
	}
	proctest.Kill(s.server, syscall.SIGCONT)
	if got := s.ask("other"); got != "10" {
		t.Errorf("the tree has %s processes, want 10", got)
	}
	s.ask("close")
	s.cmd.Wait()
}

// begrudge starts the program registered by that name as an ordinary user, with
// the shim and a command as its arguments: a copy of program that is setuid root.
func begrudge(t *testing.T, name, program string, args ...string) *served {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can make a setuid program")
	}
	original, err := exec.LookPath(program)
	if err != nil {
		t.Skipf("no %s program", program)
	}
	shim := proctest.Shim(t)
	proctest.Check(t)
	dir, err := os.MkdirTemp(filepath.Dir(shim), "setuid-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	setuid, self := filepath.Join(dir, program), filepath.Join(dir, "test") // where the user can reach them
	argv, env := proctest.Command(name, append([]string{shim, setuid}, args...)...)
	for _, err := range []error{
		os.Chmod(dir, 0o755), duplicate(setuid, original), os.Chmod(setuid, 0o755|os.ModeSetuid), duplicate(self, argv[0]),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(self, argv[1:]...)
	cmd.Env, cmd.Stderr = env, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: proctest.Begrudger, Gid: proctest.Begrudger}}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			cmd.Process.Kill()
			cmd.Wait()
		}
	})
	return &served{t: t, cmd: cmd, stdout: bufio.NewScanner(stdout)}
}

func duplicate(to, from string) error {
	program, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, program, 0o755)
}

// What cannot be killed is named after two seconds, and not given up. Here it is a
// worker that has become root, below a shim that is not.
func TestVerdictNotEmpty(t *testing.T) {
	s := begrudge(t, "begrudger", "setpriv", "--reuid=0", "--clear-groups", "sleep", "1000")
	verdict := s.line()
	pid, err := strconv.Atoi(s.line())
	if err != nil {
		t.Fatalf("%q: %v", verdict, err)
	}
	if want := fmt.Sprintf("empty=false in 2s: [{Pid:%d State:S UID:0", pid); !strings.HasPrefix(verdict, want) {
		t.Errorf("first %s\n want %s", verdict, want)
	}
	if err := proctest.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if verdict, want := s.line(), "empty=true in 2s: []"; verdict != want {
		t.Errorf("then %s\n want %s", verdict, want)
	}
	s.line()
	if err := s.cmd.Wait(); err != nil {
		t.Error(err)
	}
}

func TestSupervisorFromEnv(t *testing.T) {
	for _, value := range []string{"", "x", "-1", "2", "999"} {
		t.Setenv(reap.SupervisorEnv, value)
		if file, err := proc.SupervisorFromEnv(); err == nil || file != nil {
			t.Errorf("%q: %v, %v", value, file, err)
		}
	}
	os.Unsetenv(reap.SupervisorEnv)
	if file, err := proc.SupervisorFromEnv(); err != nil || file != nil {
		t.Errorf("without it: %v, %v", file, err)
	}
}
