package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// unkind starts a program with every signal ignored and blocked, as a careless
// parent may.
const unkind = `
import os, signal, sys
for number in set(range(1, 32)) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
os.execv(sys.argv[1], sys.argv[1:])
`

// TestInside: a worker has nothing of the server: not its environment, nor its
// descriptors, nor what was done to its signals; whoever started it, and with
// whatever.
func TestInside(t *testing.T) {
	const status = `cat /proc/self/status > before; exec python3 inside.py`
	s := prepare(t, "  inside: {command: [sh, -c, '"+status+"'], workers: 1, spares: 0, env: {MODE: fast}, pass_env: [PASSED, ABSENT]}\n")
	serve := append([]string{"-c", unkind, s.cmd.Path}, s.cmd.Args[1:]...)
	env := append(s.cmd.Env, "SECRET=hunter2", "PASSED=on", "TZ=Europe/Vienna", "LD_AUDIT_NOT=1")
	leak, err := os.Open("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	defer leak.Close()
	s.cmd = exec.Command("/usr/bin/python3", serve...)
	s.cmd.Env, s.cmd.ExtraFiles = env, []*os.File{leak, leak, leak}
	s.run()
	s.eventually("ready", func() bool { code, _ := s.get("/readyz"); return code == http.StatusOK })
	s.base = s.settled()

	above := fmt.Sprintf("[%d, %d, %d]", s.workloads()[0].Workers[0].ShimPid, s.pid, s.cmd.Process.Pid)
	r, body := s.post("/execute/inside/inside", above)
	if r.StatusCode != http.StatusOK {
		t.Fatalf("%s %s", r.Status, body)
	}
	var in struct {
		Status, Fds, Env                         map[string]string
		Cwd                                      string
		Umask, Pid, Session, Group, Parent, Nice int
		Core                                     []int64
		Seen                                     []string
	}
	if err := json.Unmarshal([]byte(body), &in); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/", "LANG": "C.UTF-8", "TZ": "Europe/Vienna",
		"MODE": "fast", "PASSED": "on", "HANGUP_WORKLOAD": "inside",
		"PWD": s.dir, // the shell's own
	}
	delete(in.Env, "LC_CTYPE") // Python's own
	if !maps.Equal(in.Env, want) {
		t.Errorf("its environment is %q, want %q", in.Env, want)
	}
	if got := slices.Sorted(maps.Keys(in.Fds)); !slices.Equal(got, []string{"0", "1", "2", "3", "4"}) || in.Fds["0"] != "/dev/null" {
		t.Errorf("its descriptors are %v", in.Fds)
	}
	for fd, to := range in.Fds {
		if fd != "0" && !strings.HasPrefix(to, "pipe:") {
			t.Errorf("its descriptor %s is %s", fd, to)
		}
	}
	if in.Cwd != s.dir || in.Umask != 0o22 || in.Nice != 0 {
		t.Errorf("its directory is %s, its umask %#o, its nice value %d", in.Cwd, in.Umask, in.Nice)
	}
	if in.Session != in.Pid || in.Group != in.Pid || in.Parent != s.workloads()[0].Workers[0].ShimPid {
		t.Errorf("it is process %d of the session %d and group %d under %d", in.Pid, in.Session, in.Group, in.Parent)
	}
	if in.Status["NoNewPrivs"] != "1" {
		t.Errorf("NoNewPrivs is %q", in.Status["NoNewPrivs"])
	}
	if !slices.Equal(in.Core, []int64{0, 0}) {
		t.Errorf("its limits of a core are %v", in.Core)
	}
	if !s.layer("signals").On {
		in.Seen = slices.DeleteFunc(in.Seen, func(s string) bool { return strings.HasSuffix(s, "can be signalled") })
	}
	if len(in.Seen) > 0 && os.Geteuid() != 0 { // root may look at everybody
		t.Errorf("shim, server and supervisor are %s, and it got at %v", above, in.Seen)
	}
	before, err := os.ReadFile(s.dir + "/before") // Python ignores two signals of its own accord; a shell does not
	if err != nil {
		t.Fatal(err)
	}
	for _, set := range []string{"SigBlk", "SigIgn", "SigPnd", "ShdPnd"} {
		if !strings.Contains(string(before), set+":\t0000000000000000\n") {
			t.Errorf("%s is not empty:\n%s", set, before)
		}
	}
	s.check() // which ends it by SIGTERM
}

// TestFloods: a worker that prints at full speed keeps neither its neighbours
// waiting, nor fills the log, nor the server's memory.
func TestFloods(t *testing.T) {
	s := start(t, "  inside: {command: [python3, inside.py], workers: 3, spares: 0}\n")
	alone := s.latencies(t, 200*time.Millisecond)
	for _, test := range []struct{ stream, piece string }{
		{"stdout", "y"}, // no end of line
		{"stderr", "\\n"},
		{"stdout", "\\u001b[2J\\u009b\\u0000 line\\n"},
	} {
		before, peak := len(s.logText()), s.peak()
		const seconds = 1
		in := fmt.Sprintf(`{"stream": %q, "piece": "%s", "seconds": %d}`, test.stream, test.piece, seconds)
		floods := []<-chan answer{s.later("/execute/inside/floods", in), s.later("/execute/inside/floods", in)}
		beside := s.latencies(t, 900*time.Millisecond)
		written := 0
		for _, flood := range floods {
			got := <-flood
			n, err := strconv.Atoi(got.body)
			if got.status != http.StatusOK || err != nil {
				t.Fatalf("the flood got %+v", got)
			}
			written += n
		}
		log, more := len(s.logText())-before, s.peak()-peak
		t.Logf("%s %-30q: %d KiB written, %d KiB in the log, %d KiB more memory; a neighbour's p50 %.1f ms, p99 %.1f ms (alone %.1f, %.1f)",
			test.stream, test.piece, written>>10, log>>10, more>>10,
			quantile(beside, 0.5), quantile(beside, 0.99), quantile(alone, 0.5), quantile(alone, 0.99))
		// Each of the two is read at 3.2 MiB/s at most, and has 64 KiB of its own in
		// the log, and 16 KiB a second. The log also has the neighbour's records.
		if most := 512<<10 + 400*len(beside); log > most {
			t.Errorf("%d bytes in the log, the most is %d", log, most)
		}
		if written > 10<<20 {
			t.Errorf("%d bytes written: they were not held back", written)
		}
		if more > 64<<20 {
			t.Errorf("the server took %d bytes more", more)
		}
		if p50 := quantile(beside, 0.5); p50 > 500 {
			t.Errorf("a neighbour's call took %.1f ms", p50)
		}
	}
}

// latencies makes one call after the other for a while and returns how long each
// took, in ms.
func (s *server) latencies(t *testing.T, during time.Duration) []float64 {
	t.Helper()
	var list []float64
	for end := time.Now().Add(during); time.Now().Before(end); {
		began := time.Now()
		if r, body := s.post("/execute/inside/echo", `"here"`); r.StatusCode != http.StatusOK || body != `"here"` {
			t.Fatalf("%s %s", r.Status, body)
		}
		list = append(list, float64(time.Since(began).Microseconds())/1000)
	}
	return list
}
