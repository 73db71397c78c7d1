package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"example.com/hangup/internal/proctest"
)

// greedy takes more than it may have, or says who it is.
const greedy = `import os, threading, time
import hangup

@hangup.task
def memory(input):
    kept = bytearray(b"x") * (200 << 20)
    time.sleep(1000)

@hangup.task
def threads(input):
    for _ in range(99):
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
    time.sleep(1000)

@hangup.task
def who(input):
    open(hangup.scratch() + "/own", "w").close()
    scratch = os.stat(hangup.scratch())
    return {"scratch": [oct(scratch.st_mode), scratch.st_uid],
            "uid": os.getuid(), "gid": os.getgid(), "groups": os.getgroups(),
            "home": os.environ.get("HOME"), "user": os.environ.get("USER"), "logname": os.environ.get("LOGNAME"),
            "stderr": os.access("/dev/stderr", os.W_OK)}

@hangup.task
def echo(input):
    return input

@hangup.task
def die(input):
    os.kill(os.getpid(), 9)

hangup.serve()
`

// A call whose worker goes over a limit of its tree ends as failed, by a problem that
// names the limit; the next call and the neighbours are served.
func TestLimitsOfTrees(t *testing.T) {
	s := prepare(t, `  greedy: {command: [python3, greedy.py], workers: 1, spares: 0, limits: {memory: 100MiB, pids: 40, cpus: 1}}
  other: {command: [python3, greedy.py], workers: 1, spares: 0}
`)
	s.write("greedy.py", greedy)
	s.run()
	s.eventually("ready", func() bool { code, _ := s.get("/readyz"); return code == http.StatusOK })
	s.base = s.settled()
	t.Cleanup(s.check)

	var standing struct {
		Workloads []struct {
			Name    string
			Limits  map[string]string
			Workers []struct{ Pid int }
		}
	}
	s.fetch("/workloads", &standing)
	neighbour := standing.Workloads[1].Workers[0].Pid
	if got := fmt.Sprint(standing.Workloads[0].Limits); len(standing.Workloads[0].Limits) != 3 || len(standing.Workloads[1].Limits) != 0 {
		t.Errorf("limits %s, and of a workload without any %v", got, standing.Workloads[1].Limits)
	}
	if said := s.records("limits of a workload"); len(said) != 1 || fmt.Sprint(said[0]["enforced"]) != fmt.Sprint(standing.Workloads[0].Limits) {
		t.Errorf("the log says %v", said)
	}

	for task, want := range map[string]string{"memory": "limits.memory", "threads": "limits.pids"} {
		reply, body := s.post("/execute/greedy/"+task, "1")
		var problem struct{ Type, Detail, Outcome string }
		if err := json.Unmarshal([]byte(body), &problem); err != nil {
			t.Fatalf("%s: %v in %s", task, err, body)
		}
		if reply.StatusCode != http.StatusInternalServerError || problem.Type != "/problems/limit-exceeded" ||
			problem.Outcome != "failed" || !strings.Contains(problem.Detail, want) {
			t.Errorf("%s: %d %s", task, reply.StatusCode, body)
		}
		if reply, body := s.post("/execute/greedy/who", "1"); reply.StatusCode != http.StatusOK {
			t.Errorf("the call after it: %d %s", reply.StatusCode, body)
		}
	}
	// Who was killed without a limit has died, and no want of memory is made up.
	if reply, body := s.post("/execute/greedy/die", "1"); reply.StatusCode != http.StatusBadGateway || !strings.Contains(body, "SIGKILL") || strings.Contains(body, "want of memory") {
		t.Errorf("die: %d %s", reply.StatusCode, body)
	}
	s.fetch("/workloads", &standing)
	if now := standing.Workloads[1].Workers[0].Pid; now != neighbour {
		t.Errorf("the neighbour was replaced: pid %d, it was %d", now, neighbour)
	}
}

// Workers with a user are that user, whom they have in their environment.
func TestUserOfWorkload(t *testing.T) {
	user := strconv.Itoa(proctest.Greedy)
	workload := "  w: {command: [python3, greedy.py], workers: 1, spares: 0, user: \"" + user + ":65142\", env: {LOGNAME: mine}}\n"
	s := prepare(t, workload)
	s.write("greedy.py", greedy)
	if os.Geteuid() != 0 {
		s.cmd.Stdout, s.cmd.Stderr = nil, nil
		out, err := s.cmd.CombinedOutput()
		if want := "workloads.w.user: only root can run workers as " + user; s.cmd.ProcessState.ExitCode() != 2 || !strings.Contains(string(out), want) {
			t.Errorf("serve ends with %v:\n%s\nwant %q", err, out, want)
		}
		return
	}
	if err := os.Chmod(filepath.Dir(s.dir), 0o755); err != nil { // the user must get there
		t.Fatal(err)
	}
	s.run()
	s.eventually("ready", func() bool { code, _ := s.get("/readyz"); return code == http.StatusOK })
	s.base = s.settled()
	t.Cleanup(s.check)
	var standing struct {
		Isolation string
		Workloads []struct{ Isolation string }
	}
	s.fetch("/workloads", &standing)
	if standing.Isolation != "uid" || standing.Workloads[0].Isolation != "uid" {
		t.Errorf("isolation: %+v, want uid", standing)
	}
	reply, body := s.post("/execute/w/who", "1")
	want := `{"scratch": ["0o40700", ` + user + `], "uid": ` + user + `, "gid": 65142, "groups": [], "home": "/", "user": "` + user + `", "logname": "mine", "stderr": true}`
	var got, wanted any
	if json.Unmarshal([]byte(body), &got) != nil || json.Unmarshal([]byte(want), &wanted) != nil || fmt.Sprint(got) != fmt.Sprint(wanted) {
		t.Errorf("%d %s\nwant %s", reply.StatusCode, body, want)
	}
}
