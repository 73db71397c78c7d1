//go:build linux && !portable

package proc_test

import (
	"fmt"
	"os"
	"testing"
	"time"

	"example.com/hangup/internal/proc"
	"example.com/hangup/internal/proctest"
)

// later waits until a process started now has another start time than one that
// was started before, and returns the time since boot.
func later(t *testing.T) time.Duration {
	t.Helper()
	const tick = 10 * time.Millisecond // of the kernel's start times
	since := proc.SinceBoot()
	proctest.Eventually(func() bool { return proc.SinceBoot() >= since+tick })
	return proc.SinceBoot()
}

func TestStartedSince(t *testing.T) {
	host := open(t)
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	defer out.Close()
	spec := sh("sleep 1000 & while read go; do setsid sleep 1000 & done")
	spec.Files[0] = in
	tree := start(t, host, spec)
	grown(t, tree, 2)

	since := later(t)
	count := func(boot time.Duration, want int) {
		t.Helper()
		if n, err := tree.StartedSince(boot); n != want || err != nil {
			t.Errorf("%d processes started since %v (%v), want %d", n, boot, err, want)
		}
	}
	count(0, 2)
	count(since, 0)
	fmt.Fprintln(out)
	grown(t, tree, 3)
	count(0, 3)
	count(since, 1)
	count(later(t), 0)

	tree.Kill()
	ended(t, tree)
	if n, err := tree.StartedSince(since); err == nil {
		t.Errorf("%d processes of a tree that has ended", n)
	}
}

// Both are of one clock: what starts between two readings of SinceBoot has its
// start time between them.
func TestSinceBootIsTheClockOfStartTimes(t *testing.T) {
	host := open(t)
	before := later(t)
	tree := start(t, host, sh("exec "+sleep))
	after := later(t)
	for _, p := range proc.Look(tree.Pid()) {
		if started := time.Duration(p.Started) * 10 * time.Millisecond; started+10*time.Millisecond <= before || started > after {
			t.Errorf("started %v after boot, want between %v and %v", started, before, after)
		}
	}
	tree.Kill()
	ended(t, tree)
}
