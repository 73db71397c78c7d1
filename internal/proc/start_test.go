//go:build linux && !portable

package proc_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"example.com/hangup/internal/proc"
	"example.com/hangup/internal/proctest"
)

func TestStartFails(t *testing.T) {
	host := open(t)
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	orphan := write("orphan", "#!/no/such/interpreter\n", 0o755)
	plain := write("plain", "#!/bin/sh\n", 0o644)
	garbage := write("garbage", "\x01\x02", 0o755)

	tests := []struct {
		name string
		argv []string
		env  []string
		dir  string
		want string
	}{
		{"no argv", nil, nil, "", "cannot start a program: no name given"},
		{"not in PATH", []string{"python4"}, []string{"PATH=/bin:/usr/bin"}, "", "cannot start python4: not found in PATH /bin:/usr/bin"},
		{"no PATH", []string{"sh"}, nil, "", "cannot start sh: not found: its environment has no PATH"},
		{"in PATH, not executable", []string{"plain"}, []string{"PATH=" + dir}, "", "cannot start plain: " + plain + " is not executable"},
		{"no such file", []string{"/no/such"}, nil, "", "cannot start /no/such: no such file or directory"},
		{"not executable", []string{plain}, nil, "", "cannot start " + plain + ": permission denied"},
		{"a directory", []string{dir}, nil, "", "cannot start " + dir + ": permission denied"},
		{"no interpreter", []string{orphan}, nil, "", "cannot start " + orphan + ": no such file or directory: " + orphan + " is there, but the interpreter it asks for is not"},
		{"no program", []string{garbage}, nil, "", "cannot start " + garbage + ": exec format error: " + garbage + " is no program of this machine, nor a script with a #! line"},
		{"no such directory", []string{"/bin/sh"}, nil, "/no/such", "cannot start /bin/sh: its directory /no/such: no such file or directory"},
		{"directory is a file", []string{"/bin/sh"}, nil, plain, "cannot start /bin/sh: its directory " + plain + ": not a directory"},
		{"argument too long", []string{"/bin/sh", strings.Repeat("x", 1<<20)}, nil, "", "cannot start /bin/sh: argument list too long"},
		{"message too long", []string{"/bin/sh", strings.Repeat("x", 10<<20)}, nil, "", "cannot start /bin/sh: argument list too long"},
		{"NUL in an argument", []string{"/bin/sh", "\x00"}, nil, "", "cannot start /bin/sh: invalid argument"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := host.Start(t.Context(), proc.Spec{Argv: test.argv, Env: test.env, Dir: test.dir})
			if err == nil || err.Error() != test.want {
				t.Errorf("error %v\n want %s", err, test.want)
			}
			// The shim is none the worse for it.
			ended(t, start(t, host, sh("exit 0")))
		})
	}
}

func TestStartFindsProgramInItsOwnWorld(t *testing.T) {
	host := open(t)
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bin", "hello"), []byte("#!/bin/sh\necho \"$0 in $PWD\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, argv0 := range []string{"hello", "bin/hello", "./bin/hello"} {
		spec := proc.Spec{Argv: []string{argv0}, Env: []string{"PATH=/nowhere:bin"}, Dir: dir, Files: make([]*os.File, 3)}
		if out := output(t, host, spec); !strings.Contains(out, "bin/hello in "+dir) {
			t.Errorf("%s: output %q", argv0, out)
		}
	}
}

func TestStartAfterItsContext(t *testing.T) {
	host := open(t)
	cause := errors.New("the reason")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if _, err := host.Start(ctx, sh("exit 0")); !errors.Is(err, cause) {
		t.Errorf("error %v, want %v", err, cause)
	}
}

// A context that ends at any moment of a Start leaves a tree or nothing.
func TestStartRacesItsContext(t *testing.T) {
	host := open(t)
	for range 100 {
		ctx, cancel := context.WithCancel(t.Context())
		go cancel()
		if tree, err := host.Start(ctx, sh("exec "+sleep)); err == nil {
			tree.Kill()
			ended(t, tree)
		} else if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}
}

