package e2e

import (
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
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

// bombUser is a user who runs nothing but a fork bomb and the server of it.
const bombUser = 64997

// bomb is a task that makes one: as many processes as its user may have, each of which
// goes on trying. It refuses to be anybody but that user.
const bomb = `
import os, resource, time
import hangup

@hangup.task
def echo(input):
    return input

@hangup.task
def bomb(most):
    if os.getuid() != 64997:
        raise hangup.Failure("not as this user")
    resource.setrlimit(resource.RLIMIT_NPROC, (most, most))
    if resource.getrlimit(resource.RLIMIT_NPROC) != (most, most):
        raise hangup.Failure("no limit of processes")
    while True:
        try:
            if os.fork() == 0:
                os.setsid()
        except OSError:
            time.sleep(0.02)  # or it would be 300 busy loops, which are no matter of forks

hangup.serve()
`

// TestForkBomb: a fork bomb of 300 is gone when its caller hangs up; a neighbour's calls go on meanwhile,
// and so do those of its own workload.
func TestForkBomb(t *testing.T) {
	if syscall.Geteuid() != 0 {
		t.Skip("needs root: the bomb has a user of its own, with a limit of processes")
	}
	setpriv := proctest.Need(t, "setpriv", "util-linux")
	s := prepare(t, "  bomb: {command: [python3, -S, bomb.py], workers: 1, spares: 1, stop: {grace: 0s}}\n  py: {command: [python3, -S, worker.py], workers: 1, spares: 0}\n")
	s.write("bomb.py", bomb)
	if err := os.Chmod(filepath.Dir(s.dir), 0o755); err != nil { // the user is to read it
		t.Fatal(err)
	}
	s.cmd.Args = append([]string{setpriv, "--reuid=" + strconv.Itoa(bombUser), "--regid=" + strconv.Itoa(bombUser), "--clear-groups", "--"}, s.cmd.Args...)
	s.cmd.Path = setpriv
	s.run()
	s.eventually("at rest", s.atRest)

	const size = 300
	threads := 0 // of the server and its like, which the limit counts, too
	for _, p := range proc.Look(s.cmd.Process.Pid) {
		tasks, _ := filepath.Glob("/proc/" + strconv.Itoa(p.Pid) + "/task/*")
		threads += len(tasks)
	}
	conn := s.dial()
	input := strconv.Itoa(threads + size)
	io.WriteString(conn, request("/execute/bomb/bomb", "Content-Type: application/json\r\nContent-Length: "+strconv.Itoa(len(input))+"\r\n", input))
	var call callRecord
	s.eventually("a bomb", func() bool {
		for _, c := range s.calls() {
			if c.Task == "bomb" && c.State == "running" {
				call = c
			}
		}
		return call.WorkerPid != 0 && len(proc.Look(call.WorkerPid)) >= size/2
	})
	tree := proc.Look(s.shimOf(call.WorkerPid))[1:]

	var latencies []float64
	neighbour := func() {
		asked := time.Now()
		if r, body := s.post("/execute/py/echo", "1"); r.StatusCode != http.StatusOK {
			t.Errorf("the neighbour: %s %s", r.Status, body)
		}
		latencies = append(latencies, time.Since(asked).Seconds()*1000)
	}
	for range 20 {
		neighbour()
	}
	fin.leave(conn)
	for ended := false; !ended; {
		neighbour()
		s.fetch("/calls/"+call.ID, &call)
		ended = call.Cancel != nil
		if len(latencies) > 100_000 {
			t.Fatal("the bomb is not over")
		}
	}
	if !call.Cancel.Empty || call.Cancel.Killed < size/2 {
		t.Errorf("%+v", *call.Cancel)
	}
	gone(t, tree)
	t.Logf("a bomb of %d processes: gone %.0f ms after the hang-up (bar: 250); %d calls of the neighbour meanwhile, ms: p50 %.1f, p99 %.1f (bar: 20), most %.1f",
		call.Cancel.Killed, call.Cancel.EmptyMs, len(latencies), quantile(latencies, 0.5), quantile(latencies, 0.99), quantile(latencies, 1))
	if call.Cancel.EmptyMs > 10_000 {
		t.Errorf("gone after %.0f ms", call.Cancel.EmptyMs)
	}
	if p99 := quantile(latencies, 0.99); p99 > 2000 {
		t.Errorf("the neighbour's p99 is %.0f ms", p99)
	}
	if r, body := s.post("/execute/bomb/echo", "1"); r.StatusCode != http.StatusOK {
		t.Errorf("the next call: %s %s", r.Status, body)
	}
	s.eventually("at rest", s.atRest)
	s.end(syscall.SIGTERM, 0)
}
