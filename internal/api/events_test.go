package api

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"example.com/hangup/internal/call"
	"example.com/hangup/internal/calls"
	"example.com/hangup/internal/config"
	"example.com/hangup/internal/connwatch"
	"example.com/hangup/internal/event"
)

// sse is one event as a reader takes it from a stream.
type sse struct {
	id, name string
	data     map[string]any
}

func (e sse) String() string {
	return e.id + " " + e.name + " " + fmt.Sprint(e.data)
}

// events reads a stream as the standard says, up to its end, an event with one of
// the given names, or an error. Comments are left out.
func events(t testing.TB, in *bufio.Reader, until ...string) (list []sse, err error) {
	t.Helper()
	var e sse
	var data []string
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return list, err
		}
		if !utf8.ValidString(line) {
			t.Errorf("not UTF-8: %q", line)
		}
		line = strings.TrimSuffix(line, "\n")
		if strings.Contains(line, "\r") {
			t.Errorf("a CR, which ends a line, too: %q", line)
		}
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case line == "" && data != nil:
			if err := json.Unmarshal([]byte(strings.Join(data, "\n")), &e.data); err != nil {
				t.Errorf("%v in the data of %s: %.200q", err, e.name, data)
			}
			list = append(list, e)
			if slices.Contains(until, e.name) {
				return list, nil
			}
			e, data = sse{}, nil
		case line == "", field == "":
		case field == "id":
			e.id = value
		case field == "event":
			e.name = value
		case field == "data":
			data = append(data, value)
		default:
			t.Errorf("a line of no kind: %q", line)
		}
	}
}

// open sends a request and returns the reply, whose body is a stream.
func (g *rig) open(path string, headers ...string) (*raw, *http.Response, *bufio.Reader) {
	g.t.Helper()
	c := g.dial()
	c.send("%s HTTP/1.1\r\nHost: localhost\r\n%s\r\n", path, strings.Join(append(headers, ""), "\r\n"))
	resp, err := http.ReadResponse(c.in, nil)
	if err != nil {
		g.t.Fatalf("%s: no reply: %v", path, err)
	}
	if kind := resp.Header.Get("Content-Type"); resp.StatusCode != 200 || kind != "text/event-stream" {
		g.t.Fatalf("%s: %s, %s", path, resp.Status, kind)
	}
	return c, resp, bufio.NewReader(resp.Body)
}

const acceptEvents = "Accept: text/event-stream"

// stream makes a call and returns the events of its reply, in short.
func (g *rig) stream(body string, headers ...string) []sse {
	g.t.Helper()
	a := g.do("/execute/echo", body, append(headers, acceptEvents)...)
	if a.StatusCode != 200 || a.err != nil {
		g.t.Fatalf("%s, %v: %s", a.Status, a.err, a.body)
	}
	list, _ := events(g.t, bufio.NewReader(bytes.NewReader(a.body)))
	return list
}

// telling is work that says things on its way, and ends with a result of
// the given type and body.
func telling(kind string, body []byte, size int64) doer {
	return func(ctx context.Context, c *call.Call) error {
		if err := c.Input.Receive(ctx); err != nil {
			return err
		}
		c.Emit(event.CallStarted{Call: c.ID, Workload: c.Workload, Pid: 7, At: time.Now()})
		c.Emit(event.Output{Call: c.ID, Stream: "stdout", Text: []byte("line")})
		c.Emit(event.Output{Call: c.ID, Stream: "stderr", Text: []byte("\xff"), Dropped: 3})
		c.Emit(event.CallProgress{Call: c.ID, JSON: []byte("{\"done\": 1,\r\n \"call\": \"another\"}")})
		if err := c.Reply.Head(call.Head{ContentType: kind, Size: size}); err != nil {
			return err
		}
		if _, err := (writer{ctx, c.Reply}).Write(body); err != nil {
			return err
		}
		c.Emit(event.Output{Call: c.ID, Stream: "stdout", Text: []byte("last words")})
		return nil
	}
}

