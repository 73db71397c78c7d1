//go:build !linux || portable

package proc_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"example.com/hangup/internal/proc"
	"example.com/hangup/internal/proctest"
)

func TestMain(m *testing.M) { proctest.Main(m) }

func open(t *testing.T) *proc.Host {
	t.Helper()
	proctest.OneLane(t, "nothing here asks who the user is")
	proctest.Check(t)
	host, err := proc.Open(proc.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := host.Close(); err != nil {
			t.Error(err)
		}
	})
	return host
}

func sh(script string, args ...string) proc.Spec {
	return proc.Spec{Argv: append([]string{"sh", "-c", script}, args...), Env: proctest.Env(), Files: []*os.File{nil, nil, os.Stderr}}
}

func start(t *testing.T, host *proc.Host, spec proc.Spec) *proc.Tree {
	t.Helper()
	tree, err := host.Start(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// grown waits until so many processes are below the main one, which counts, and
// returns them.
func grown(t *testing.T, tree *proc.Tree, want int) (all []proc.Process) {
	t.Helper()
	if !proctest.Eventually(func() bool { all = proc.Look(tree.Pid()); return len(all) == want }) {
		t.Fatalf("the tree has %d processes, want %d", len(all), want)
	}
	return all
}

// ended waits for the verdict and makes sure that it is true.
func ended(t *testing.T, tree *proc.Tree, all ...proc.Process) proc.Verdict {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), proctest.Patience)
	defer cancel()
	verdict := tree.Wait(ctx)
	if !verdict.Empty || verdict.Proof != proc.ProofGroup || verdict.Took <= 0 {
		t.Fatalf("verdict %+v, want empty by process-group", verdict)
	}
	if err := syscall.Kill(-tree.Pid(), 0); err != syscall.ESRCH {
		t.Errorf("verdict empty, and the group answers %v", err)
	}
	for _, p := range all {
		for _, now := range proc.Look(p.Pid) {
			if now.Started == p.Started && now.State != "Z" {
				t.Errorf("verdict empty, and there is %+v", now)
			}
		}
	}
	return verdict
}

const sleep = "sleep 1000"

func TestKillEndsGroupAndWhoIsBelow(t *testing.T) {
	for _, test := range []struct {
		name, script string
		processes    int
	}{
		{"one process", "exec " + sleep, 1},
		{"a child", sleep + " & exec " + sleep, 2},
		{"ignores every signal", "trap '' HUP INT QUIT TERM; " + sleep + " & exec " + sleep, 2},
		{"stopped itself", sleep + " & kill -STOP $$", 2},
		{"a child in a session of its own, with a child", "setsid sh -c '" + sleep + " & exec " + sleep + "' & exec " + sleep, 3},
		{"thirty children", "i=0; while [ $i -lt 30 ]; do i=$((i+1)); " + sleep + " & done; exec " + sleep, 31},
	} {
		t.Run(test.name, func(t *testing.T) {
			host := open(t)
			tree := start(t, host, sh(test.script))
			all := grown(t, tree, test.processes)
			tree.Kill()
			tree.Kill() // has no further effect
			if v := ended(t, tree, all...); v.Reaped != test.processes {
				t.Errorf("%d gone, want %d", v.Reaped, test.processes)
			}
			if status := tree.Status(); status.Exit != -1 || status.Signal != syscall.SIGKILL || status.MaxRSS < 1<<16 {
				t.Errorf("status %+v, want ended by SIGKILL", status)
			}
			if err := tree.Signal(syscall.SIGTERM); !errors.Is(err, proc.ErrExited) {
				t.Errorf("a signal to a process that has ended: %v", err)
			}
		})
	}
}

// The main process is the tree: when it ends, by itself or by a signal, its group goes,
// orphans too.
func TestMainProcessEnds(t *testing.T) {
	for _, test := range []struct {
		script string
		exit   int
		signal syscall.Signal
	}{
		{"exit 0", 0, 0},
		{sleep + " & (" + sleep + " &) ; exit 7", 7, 0},
		{sleep + " & kill -PIPE $$", -1, syscall.SIGPIPE},
	} {
		host := open(t)
		tree := start(t, host, sh(test.script))
		ended(t, tree)
		if status := tree.Status(); status.Exit != test.exit || status.Signal != test.signal {
			t.Errorf("%s: status %+v", test.script, status)
		}
	}
}

