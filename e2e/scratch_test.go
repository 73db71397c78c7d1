package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"example.com/hangup/internal/proctest"
)

const scratching = "  scratch: {command: [python3, scratch.py], workers: 2, stop: {grace: 50ms}"

// However a call ends, its scratch directory goes. The oracle looks at the end, too.
func TestScratch(t *testing.T) {
	s := start(t, scratching+", timeout: 60s}\n")
	for task, status := range map[string]int{
		"done": http.StatusOK, "fails": http.StatusInternalServerError, "dies": http.StatusBadGateway,
	} {
		if reply, body := s.post("/execute/scratch/"+task, "null"); reply.StatusCode != status {
			t.Errorf("%s: %s %s", task, reply.Status, body)
		}
		s.swept()
	}
	for _, ending := range []string{"hang-up", "operator"} {
		c := s.dial()
		fmt.Fprint(c, request("/execute/scratch/writes", "Content-Length: 4\r\n", "null"))
		s.writing()
		if ending == "operator" {
			s.cancelNewest()
		}
		c.Close()
		s.newest("gone with all its processes", func(r callRecord) bool { return r.Cancel != nil && r.Cancel.Empty })
		s.swept()
	}
}

// writing waits until a call that writes is at it.
func (s *server) writing() {
	s.t.Helper()
	s.eventually("a file is written", func() bool {
		calls, _ := os.ReadDir(s.scratch)
		return slices.ContainsFunc(calls, func(e fs.DirEntry) bool {
			_, err := os.Lstat(s.scratch + "/" + e.Name() + "/in")
			return err == nil
		})
	})
}

func (s *server) cancelNewest() {
	s.t.Helper()
	list := s.calls()
	r, err := http.NewRequest(http.MethodDelete, s.url+"/calls/"+list[len(list)-1].ID, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	reply, err := s.client.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	reply.Body.Close()
}

func TestScratchOfACallThatTakesTooLong(t *testing.T) {
	s := start(t, scratching+", timeout: 2s}\n")
	if reply, body := s.post("/execute/scratch/writes", "null"); reply.StatusCode != http.StatusGatewayTimeout {
		t.Errorf("%s %s", reply.Status, body)
	}
	s.swept()
}

func TestScratchOfADrain(t *testing.T) {
	s := start(t, scratching+"}\n", "drain: 50ms")
	go s.try("/execute/scratch/writes", "null")
	s.writing()
	s.end(syscall.SIGTERM, 0) // which looks
}

// A helper may go on in the directory of a call that has ended. It keeps nobody waiting, and when its worker goes
// nothing is left.
func TestScratchOfAHelper(t *testing.T) {
	s := start(t, "  scratch: {command: [python3, scratch.py], workers: 1, spares: 0, stop: {grace: 0s}}\n")
	if reply, body := s.post("/execute/scratch/leaves", "null"); reply.StatusCode != http.StatusOK {
		t.Fatalf("%s %s", reply.Status, body)
	}
	s.writing()
	if reply, body := s.post("/execute/scratch/done", "null"); reply.StatusCode != http.StatusOK {
		t.Errorf("%s %s", reply.Status, body)
	}
	s.post("/execute/scratch/dies", "null") // and its helper with it
	s.swept()
}

// Where no directory can be made the caller is told, no worker is lost, and what was wrong
// needs no restart to be mended.
func TestNoScratch(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root may write anywhere")
	}
	s := start(t, scratching+"}\n")
	if err := os.Chmod(s.scratch, 0o500); err != nil {
		t.Fatal(err)
	}
	reply, body := s.post("/execute/scratch/echo", "1")
	if reply.StatusCode != http.StatusInsufficientStorage || !strings.Contains(body, "/problems/spool-full") || !strings.Contains(body, "permission denied") {
		t.Errorf("%s %s", reply.Status, body)
	}
	if err := os.Chmod(s.scratch, 0o700); err != nil {
		t.Fatal(err)
	}
	if n := len(s.records("worker did not start")); n > 0 || s.metric("hangup_killed_processes_total") > 0 {
		t.Errorf("a worker was lost")
	}
}

// What a server leaves that was killed is swept by the next one, which leaves alone what belongs to one that lives.
func TestScratchOfAKilledServer(t *testing.T) {
	alive := start(t, scratching+"}\n")
	tmp := strings.TrimSuffix(alive.scratch, alive.scratch[strings.LastIndex(alive.scratch, "/"):])
	sharing := func() *server {
		s := prepare(t, scratching+"}\n")
		s.cmd.Env = append(s.cmd.Env, "TMPDIR="+tmp)
		s.run()
		s.eventually("ready", func() bool { code, _ := s.get("/readyz"); return code == http.StatusOK })
		return s
	}
	go alive.try("/execute/scratch/writes", "null")
	alive.writing()

	killed := sharing()
	go killed.try("/execute/scratch/writes", "null")
	killed.writing()
	if err := proctest.Kill(killed.pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	killed.eventually("the end of its trees", func() bool { return len(killed.atWork()) == 0 })
	if left, _ := os.ReadDir(killed.scratch); len(left) != 1 {
		t.Errorf("the killed server left %v; the test shows nothing", left)
	}

	next := sharing()
	next.base = next.settled()
	next.eventually("what was left is swept", func() bool {
		_, err := os.Lstat(killed.scratch)
		return errors.Is(err, fs.ErrNotExist)
	})
	alive.writing()
	next.check()
	alive.cancelNewest()
	alive.swept()
	if !proctest.Eventually(func() bool {
		select {
		case <-killed.exit:
			return true
		default:
			return false
		}
	}) {
		t.Error("the supervisor of the killed server has not ended")
	}
	killed.ended = true
}