// before are the events of telling without the last.
func before(id string) []sse {
	return []sse{
		{"1", "queued", map[string]any{"call": id, "workload": "echo", "task": ""}},
		{"2", "started", map[string]any{"call": id, "worker_pid": 7.0}},
		{"3", "output", map[string]any{"call": id, "stream": "stdout", "text": "line"}},
		{"4", "output", map[string]any{"call": id, "stream": "stderr", "base64": "/w==", "left_out": 3.0}},
		{"5", "progress", map[string]any{"call": id, "done": 1.0}},
		{"6", "output", map[string]any{"call": id, "stream": "stdout", "text": "last words"}},
	}
}

// same compares events but for the time that a call was queued.
func same(t *testing.T, what string, got, want []sse) {
	t.Helper()
	for _, e := range got {
		if e.name == "started" {
			if ms, ok := e.data["queue_ms"].(float64); !ok || ms < 0 {
				t.Errorf("%s: %v", what, e)
			}
			delete(e.data, "queue_ms")
		}
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(sse{})); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func TestEventStream(t *testing.T) {
	g := serve(t, telling("application/json", []byte("{\"a\":\r\n [1, 2.50]}\n"), -1))
	a := g.do("/execute/echo", "x", acceptEvents)
	for name, want := range map[string]string{"Content-Type": "text/event-stream", "Hangup-Call": "call-1", "Cache-Control": "no-store"} {
		if got := a.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if timing := a.Header.Get("Server-Timing"); !strings.HasPrefix(timing, "queue;dur=") || strings.Contains(timing, "run") {
		t.Errorf("Server-Timing: %q", timing)
	}
	got, _ := events(t, bufio.NewReader(bytes.NewReader(a.body)))
	result := map[string]any{"call": "call-1", "content_type": "application/json", "json": map[string]any{"a": []any{1.0, 2.5}}}
	same(t, "the owner", got, append(before("call-1"), sse{"7", "result", result}))
	if end := g.end(); end.Outcome != event.Done {
		t.Errorf("%+v", end)
	}

	// The same call, watched: nothing of the result but what it was.
	result = map[string]any{"call": "call-1", "content_type": "application/json", "size": 19.0}
	want := append(before("call-1"), sse{"7", "result", result})
	for after := range 7 {
		_, resp, in := g.open("GET /calls/call-1/events", "Last-Event-ID: "+strconv.Itoa(after))
		got, err := events(t, in)
		if err != io.EOF || resp.Header.Get("Hangup-Call") != "call-1" {
			t.Errorf("after %d: %v, %v", after, err, resp.Header)
		}
		same(t, "after "+strconv.Itoa(after), got, want[after:])
		for _, e := range want {
			delete(e.data, "queue_ms")
		}
	}
	if a := g.do("GET /calls/call-1/events", "", "Last-Event-ID: 7"); a.StatusCode != 204 {
		t.Errorf("behind the last event: %s", a.Status)
	}
	if a := g.do("HEAD /calls/call-1/events", ""); a.StatusCode != 200 || a.Header.Get("Content-Type") != "text/event-stream" {
		t.Errorf("HEAD: %s", a.Status)
	}
	for _, id := range []string{"x", "-1", "1 2", "99999999999999999999", "1\r\nLast-Event-ID: 2"} {
		g.do("GET /calls/call-1/events", "", "Last-Event-ID: "+id).is(t, 400, "bad-request")
	}
	g.do("GET /calls/nope/events", "").is(t, 404, "no-such-call")
	g.do("POST /calls/call-1/events", "").is(t, 405, "method-not-allowed")
}

// Each result is what it says it is, or bytes; none is lost or changed.
func TestResultForms(t *testing.T) {
	large := bytes.Repeat([]byte("0123456789abcdef"), heldResult/16)
	for _, tt := range []struct {
		kind string
		body []byte
		size int64
		form string
	}{
		{"application/json", []byte(`"\u0000 ü <"`), -1, "json"},
		{"application/problem+json; charset=utf-8", []byte(`null`), 4, "json"},
		{"application/json", []byte(`{"a":`), -1, "base64"},
		{"application/json", []byte("\"\xff\""), -1, "base64"},
		{"application/json", []byte(``), -1, "base64"},
		{"application/json", []byte(strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000)), -1, "base64"},
		{"text/plain", []byte("a\r\nb\rc\nd\u2028e\x00\ufefff: g\n\n"), -1, "text"},
		{"text/html;charset=UTF-8", []byte("<b>"), 3, "text"},
		{"text/plain", nil, 0, "text"},
		{"text/plain", []byte("\xc3"), -1, "base64"},
		{"text/plain; charset=latin1", []byte("ascii"), -1, "base64"},
		{"image/png", []byte("abc"), 3, "base64"},
		{"", []byte("abc"), 3, "base64"},
		{"text/plain", large, -1, "text"},
		{"text/plain", append(large, 'x'), int64(len(large)) + 1, "base64"},
		{"application/json", append(large, 'x'), -1, "base64"},
	} {
		g := serve(t, telling(tt.kind, tt.body, tt.size))
		list := g.stream("x")
		last := list[len(list)-1]
		var got []byte
		switch v := last.data[tt.form].(type) {
		case string:
			got = []byte(v)
			if tt.form == "base64" {
				got, _ = base64.StdEncoding.DecodeString(v)
			}
		default:
			got = tt.body
		}
		if tt.form == "json" {
			var want any
			json.Unmarshal(tt.body, &want)
			if v, ok := last.data["json"]; !ok || !cmp.Equal(v, want) {
				t.Errorf("%s %.40q: %.100v", tt.kind, tt.body, last)
			}
		} else if !bytes.Equal(got, tt.body) {
			t.Errorf("%s %.40q: %d bytes, want %d: %.100v", tt.kind, tt.body, len(got), len(tt.body), last)
		}
		if last.name != "result" || last.id != "7" || last.data["content_type"] != tt.kind || last.data["call"] != "call-1" || len(last.data) != 3 {
			t.Errorf("%s %.40q: %.200v", tt.kind, tt.body, last)
		}
		// What was said while a large result was under way is left to those who watch.
		if n := len(list); n != 7 && !(len(tt.body) > heldResult && n == 6) {
			t.Errorf("%s %.40q: %d events", tt.kind, tt.body, n)
		}
	}
}

// What is refused before the stream has begun has a status of its own; after
// that it is the last event.
func TestProblemsOfStreams(t *testing.T) {
	failure := &call.FailureError{Class: "KeyError", Message: "a\r\nb", Members: map[string]any{"cat": "Tom", "call": "another"}}
	for _, err := range []error{failure, call.ErrTimedOut, call.ErrQueueTimeout, &call.DiedError{Signal: "SIGSEGV"}, call.ErrCancelled, errors.New("a defect")} {
		g := serve(t, failing(err))
		list := g.stream("x")
		plain := g.do("/execute/echo", "x")
		want := plain.problem(t)
		delete(want, "call")
		delete(want, "instance")
		last := list[len(list)-1]
		if last.data["call"] != "call-1" || last.data["instance"] != "/calls/call-1" || last.id != "2" || last.name != "problem" {
			t.Errorf("%v: %v", err, last)
		}
		_, _, in := g.open("GET /calls/call-1/events")
		watched, _ := events(t, in)
		same(t, "watched", watched, list)
		delete(last.data, "call")
		delete(last.data, "instance")
		if diff := cmp.Diff(want, last.data); diff != "" {
			t.Errorf("%v (-plain +event):\n%s", err, diff)
		}
		if len(list) != 2 || list[0].name != "queued" {
			t.Errorf("%v: %v", err, list)
		}
	}

	g := serve(t, func(context.Context, *call.Call) error {
		return &call.RetryError{Err: call.ErrQueueFull, After: time.Second}
	},
		func(c *config.Config) { c.Limits.Body = 10 })
	g.do("/execute/echo", "x", acceptEvents).is(t, 503, "queue-full")
	g.do("/execute/nope", "x", acceptEvents).is(t, 404, "no-such-workload")
	g.do("/execute/echo", "x", acceptEvents, "Last-Event-ID: 1").is(t, 400, "bad-request")
	g.do("/execute/echo", "0123456789x", acceptEvents).is(t, 413, "body-too-large")
	g = serve(t, echo, func(c *config.Config) { c.Limits.Body = 10 })
	c := g.dial()
	c.send("POST /execute/echo HTTP/1.1\r\nHost: localhost\r\n%s\r\nTransfer-Encoding: chunked\r\n\r\nb\r\n0123456789x\r\n0\r\n\r\n", acceptEvents)
	c.receive().is(t, 413, "body-too-large")
}

func TestNegotiation(t *testing.T) {
	for accept, want := range map[string]bool{
		"":                                    false,
		"*/*":                                 false,
		"text/*":                              false,
		"application/json":                    false,
		"text/event-stream":                   true,
		"Text/Event-Stream; q=0.5":            true,
		"text/event-stream;q=0":               false,
		"text/event-stream;q=2":               false,
		"text/event-stream;q=x":               false,
		"text/event-stream, */*":              true,
		"text/event-stream;q=0.1, */*":        false,
		"*/*;q=0.1,text/event-stream":         true,
		"application/json, text/event-stream": false,
		"application/json;q=0.9, text/event-stream;charset=utf-8": true,
		"application/json;q=0.9, text/event-stream;q=0.8":         false,
		"text/event-stream/x": false,
	} {
		if got := wantsEvents(http.Header{"Accept": strings.Split(accept, "|")}); got != want {
			t.Errorf("%q: %v", accept, got)
		}
	}
	if !wantsEvents(http.Header{"Accept": {"*/*;q=0.1", "text/event-stream"}}) {
		t.Error("in two lines")
	}
	g := serve(t, echo)
	if a := g.do("/execute/echo", "x", "Accept: application/json, text/event-stream"); string(a.body) != "x" {
		t.Errorf("%s", a.body)
	}
}

// The connection owns the call in every moment of its stream.
func TestHangUpInStream(t *testing.T) {
	for _, moment := range []string{"queued", "running", "result"} {
		at := make(chan struct{})
		g := serve(t, func(ctx context.Context, c *call.Call) error {
			if err := c.Input.Receive(ctx); err != nil {
				return err
			}
			if moment != "queued" {
				c.Emit(event.CallStarted{Call: c.ID, At: time.Now()})
			}
			if moment == "result" {
				big := make([]byte, heldResult+1)
				if err := errors.Join(c.Reply.Head(call.Head{Size: -1}), c.Reply.Write(ctx, big)); err != nil {
					return err
				}
			}
			close(at)
			<-ctx.Done()
			return context.Cause(ctx)
		})
		c, _, _ := g.open("POST /execute/echo", acceptEvents)
		next(t, at)
		c.SetLinger(0)
		c.Close()
		if end := g.end(); !errors.Is(end.Cause, call.ErrHungUp) {
			t.Errorf("%s: %v", moment, end.Cause)
		}
		_, _, in := g.open("GET /calls/call-1/events")
		if list, _ := events(t, in); list[len(list)-1].data["type"] != "/problems/cancelled" {
			t.Errorf("%s: a watcher got %v", moment, list)
		}
	}
}

// A large result that ends badly has no end that a reader could take for one.
func TestStreamAbortedInItsResult(t *testing.T) {
	g := serve(t, func(ctx context.Context, c *call.Call) error {
		big := make([]byte, heldResult+1)
		return errors.Join(c.Input.Receive(ctx), c.Reply.Head(call.Head{Size: -1}), c.Reply.Write(ctx, big), call.ErrTimedOut)
	})
	a := g.do("/execute/echo", "x", acceptEvents)
	list, _ := events(t, bufio.NewReader(bytes.NewReader(a.body)))
	if a.err == nil || len(list) != 1 || list[0].name != "queued" {
		t.Errorf("%v, %v", a.err, list)
	}
}

// A reader who stops reading costs the work nothing. The owner still gets the
// whole result, with a gap before it.
func TestSlowOwner(t *testing.T) {
	flood := func(ctx context.Context, c *call.Call) error {
		if err := c.Input.Receive(ctx); err != nil {
			return err
		}
		c.Emit(event.CallStarted{Call: c.ID, At: time.Now()})
		line := bytes.Repeat([]byte("x"), 8<<10)
		for range 4096 { // far more than any socket holds
			c.Emit(event.Output{Call: c.ID, Stream: "stdout", Text: line})
		}
		return errors.Join(c.Reply.Head(call.Head{ContentType: "text/plain", Size: 2}), c.Reply.Write(ctx, []byte("ok")))
	}
	g := serve(t, flood)
	_, _, in := g.open("POST /execute/echo", acceptEvents)
	if end := g.end(); end.Outcome != event.Done { // while nobody has read
		t.Fatalf("%+v", end)
	}
	list, err := events(t, in, "result")
	if err != nil {
		t.Fatal(err)
	}
	last := list[len(list)-1]
	if last.name != "result" || last.data["text"] != "ok" || last.id != "4099" {
		t.Errorf("the last: %v", last)
	}
	id, gaps := 0, 0
	for _, e := range list {
		n, _ := strconv.Atoi(e.id)
		missed, gap := e.data["missed"].(float64)
		if n != id+1+max(0, int(missed)-1) {
			t.Fatalf("event %s behind %d: %v", e.id, id, e)
		}
		if id = n; gap {
			gaps++
		}
	}
	if gaps == 0 {
		t.Error("no gap: the flood was too small, or somebody waited")
	}
}

// withTokens lets in who says the name of one of its tokens.
func withTokens(c *config.Config) {
	for _, token := range []config.Token{
		{Name: "all", Allow: []string{"execute", "observe", "operate"}, Workloads: []string{"*"}},
		{Name: "watcher", Allow: []string{"observe"}, Workloads: []string{"echo"}},
		{Name: "other", Allow: []string{"observe"}, Workloads: []string{"resize"}},
		{Name: "runner", Allow: []string{"execute"}, Workloads: []string{"echo"}},
	} {
		token.SHA256 = sha256.Sum256([]byte(token.Name))
		c.Auth.Tokens = append(c.Auth.Tokens, token)
	}
}

// A token without the workload, or without observe, cannot watch.
func TestWhoMayWatch(t *testing.T) {
	door, running := hanging()
	g := serve(t, door, withTokens)
	c := g.dial()
	c.send("POST /execute/echo HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer all\r\n\r\n")
	next(t, running)
	g.do("GET /calls/call-1/events", "").is(t, 401, "unauthorized")
	g.do("GET /calls/call-1/events", "", "Authorization: Bearer runner").is(t, 403, "forbidden")
	g.do("GET /calls/call-1/events", "", "Authorization: Bearer other").is(t, 404, "no-such-call")
	w, _, in := g.open("GET /calls/call-1/events", "Authorization: Bearer watcher")
	if _, err := events(t, in, "queued"); err != nil {
		t.Error(err)
	}
	w.Close() // and the call goes on
	_, _, in = g.open("GET /calls/call-1/events", "Authorization: Bearer watcher")
	g.do("DELETE /calls/call-1", "", "Authorization: Bearer all")
	list, err := events(t, in)
	if err != io.EOF || list[len(list)-1].data["type"] != "/problems/cancelled" || !strings.Contains(fmt.Sprint(list), "operator") {
		t.Errorf("%v, %v", err, list)
	}
	c.receive().is(t, 409, "cancelled")
}

// A quiet stream says that it is there, more often than promised; one that has
// something to say does not.
func TestHeartbeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		say := make(chan struct{})
		var r *calls.Registry
		r = calls.New(t.Context(), calls.Options{Emit: func(e event.Event) { r.Sink(e) }, Door: doer(func(_ context.Context, c *call.Call) error {
			for range say {
				c.Emit(event.Output{Call: c.ID, Stream: "stdout", Text: []byte("x")})
			}
			return nil
		})})
		c := &call.Call{ID: "a", At: time.Now()}
		ctx, _ := r.Begin(c)
		w, _ := r.Watch("a", 0)
		page := httptest.NewRecorder()
		e := newEventWriter(&visit{w: page, body: &body{conn: http.NewResponseController(page)}})
		var working sync.WaitGroup
		working.Go(func() { r.Do(ctx, c) })
		working.Go(func() {
			if last, err := e.follow(w, nil); last == 0 || err != nil {
				t.Errorf("last %d, %v", last, err)
			}
		})
		beats := func() int { synctest.Wait(); return strings.Count(page.Body.String(), ":\n\n") }
		time.Sleep(time.Minute)
		if n := beats(); n != int(time.Minute/heartbeat) || heartbeat > 10*time.Second {
			t.Errorf("%d comments in a minute", n)
		}
		before := beats()
		for range 100 {
			time.Sleep(heartbeat - time.Millisecond)
			say <- struct{}{}
			synctest.Wait()
		}
		if n := beats() - before; n != 0 {
			t.Errorf("%d comments between events", n)
		}
		close(say)
		working.Wait()
	})
}

