package e2e

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"example.com/hangup/internal/proc"
	"example.com/hangup/internal/proctest"
)

// told is one event of a stream.
type told struct {
	id   int
	name string
	data map[string]any
}

func (e told) String() string { return fmt.Sprintf("%d %s %.200v", e.id, e.name, e.data) }

// eventStream is a stream that a test reads.
type eventStream struct {
	t    *testing.T
	body io.ReadCloser
	in   *bufio.Reader
	call string
}

// follow opens a stream: of a call, with a body, or of one to be watched.
func (s *server) follow(method, path, body string, headers ...string) *eventStream {
	s.t.Helper()
	r, err := http.NewRequest(method, s.url+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	r.Header.Set("Accept", "text/event-stream")
	r.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	reply, err := s.client.Do(r)
	if err != nil {
		s.t.Fatalf("%s %s: %v\nthe log:\n%s", method, path, err, s.logText())
	}
	if kind := reply.Header.Get("Content-Type"); reply.StatusCode != http.StatusOK || kind != "text/event-stream" {
		s.t.Fatalf("%s %s: %s, %s", method, path, reply.Status, kind)
	}
	s.t.Cleanup(func() { reply.Body.Close() })
	return &eventStream{s.t, reply.Body, bufio.NewReader(reply.Body), reply.Header.Get("Hangup-Call")}
}

// next reads one event. It is false at the end of the stream.
func (e *eventStream) next() (ev told, ok bool) {
	for {
		line, err := e.in.ReadString('\n')
		if err == io.EOF && ev.name == "" {
			return ev, false
		}
		if err != nil {
			e.t.Errorf("the stream of %s ended with %v in %s", e.call, err, ev)
			return ev, false
		}
		field, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		switch field {
		case "id":
			ev.id, _ = strconv.Atoi(value)
		case "event":
			ev.name = value
		case "data":
			if err := json.Unmarshal([]byte(value), &ev.data); err != nil || ev.data["call"] != e.call {
				e.t.Errorf("%v in %.200q", err, value)
			}
		case "":
			if ev.name != "" {
				return ev, true
			}
		}
	}
}

// until reads up to an event that is as it must be.
func (e *eventStream) until(what string, is func(told) bool) (list []told) {
	e.t.Helper()
	for {
		ev, ok := e.next()
		if !ok {
			e.t.Fatalf("the stream ended before %s: %v", what, list)
		}
		list = append(list, ev)
		if is(ev) {
			return list
		}
	}
}

// rest reads to the end of the stream.
func (e *eventStream) rest() (list []told) {
	for {
		ev, ok := e.next()
		if !ok {
			return list
		}
		list = append(list, ev)
	}
}

// says tells whether an event is the line of output or the progress numbered n.
func says(name string, n int) func(told) bool {
	return func(e told) bool {
		return e.name == name && (e.data["text"] == fmt.Sprint("step ", n) || e.data["done"] == float64(n))
	}
}

// TestEvents: a caller who accepts events gets what the work says, and the result last.
func TestEvents(t *testing.T) {
	s := start(t, python+"  go: {command: ["+proctest.Build(t, "primes", "./examples/go")+"], workers: 1, spares: 0}\n")
	list := s.follow("POST", "/execute/py/reports", `{"steps": 5}`).rest()
	var lines, done []string
	for i, e := range list {
		if e.id != i+1 {
			t.Errorf("event %d is %s", i+1, e)
		}
		switch e.name {
		case "output":
			lines = append(lines, fmt.Sprint(e.data["stream"], " ", e.data["text"]))
		case "progress":
			done = append(done, fmt.Sprint(e.data["done"], "/", e.data["total"]))
		}
	}
	stderr := slices.Index(lines, "stderr no newline")
	if stderr < 0 || fmt.Sprint(slices.Delete(lines, stderr, stderr+1)) != "[stdout step 0 stdout step 1 stdout step 2 stdout step 3 stdout step 4]" {
		t.Errorf("the output: %q", lines)
	}
	if fmt.Sprint(done) != "[1/5 2/5 3/5 4/5 5/5]" {
		t.Errorf("the progress: %q", done)
	}
	if len(list) != 14 || list[0].name != "queued" || list[1].name != "started" {
		t.Fatalf("%v", list)
	}
	last := list[13]
	if last.name != "result" || last.data["content_type"] != "application/json" || fmt.Sprint(last.data["json"]) != "map[steps:5]" {
		t.Errorf("%s", last)
	}

	// A large result, whose size nobody knows, comes whole.
	list = s.follow("POST", "/execute/py/stream", `{"parts": 40, "size": 100000, "pause": 0.001}`).rest()
	encoded, _ := list[len(list)-1].data["base64"].(string)
	if raw, err := base64.StdEncoding.DecodeString(encoded); err != nil || string(raw) != strings.Repeat("x", 4_000_000) {
		t.Errorf("%d bytes came, %v", len(raw), err)
	}
	// The problem is what a plain reply would say.
	list = s.follow("POST", "/execute/py/fails", `null`).rest()
	if last := list[len(list)-1]; last.name != "problem" || last.data["type"] != "/problems/work-failed" || last.data["cat"] != "Tom" || last.data["outcome"] != "failed" {
		t.Errorf("%s", last)
	}
	// What the Go SDK says arrives as well.
	list = s.follow("POST", "/execute/go", `{"below": 1000001}`).rest()
	if !slices.ContainsFunc(list, says("progress", 1_000_000)) || fmt.Sprint(list[len(list)-1].data["json"]) != "map[primes:78498]" {
		t.Errorf("%v", list)
	}
	// What has no place has a status of its own.
	if r, _ := http.NewRequest("POST", s.url+"/execute/py/nothing", nil); r != nil {
		r.Header.Set("Accept", "text/event-stream")
		reply, err := s.client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		reply.Body.Close()
		if reply.StatusCode != http.StatusNotFound {
			t.Errorf("no such task: %s", reply.Status)
		}
	}
}

// TestHangUpInMidStream: the connection, or over HTTP/2 the stream, owns the call,
// whatever has been told.
func TestHangUpInMidStream(t *testing.T) {
	s := start(t, python)
	h1, h2 := s.client, &http.Client{Transport: &http.Transport{Protocols: new(http.Protocols)}}
	h2.Transport.(*http.Transport).Protocols.SetUnencryptedHTTP2(true)
	for _, client := range []*http.Client{h1, h2, h1, h2} {
		s.client = client
		e := s.follow("POST", "/execute/py/reports_family", `null`)
		e.until("the family", func(e told) bool { return e.data["family"] == true })
		running := s.newest("running", func(c callRecord) bool { return c.State == "running" })
		tree := proc.Look(running.WorkerPid)
		if len(tree) < 4 {
			t.Fatalf("only %d processes", len(tree))
		}
		watcher := s.follow("GET", "/calls/"+e.call+"/events", "")
		e.body.Close()
		ended := s.newest("cancelled, with evidence", func(c callRecord) bool { return c.ID == e.call && c.Cancel != nil })
		if ended.Outcome != "cancelled" || ended.Cancel.By != "caller" || !ended.Cancel.Empty {
			t.Errorf("%+v", ended)
		}
		for _, p := range tree {
			s.eventually("dead: "+p.Command, func() bool { return !p.There() })
		}
		list := watcher.rest()
		if last := list[len(list)-1]; last.data["type"] != "/problems/cancelled" {
			t.Errorf("the watcher got %s", last)
		}
		client.CloseIdleConnections()
	}
	s.client = h1
}

// TestWatchers: two hundred at once see the same, some from the middle; those who leave
// or do not read change nothing.
func TestWatchers(t *testing.T) {
	s := start(t, python)
	const steps = 40
	file := s.dir + "/go-on"
	reply := s.later("/execute/py/reports", fmt.Sprintf(`{"steps": %d, "file": %q}`, steps, file))
	id := s.running("reports").ID
	path := "/calls/" + id + "/events"

	half := says("progress", steps/2)
	first := s.follow("GET", path, "").until("the middle", half)
	leaving := s.follow("GET", path, "")
	leaving.until("the middle", half)
	slow := s.dial() // and never reads
	slow.Write([]byte("GET " + path + " HTTP/1.1\r\nHost: localhost\r\n\r\n"))
	leaving.body.Close()

	var watching sync.WaitGroup
	seen := make([][]told, 200)
	ready := make(chan bool, len(seen))
	for i := range seen {
		resumed := i % 10
		e := s.follow("GET", path, "", "Last-Event-ID", strconv.Itoa(resumed))
		watching.Go(func() {
			seen[i] = e.until("the middle", half)
			ready <- true
			seen[i] = append(seen[i], e.rest()...)
		})
	}
	for range seen {
		<-ready
	}
	s.write("go-on", "")
	watching.Wait()
	if got := <-reply; got.status != http.StatusOK {
		t.Errorf("the owner got %+v", got)
	}
	last := seen[0][len(seen[0])-1]
	if last.name != "result" || last.data["content_type"] != "application/json" || last.data["size"] != 12.0 || last.data["json"] != nil {
		t.Errorf("the last: %s", last)
	}
	if len(seen[0]) != 2*steps+4 || fmt.Sprint(first) != fmt.Sprint(seen[0][:len(first)]) {
		t.Errorf("%d events: %v", len(seen[0]), seen[0])
	}
	for i, list := range seen {
		if fmt.Sprint(list) != fmt.Sprint(seen[0][i%10:]) {
			t.Errorf("watcher %d, from %d: %v", i, i%10, list)
		}
	}
	// The call has ended, and can still be seen.
	if again := s.follow("GET", path, "", "Last-Event-ID", "3").rest(); fmt.Sprint(again) != fmt.Sprint(seen[0][3:]) {
		t.Errorf("later: %v", again)
	}
	slow.Close()
}

// TestDrainWithWatchers: they see the end of their calls, and hold nobody up: the
// server is gone in the time that it has without them (promise P13).
func TestDrainWithWatchers(t *testing.T) {
	s := launch(t, python, "drain: 300ms")
	reply := s.later("/execute/py/sleep", "1000")
	id := s.running("sleep").ID
	e := s.follow("GET", "/calls/"+id+"/events", "")
	e.until("the start", func(e told) bool { return e.name == "started" })
	s.client.CloseIdleConnections()
	began := time.Now()
	s.end(syscall.SIGTERM, 0)
	if took := time.Since(began); took > 300*time.Millisecond+200*time.Millisecond+2*time.Second { // drain, grace, and patience
		t.Errorf("gone after %v", took)
	}
	if list := e.rest(); len(list) != 1 || list[0].data["type"] != "/problems/draining" {
		t.Errorf("%v", list)
	}
	if got := <-reply; got.slug != "draining" {
		t.Errorf("the owner got %+v", got)
	}
}
