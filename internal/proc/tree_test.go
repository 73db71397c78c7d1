//go:build linux && !portable

package proc_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"example.com/hangup/internal/proc"
	"example.com/hangup/internal/proctest"
)

const sleep = "sleep 1000"

// hundred starts 100 children: a quarter plain, a quarter in sessions of their
// own, a quarter orphaned, a quarter both.
const hundred = `i=0; while [ $i -lt 25 ]; do i=$((i+1))
	sleep 1000 & setsid sleep 1000 & (sleep 1000 &) ; (setsid sleep 1000 &)
done; exec sleep 1000`

// chain starts a process in a session of its own, which starts the next.
const chain = `n=$1; if [ $n -gt 1 ]; then setsid sh -c "$0" "$0" $((n-1)) & fi; exec sleep 1000`

func TestKillLeavesNothing(t *testing.T) {
	tests := []struct {
		name, script string
		processes    int
	}{
		{"one process", "exec " + sleep, 1},
		{"a child", sleep + " & exec " + sleep, 2},
		{"a session of its own", "setsid " + sleep + " & exec " + sleep, 2},
		{"a double fork", "(" + sleep + " &) ; exec " + sleep, 2},
		{"a double fork into a session of its own", "(setsid " + sleep + " &) ; exec " + sleep, 2},
		{"ignores every signal", "trap '' HUP INT QUIT TERM USR1 USR2 PIPE CONT; " + sleep + " & exec " + sleep, 2},
		{"stopped itself", sleep + " & kill -STOP $$", 2},
		{"a stopped child in another session", "setsid sh -c 'kill -STOP $$' & exec " + sleep, 2},
		{"a hundred children", hundred, 101},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			host := open(t)
			tree := start(t, host, sh(test.script))
			grown(t, tree, test.processes)
			tree.Kill()
			tree.Kill() // has no further effect
			verdict := ended(t, tree)
			if verdict.Reaped != test.processes {
				t.Errorf("%d processes reaped, want %d", verdict.Reaped, test.processes)
			}
			if status := tree.Status(); status.Exit != -1 || status.Signal != syscall.SIGKILL {
				t.Errorf("status %+v, want ended by SIGKILL", status)
			}
		})
	}
}

// TestKillOverZombies: children that have ended and are never waited for are
// reaped with the rest.
func TestKillOverZombies(t *testing.T) {
	host := open(t)
	argv, env := proctest.Command("neglect")
	tree := start(t, host, proc.Spec{Argv: argv, Env: env, Files: []*os.File{nil, nil, os.Stderr}})
	zombies := func() (n int) {
		for _, p := range proc.Look(tree.Pid()) {
			if p.State == "Z" {
				n++
			}
		}
		return n
	}
	if !proctest.Eventually(func() bool { return zombies() == neglected }) {
		t.Fatalf("%d zombies, want %d", zombies(), neglected)
	}
	tree.Kill()
	if verdict := ended(t, tree); verdict.Reaped != neglected+1 {
		t.Errorf("%d processes reaped, want %d", verdict.Reaped, neglected+1)
	}
}

func TestKillDeepChain(t *testing.T) {
	host := open(t)
	spec := sh(chain)
	spec.Argv = append(spec.Argv, chain, "50")
	tree := start(t, host, spec)
	grown(t, tree, 50)
	tree.Kill()
	ended(t, tree)
}

// The main process is the tree: when it ends, by itself or not, the rest goes.
func TestMainProcessEnds(t *testing.T) {
	tests := []struct {
		name, script string
		want         proc.Status
	}{
		{"exits 0", "exit 0", proc.Status{Exit: 0}},
		{"exits 7", "exit 7", proc.Status{Exit: 7}},
		{"by SIGTERM", "kill -TERM $$", proc.Status{Exit: -1, Signal: syscall.SIGTERM}},
		{"by SIGKILL", "kill -KILL $$", proc.Status{Exit: -1, Signal: syscall.SIGKILL}},
		{"by SIGPIPE", "kill -PIPE $$", proc.Status{Exit: -1, Signal: syscall.SIGPIPE}},
		{"leaves a child", sleep + " & exit 3", proc.Status{Exit: 3}},
		{"leaves orphans in sessions", "setsid " + sleep + " & (setsid " + sleep + " &) ; exit 4", proc.Status{Exit: 4}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			host := open(t)
			tree := start(t, host, sh(test.script))
			ended(t, tree)
			got := tree.Status()
			if got.Exit != test.want.Exit || got.Signal != test.want.Signal {
				t.Errorf("status %+v, want %+v", got, test.want)
			}
			if got.MaxRSS <= 0 {
				t.Errorf("status %+v says nothing of the memory", got)
			}
			if err := tree.Signal(syscall.SIGTERM); err == nil {
				t.Error("a signal to a process that has ended was not refused")
			}
		})
	}
}

func TestSignalReachesMainProcessOnly(t *testing.T) {
	host := open(t)
	// The child would leave a mark; the main process waits for its own.
	script := `dir=$1
	sh -c 'trap "touch $0/child" USR1; touch $0/ready; while :; do sleep 0.01; done' $dir &
	trap 'exit 5' USR1; touch $dir/main; while :; do sleep 0.01; done`
	dir := t.TempDir()
	spec := sh(script)
	spec.Argv = append(spec.Argv, "sh", dir)
	tree := start(t, host, spec)
	for _, mark := range []string{"/ready", "/main"} {
		if !proctest.Eventually(func() bool { _, err := os.Stat(dir + mark); return err == nil }) {
			t.Fatal("the script did not begin")
		}
	}
	if err := tree.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	ended(t, tree)
	if status := tree.Status(); status.Exit != 5 {
		t.Errorf("status %+v, want exit 5", status)
	}
	if _, err := os.Stat(dir + "/child"); err == nil {
		t.Error("the child got the signal as well")
	}
}