func TestManyAtOnce(t *testing.T) {
	host := open(t)
	errs := make(chan error)
	const starters = 8
	for range starters {
		go func() {
			errs <- func() error {
				for range 20 {
					tree, err := host.Start(t.Context(), sh("sleep 1000 & exec sleep 1000"))
					if err != nil {
						return err
					}
					tree.Kill()
					if v := tree.Wait(t.Context()); !v.Empty {
						return fmt.Errorf("verdict %+v", v)
					}
				}
				return nil
			}()
		}()
	}
	for range starters {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// The descriptors of a program are those it was given, whatever else is open in
// the server, and even where the server was careless.
func TestDescriptors(t *testing.T) {
	shim := proctest.Shim(t)
	proctest.Check(t)
	careless := func() {
		fd, err := unix.Open(os.DevNull, unix.O_RDONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
	}
	careless()
	host, err := proc.Open(proc.Options{Shim: shim, Stock: 1, Patience: proctest.Patience})
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	careless()
	busy := start(t, host, sh("exec "+sleep)) // so that the next shim inherits the second one
	defer busy.Kill()
	for n := range 8 {
		if n < 2 {
			continue // the listing needs its stdout
		}
		spec := sh(`for f in /proc/$$/fd/*; do [ -e $f ] && echo ${f##*/}; done; exit 0`)
		spec.Files = make([]*os.File, n)
		want := ""
		for fd := range n {
			want += fmt.Sprintln(fd)
		}
		if out := output(t, host, spec); out != want {
			t.Errorf("%d files given, the program has %q", n, strings.Fields(out))
		}
	}
}

// A worker is held to its limit of open files, soft and hard, from the time that
// Start has returned; without one it has what any child of the server has.
func TestMaxFiles(t *testing.T) {
	host := open(t)
	const ask = "read go; ulimit -Sn; ulimit -Hn"
	own, err := exec.Command("sh", "-c", "ulimit -Sn; ulimit -Hn").Output()
	if err != nil {
		t.Fatal(err)
	}
	var server unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &server); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, script string
		most         int
		want         string
	}{
		{"none", ask, 0, string(own)},
		{"a limit", ask, 100, "100\n100\n"},
		{"another one, under the same shim", ask, 200, "200\n200\n"},
		{"none again", ask, 0, string(own)},
		{"more than the server may have", ask, math.MaxInt, fmt.Sprintf("%[1]d\n%[1]d\n", server.Max)},
		{"a child's", "read go; setsid sh -c 'ulimit -Sn; ulimit -Hn'", 100, "100\n100\n"},
		{"one too many", "read go; exec 3</dev/null && echo opened; exec 4</dev/null && echo opened", 4, "opened\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			in, out, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer in.Close()
			defer out.Close()
			result := filepath.Join(t.TempDir(), "result")
			file, err := os.Create(result)
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			spec := sh(test.script)
			spec.Files, spec.MaxFiles = []*os.File{in, file, nil}, test.most
			tree := start(t, host, spec)
			fmt.Fprintln(out)
			ended(t, tree)
			if got, err := os.ReadFile(result); err != nil || string(got) != test.want {
				t.Errorf("the worker says %q (%v), want %q", got, err, test.want)
			}
		})
	}
}

// One that has ended before it could be limited was started all the same.
func TestMaxFilesOfShortLife(t *testing.T) {
	host := open(t)
	for range 100 {
		tree := start(t, host, proc.Spec{Argv: []string{"true"}, Env: proctest.Env(), MaxFiles: 100})
		ended(t, tree)
		if status := tree.Status(); status.Exit != 0 || status.Signal != 0 {
			t.Fatalf("status %+v, want exit 0", status)
		}
	}
}

