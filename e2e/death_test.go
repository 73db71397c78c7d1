package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"example.com/hangup/internal/proc"
	"example.com/hangup/internal/proctest"
)

// rounds is how often each kind of death is died.
const rounds = 5

// atWork lists the processes of the server's workloads, wherever they have fled:
// all that have its directory as their own.
func (s *server) atWork() []string {
	var list []string
	links, _ := filepath.Glob("/proc/[0-9]*/cwd")
	for _, link := range links {
		if dir, err := os.Readlink(link); err == nil && dir == s.dir {
			list = append(list, filepath.Dir(link))
		}
	}
	return list
}

// churn makes calls and hangs up on them at random instants, so that at any one
// some worker is starting, some is busy and some is dying. It ends with the
// server, or when it is told to.
func (s *server) churn() (stop func()) {
	var callers sync.WaitGroup
	enough := make(chan struct{})
	for range 2 {
		callers.Go(func() {
			for {
				conn, err := net.Dial("tcp", s.addr)
				if err != nil {
					return
				}
				io.WriteString(conn, request("/execute/py/tree", "Content-Length: 4\r\n", "null"))
				select {
				case <-enough:
				case <-time.After(rand.N(150 * time.Millisecond)):
				}
				conn.Close()
				select {
				case <-enough:
					return
				default:
				}
			}
		})
	}
	return func() {
		close(enough)
		callers.Wait()
	}
}

// TestKill9Top: when the server or the supervisor is killed under load, nothing of
// any workload is left after a second: no tree, no shim, no zombie.
func TestKill9Top(t *testing.T) {
	for _, victim := range []string{"server", "supervisor"} {
		t.Run(victim, func(t *testing.T) {
			var worst time.Duration
			for range rounds {
				s := launch(t, "  py: {command: [python3, worker.py], workers: 3, spares: 0, stop: {grace: 10s}}\n")
				go s.try("/execute/py/tree", "null")
				s.eventually("a tree", func() bool { return len(s.atWork()) >= 3+3 })
				stop := s.churn()
				time.Sleep(rand.N(300 * time.Millisecond)) // any instant will do
				all := proc.Look(s.cmd.Process.Pid)
				pid := s.pid
				if victim == "supervisor" {
					pid = s.cmd.Process.Pid
				}
				began := time.Now()
				if err := proctest.Kill(pid, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
				if !proctest.Eventually(func() bool { return len(s.atWork()) == 0 }) {
					t.Errorf("left behind: %s", s.atWork())
				}
				took := time.Since(began)
				worst = max(worst, took)
				s.gone(all, 128+int(syscall.SIGKILL))
				if left := s.atWork(); len(left) > 0 {
					t.Errorf("risen again: %s", left)
				}
				stop()
			}
			t.Logf("%d times all was gone, at the latest after %v (promised: 1 s)", rounds, worst.Round(time.Millisecond))
			if worst > 5*time.Second {
				t.Errorf("%v until all was gone", worst)
			}
		})
	}
}

// TestKill9Below: a shim or a worker that is killed takes down its own call and
// tree, and nothing else.
func TestKill9Below(t *testing.T) {
	s := start(t, "  py: {command: [python3, worker.py], workers: 3, spares: 1, stop: {grace: 200ms}}\n")
	for _, victim := range []string{"shim", "worker"} {
		for range rounds {
			s.killBusy(victim)
			s.killIdle(victim)
		}
	}
}

func (s *server) killBusy(victim string) {
	s.t.Helper()
	s.eventually("at rest", s.atRest)
	neighbour := s.later("/execute/py/sleep", "0.4")
	killed := s.later("/execute/py/tree", "null")
	pid := s.running("tree").WorkerPid
	shim := s.shimOf(pid)
	var tree []proc.Process
	s.eventually("a whole tree", func() bool { tree = proc.Look(shim); return len(tree) >= 5 })
	if victim == "shim" {
		pid = shim
	} else {
		tree = tree[1:] // the shim takes the next worker
	}
	if err := proctest.Kill(pid, syscall.SIGKILL); err != nil {
		s.t.Fatal(err)
	}
	if got := <-killed; got.status != http.StatusBadGateway || got.slug != "worker-died" || got.Outcome != "crashed" || got.Signal != "SIGKILL" {
		s.t.Errorf("the call of a killed %s got %+v", victim, got)
	}
	if got := <-neighbour; got.status != http.StatusOK || got.body != `"slept"` {
		s.t.Errorf("the neighbour of a killed %s got %+v", victim, got)
	}
	for _, p := range tree {
		s.eventually("dead: "+p.Command, func() bool { return !p.There() })
	}
}

func (s *server) killIdle(victim string) {
	s.t.Helper()
	s.eventually("at rest", s.atRest)
	one := s.workloads()[0].Workers[0]
	tree, pid := proc.Look(one.ShimPid), one.ShimPid
	if victim == "worker" {
		tree, pid = tree[1:], one.Pid
	}
	if err := proctest.Kill(pid, syscall.SIGKILL); err != nil {
		s.t.Fatal(err)
	}
	for _, p := range tree {
		s.eventually("dead: "+p.Command, func() bool { return !p.There() })
	}
	s.eventually("out of the pool", func() bool {
		for _, other := range s.workloads()[0].Workers {
			if other.Pid == one.Pid {
				return false
			}
		}
		return true
	})
	if r, body := s.post("/execute/py/echo", "1"); r.StatusCode != http.StatusOK {
		s.t.Errorf("the next call after an idle %s was killed: %s %s", victim, r.Status, body)
	}
}

// answer is what a call came to.
type answer struct {
	status int
	slug   string // of a problem
	body   string
	header http.Header
	err    error

	Outcome, Signal string // members of a problem
}

// later makes a call in the background.
func (s *server) later(path, input string) <-chan answer {
	answers := make(chan answer, 1)
	go func() {
		reply, body, err := s.try(path, input)
		a := answer{body: body, err: err}
		if err == nil {
			a.status, a.header = reply.StatusCode, reply.Header
		}
		if a.status >= 400 {
			var problem struct{ Type string }
			json.Unmarshal([]byte(body), &problem)
			json.Unmarshal([]byte(body), &a)
			a.slug = strings.TrimPrefix(problem.Type, "/problems/")
		}
		answers <- a
	}()
	return answers
}

// running waits for a call of that task to run, and returns it.
func (s *server) running(task string) (found callRecord) {
	s.t.Helper()
	s.eventually("a running "+task, func() bool {
		for _, c := range s.calls() {
			if c.Task == task && c.State == "running" {
				found = c
				return true
			}
		}
		return false
	})
	return found
}

// shimOf is the pid of the shim above a worker.
func (s *server) shimOf(pid int) int {
	s.t.Helper()
	for _, w := range s.workloads() {
		for _, one := range w.Workers {
			if one.Pid == pid {
				return one.ShimPid
			}
		}
	}
	s.t.Fatalf("no worker %d", pid)
	return 0
}

// asPID1 runs a server whose supervisor is PID 1 of a namespace, as an ordinary user,
// and returns the supervisor as it is seen from here.
func asPID1(t *testing.T, workloads string) (*server, proc.Process) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root may make a PID namespace here")
	}
	unshare, setpriv := proctest.Need(t, "unshare", "util-linux"), proctest.Need(t, "setpriv", "util-linux")
	if out, err := exec.Command(unshare, "--pid", "--fork", "--mount-proc", "true").CombinedOutput(); err != nil {
		proctest.Lack(t, "cannot make a PID namespace: %v %s", err, out)
	}
	s := prepare(t, workloads)
	if err := os.Chmod(filepath.Dir(s.dir), 0o755); err != nil { // the user is to read the config
		t.Fatal(err)
	}
	serve, contained := s.cmd.Args, strconv.Itoa(proctest.Contained)
	s.cmd = exec.Command(unshare, append([]string{
		"--pid", "--fork", "--kill-child", "--mount-proc",
		setpriv, "--reuid=" + contained, "--regid=" + contained, "--clear-groups", "--",
	}, serve...)...)
	s.cmd.Env = proctest.Env()
	s.run()
	s.eventually("ready", func() bool { code, _ := s.get("/readyz"); return code == http.StatusOK })

	top := proc.Look(s.cmd.Process.Pid)[1]
	t.Cleanup(func() { // --kill-child does not outlast a change of user
		if !s.ended && top.There() {
			proctest.Kill(top.Pid, syscall.SIGKILL)
		}
	})
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", top.Pid))
	if err != nil || !strings.Contains(string(status), fmt.Sprintf("NSpid:\t%d\t1\n", top.Pid)) || !strings.Contains(string(status), "Uid:\t"+contained+"\t") {
		t.Fatalf("%v, it is not PID 1 of an ordinary user: %s", err, status)
	}
	return s, top
}

