package e2e

import (
	"math/rand/v2"
	"net/http"
	"strconv"
	"syscall"
	"testing"
	"time"

	"example.com/hangup/internal/proc"
	"example.com/hangup/internal/proctest"
)

// stubborn is a workload whose stop sequence may take long.
const stubborn = "  py: {command: [python3, worker.py], workers: 3, spares: 0, stop: {grace: 300ms}}\n"

// TestDrain: SIGTERM and SIGINT make the server unready at once; it takes no new
// calls, lets the running ones end within drain, stops the others, and is gone in
// time (promise P13).
func TestDrain(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(sig.String(), func(t *testing.T) {
			const drain, grace = time.Second, 300 * time.Millisecond
			s := launch(t, stubborn, "drain: 1s")
			short := s.later("/execute/py/sleep", "0.5")
			long := s.later("/execute/py/stubborn", "null")
			s.running("sleep")
			id := s.running("stubborn").ID
			all := proc.Look(s.cmd.Process.Pid)

			began := time.Now()
			if err := s.cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			s.eventually("unready", func() bool { code, _ := s.get("/readyz"); return code == http.StatusServiceUnavailable })
			unready := time.Since(began)
			if got := <-s.later("/execute/py/echo", "1"); !refused(got, "draining") {
				t.Errorf("a new call got %+v", got)
			}
			if code, _ := s.get("/healthz"); code != http.StatusOK {
				t.Errorf("/healthz is %d in the drain", code)
			}
			if got := <-short; got.status != http.StatusOK || got.body != `"slept"` {
				t.Errorf("the call that ends in time got %+v", got)
			}
			got := <-long
			replied := time.Since(began)
			if got.status != http.StatusServiceUnavailable || got.slug != "draining" || got.Outcome != "cancelled" {
				t.Errorf("the call that does not end got %+v", got)
			}
			if replied < drain {
				t.Errorf("it was cancelled after %v, before the drain was over", replied)
			}
			s.gone(all, 0)
			took := time.Since(began)
			t.Logf("unready after %v, gone after %v (promised: 100ms, %v)", unready.Round(time.Millisecond), took.Round(time.Millisecond), drain+grace+time.Second)
			if unready > time.Second || took > drain+grace+2*time.Second {
				t.Errorf("unready after %v, gone after %v", unready, took)
			}
			record := map[string]any{}
			for _, msg := range []string{"call ended", "call cancelled"} {
				for _, r := range s.records(msg) {
					if r["call"] == id {
						for name, value := range r {
							record[name] = value
						}
					}
				}
			}
			if record["outcome"] != "cancelled" || record["by"] != "drain" || record["empty"] != true {
				t.Errorf("its record is %v\nthe log:\n%s", record, s.logText())
			}
		})
	}
}

// refused tells whether a call got that refusal, with a hint when to come back.
func refused(a answer, slug string) bool {
	after, err := strconv.Atoi(a.header.Get("Retry-After"))
	return a.status == http.StatusServiceUnavailable && a.slug == slug && a.Outcome == "rejected" && err == nil && after >= 1
}

// TestSecondSignal: whoever cannot wait for the drain signals again.
func TestSecondSignal(t *testing.T) {
	s := launch(t, "  py: {command: [python3, worker.py], workers: 1, spares: 0, stop: {grace: 1m}}\n", "drain: 1m")
	call := s.later("/execute/py/stubborn", "null")
	s.running("stubborn")
	all := proc.Look(s.cmd.Process.Pid)
	s.cmd.Process.Signal(syscall.SIGTERM)
	s.eventually("unready", func() bool { code, _ := s.get("/readyz"); return code == http.StatusServiceUnavailable })
	began := time.Now()
	s.cmd.Process.Signal(syscall.SIGTERM)
	if got := <-call; got.status != http.StatusServiceUnavailable || got.slug != "draining" {
		t.Errorf("the call got %+v", got)
	}
	s.gone(all, 0)
	took := time.Since(began)
	t.Logf("gone %v after the second signal", took.Round(time.Millisecond))
	if took > 5*time.Second {
		t.Errorf("gone %v after the second signal", took)
	}
}

// TestSignalToAll: a service manager that signals the supervisor and the server, in
// whatever order and however late, gets a drain, and no kill.
func TestSignalToAll(t *testing.T) {
	s := launch(t, python)
	call := s.later("/execute/py/sleep", "0.5")
	s.running("sleep")
	all := proc.Look(s.cmd.Process.Pid)
	for _, pid := range []int{s.pid, s.cmd.Process.Pid, s.pid} {
		if err := proctest.Kill(pid, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		s.eventually("unready", func() bool { code, _ := s.get("/readyz"); return code != http.StatusOK })
	}
	if got := <-call; got.status != http.StatusOK {
		t.Errorf("the running call got %+v", got)
	}
	s.gone(all, 0)
}

// TestInterruptFromTerminal: Ctrl-C goes to the whole foreground group. The server
// hears it once, and so drains; the workers, who would end by it, do not.
func TestInterruptFromTerminal(t *testing.T) {
	s := prepare(t, stubborn)
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	s.run()
	call := s.later("/execute/py/sleep", "0.5")
	s.running("sleep")
	all := proc.Look(s.cmd.Process.Pid)
	if err := syscall.Kill(-s.cmd.Process.Pid, syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if got := <-call; got.status != http.StatusOK || got.body != `"slept"` {
		t.Errorf("the call got %+v", got)
	}
	s.gone(all, 0)
	if drains, kills := len(s.records("draining")), len(s.records("killing everything")); drains != 1 || kills != 0 {
		t.Errorf("the server has drained %d times and killed %d times\n%s", drains, kills, s.logText())
	}
}

// TestSignalInStartUp: a server that is told to end while it starts, ends.
func TestSignalInStartUp(t *testing.T) {
	t.Run("workers not ready", func(t *testing.T) {
		s := prepare(t, "  py: {command: [sh, -c, 'trap \"\" TERM; sleep 1000 & wait'], workers: 2, spares: 0, stop: {grace: 300ms}}\n", "drain: 1m")
		s.run()
		s.eventually("workers that start", func() bool { return len(s.atWork()) == 4 })
		if code, _ := s.get("/readyz"); code != http.StatusServiceUnavailable {
			t.Errorf("/readyz is %d while workers start", code)
		}
		all, began := proc.Look(s.cmd.Process.Pid), time.Now()
		s.cmd.Process.Signal(syscall.SIGTERM)
		s.gone(all, 0)
		t.Logf("gone after %v", time.Since(began).Round(time.Millisecond))
	})
	t.Run("any instant", func(t *testing.T) {
		for range rounds {
			s := prepare(t, stubborn)
			s.begin()
			time.Sleep(rand.N(250 * time.Millisecond)) // any instant will do
			all := proc.Look(s.cmd.Process.Pid)
			s.cmd.Process.Signal(syscall.SIGTERM)
			<-s.exit
			s.ended = true
			// Before it has taken its signals over, it ends as any program does.
			if code := exitCode(s.cmd.ProcessState); code != 0 && code != 128+int(syscall.SIGTERM) {
				t.Errorf("exit code %d\n%s", code, s.logText())
			}
			for _, p := range all {
				if !proctest.Eventually(func() bool { return !p.There() }) {
					t.Errorf("left behind: %d %s", p.Pid, p.Command)
				}
			}
			if left := s.atWork(); len(left) > 0 {
				t.Errorf("left behind: %s", left)
			}
		}
	})
}