// Who has left the group is found when the main process is signalled, though it ends by
// that and leaves an orphan.
func TestSignalNotesWhoIsBelow(t *testing.T) {
	host := open(t)
	tree := start(t, host, sh("setsid "+sleep+" & exec "+sleep))
	all := grown(t, tree, 2)
	if err := tree.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if v := ended(t, tree, all...); v.Reaped != 2 {
		t.Errorf("%d gone, want 2", v.Reaped)
	}
	if status := tree.Status(); status.Signal != syscall.SIGTERM {
		t.Errorf("status %+v", status)
	}
}

func TestStart(t *testing.T) {
	host := open(t)
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, []byte("#!/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, most := range []int{0, 64} {
		for _, test := range []struct{ program, dir, want string }{
			{"no-such", "", "cannot start no-such: not found in PATH"},
			{"/no/such", "", "cannot start /no/such: no such file or directory"},
			{plain, "", "cannot start " + plain + ": permission denied"},
			{dir, "", "cannot start " + dir + ": permission denied"},
			{"/bin/sh", "/no/such", "cannot start /bin/sh: "},
		} {
			_, err := host.Start(t.Context(), proc.Spec{Argv: []string{test.program}, Dir: test.dir, Env: proctest.Env(), MaxFiles: most})
			if err == nil || !strings.HasPrefix(err.Error(), test.want) {
				t.Errorf("files %d: error %v, want %s…", most, err, test.want)
			}
		}
	}
	cause := errors.New("the reason")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if _, err := host.Start(ctx, sh("exit 0")); !errors.Is(err, cause) {
		t.Errorf("error %v, want %v", err, cause)
	}
}

// A program has its arguments, directory, descriptors and limit, and nothing of the
// server's.
func TestProgramBegins(t *testing.T) {
	t.Setenv("SECRET", "secret")
	host := open(t)
	dir := t.TempDir()
	result, err := os.Create(filepath.Join(dir, "result"))
	if err != nil {
		t.Fatal(err)
	}
	defer result.Close()
	spec := sh(`echo "$0|$1|$(pwd)|$(ulimit -n)|$SECRET|$(cat)"; : <&3 && echo 3; true 2>/dev/null <&4 || echo no 4`, "a b", "$c")
	spec.Files = []*os.File{nil, result, nil, nil}
	spec.Dir, spec.MaxFiles = dir, 77
	tree := start(t, host, spec)
	ended(t, tree)
	got, err := os.ReadFile(result.Name())
	real, _ := filepath.EvalSymlinks(dir)
	if want := fmt.Sprintf("a b|$c|%s|77||\n3\nno 4\n", real); err != nil || string(got) != want {
		t.Errorf("the program says %q (%v), want %q", got, err, want)
	}
}

func TestCloseKillsTrees(t *testing.T) {
	host := open(t)
	var trees []*proc.Tree
	for range 5 {
		trees = append(trees, start(t, host, sh(sleep+" & exec "+sleep)))
	}
	if err := host.Close(); err != nil {
		t.Fatal(err)
	}
	for _, tree := range trees {
		ended(t, tree)
	}
	if _, err := host.Start(t.Context(), sh("exit 0")); err == nil {
		t.Error("a closed host started a tree")
	}
}

func TestContainmentIsSaid(t *testing.T) {
	held := open(t).Containment()
	if held.Level != "process-group" || held.Isolation != "none" || held.Meets("subreaper") || !held.Meets("process-group") {
		t.Errorf("%+v", held)
	}
	for _, layer := range held.Layers {
		if !layer.On && (layer.Detail == "" || layer.Remedy == "") {
			t.Errorf("%+v is missing, and nothing is said of it", layer)
		}
	}
}
