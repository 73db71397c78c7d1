package e2e

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"example.com/hangup/internal/proctest"
)

// TestFrozenWorkers: workers that cannot die, as on a disk that does not answer, are
// told of and set aside; their places go to others, up to a bound. When they can die,
// nothing of it is left.
func TestFrozenWorkers(t *testing.T) {
	freezer := proctest.NewFreezer(t)
	s := start(t, "  py: {command: [python3, worker.py], workers: 1, spares: 0, stop: {grace: 100ms}}\n")
	t.Cleanup(freezer.Thaw) // before the oracle looks
	hang := func() (pid int) {
		conn := s.dial()
		if _, err := conn.Write([]byte(request("/execute/py/sleep", "Content-Type: application/json\r\nContent-Length: 4\r\n", "1000"))); err != nil {
			t.Fatal(err)
		}
		call := s.newest("running", func(c callRecord) bool { return c.State == "running" })
		freezer.Freeze(call.WorkerPid)
		conn.Close()
		return call.WorkerPid
	}
	notEmpty := func(want float64) {
		t.Helper()
		s.eventually("so many trees are not empty", func() bool { return s.metric(`hangup_trees_not_empty{workload="py"}`) == want })
	}

	pid := hang()
	told := s.newest("told of", func(c callRecord) bool { return c.Cancel != nil })
	if told.Outcome != "cancelled" || told.Cancel.Empty || len(told.Cancel.Survivors) != 1 {
		t.Fatalf("the record is %+v, want one survivor", told)
	}
	survivor := told.Cancel.Survivors[0].(map[string]any)
	if survivor["pid"] != float64(pid) || survivor["state"] != "D" || survivor["wait_channel"] == nil {
		t.Errorf("the survivor is %v, want process %d in state D and where it waits", survivor, pid)
	}
	notEmpty(1)
	if reply, body := s.post("/execute/py/echo", `"served"`); reply.StatusCode != http.StatusOK {
		t.Fatalf("beside one that is frozen: %d %s", reply.StatusCode, body)
	}

	hang()
	notEmpty(2) // twice as many as workers: no more of them start
	hang()      // of the worker that was there already
	reply, body := s.post("/execute/py/echo", `"refused"`)
	var problem struct{ Type, Detail string }
	if err := json.Unmarshal([]byte(body), &problem); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	if reply.StatusCode != http.StatusServiceUnavailable || problem.Type != "/problems/workload-down" ||
		!strings.Contains(problem.Detail, "2 process trees were killed and do not die") || reply.Header.Get("Retry-After") != "5" {
		t.Errorf("with nobody left: %d, Retry-After %q, %s", reply.StatusCode, reply.Header.Get("Retry-After"), body)
	}
	if w := s.workloads()[0]; w.State != "down" || !strings.Contains(w.Reason, "do not die") || len(w.Workers) != 3 {
		t.Errorf("the workload is %+v", w)
	}
	notEmpty(3)

	freezer.Thaw()
	notEmpty(0)
	s.newest("told to be gone", func(c callRecord) bool { return c.ID != told.ID && (c.Cancel == nil || c.Cancel.Empty) })
	s.eventually("whole again", s.atRest)
	if reply, body := s.post("/execute/py/echo", `"served"`); reply.StatusCode != http.StatusOK {
		t.Errorf("afterwards: %d %s", reply.StatusCode, body)
	}
	for _, c := range s.calls() {
		if c.Cancel != nil && !c.Cancel.Empty {
			t.Errorf("the record of a call is still %+v", c)
		}
	}
}
