package api

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"example.com/hangup/internal/call"
	"example.com/hangup/internal/config"
	"example.com/hangup/internal/event"
)

func TestExecute(t *testing.T) {
	type got struct{ workload, task, kind, input string }
	seen := make(chan got, 1)
	g := serve(t, func(ctx context.Context, c *call.Call) error {
		if err := c.Input.Receive(ctx); err != nil {
			return err
		}
		input, err := io.ReadAll(c.Input.Reader())
		if err != nil || int64(len(input)) != c.Input.Size() {
			return fmt.Errorf("read %d bytes of %d: %v", len(input), c.Input.Size(), err)
		}
		seen <- got{c.Workload, c.Task, c.Input.ContentType(), string(input)}
		return echo(ctx, c)
	})
	binary := "\x00\xff\r\n\r\n{"
	large := strings.Repeat("0123456789abcdef", 20_000) // beyond the spool's memory
	for _, tt := range []struct {
		path, kind, body string
		want             got
	}{
		{"/execute/echo", "text/plain", "hello", got{"echo", "", "text/plain", "hello"}},
		{"/execute/echo", "", "", got{"echo", "", "", ""}},
		{"/execute/resize/thumb", "image/png", binary, got{"resize", "thumb", "image/png", binary}},
		{"/execute/echo/a%20b%2Fc", "", "x", got{"echo", "a b/c", "", "x"}},
		{"/execute/echo", "application/octet-stream", large, got{"echo", "", "application/octet-stream", large}},
		{"/execute", "application/json", `{"workload":"echo","input": {"a": [1, 2.50]} }`, got{"echo", "", "application/json", `{"a": [1, 2.50]}`}},
		{"/execute", "", `{"input":"\u00e9","task":"up","workload":"ech\u006f"}`, got{"echo", "up", "application/json", `"\u00e9"`}},
		{"/execute", "", `{"workload":"echo"}`, got{"echo", "", "application/json", "null"}},
		{"/execute", "", `{"workload":"echo","input":"` + large + `"}`, got{"echo", "", "application/json", `"` + large + `"`}},
	} {
		var headers []string
		if tt.kind != "" {
			headers = append(headers, "Content-Type: "+tt.kind)
		}
		a := g.do(tt.path, tt.body, headers...)
		if a.StatusCode != 200 || a.err != nil {
			t.Errorf("%s: %s, %v: %.200s", tt.path, a.Status, a.err, a.body)
			continue
		}
		if input := next(t, seen); input != tt.want {
			t.Errorf("%s: the work got %.200q, want %.200q", tt.path, input, tt.want)
		}
		if string(a.body) != tt.want.input || a.ContentLength != int64(len(tt.want.input)) {
			t.Errorf("%s: %d bytes: %.100q", tt.path, a.ContentLength, a.body)
		}
		end := g.end()
		if end.Outcome != event.Done || end.Workload != tt.want.workload || end.Caller != "127.0.0.1" {
			t.Errorf("%s: %+v", tt.path, end)
		}
		for name, want := range map[string]string{
			"Hangup-Call": "^" + end.Call + "$", "X-Content-Type-Options": "^nosniff$", "Content-Type": "^" + tt.want.kind + "$",
			"Server-Timing": `^queue;dur=\d+\.\d{3}, run;dur=\d+\.\d{3}$`,
		} {
			if v := a.Header.Get(name); !regexp.MustCompile(want).MatchString(v) {
				t.Errorf("%s: %s is %q, want %s", tt.path, name, v, want)
			}
		}
	}
}

// Server-Timing is what the record says.
func TestServerTiming(t *testing.T) {
	var g *rig
	g = serve(t, func(ctx context.Context, c *call.Call) error {
		started := c.At.Add(1500 * time.Microsecond)
		g.calls.Sink(event.CallStarted{Call: c.ID, At: started})
		for time.Since(started) < 2*time.Millisecond {
			time.Sleep(time.Millisecond) // the work
		}
		return echo(ctx, c)
	})
	for _, path := range []string{"/execute/echo"} {
		timing := g.do(path, "x").Header.Get("Server-Timing")
		var queue, run float64
		if _, err := fmt.Sscanf(timing, "queue;dur=%f, run;dur=%f", &queue, &run); err != nil || queue != 1.5 || run < 2 {
			t.Errorf("%q: %v", timing, err)
		}
	}
}

