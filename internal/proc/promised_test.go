//go:build linux && !portable

package proc_test

import (
	"fmt"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"example.com/hangup/internal/proc"
	"example.com/hangup/internal/proctest"
)

// TestPromisedTime: from the decision to the proof takes no longer than docs/promises.md
// says, and where the machine has no time for it, not much longer than it takes to kill
// and reap children by hand there.
func TestPromisedTime(t *testing.T) {
	misbehaves := proctest.Compile(t, "misbehave", "testdata/misbehave.c")
	for _, c := range containments {
		t.Run(c.name, func(t *testing.T) {
			needContainment(t, c)
			for _, test := range []struct {
				processes int
				killed    bool // or its main process ends by itself
				promised  time.Duration
			}{
				{1, true, 250 * time.Millisecond},
				{10, true, 250 * time.Millisecond},
				{100, true, 250 * time.Millisecond},
				{10, false, 50 * time.Millisecond},
			} {
				t.Run(fmt.Sprint(test.processes, " killed=", test.killed), func(t *testing.T) {
					host := openWith(t, c)
					// Every other one is an orphan in a session of its own.
					tree := start(t, host, sh(`i=1; while [ $i -lt `+strconv.Itoa(test.processes)+` ]; do i=$((i+1))
						if [ $((i%2)) = 0 ]; then sleep 1000 & else (setsid sleep 1000 &) ; fi
					done; exec sleep 1000`))
					grown(t, tree, test.processes)
					if test.killed {
						tree.Kill()
					} else if err := tree.Signal(unix.SIGTERM); err != nil {
						t.Fatal(err)
					}
					inTime(t, tree, test.promised)
				})
			}
			t.Run("1000", func(t *testing.T) { // a shell would take half a minute to start them
				m := misbehave(t, openWith(t, c), misbehaves, behaviour{name: "thousand", dots: 1001}, false)
				m.inPlace()
				m.tree.Kill()
				inTime(t, m.tree, time.Second)
			})
		})
	}
}

// inTime waits for the verdict, and makes sure that it did not take longer than promised.
func inTime(t *testing.T, tree *proc.Tree, promised time.Duration) {
	t.Helper()
	for !tree.Wait(t.Context()).Empty && t.Context().Err() == nil {
		t.Log("not empty at the first verdict")
	}
	took := ended(t, tree).Took
	t.Logf("%v, promised are %v", took.Round(time.Microsecond), promised)
	if took <= promised {
		return
	}
	var slow time.Duration
	for range 3 {
		slow = max(slow, byHand(t))
	}
	t.Logf("by hand, ten take %v here now", slow)
	if took > promised+50*slow {
		t.Errorf("empty after %v, promised are %v", took, promised)
	}
}

// byHand is how long it takes to kill and reap ten children: what the machine's load
// does to any such thing.
func byHand(t *testing.T) time.Duration {
	t.Helper()
	var children []*exec.Cmd
	for range 10 {
		child := exec.Command("sleep", "1000")
		child.Env = proctest.Env()
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		children = append(children, child)
	}
	began := time.Now()
	for _, child := range children {
		child.Process.Kill()
	}
	for _, child := range children {
		child.Wait()
	}
	return time.Since(began)
}