// A grandchild that holds the pipe open is gone with its tree, so a reader of the
// pipe comes to its end.
func TestPipeEndsWithTree(t *testing.T) {
	host := open(t)
	if out := output(t, host, sh("setsid "+sleep+" & echo begun; exit 0")); out != "begun\n" {
		t.Errorf("output %q, want %q", out, "begun\n")
	}
}

// While a worker runs, what it orphaned is reaped as it dies.
func TestOrphansAreReaped(t *testing.T) {
	host := open(t)
	tree := start(t, host, sh("i=0; while [ $i -lt 100 ]; do i=$((i+1)); (true &) ; done; exec "+sleep))
	begun := func() bool { return name(tree.Pid()) == "sleep" }
	if !proctest.Eventually(begun) {
		t.Fatal("the script did not come to its end")
	}
	grown(t, tree, 1)
	tree.Kill()
	if verdict := ended(t, tree); verdict.Reaped != 1 {
		t.Errorf("%d reaped, want 1: the others were reaped before the stop", verdict.Reaped)
	}
}

func name(pid int) string {
	comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return strings.TrimSpace(string(comm))
}

func TestShimIsReused(t *testing.T) {
	const starts = 200
	host := open(t)
	shims := map[int]int{}
	for range starts {
		tree := start(t, host, sh("exit 0"))
		shims[tree.ShimPid()]++
		<-tree.Done()
	}
	// The stock is looked after ten times a second, so there may be some more than one.
	if len(shims) > starts/4 {
		t.Errorf("%d starts came under %d shims", starts, len(shims))
	}
}

// TestStockIsFilled: at rest there are as many idle shims as said, whatever has
// been started, stopped or lost before.
func TestStockIsFilled(t *testing.T) {
	host := open(t)
	filled := func(trees int) {
		t.Helper()
		want := 2*trees + proc.DefaultStock
		if !proctest.Eventually(func() bool { return len(proctest.Descendants(os.Getpid())) == want }) {
			t.Fatalf("%d processes, want %d", len(proctest.Descendants(os.Getpid())), want)
		}
	}
	var trees []*proc.Tree
	for range 3 {
		trees = append(trees, start(t, host, sh("exec "+sleep)))
	}
	filled(3)
	for range 5 {
		trees[0].Kill()
		replacement := start(t, host, sh("exec "+sleep)) // while the other is dying
		ended(t, trees[0])
		trees = append(trees[1:], replacement)
		filled(3)
	}
	for _, p := range proc.Look(os.Getpid()) {
		idle := p.Parent == os.Getpid() && len(proctest.Descendants(p.Pid)) == 0
		if idle {
			if err := proctest.Kill(p.Pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
	}
	filled(3)
}

func TestStockIsBounded(t *testing.T) {
	host := open(t)
	var trees []*proc.Tree
	for range 5 {
		trees = append(trees, start(t, host, sh("exec "+sleep)))
	}
	for _, tree := range trees {
		tree.Kill()
		ended(t, tree)
	}
	if !proctest.Eventually(func() bool { return len(proctest.Descendants(os.Getpid())) == proc.DefaultStock }) {
		t.Errorf("%d shims kept, want %d", len(proctest.Descendants(os.Getpid())), proc.DefaultStock)
	}
}

func TestCloseKillsTrees(t *testing.T) {
	host := open(t)
	tree := start(t, host, sh(hundred))
	grown(t, tree, 101)
	if err := host.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-tree.Done():
	default:
		t.Error("Close has returned and the tree is not done")
	}
	if _, err := host.Start(t.Context(), sh("exit 0")); err == nil {
		t.Error("a closed host started a tree")
	}
}

// Close may come at any instant of a start, which then fails, or whose tree is
// killed; what it uses stays open until it has returned.
func TestCloseWhileStarting(t *testing.T) {
	for range 20 {
		host := open(t)
		var starts sync.WaitGroup
		for range 2 * proc.DefaultStock { // some need a new shim
			starts.Go(func() {
				if tree, err := host.Start(t.Context(), sh(sleep)); err == nil {
					<-tree.Done()
				}
			})
		}
		time.Sleep(rand.N(10 * time.Millisecond)) // any instant will do
		if err := host.Close(); err != nil {
			t.Error(err)
		}
		starts.Wait()
	}
}

// A fork during the kill: eight threads start sessions as fast as they can.
func TestKillWhileForking(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("only as an ordinary user, whose processes are limited")
	}
	host := open(t)
	argv, env := proctest.Command("forker")
	tree := start(t, host, proc.Spec{Argv: argv, Env: env, Files: []*os.File{nil, nil, os.Stderr}})
	if !proctest.Eventually(func() bool { return len(proctest.Descendants(tree.ShimPid())) > 50 }) {
		t.Fatal("the forker did not begin")
	}
	tree.Kill()
	verdict := ended(t, tree)
	t.Logf("%d processes reaped in %v", verdict.Reaped, verdict.Took.Round(time.Microsecond))
}

func TestRSS(t *testing.T) {
	if rss := proc.RSS(os.Getpid()); rss < 1<<20 {
		t.Errorf("this process has %d bytes in memory", rss)
	}
	if rss := proc.RSS(1 << 30); rss != 0 {
		t.Errorf("a process that is none has %d bytes in memory", rss)
	}
}
