//go:build linux

package e2e

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"example.com/hangup/internal/proc"
	"example.com/hangup/internal/proctest"
)

// TestDeployedConfigs: every config that deploy/ and examples/ have is one, but for a
// token where other machines can reach it.
func TestDeployedConfigs(t *testing.T) {
	var files []string
	for _, pattern := range []string{"../deploy/*.yaml", "../examples/*/*.yaml"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, found...)
	}
	files = slices.DeleteFunc(files, func(f string) bool { return f == "../deploy/alerts.yaml" })
	if len(files) < 4 {
		t.Fatalf("found only %q", files)
	}
	check := func(file string) (string, error) {
		out, err := exec.Command(proctest.Build(t, "hangup", "./cmd/hangup", "-race"), "check", "--config", file).CombinedOutput()
		return string(out), err
	}
	for _, file := range files {
		data, err := os.ReadFile(file) // so that the cache of results knows it, too
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(data), "0.0.0.0") { // nobody may get in by a token that everybody can read
			out, err := check(file)
			if err == nil || strings.Count(out, filepath.Base(file)+":") != 1 || !strings.Contains(out, "sha256: must be the SHA-256 of a token of your own") {
				t.Errorf("%s as it is: %v: %s", file, err, out)
			}
			file = filepath.Join(t.TempDir(), filepath.Base(file))
			write(t, file, withToken(t, string(data)))
		}
		if out, err := check(file); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	}
}

// withToken puts a token into a config of deploy/, as its first lines say.
func withToken(t *testing.T, config string) string {
	t.Helper()
	const hole = "PUT-THE-SHA-256-OF-YOUR-TOKEN-HERE"
	if strings.Count(config, hole) != 1 {
		t.Fatalf("there is no place for a token in\n%s", config)
	}
	return strings.Replace(config, hole, fmt.Sprintf("%x", sha256.Sum256([]byte("a token"))), 1)
}

