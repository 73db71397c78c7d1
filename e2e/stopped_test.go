package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"example.com/hangup/internal/proc"
	"example.com/hangup/internal/proctest"
)

// stopProcess sends SIGSTOP and waits until it has come true.
func stopProcess(s *server, pid int) {
	s.t.Helper()
	if err := proctest.Kill(pid, syscall.SIGSTOP); err != nil {
		return // it has ended
	}
	s.eventually("stopped", func() bool {
		all := proc.Look(pid)
		return len(all) == 0 || all[0].State == "T" || all[0].State == "Z"
	})
}

// TestShimStoppedInAKill: a shim that falls silent at any instant of a kill is
// replaced by the supervisor's sweep: the evidence still says that the tree is empty.
func TestShimStoppedInAKill(t *testing.T) {
	s := start(t, "  py: {command: [python3, -S, worker.py], workers: 1, spares: 0, stop: {grace: 20ms}}\n")
	random := dice(t)
	for range 8 {
		s.eventually("at rest", s.atRest)
		conn := s.dial()
		fmt.Fprint(conn, request("/execute/py/tree", "Content-Length: 4\r\n", "null"))
		call := s.newest("running", func(c callRecord) bool { return c.State == "running" })
		shim := s.shimOf(call.WorkerPid)
		var tree []proc.Process
		s.eventually("a family", func() bool { tree = proc.Look(shim); return len(tree) >= 5 })
		fin.leave(conn)
		time.Sleep(time.Duration(random.IntN(40)) * time.Millisecond) // any instant will do
		stopProcess(s, shim)
		s.eventually("the evidence", func() bool {
			s.fetch("/calls/"+call.ID, &call)
			return call.Cancel != nil
		})
		if call.Outcome != "cancelled" || !call.Cancel.Empty || len(call.Cancel.Survivors) > 0 {
			t.Errorf("%+v, %+v", call, *call.Cancel)
		}
		proctest.Kill(shim, syscall.SIGCONT) // where it had been quicker
		gone(t, tree[1:])
	}
}

// TestSupervisorStopped: when the server is killed while the supervisor is stopped,
// the shims do it alone. What has lost both its shim and the server waits for the
// supervisor, and has gone a moment after it goes on.
func TestSupervisorStopped(t *testing.T) {
	for _, orphaned := range []bool{false, true} {
		t.Run(fmt.Sprint("orphans ", orphaned), func(t *testing.T) {
			s := launch(t, "  py: {command: [python3, -S, worker.py], workers: 2, spares: 0}\n")
			go s.try("/execute/py/tree", "null")
			go s.try("/execute/py/tree", "null")
			s.eventually("trees", func() bool { return len(s.atWork()) >= 2+2*3 })
			all := proc.Look(s.cmd.Process.Pid)
			stopProcess(s, s.cmd.Process.Pid)
			if orphaned {
				for _, p := range all {
					if p.Parent == s.pid && strings.HasPrefix(p.Command, "hangup-shim") {
						proctest.Kill(p.Pid, syscall.SIGKILL)
					}
				}
			}
			began := time.Now()
			if err := proctest.Kill(s.pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if !orphaned {
				// Zombies there are: their parent is stopped.
				if !proctest.Eventually(func() bool { return len(s.atWork()) == 0 }) {
					t.Errorf("left behind: %s", s.atWork())
				}
				t.Logf("without the supervisor all was dead after %v", time.Since(began).Round(time.Millisecond))
			}
			began = time.Now()
			proctest.Kill(s.cmd.Process.Pid, syscall.SIGCONT)
			s.gone(all, 128+int(syscall.SIGKILL))
			if left := s.atWork(); len(left) > 0 {
				t.Errorf("left behind: %s", left)
			}
			t.Logf("with it, all was gone after %v", time.Since(began).Round(time.Millisecond))
		})
	}
}

// TestKillDuringStart: a server that is killed while it starts, and starts its first
// shims and workers, leaves nothing.
func TestKillDuringStart(t *testing.T) {
	random := dice(t)
	for range 10 {
		s := prepare(t, "  py: {command: [python3, -S, worker.py], workers: 3, spares: 1}\n")
		s.begin()
		// The instant is that at which there are so many processes; at rest there are 12.
		want := 2 + random.IntN(9)
		var all []proc.Process
		s.eventually("a start under way", func() bool {
			all = proc.Look(s.cmd.Process.Pid)
			return len(all) >= want && strings.HasPrefix(all[0].Command, "hangup-shim supervise")
		})
		began := time.Now()
		if err := proctest.Kill(all[1].Pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		s.gone(all, 128+int(syscall.SIGKILL))
		if left := s.atWork(); len(left) > 0 {
			t.Errorf("left behind: %s", left)
		}
		t.Logf("%d processes, gone after %v", len(all), time.Since(began).Round(time.Millisecond))
	}
}

// TestShimKilledDuringStart: shims are killed while workers are being started; each
// start fails or its worker serves, and the pool is whole again in the end.
func TestShimKilledDuringStart(t *testing.T) {
	s := start(t, "  py: {command: [python3, -S, worker.py], workers: 2, spares: 0}\n")
	random := dice(t)
	for range 6 {
		s.eventually("whole", s.atRest)
		// Workers that have served: those that end before are for the back-off (P8).
		for _, call := range []<-chan answer{s.later("/execute/py/sleep", "0.1"), s.later("/execute/py/sleep", "0.1")} {
			if got := <-call; got.status != http.StatusOK {
				t.Fatalf("%+v", got)
			}
		}
		for _, w := range s.workloads()[0].Workers {
			proctest.Kill(w.Pid, syscall.SIGKILL) // it is replaced, so a start is under way
		}
		time.Sleep(time.Duration(random.IntN(30)) * time.Millisecond) // any instant will do
		for _, p := range proc.Look(s.pid) {
			if p.Parent == s.pid && random.IntN(2) == 0 {
				proctest.Kill(p.Pid, syscall.SIGKILL)
			}
		}
	}
	s.eventually("whole again", s.atRest)
}
