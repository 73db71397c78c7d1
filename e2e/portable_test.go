//go:build !linux || portable

package e2e

import (
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"example.com/hangup/internal/proc"
)

// parent is a worker with a task whose children can be found from it.
const parent = `import subprocess, time, hangup

@hangup.task
def tree(_):
    subprocess.Popen(["sleep", "1000"])
    subprocess.Popen(["sleep", "1000"], start_new_session=True)
    time.sleep(1000)

@hangup.task
def echo(input):
    return input

hangup.serve()
`

// TestPortable: where a system has only process groups, that is said everywhere, and a
// caller that hangs up on a call that runs ends it with its whole tree, those in
// sessions of their own too.
func TestPortable(t *testing.T) {
	s := prepare(t, "  py: {command: [python3, parent.py], workers: 2, spares: 1, stop: {grace: 200ms}}\n")
	s.write("parent.py", parent)
	s.run()
	s.eventually("ready", func() bool { code, _ := s.get("/readyz"); return code == http.StatusOK })
	s.base = s.settled()
	t.Cleanup(s.check)

	var all struct{ Containment, Isolation string }
	s.fetch("/workloads", &all)
	if all.Containment != "process-group" || all.Isolation != "none" {
		t.Errorf("GET /workloads says %+v", all)
	}
	if n := s.metric(`hangup_containment{isolation="none",level="process-group"}`); n != 1 {
		t.Errorf("hangup_containment is %v", n)
	}
	missing := slices.ContainsFunc(s.records("weaker containment"), func(r map[string]any) bool {
		return r["layer"] == "subreaper" && strings.HasPrefix(fmt.Sprint(r["detail"]), "not on this system") && r["remedy"] != ""
	})
	if !missing {
		t.Errorf("the log does not say that there is no subreaper: %v", s.records("weaker containment"))
	}

	caller := s.dial()
	if _, err := io.WriteString(caller, request("/execute/py/tree", "Content-Length: 4\r\n", "null")); err != nil {
		t.Fatal(err)
	}
	running := s.newest("running", func(c callRecord) bool { return c.State == "running" })
	var tree []proc.Process
	s.eventually("its children are there", func() bool {
		tree = proc.Look(running.WorkerPid)
		apart := slices.ContainsFunc(tree, func(p proc.Process) bool { return p.Session == p.Pid && p.Pid != running.WorkerPid })
		return len(tree) == 3 && apart
	})
	caller.Close()
	ended := s.newest("cancelled", func(c callRecord) bool { return c.Cancel != nil })
	if ended.ID != running.ID || ended.Outcome != "cancelled" || ended.Cancel.By != "caller" || !ended.Cancel.Empty || ended.Cancel.Killed != 3 {
		t.Errorf("the record is %+v of %+v", ended.Cancel, ended)
	}
	for _, p := range tree {
		s.eventually("gone: "+p.Command, func() bool { return !p.There() })
	}
}

// TestPortableMinimum: by default no server starts whose trees are held by process
// groups alone, and it says what to write.
func TestPortableMinimum(t *testing.T) {
	s := prepare(t, python)
	config := filepath.Join(s.dir, "hangup.yaml")
	s.write("hangup.yaml", "listen: [127.0.0.1:0]\nworkloads:\n"+python)
	s.cmd.Args = append(s.cmd.Args[:1], "serve", "--config", config)
	out, err := s.cmd.CombinedOutput()
	if err == nil || s.cmd.ProcessState.ExitCode() != 2 || !strings.Contains(string(out), "containment: {minimum: process-group}") {
		t.Errorf("%v: %s", err, out)
	}
	c := s.cli("doctor", "--config", config).start()
	c.end(1)
	if said := c.stdout.String(); !strings.Contains(said, "missing  containment        process-group, isolation none: ") || !strings.Contains(said, "serve would not start") {
		t.Errorf("doctor says\n%s", said)
	}
}

// TestPortableLimits: what needs Linux is refused, and not tried for ever.
func TestPortableLimits(t *testing.T) {
	for key, value := range map[string]string{"user": `"65141:65141"`, "limits": "{memory: 100MiB}"} {
		s := prepare(t, "  py: {command: [python3, worker.py], "+key+": "+value+"}\n")
		out, err := s.cmd.CombinedOutput()
		if err == nil || s.cmd.ProcessState.ExitCode() != 2 || !strings.Contains(string(out), "workloads.py."+key+": ") || !strings.Contains(string(out), "Linux: leave") {
			t.Errorf("%v: %s", err, out)
		}
	}
}
