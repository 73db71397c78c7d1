package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"example.com/hangup/internal/proc"
	"example.com/hangup/internal/proctest"
)

// python is a workload of testdata/worker.py.
const python = "  py: {command: [python3, worker.py], workers: 2, spares: 1, stop: {grace: 200ms}}\n"

// TestCall: bodies go through untouched, in the three forms of a call.
func TestCall(t *testing.T) {
	s := start(t, python)
	for _, test := range []struct{ path, in, want string }{
		{"/execute/py/echo", `{"a": [1, 2.50, "ü"]}`, `{"a":[1,2.5,"\u00fc"]}`},
		{"/execute", `{"workload": "py", "task": "echo", "input": {"a": 1}}`, `{"a":1}`},
		{"/execute/py/echo", `"` + strings.Repeat("x", 3<<20) + `"`, `"` + strings.Repeat("x", 3<<20) + `"`},
	} {
		reply, body := s.post(test.path, test.in)
		if reply.StatusCode != http.StatusOK || body != test.want || reply.Header.Get("Content-Type") != "application/json" {
			t.Errorf("POST %s: %s %.100s", test.path, reply.Status, body)
		}
		timing := reply.Header.Get("Server-Timing")
		if reply.Header.Get("Hangup-Call") == "" || !strings.Contains(timing, "queue;dur=") || !strings.Contains(timing, "run;dur=") {
			t.Errorf("POST %s: headers %v", test.path, reply.Header)
		}
	}
	raw := strings.Repeat("\x00\xff\r\n", 50_000)
	reply, err := s.client.Post(s.url+"/execute/py/echo", "image/webp", strings.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	defer reply.Body.Close()
	var got strings.Builder
	if _, err := io.Copy(&got, reply.Body); err != nil || got.String() != raw {
		t.Errorf("%d bytes came back of %d: %v", got.Len(), len(raw), err)
	}
}

// TestEnds: what the work does to itself is told as what it is, and nobody else
// waits for it.
func TestEnds(t *testing.T) {
	s := start(t, python)
	for _, test := range []struct {
		task, in string
		status   int
		slug     string
		says     string
	}{
		{"raises", `null`, 500, "work-failed", "nothing there"},
		{"fails", `null`, 500, "work-failed", "the cat is out"},
		{"raises_in_handler", `null`, 500, "work-failed", "in a signal handler"},
		{"exits", `3`, 502, "worker-died", "3"},
		{"exits", `0`, 502, "worker-died", "0"},
		{"crashes", `null`, 502, "worker-died", "SIGSEGV"},
		{"closes", `null`, 502, "bad-worker", ""},
		{"garbage", `null`, 502, "bad-worker", ""},
		{"nothing", `null`, 404, "no-such-task", "echo"},
	} {
		t.Run(test.task, func(t *testing.T) {
			slow := make(chan string, 1)
			go func() {
				_, body, _ := s.try("/execute/py/sleep", "0.3")
				slow <- body
			}()
			reply, body := s.post("/execute/py/"+test.task, test.in)
			var problem struct {
				Type, Title, Detail, Call, Workload, Outcome string
				Status                                       int
			}
			if err := json.Unmarshal([]byte(body), &problem); err != nil {
				t.Fatalf("%s: %v in %s", reply.Status, err, body)
			}
			if reply.StatusCode != test.status || problem.Status != test.status || problem.Type != "/problems/"+test.slug || !strings.Contains(body, test.says) {
				t.Errorf("%s %s", reply.Status, body)
			}
			if ct := reply.Header.Get("Content-Type"); ct != "application/problem+json" {
				t.Errorf("content type %s", ct)
			}
			if problem.Call != reply.Header.Get("Hangup-Call") || problem.Workload != "py" {
				t.Errorf("%s", body)
			}
			if got := <-slow; got != `"slept"` {
				t.Errorf("the neighbour got %s", got)
			}
		})
	}
}

// TestMalformedInput: input that is not what its content type says is refused with the
// place of the fault, by whatever SDK; its worker lives on.
func TestMalformedInput(t *testing.T) {
	primes := proctest.Build(t, "primes", "./examples/go")
	s := start(t, fmt.Sprintf(`
  py: {command: [python3, worker.py], workers: 1, spares: 0, stop: {grace: 200ms}}
  go: {command: [%s], workers: 1, spares: 0, stop: {grace: 200ms}}
`, primes))
	before := append(s.pids("py"), s.pids("go")...)
	for _, path := range []string{"/execute/py/echo", "/execute/go"} {
		for input, offset := range map[string]int{`{"below": 1`: 11, "": 0, "{\n \"below\": x}": 12, "[1] [2]": 4, `"` + "\xff" + `"`: 1} {
			reply, body := s.post(path, input)
			var problem struct {
				Type, Outcome string
				Line, Column  int
				Offset        *int
			}
			if err := json.Unmarshal([]byte(body), &problem); err != nil {
				t.Fatalf("%s: %v in %s", reply.Status, err, body)
			}
			if reply.StatusCode != 400 || problem.Type != "/problems/bad-request" || problem.Outcome != "rejected" ||
				problem.Offset == nil || *problem.Offset != offset || problem.Line == 0 || problem.Column == 0 {
				t.Errorf("%s %q: %s %s, want 400 and the offset %d", path, input, reply.Status, body, offset)
			}
		}
	}
	if after := append(s.pids("py"), s.pids("go")...); !slices.Equal(before, after) {
		t.Errorf("the workers are %v, and were %v", after, before)
	}
}

// TestSpareCostsNothing: with a worker that takes 1 s to start, a kill costs the
// next caller nothing while the spare lasts.
func TestSpareCostsNothing(t *testing.T) {
	s := start(t, "  py: {command: [sh, -c, 'sleep 1; exec python3 worker.py'], workers: 1, spares: 1, stop: {grace: 200ms}}\n")
	for range 3 {
		s.eventually("at rest", s.atRest)
		caller := s.dial()
		caller.Write([]byte(request("/execute/py/tree", "Content-Length: 4\r\n", "null")))
		running := s.newest("running", func(c callRecord) bool { return c.State == "running" })
		tree := proc.Look(running.WorkerPid)
		caller.Close()
		began := time.Now()
		if reply, body := s.post("/execute/py/echo", "1"); reply.StatusCode != http.StatusOK {
			t.Errorf("the next call: %s %s", reply.Status, body)
		}
		// A cold start is a second; the spare's answer is far from it on any machine.
		if took := time.Since(began); took > 700*time.Millisecond {
			t.Errorf("the next call took %v: it waited for a start", took)
		}
		for _, p := range tree {
			s.eventually("dead: "+p.Command, func() bool { return !p.There() })
		}
	}
}

// TestLimits: each limit ends a call as itself, also for a caller who does not read.
func TestLimits(t *testing.T) {
	s := start(t, "  py: {command: [python3, worker.py], workers: 1, spares: 1, timeout: 700ms, stop: {grace: 200ms}, limits: {output: 1MiB}}\n")
	for _, test := range []struct {
		path, in string
		status   int
		slug     string
	}{
		{"/execute/py/echo", `"` + strings.Repeat("x", 1<<20) + `"`, 500, "limit-exceeded"},
		{"/execute/py/sleep", "100", 504, "timed-out"},
	} {
		reply, body := s.post(test.path, test.in)
		if reply.StatusCode != test.status || !strings.Contains(body, "/problems/"+test.slug) {
			t.Errorf("%s: %s %.200s", test.path, reply.Status, body)
		}
	}

	caller := s.dial()
	caller.SetReadBuffer(4096)
	in := `{"parts": 1000, "size": 1000, "pause": 0.001}`
	caller.Write([]byte(request("/execute/py/stream", "Content-Type: application/json\r\nContent-Length: "+strconv.Itoa(len(in))+"\r\n", in)))
	ended := s.newest("ended, with evidence", func(c callRecord) bool { return c.State == "ended" && c.Task == "stream" && c.Cancel != nil })
	if ended.Outcome != "timed-out" || ended.Cancel.By != "timeout" || !ended.Cancel.Empty {
		t.Errorf("%+v", ended)
	}
}