func TestRequestHeaders(t *testing.T) {
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	seen := make(chan *call.Call, 1)
	g := serve(t, func(ctx context.Context, c *call.Call) error {
		seen <- c
		return echo(ctx, c)
	})
	type want struct {
		status  int
		slug    string
		policy  string
		timeout time.Duration
		parent  string
	}
	bad, forbidden := want{status: 400, slug: "bad-request"}, want{status: 403, slug: "forbidden"}
	fine := want{status: 200, policy: "cancel"}
	for _, tt := range []struct {
		header string
		want   want
	}{
		{"X-Nothing: 1", fine},
		{"On-Hangup: cancel", fine},
		{"On-Hangup: detach", forbidden},
		{"On-Hangup: linger=30s", forbidden},
		{"On-Hangup: linger", bad},
		{"On-Hangup: linger=-1s", bad},
		{"On-Hangup: linger=soon", bad},
		{"On-Hangup: detach=1s", bad},
		{"On-Hangup: ", bad},
		{"On-Hangup: cancel\r\nOn-Hangup: cancel", bad},
		{"Call-Timeout: 5s", want{status: 200, policy: "cancel", timeout: 5 * time.Second}},
		{"Call-Timeout: 5", bad},
		{"Call-Timeout: 0s", bad},
		{"Call-Timeout: -1s", bad},
		{"Call-Timeout: ", bad},
		{"Call-Timeout: 99999999h", bad},
		{"Call-Timeout: 1s\r\nCall-Timeout: 2s", bad},
		{"Idempotency-Key: 1", bad},
		{"Last-Event-ID: 1", bad},
		{"Accept: application/json, text/event-stream", fine},
		{"Accept: */*", fine},
		{"Content-Type: " + strings.Repeat("x", 300), bad},
		{"Content-Type: text/\xff", bad},
		{"Traceparent: " + parent, want{status: 200, policy: "cancel", parent: parent}},
		{"Traceparent: cc" + parent[2:] + "-more", want{status: 200, policy: "cancel", parent: "cc" + parent[2:] + "-more"}},
		{"Traceparent: " + parent + "-more", fine},
		{"Traceparent: ff" + parent[2:], fine},
		{"Traceparent: " + strings.ToUpper(parent), fine},
		{"Traceparent: 00-00000000000000000000000000000000-b7ad6b7169203331-01", fine},
		{"Traceparent: 00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", fine},
		{"Traceparent: " + parent + "\r\nTraceparent: " + parent, fine},
		{"Traceparent: nonsense", fine},
	} {
		for _, path := range []string{"/execute/echo", "/execute"} {
			a := g.do(path, `{"workload":"echo"}`, tt.header)
			if tt.want.status != 200 {
				a.is(t, tt.want.status, tt.want.slug)
				if a.Header.Get("Hangup-Call") == "" || g.end().Outcome != event.Rejected {
					t.Errorf("%q: a refused call without a name or an end", tt.header)
				}
				continue
			}
			if a.StatusCode != 200 {
				t.Errorf("%q: %s: %s", tt.header, a.Status, a.body)
				continue
			}
			c := next(t, seen)
			if got := (want{200, "", c.OnHangup, c.Timeout, c.Traceparent}); got != tt.want {
				t.Errorf("%q: %+v, want %+v", tt.header, got, tt.want)
			}
			g.end()
		}
	}
}

func TestNamesThatDoNotExist(t *testing.T) {
	g := serve(t, echo)
	for _, tt := range []struct{ path, body, slug, says string }{
		{"/execute/nope", "", "no-such-workload", "echo, resize"},
		{"/execute/", "", "no-such-workload", "echo, resize"},
		{"/execute/%2e%2e/calls", "", "no-such-workload", ".."},
		{"/execute/../calls", "", "no-such-workload", ".."},
		{"/execute/echo%2Fx", "", "no-such-workload", "echo/x"},
		{"/execute/Echo", "", "no-such-workload", "Echo"},
		{"/execute/" + strings.Repeat("x", 5000), "", "no-such-workload", "x…"},
		{"/execute/echo/" + strings.Repeat("x", 5000), "", "no-such-task", "x…"},
		{"/execute/echo/a%00b", "", "no-such-task", `\x00`},
		{"/execute/echo/a%0d%0aEvil:%201", "", "no-such-task", `\r\n`},
		{"/execute/echo/a%1b%5b2J", "", "no-such-task", `a\x1b[2J`},
		{"/execute/echo/a%c2%9b2J", "", "no-such-task", `a\u009b2J`},
		{"/execute/echo/a%e2%80%aeb", "", "no-such-task", `a\u202eb`},
		{"/execute/echo/a%7f", "", "no-such-task", `a\x7f`},
		{"/execute/echo/a%ff", "", "no-such-task", `a\xff`},
		{"/execute", `{"workload":"nope"}`, "no-such-workload", "echo, resize"},
		{"/execute", `{"workload":"echo","task":"\u0000"}`, "no-such-task", `\x00`},
	} {
		p := g.do(tt.path, tt.body).is(t, 404, tt.slug)
		if detail := p["detail"].(string); !strings.Contains(detail, tt.says) || len(detail) > 300 {
			t.Errorf("%.40s: detail %q does not say %q", tt.path, detail, tt.says)
		}
		end := g.end()
		if end.Outcome != event.Rejected || end.Workload != "" && end.Workload != "echo" || end.Task != "" {
			t.Errorf("%.40s: recorded as %+v", tt.path, end)
		}
	}
}