// TestPID1: as the first process of a container, under an ordinary user, the
// supervisor ends the orphans that rise to it, and itself when it is told to.
func TestPID1(t *testing.T) {
	s, top := asPID1(t, "  inside: {command: [python3, inside.py], workers: 2, spares: 0}\n")
	atRest := func() bool {
		for _, p := range proc.Look(top.Pid) {
			if p.State == "Z" {
				return false
			}
		}
		return len(s.atWork()) == 2
	}
	s.eventually("at rest", atRest)

	if r, body := s.post("/execute/inside/orphans", `{"n": 100, "stay": false}`); r.StatusCode != http.StatusOK || body != "100" {
		t.Errorf("%s %s", r.Status, body)
	}
	s.eventually("100 orphans reaped", atRest)

	call := s.later("/execute/inside/orphans", `{"n": 100, "stay": true}`)
	s.eventually("100 orphans alive", func() bool { return len(s.atWork()) == 2+100 })
	all := proc.Look(top.Pid)
	children := map[int]int{}
	for _, p := range all {
		children[p.Parent]++
	}
	shim := 0
	for pid, n := range children {
		if n > 100 { // the worker, too
			shim = pid
		}
	}
	proctest.Kill(shim, syscall.SIGKILL) // now they rise
	if got := <-call; got.status != http.StatusBadGateway {
		t.Errorf("the call got %+v", got)
	}
	s.eventually("at rest", atRest)
	for _, p := range all {
		if p.Parent == shim && p.There() {
			t.Errorf("there is still %d %s %s", p.Pid, p.State, p.Command)
		}
	}

	began := time.Now()
	if err := proctest.Kill(top.Pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.gone(proc.Look(s.cmd.Process.Pid), 0)
	t.Logf("ended within %v", time.Since(began).Round(time.Millisecond))
}
