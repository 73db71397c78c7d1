//go:build linux && !portable

package proc_test

import (
	"os"
	"testing"
	"time"

	"example.com/hangup/internal/proc"
	"example.com/hangup/internal/proctest"
	"example.com/hangup/internal/reap"
)

// What not even SIGKILL ends is told as it is, every two seconds, and is not given up:
// once it can die, it is gone, and its shim is as good as new.
func TestFrozenTree(t *testing.T) {
	for _, c := range containments {
		t.Run(c.name, func(t *testing.T) {
			freezer := proctest.NewFreezer(t)
			needContainment(t, c)
			host := openWith(t, c)
			t.Cleanup(freezer.Thaw) // before the host is closed
			tree := start(t, host, sh("setsid "+sleep+" & exec "+sleep))
			grown(t, tree, 2)
			freezer.Freeze(tree.Pid())
			other := start(t, host, sh("exec "+sleep)) // must not wait for it
			tree.Kill()
			for i := range 2 {
				verdict := tree.Wait(t.Context())
				least := time.Duration(i+1) * reap.VerdictAfter
				if verdict.Empty || verdict.Took < least || len(verdict.Survivors) != 2 {
					t.Fatalf("verdict %+v, want two survivors after %v", verdict, least)
				}
				if s := verdict.Survivors[0]; s.Pid != tree.Pid() || s.State != "D" || s.UID != os.Getuid() || s.Wait == "" {
					t.Errorf("survivor %+v, want process %d in state D, its user and where it waits", s, tree.Pid())
				}
				if s := verdict.Survivors[1]; s.State != "Z" {
					t.Errorf("survivor %+v, want a child that is dead and that the frozen one cannot wait for", s)
				}
				if i == 0 {
					other.Kill()
					ended(t, other)
					ended(t, start(t, host, sh("exit 0")))
				}
			}
			freezer.Thaw()
			for verdict := (proc.Verdict{}); !verdict.Empty && t.Context().Err() == nil; {
				verdict = tree.Wait(t.Context())
			}
			ended(t, tree)
			ended(t, start(t, host, sh("exit 0")))
		})
	}
}