// A reply of unknown size is on its way with each write.
func TestStream(t *testing.T) {
	more := make(chan struct{})
	g := serve(t, func(ctx context.Context, c *call.Call) error {
		if err := errors.Join(c.Input.Receive(ctx), c.Reply.Head(call.Head{ContentType: "text/plain", Size: -1})); err != nil {
			return err
		}
		for i := range 3 {
			if _, err := fmt.Fprintf(writer{ctx, c.Reply}, "part %d\n", i); err != nil {
				return err
			}
			<-more
		}
		return nil
	})
	c := g.dial()
	c.send("POST /execute/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx")
	resp, err := http.ReadResponse(c.in, nil)
	if err != nil {
		t.Fatal(err)
	}
	if timing := resp.Header.Get("Server-Timing"); !strings.HasPrefix(timing, "queue;dur=") || strings.Contains(timing, "run") {
		t.Errorf("Server-Timing of a stream: %q", timing)
	}
	lines := bufio.NewReader(resp.Body)
	for i := range 3 {
		line, err := lines.ReadString('\n')
		if err != nil || line != fmt.Sprintf("part %d\n", i) {
			t.Fatalf("%q, %v", line, err)
		}
		more <- struct{}{}
	}
	if _, err := lines.ReadByte(); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
	if end := g.end(); end.Outcome != event.Done {
		t.Errorf("%+v", end)
	}
}

// A reply without a content type has none: nobody guesses.
func TestNoSniffing(t *testing.T) {
	g := serve(t, echo)
	a := g.do("/execute/echo", "<html><script>")
	if _, ok := a.Header["Content-Type"]; ok {
		t.Errorf("Content-Type: %q", a.Header.Get("Content-Type"))
	}
}

func TestWorkThatRepliesBadly(t *testing.T) {
	for _, tt := range []struct {
		name string
		head call.Head
		body string
		slug string // of the problem
	}{
		{"a header in the content type", call.Head{ContentType: "text/plain\r\nEvil: 1"}, "", "bad-worker"},
		{"NUL in the content type", call.Head{ContentType: "a\x00b"}, "", "bad-worker"},
		{"more than it said", call.Head{ContentType: "text/plain", Size: 3}, "four", "bad-worker"},
	} {
		g := serve(t, func(ctx context.Context, c *call.Call) error {
			if err := errors.Join(c.Input.Receive(ctx), c.Reply.Head(tt.head)); err != nil {
				return err
			}
			return c.Reply.Write(ctx, []byte(tt.body))
		})
		c := g.dial()
		c.send("POST /execute/echo HTTP/1.1\r\nHost: localhost\r\n\r\n")
		a := c.receive()
		if a.Header.Get("Evil") != "" {
			t.Errorf("%s: an injected header", tt.name)
		}
		a.is(t, 502, tt.slug)
		if end := g.end(); end.Outcome != event.Crashed {
			t.Errorf("%s: %s", tt.name, end.Outcome)
		}
	}
}

// A head commits to nothing: as long as nothing was written, a failure is told.
func TestFailureBehindTheHead(t *testing.T) {
	for _, size := range []int64{-1, 100, 1 << 20} {
		g := serve(t, func(ctx context.Context, c *call.Call) error {
			return errors.Join(c.Input.Receive(ctx), c.Reply.Head(call.Head{ContentType: "text/plain", Size: size}), call.ErrDied)
		})
		c := g.dial()
		for range 2 {
			c.send("POST /execute/echo HTTP/1.1\r\nHost: localhost\r\n\r\n")
			c.receive().is(t, 502, "worker-died")
		}
	}
}

// What fails after the reply has begun tears the reply, so that nobody takes it
// for a whole one.
func TestFailureInTheMiddle(t *testing.T) {
	for _, size := range []int64{-1, 100} {
		g := serve(t, func(ctx context.Context, c *call.Call) error {
			if err := errors.Join(c.Input.Receive(ctx), c.Reply.Head(call.Head{Size: size})); err != nil {
				return err
			}
			c.Reply.Write(ctx, []byte("the first half"))
			return call.ErrDied
		})
		c := g.dial()
		c.send("POST /execute/echo HTTP/1.1\r\nHost: localhost\r\n\r\n")
		all, _ := io.ReadAll(c.in)
		if resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(all)), nil); err == nil {
			if body, err := io.ReadAll(resp.Body); err == nil {
				t.Errorf("size %d: a whole reply: %q", size, body)
			}
		}
		if end := g.end(); end.Outcome != event.Crashed {
			t.Errorf("size %d: %s", size, end.Outcome)
		}
	}
}

