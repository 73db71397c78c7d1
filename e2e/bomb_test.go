package e2e

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"example.com/hangup/internal/proc"
	"example.com/hangup/internal/proctest"
)

var bomber = strconv.Itoa(proctest.Bomber)

// bomb is a task that makes one: as many processes as its user may have, each of which
// goes on trying. It refuses to be anybody but the user who runs nothing else.
var bomb = `
import os, resource, time
import hangup

@hangup.task
def echo(input):
    return input

@hangup.task
def bomb(most):
    if os.getuid() != ` + bomber + `:
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
// and so do those of its own workload. What that takes is logged, and is no verdict: the
// machine may be busy.
func TestForkBomb(t *testing.T) {
	if syscall.Geteuid() != 0 {
		t.Skip("needs root: the bomb has a user of its own, with a limit of processes")
	}
	setpriv := proctest.Need(t, "setpriv", "util-linux")
	s := prepare(t, "  bomb: {command: [python3, -S, bomb.py], workers: 1, spares: 1, stop: {grace: 0s}}\n  py: {command: [python3, -S, worker.py], workers: 1, spares: 0}\n")
	s.write("bomb.py", bomb)
	for _, err := range []error{
		os.Chmod(filepath.Dir(s.dir), 0o755), // the user is to read it
		os.Chown(filepath.Join(s.dir, "tmp"), proctest.Bomber, proctest.Bomber),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	s.cmd.Args = append([]string{setpriv, "--reuid=" + bomber, "--regid=" + bomber, "--clear-groups", "--"}, s.cmd.Args...)
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
	took, p99 := call.Cancel.EmptyMs, quantile(latencies, 0.99)
	t.Logf("a bomb of %d processes: gone %.0f ms after the hang-up; %d calls of the neighbour meanwhile, ms: p50 %.1f, p99 %.1f, most %.1f",
		call.Cancel.Killed, took, len(latencies), quantile(latencies, 0.5), p99, quantile(latencies, 1))
	if r, body := s.post("/execute/bomb/echo", "1"); r.StatusCode != http.StatusOK {
		t.Errorf("the next call: %s %s", r.Status, body)
	}
	s.eventually("at rest", s.atRest)
	s.end(syscall.SIGTERM, 0)
}