// piped is a ResponseWriter whose reader takes as long as it likes.
type piped struct{ net.Conn }

func (piped) Header() http.Header { return http.Header{} }
func (piped) WriteHeader(int)     {}
func (piped) Flush()              {}

// A reader may pause, and is given up only after connwatch.SendTimeout, or when it leaves.
func TestReaderWait(t *testing.T) {
	for _, leaves := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			ours, theirs := net.Pipe()
			defer ours.Close()
			defer theirs.Close()
			e := newEventWriter(&visit{w: piped{ours}, body: &body{conn: http.NewResponseController(piped{ours})}})
			var reading sync.WaitGroup
			defer reading.Wait()
			reading.Go(func() {
				time.Sleep(connwatch.SendTimeout - time.Second)
				if _, err := io.ReadFull(theirs, make([]byte, 3)); err != nil {
					t.Error(err)
				}
				if leaves {
					time.Sleep(time.Second)
					e.leave()
				}
			})
			e.buf = append(e.buf, "one"...)
			if err := e.send(); err != nil {
				t.Errorf("a reader that pauses: %v", err)
			}
			began, want := time.Now(), connwatch.SendTimeout
			if leaves {
				want = time.Second
			}
			e.buf = append(e.buf, "two"...)
			if err := e.send(); err == nil || time.Since(began) != want {
				t.Errorf("given up after %v, want %v: %v", time.Since(began), want, err)
			}
		})
	}
}

