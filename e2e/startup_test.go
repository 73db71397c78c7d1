package e2e

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"example.com/hangup/internal/proctest"
)

// TestCannotStart: what keeps a server from starting is said in words that help,
// with an exit code that tells a wrong config from other trouble, and leaves
// nothing behind.
func TestCannotStart(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	shim := proctest.Build(t, "hangup-shim", "./cmd/hangup-shim")
	other := proctest.Build(t, "hangup-shim-other", "./cmd/hangup-shim", "-ldflags", "-X example.com/hangup/internal/reap.Build=other")
	for _, test := range []struct {
		name  string
		alter func(s *server)
		code  int
		says  string // a regular expression
	}{
		{"unknown key", func(s *server) { s.config("workloads:\n  py:\n    comand: [python3, worker.py]\n") }, 2, `hangup\.yaml:4:5: .*comand`},
		{"no workload", func(s *server) { s.config("workloads: {}\n") }, 2, `hangup\.yaml:2:\d+: .*workload`},
		{"no config", func(s *server) { os.Remove(filepath.Join(s.dir, "hangup.yaml")) }, 2, `hangup\.yaml: .*no such file`},
		{"port in use", func(s *server) {
			s.write("hangup.yaml", fmt.Sprintf("listen: [%q]\nworkloads:\n%s", taken.Addr(), python))
		}, 1, `cannot listen on ` + taken.Addr().String() + `: another program does; stop it, or change .listen.`},
		{"no shim", func(s *server) { s.installed("") }, 1, `cannot find hangup-shim beside /.*/hangup: install both`},
		{"a shim of another build", func(s *server) { s.installed(other) }, 1, `cannot use .*\(build "other"\).*: reinstall hangup and hangup-shim together`},
		{"the same, installed", func(s *server) { s.installed(shim) }, 0, ``},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := prepare(t, python)
			test.alter(s)
			serving := s.begin()
			if test.code == 0 {
				select {
				case <-serving:
					s.end(syscall.SIGTERM, 0)
					return
				case <-time.After(proctest.Patience):
					t.Fatalf("it does not start: %s", s.logText())
				}
			}
			s.gone(nil, test.code)
			var said []string
			for _, r := range s.log {
				said = append(said, fmt.Sprint(r["msg"]))
			}
			if !regexp.MustCompile(test.says).MatchString(strings.Join(said, "\n")) {
				t.Errorf("it says %q, want %q", said, test.says)
			}
			if left := s.atWork(); len(left) > 0 {
				t.Errorf("left behind: %s", left)
			}
		})
	}
}

// config writes another config.
func (s *server) config(rest string) { s.write("hangup.yaml", "listen: [127.0.0.1:0]\n"+rest) }

// installed has the server run from a directory of its own, with that program as
// its shim, or none.
func (s *server) installed(shim string) {
	s.t.Helper()
	dir := s.t.TempDir()
	for name, from := range map[string]string{"hangup": s.cmd.Path, "hangup-shim": shim} {
		if from == "" {
			continue
		}
		program, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), program, 0o755)
		}
		if err != nil {
			s.t.Fatal(err)
		}
	}
	s.cmd.Path = filepath.Join(dir, "hangup")
	s.cmd.Args[0] = s.cmd.Path
}

// TestWorkloadDown: a workload that cannot start is down, says why, and leaves the
// others alone. When its program comes, it comes up.
func TestWorkloadDown(t *testing.T) {
	s := prepare(t, python+"  late: {command: [./late], workers: 1, spares: 0}\n")
	s.run()
	s.eventually("ready, with one workload down", func() bool { code, _ := s.get("/readyz"); return code == http.StatusOK })
	s.eventually("down", func() bool {
		w := s.workloads()[1]
		return w.State == "down" && strings.Contains(w.Reason, "no such file")
	})
	down := func() answer { return <-s.later("/execute/late/echo", "1") }
	if got := down(); !refused(got, "workload-down") || !strings.Contains(got.body, "./late: no such file") {
		t.Errorf("a call to it got %+v", got)
	}
	for range 20 {
		if r, body := s.post("/execute/py/echo", "1"); r.StatusCode != http.StatusOK {
			t.Errorf("a call to another: %s %s", r.Status, body)
		}
	}
	if code, _ := s.get("/healthz"); code != http.StatusOK {
		t.Errorf("/healthz is %d", code)
	}
	if r := s.records("worker did not start"); len(r) == 0 || !strings.Contains(r[0]["cause"].(string), "./late") {
		t.Errorf("the log says %v", r)
	}

	s.write("late", "#!/bin/sh\nexec python3 worker.py\n")
	if err := os.Chmod(filepath.Join(s.dir, "late"), 0o755); err != nil {
		t.Fatal(err)
	}
	var got answer
	s.eventually("up", func() bool { got = down(); return got.status == http.StatusOK })
	s.base = s.settled()
	s.check()
}

// TestAllDown: a server without one workload that works is not ready, and stays up
// to say so.
func TestAllDown(t *testing.T) {
	s := prepare(t, "  a: {command: [./a], workers: 1}\n  b: {command: [sh, -c, 'echo no luck today >&2; exit 3'], workers: 1}\n")
	s.run()
	s.eventually("both down", func() bool {
		w := s.workloads()
		return w[0].State == "down" && w[1].State == "down"
	})
	if code, body := s.get("/readyz"); code != http.StatusServiceUnavailable || strings.Contains(string(body), "./a") {
		t.Errorf("/readyz: %d %s", code, body)
	}
	if got := <-s.later("/execute/b/echo", "1"); !refused(got, "workload-down") || !strings.Contains(got.body, "exited with code 3") || strings.Contains(got.body, "no luck today") {
		t.Errorf("a call got %+v", got)
	}
	if code, _ := s.get("/healthz"); code != http.StatusOK {
		t.Errorf("/healthz is %d", code)
	}
	s.end(syscall.SIGTERM, 0)
}