// A program that is root by itself, as sudo is, cannot be limited by who is not, and
// starts all the same: it was allowed to become that.
func TestMaxFilesOfPrivileged(t *testing.T) {
	s := begrudge(t, "begrudger-limited", "sleep", "1000")
	for _, want := range []string{
		"<nil>",    // the start
		"6 ECHILD", // the next one
		"<nil>",    // Close, which leaves no tree behind
	} {
		if got := s.line(); got != want {
			t.Errorf("%s\n want %s", got, want)
		}
		for _, p := range proc.Look(s.cmd.Process.Pid)[1:] {
			if strings.HasSuffix(p.Command, "sleep 1000") {
				proctest.Kill(p.Pid, unix.SIGKILL) // its shim may not
			}
		}
	}
	if err := s.cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// However the server treats its signals, a program begins with all of them open
// and on their defaults, in a session of its own, and without new privileges.
func TestProgramBeginsClean(t *testing.T) {
	shim := proctest.Shim(t)
	proctest.Check(t)
	ignored := []os.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGPIPE, unix.SIGUSR1, unix.SIGTSTP, unix.SIGTTOU, unix.SIGCONT, unix.SIGWINCH}
	signal.Ignore(ignored...)
	defer signal.Reset(ignored...)

	// Blocked in this thread, from which the shim is started.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all, before unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^uint64(0)
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &before); err != nil {
		t.Fatal(err)
	}
	host, err := proc.Open(proc.Options{Shim: shim, Patience: proctest.Patience})
	unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()

	for _, newPrivileges := range []bool{false, true} {
		spec := proc.Spec{
			Argv: []string{"cat", "/proc/self/status", "/proc/self/stat"}, Env: proctest.Env(),
			Files: make([]*os.File, 3), NewPrivileges: newPrivileges,
		}
		out := output(t, host, spec)
		wantPrivs := map[bool]string{false: "1", true: "0"}[newPrivileges]
		for field, want := range map[string]string{
			"SigBlk": "0000000000000000", "SigIgn": "0000000000000000", "ShdPnd": "0000000000000000", "NoNewPrivs": wantPrivs,
		} {
			if !strings.Contains(out, field+":\t"+want+"\n") {
				t.Errorf("new privileges %v: %s is not %s in\n%s", newPrivileges, field, want, out)
			}
		}
		stat := out[strings.LastIndexByte(out, '(')-10:]
		pid := strings.Fields(stat[:strings.IndexByte(stat, '(')])
		after := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
		if leader := pid[len(pid)-1]; after[2] != leader || after[3] != leader {
			t.Errorf("pid %s has process group %s and session %s", leader, after[2], after[3])
		}
	}
}

// Nothing of the server's environment is in a shim, and neither can be looked into.
func TestShimIsPrivate(t *testing.T) {
	t.Setenv("SECRET", "secret-7391")
	host := open(t)
	tree := start(t, host, sh("exec "+sleep))
	defer tree.Kill()
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", tree.ShimPid()))
	if os.Geteuid() == 0 {
		if err != nil || strings.Contains(string(environ), "secret") {
			t.Errorf("the shim's environment is %q (%v)", environ, err)
		}
	} else if err == nil {
		t.Error("another process of the user can read the shim's environment")
	}
	spec := proc.Spec{Argv: []string{"cat", fmt.Sprintf("/proc/%d/environ", os.Getpid())}, Env: proctest.Env(), Files: make([]*os.File, 3)}
	if os.Geteuid() != 0 {
		if out := output(t, host, spec); out != "" {
			t.Error("a worker can read the server's environment")
		}
	}
}

// Only the hangup-shim of the same build will do.
func TestOpenRefusesOthers(t *testing.T) {
	other := proctest.Build(t, "hangup-shim-other", "./cmd/hangup-shim", "-ldflags=-X example.com/hangup/internal/reap.Build=other")
	proctest.Check(t)
	const remedy = ": reinstall hangup and hangup-shim together"
	for _, test := range []struct{ name, path, want string }{
		{"another build", other, "cannot use " + other + ": it speaks version 3 (build \"other\"), want 3 (build \"dev\")" + remedy},
		{"another program", "/bin/true", "cannot use /bin/true: it did not greet as hangup-shim does (EOF)" + remedy},
		{"no program", "/no/such", "cannot open /no/such: no such file or directory"},
	} {
		if _, err := proc.Open(proc.Options{Shim: test.path}); err == nil || err.Error() != test.want {
			t.Errorf("%s: error %v\n want %s", test.name, err, test.want)
		}
	}
}
