package e2e

import (
	"net/http"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"example.com/hangup/internal/proc"
	"example.com/hangup/internal/proctest"
)

// straying makes orphans that end at once. Whoever runs it inside of a container, as engines
// let one do, leaves them to PID 1.
const straying = `
import os, sys
for _ in range(int(sys.argv[1]) // 50):
    pid = os.fork()
    if pid == 0:
        for _ in range(50):
            if os.fork() == 0:
                os._exit(0)
        os._exit(0)
    os.waitpid(pid, 0)
`

// TestStrays: thousands of orphans from elsewhere (HANGUP_TEST_STRAYS) end as children of
// PID 1, which reaps them all, never has many of them, and holds nobody up by it. Then it is stopped as
// engines do: a call that runs is finished, and the exit code is 0.
func TestStrays(t *testing.T) {
	s, top := asPID1(t, "  inside: {command: [python3, inside.py], workers: 2, spares: 0}\n  py: {command: [python3, worker.py], workers: 1}\n")
	nsenter := proctest.Need(t, "nsenter", "util-linux")
	const sources = 4
	strays := int(number(t, "HANGUP_TEST_STRAYS", 2000))
	var all sync.WaitGroup
	ended := make(chan struct{})
	for range sources {
		cmd := exec.Command(nsenter, "--target", strconv.Itoa(top.Pid), "--pid", "--", "python3", "-S", "-c", straying, strconv.Itoa(strays/sources))
		cmd.Env = proctest.Env()
		all.Go(func() {
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	began := time.Now()
	go func() {
		all.Wait()
		close(ended)
	}()
	zombies := func() (n int) {
		for _, p := range proc.Look(top.Pid) {
			if p.Parent == top.Pid && p.State == "Z" {
				n++
			}
		}
		return n
	}
	most, latencies := 0, []float64{}
	for under := true; under; {
		select {
		case <-ended:
			under = false
		default:
		}
		most = max(most, zombies())
		asked := time.Now()
		if r, body := s.post("/execute/inside/echo", "1"); r.StatusCode != http.StatusOK {
			t.Errorf("a call meanwhile: %s %s", r.Status, body)
		}
		latencies = append(latencies, time.Since(asked).Seconds()*1000)
	}
	took := time.Since(began)
	s.eventually("all reaped", func() bool { return zombies() == 0 })
	t.Logf("%d strays in %v; at most %d zombies at a time; %d calls meanwhile, ms: p50 %.1f, p99 %.1f, most %.1f",
		strays, took.Round(time.Millisecond), most, len(latencies), quantile(latencies, 0.5), quantile(latencies, 0.99), quantile(latencies, 1))
	if most > sources*200 { // each leaves 50 at a time
		t.Errorf("%d zombies at a time", most)
	}

	running := s.later("/execute/py/sleep", "0.5")
	s.running("sleep")
	left := proc.Look(s.cmd.Process.Pid)
	if err := proctest.Kill(top.Pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if got := <-running; got.status != http.StatusOK {
		t.Errorf("a call that ran at SIGTERM got %+v", got)
	}
	s.gone(left, 0)
}

// TestPID1EndsAsItsServer: a container whose server was killed says so by its code.
func TestPID1EndsAsItsServer(t *testing.T) {
	s, top := asPID1(t, "  inside: {command: [python3, inside.py], workers: 2, spares: 0}\n")
	all := proc.Look(s.cmd.Process.Pid)
	for _, p := range all {
		if p.Parent == top.Pid {
			proctest.Kill(p.Pid, syscall.SIGKILL) // the server: it has no other child
		}
	}
	s.gone(all, 128+int(syscall.SIGKILL))
}