// Whatever a worker says is one line of JSON in UTF-8 that gives it back.
func FuzzEventData(f *testing.F) {
	for _, s := range []string{"", "plain", "a\rb\nc\r\n\r\nid: 7\n\nevent: x", "\xff\xfe", "\u2028\u2029\u0085", "\x00", "\ufeff", `{"a":1}`, "{\"\xff\": \"\xff\", \"call\": 1}", `{"c\u0061ll": {}}`} {
		f.Add([]byte(s))
	}
	r := calls.New(f.Context(), calls.Options{Emit: func(event.Event) {}})
	r.Begin(&call.Call{ID: "id"})
	w, _ := r.Watch("id", 0)
	f.Fuzz(func(t *testing.T, said []byte) {
		check := func(line []byte) map[string]any {
			t.Helper()
			e := &eventWriter{}
			e.event(1, "x", line)
			list, err := events(t, bufio.NewReader(bytes.NewReader(e.buf)))
			if err != io.EOF || len(list) != 1 || list[0].name != "x" || list[0].id != "1" || list[0].data["call"] != "id" {
				t.Fatalf("%v, %v from %q", list, err, e.buf)
			}
			return list[0].data
		}
		same := func(data map[string]any) {
			t.Helper()
			text, ok := data["text"].(string)
			if encoded, coded := data["base64"].(string); coded != ok {
				if coded {
					raw, err := base64.StdEncoding.DecodeString(encoded)
					if err != nil {
						t.Fatal(err)
					}
					text = string(raw)
				}
				if text != string(said) {
					t.Fatalf("%q came back as %q", said, text)
				}
				return
			}
			t.Fatalf("%v", data)
		}
		same(check(eventData(w, calls.Event{Name: "output", Stream: "stdout", Data: said})))
		same(check(resultData("id", "text/plain", said)))
		same(check(resultData("id", "image/png", said)))
		check(resultData("id", "application/json", said))
		check(resultData("id", string(said), said))
		if json.Valid(said) && bytes.HasPrefix(said, []byte("{")) {
			check(eventData(w, calls.Event{Name: "progress", Data: said}))
		}
	})
}