// A caller who hangs up gets nothing, whatever the state of the request, and the
// call is cancelled.
func TestHangUp(t *testing.T) {
	const head = "POST /execute/echo HTTP/1.1\r\nHost: localhost\r\n"
	for _, tt := range []struct {
		name, sent string
		runs       bool // the body is in, so the work starts
	}{
		{"no body", head + "\r\n", true},
		{"whole body", head + "Content-Length: 4\r\n\r\nbody", true},
		{"large body", head + "Content-Length: 300000\r\n\r\n" + strings.Repeat("x", 300_000), true},
		{"stray byte", head + "Content-Length: 4\r\n\r\nbodyX", true},
		{"pipelined", head + "\r\n" + head + "\r\n", true},
		{"body not begun", head + "Content-Length: 4\r\n\r\n", false},
		{"half a body", head + "Content-Length: 4\r\n\r\nbo", false},
		{"half a chunk", head + "Transfer-Encoding: chunked\r\n\r\n5\r\nab", false},
		{"100-continue", head + "Expect: 100-continue\r\nContent-Length: 4\r\n\r\n", false},
		{"half a document", "POST /execute HTTP/1.1\r\nHost: localhost\r\nContent-Length: 40\r\n\r\n{", false},
	} {
		for _, reset := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, reset %t", tt.name, reset), func(t *testing.T) {
				door, running := hanging()
				g := serve(t, door)
				c := g.dial()
				c.send("%s", tt.sent)
				if tt.runs {
					next(t, running)
				}
				if reset {
					c.SetLinger(0)
				}
				c.Close()
				if end := g.end(); end.Outcome != event.Cancelled || !errors.Is(end.Cause, call.ErrHungUp) {
					t.Errorf("%s: %v", end.Outcome, end.Cause)
				}
			})
		}
	}
}

// A caller who stays is not taken for gone, however slow he is.
func TestNobodyLeft(t *testing.T) {
	const timeout = 100 * time.Millisecond
	g := serve(t, func(ctx context.Context, c *call.Call) error {
		if err := c.Input.Receive(ctx); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(3 * timeout): // the deadline of the body is over
		}
		return echo(ctx, c)
	}, func(c *config.Config) { c.Limits.BodyTimeout = timeout })
	c := g.dial()
	for range 3 { // the connection stays good
		c.send("POST /execute/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nbo")
		c.send("dy")
		if a := c.receive(); a.StatusCode != 200 || string(a.body) != "body" {
			t.Fatalf("%s: %s", a.Status, a.body)
		}
	}
}

// A reply that nobody reads does not keep its call alive.
func TestCancelWhileTheReplyIsBlocked(t *testing.T) {
	g := serve(t, func(ctx context.Context, c *call.Call) error {
		if err := errors.Join(c.Input.Receive(ctx), c.Reply.Head(call.Head{Size: -1})); err != nil {
			return err
		}
		err := c.Reply.Write(ctx, make([]byte, 64<<20)) // more than sockets hold
		return err
	})
	c := g.dial()
	c.send("POST /execute/echo HTTP/1.1\r\nHost: localhost\r\n\r\n")
	if _, err := c.in.ReadByte(); err != nil { // it is being written
		t.Fatal(err)
	}
	if !g.calls.Cancel("call-1") {
		t.Fatal("no such call")
	}
	if end := g.end(); end.Outcome != event.Cancelled || !errors.Is(end.Cause, call.ErrCancelled) {
		t.Errorf("%s: %v", end.Outcome, end.Cause)
	}
	if n, err := io.Copy(io.Discard, c.in); n >= 64<<20 || err != nil && !isReset(err) {
		t.Errorf("%d bytes came, %v", n, err)
	}
}

// The caller of a call that someone else cancels is told, and can go on.
func TestCancelledByAnOperator(t *testing.T) {
	door, running := hanging()
	g := serve(t, door)
	c := g.dial()
	for range 2 {
		c.send("POST /execute/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx")
		id := next(t, running).ID
		if a := g.do("DELETE /calls/"+id, ""); a.StatusCode != 202 {
			t.Fatalf("DELETE: %s: %s", a.Status, a.body)
		}
		p := c.receive().is(t, 409, "cancelled")
		if p["call"] != id || p["outcome"] != "cancelled" || p["workload"] != "echo" {
			t.Errorf("%v", p)
		}
	}
}