// TestContainerFiles: what the images are made of is there, and what they run is in them.
func TestContainerFiles(t *testing.T) {
	for _, name := range []string{"Containerfile", "Containerfile.python"} {
		i := readImage(t, "../deploy/"+name)
		if len(i.Argv) == 0 || i.Files[i.Argv[0]] != "bin/hangup" || i.User != 999 {
			t.Errorf("%s: it runs %q of %v as %d", name, i.Argv, i.Files, i.User)
		}
		config, err := os.ReadFile("../" + i.Files["/etc/hangup/hangup.yaml"])
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for to, from := range i.Files {
			if built := filepath.Dir(from) == "bin"; !built {
				if _, err := os.Stat("../" + from); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
			if filepath.Dir(to) == "/app" && filepath.Base(to) != "hangup.py" && !strings.Contains(string(config), to) {
				t.Errorf("%s: nothing in its config runs %s", name, to)
			}
		}
	}
}

// TestUnits: systemd finds nothing to say about the units, but for the program not
// being installed here.
func TestUnits(t *testing.T) {
	analyze := proctest.Need(t, "systemd-analyze", "systemd")
	dir := t.TempDir()
	for _, unit := range []string{"hangup.service", "hangup.socket"} {
		data, err := os.ReadFile("../deploy/" + unit)
		if err != nil {
			t.Fatal(err)
		}
		installed := strings.ReplaceAll(string(data), "/usr/local/bin/hangup", proctest.Build(t, "hangup", "./cmd/hangup", "-race"))
		if err := os.WriteFile(filepath.Join(dir, unit), []byte(installed), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command(analyze, "verify", filepath.Join(dir, "hangup.service"), filepath.Join(dir, "hangup.socket")).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("%v: %s", err, out)
	}
}

var (
	ruleLine  = regexp.MustCompile(`(?m)^      - alert: (\w+)$`)
	exprLine  = regexp.MustCompile(`(?m)^        expr: (.+)$`)
	selector  = regexp.MustCompile(`(hangup_\w+)(?:\{([^}]*)\})?`)
	matcher   = regexp.MustCompile(`(\w+)=~?"([^"]*)"`)
	grouping  = regexp.MustCompile(`by \(([^)]*)\)`)
	usedLabel = regexp.MustCompile(`\$labels\.(\w+)`)
	sample    = regexp.MustCompile(`(?m)^(\w+)\{(.*)\} `)
)

// TestAlerts: the alerts of deploy/ are on metrics, labels and values that a
// server has; each says what to do.
func TestAlerts(t *testing.T) {
	data, err := os.ReadFile("../deploy/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, python)
	code, body := s.get("/metrics")
	if code != http.StatusOK {
		t.Fatal(code)
	}
	there := map[string]map[string][]string{} // metric → label → values
	for _, m := range sample.FindAllStringSubmatch(string(body), -1) {
		if there[m[1]] == nil {
			there[m[1]] = map[string][]string{"instance": nil, "job": nil} // Prometheus's own
		}
		for _, label := range matcher.FindAllStringSubmatch(m[2], -1) {
			there[m[1]][label[1]] = append(there[m[1]][label[1]], label[2])
		}
	}
	starts := append(ruleLine.FindAllStringIndex(string(data), -1), []int{len(data)})
	if len(starts) < 6 {
		t.Fatalf("found only %d alerts", len(starts)-1)
	}
	for i := range len(starts) - 1 {
		rule := string(data[starts[i][0]:starts[i+1][0]])
		name := ruleLine.FindStringSubmatch(rule)[1]
		for _, must := range []string{"labels: {severity: ", "summary: ", "runbook: "} {
			if strings.Count(rule, must) != 1 {
				t.Errorf("%s has no %s", name, must)
			}
		}
		expr := exprLine.FindStringSubmatch(rule)
		if expr == nil {
			t.Errorf("%s has no expr", name)
			continue
		}
		used := selector.FindAllStringSubmatch(expr[1], -1)
		if len(used) == 0 {
			t.Errorf("%s is on no metric", name)
		}
		for _, m := range used {
			labels, known := there[m[1]]
			if !known {
				t.Errorf("%s: there is no metric %s", name, m[1])
				continue
			}
			for _, label := range matcher.FindAllStringSubmatch(m[2], -1) {
				for value := range strings.SplitSeq(label[2], "|") {
					if !slices.Contains(labels[label[1]], value) {
						t.Errorf("%s: %s has no %s=%q", name, m[1], label[1], value)
					}
				}
			}
			wanted := usedLabel.FindAllStringSubmatch(rule, -1)
			for _, group := range grouping.FindAllStringSubmatch(expr[1], -1) {
				for label := range strings.SplitSeq(group[1], ", ") {
					wanted = append(wanted, []string{"", label})
				}
			}
			for _, label := range wanted {
				if _, known := labels[label[1]]; !known {
					t.Errorf("%s: %s has no label %s", name, m[1], label[1])
				}
			}
		}
	}
}

// TestFromAiohttp: the example of docs/from-aiohttp.md runs as it stands, and what
// its programs leave is nothing.
func TestFromAiohttp(t *testing.T) {
	s := prepare(t, python)
	for _, name := range []string{"hangup.yaml", "worker.py"} {
		data, err := os.ReadFile("../examples/from-aiohttp/" + name)
		if err != nil {
			t.Fatal(err)
		}
		s.write(name, string(data))
	}
	sdk, err := filepath.Abs("../python")
	if err != nil {
		t.Fatal(err)
	}
	config, err := os.ReadFile(filepath.Join(s.dir, "hangup.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	s.write("hangup.yaml", "listen: [127.0.0.1:0]\n"+strings.Replace(string(config), "../../python", sdk, 1))
	s.run()
	s.eventually("ready", func() bool { code, _ := s.get("/readyz"); return code == http.StatusOK })

	for input, want := range map[string]string{
		`{"workload": "work", "task": "words", "input": {"text": "to be or not to be"}}`: `{"to":2,"be":2,"or":1,"not":1}`,
		`{"workload": "work", "task": "sleepers", "input": {"seconds": 0.1}}`:            `{"codes":[0,0]}`,
	} {
		if r, body := s.post("/execute", input); r.StatusCode != http.StatusOK || body != want {
			t.Errorf("%s: %s %s", input, r.Status, body)
		}
	}

	conn := s.dial()
	long := `{"workload": "work", "task": "sleepers", "input": {"seconds": 1000}}`
	io.WriteString(conn, request("/execute", fmt.Sprintf("Content-Type: application/json\r\nContent-Length: %d\r\n", len(long)), long))
	call := s.newest("running", func(c callRecord) bool { return c.State == "running" })
	var tree []proc.Process
	s.eventually("both programs", func() bool {
		tree = slices.DeleteFunc(proc.Look(s.cmd.Process.Pid), func(p proc.Process) bool { return p.Command != "sleep 1000" })
		return len(tree) == 2
	})
	fin.leave(conn)
	s.eventually("the evidence", func() bool {
		s.fetch("/calls/"+call.ID, &call)
		return call.Cancel != nil
	})
	if call.Outcome != "cancelled" || !call.Cancel.Empty {
		t.Errorf("%+v, %+v", call, *call.Cancel)
	}
	gone(t, tree)
	s.end(syscall.SIGTERM, 0)
}
