package api

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"example.com/hangup/internal/call"
	"example.com/hangup/internal/calls"
	"example.com/hangup/internal/config"
	"example.com/hangup/internal/connwatch"
	"example.com/hangup/internal/event"
	"example.com/hangup/internal/spool"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// wait is how long a test waits for what must happen.
const wait = 10 * time.Second

// doer is a call.Doer made of a function.
type doer func(ctx context.Context, c *call.Call) error

func (d doer) Do(ctx context.Context, c *call.Call) error { return d(ctx, c) }

// rig is a real server on loopback, with a function behind the door.
type rig struct {
	t       testing.TB
	addr    string
	handler http.Handler
	config  *config.Config
	calls   *calls.Registry
	spool   *spool.Spool
	budget  *Budget
	ended   chan event.CallEnded
	conns   chan net.Conn // the server's ends, the first few
	pools   []event.Pool
	ready   error
}

// serve starts a rig that ends with the test. The config may be changed before.
func serve(t testing.TB, door doer, change ...func(*config.Config)) *rig {
	t.Helper()
	g := &rig{t: t, ended: make(chan event.CallEnded, 10_000), conns: make(chan net.Conn, 10), config: &config.Config{
		Listen: []string{"127.0.0.1:0"},
		Limits: config.Limits{Body: 1 << 20, BodyTimeout: wait},
		Workloads: []config.Workload{
			{Name: "echo", OnHangup: config.OnHangup{Allow: []string{"cancel"}}},
			{Name: "resize", OnHangup: config.OnHangup{Allow: []string{"cancel"}}},
		},
		Spool: config.Spool{Dir: t.TempDir(), Max: 1 << 30},
	}}
	for _, f := range change {
		f(g.config)
	}
	var err error
	if g.spool, err = spool.Open(g.config.Spool.Dir, g.config.Spool.Max); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	g.calls = calls.New(ctx, calls.Options{Door: door, Emit: func(e event.Event) {
		g.calls.Sink(e)
		if end, ok := e.(event.CallEnded); ok {
			select {
			case g.ended <- end:
			default: // a benchmark: nobody listens
			}
		}
	}})
	watcher, err := connwatch.New()
	if err != nil {
		t.Fatal(err)
	}
	g.budget = NewBudget(g.config.Limits.Hangups)
	var id atomic.Int64
	g.handler = New(Options{
		Config: g.config, Calls: g.calls, Spool: g.spool,
		Workloads:   func() []event.Pool { return g.pools },
		Metrics:     http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hangup_calls 1\n") }),
		Ready:       func() error { return g.ready },
		Containment: event.Containment{Level: "subreaper", Layers: []event.Layer{{Name: "cgroup", Detail: "is read-only", Remedy: "write"}}}, ServerPid: 11, SupervisorPid: 10,
		NewID:  func() string { return fmt.Sprintf("call-%d", id.Add(1)) },
		Budget: g.budget, Probes: new(Probes), ShowOut: func(*http.Request) {},
	})
	var handlers sync.WaitGroup
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			handlers.Add(1)
			defer handlers.Done()
			g.handler.ServeHTTP(w, r)
		}),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			select {
			case g.conns <- c:
			default:
			}
			return watcher.ConnContext(ctx, c)
		},
		ConnState: watcher.ConnState,
		ErrorLog:  log.New(testLog{t}, "", 0),
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g.addr = l.Addr().String()
	served := make(chan struct{})
	go func() {
		defer close(served)
		server.Serve(l)
	}()
	t.Cleanup(func() {
		select {
		case <-g.calls.Quiet():
		case <-time.After(wait):
			t.Error("a call never ended")
		}
		cancel()
		server.Close()
		<-served
		handlers.Wait()
		watcher.Close()
		if used := g.spool.Used(); used != 0 {
			t.Errorf("%d bytes are left in the spool", used)
		}
		g.spool.Close()
	})
	return g
}

// testLog fails the test for what net/http complains of: panics, and replies
// written twice.
type testLog struct{ t testing.TB }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Errorf("net/http: %s", p)
	return len(p), nil
}

// dial opens a raw connection that is closed with the test.
func (g *rig) dial() *raw {
	g.t.Helper()
	c, err := net.Dial("tcp", g.addr)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { c.Close() })
	c.SetReadDeadline(time.Now().Add(wait))
	return &raw{t: g.t, TCPConn: c.(*net.TCPConn), in: bufio.NewReader(c)}
}

// raw is a client that sends exactly what it is told.
type raw struct {
	t testing.TB
	*net.TCPConn
	in *bufio.Reader
}

func (c *raw) send(format string, args ...any) {
	c.t.Helper()
	if _, err := fmt.Fprintf(c, format, args...); err != nil {
		c.t.Fatal(err)
	}
}

// answer is a reply, read to its end.
type answer struct {
	*http.Response
	body []byte
	err  error // of reading the body
}

func (c *raw) receive() answer {
	c.t.Helper()
	resp, err := http.ReadResponse(c.in, nil)
	if err != nil {
		c.t.Fatalf("no reply: %v", err)
	}
	body, err := io.ReadAll(resp.Body)
	return answer{resp, body, err}
}

// nothing checks that the connection is closed without another byte.
func (c *raw) nothing() {
	c.t.Helper()
	rest, err := io.ReadAll(c.in)
	var timeout net.Error
	if len(rest) > 0 || errors.As(err, &timeout) && timeout.Timeout() {
		c.t.Errorf("read %q, %v; want the connection closed", rest, err)
	}
}

// do sends a request with the given headers ("Name: value") on a connection of
// its own. A path may begin with another method and a space.
func (g *rig) do(path, body string, headers ...string) answer {
	g.t.Helper()
	method, rest, ok := strings.Cut(path, " ")
	if !ok {
		method, rest = "POST", path
	}
	head := fmt.Sprintf("%s %s HTTP/1.1\r\n", method, rest)
	if !strings.Contains("\n"+strings.Join(headers, "\n"), "\nHost:") {
		head += "Host: localhost\r\n"
	}
	for _, h := range headers {
		head += h + "\r\n"
	}
	if body != "" {
		head += fmt.Sprintf("Content-Length: %d\r\n", len(body))
	}
	c := g.dial()
	c.send("%s\r\n%s", head, body)
	if method == "HEAD" {
		resp, err := http.ReadResponse(c.in, &http.Request{Method: "HEAD"})
		if err != nil {
			g.t.Fatal(err)
		}
		return answer{Response: resp}
	}
	return c.receive()
}

// end waits for the end of the next call.
func (g *rig) end() event.CallEnded {
	g.t.Helper()
	select {
	case e := <-g.ended:
		return e
	case <-time.After(wait):
		g.t.Fatal("no call ended")
		return event.CallEnded{}
	}
}

// problem decodes a reply that must be one.
func (a answer) problem(t *testing.T) map[string]any {
	t.Helper()
	if kind := a.Header.Get("Content-Type"); kind != "application/problem+json" {
		t.Fatalf("%s, %s: %s", a.Status, kind, a.body)
	}
	var p map[string]any
	if err := json.Unmarshal(a.body, &p); err != nil {
		t.Fatalf("%v: %s", err, a.body)
	}
	if p["status"] != float64(a.StatusCode) {
		t.Errorf("status %v in the document of a %d", p["status"], a.StatusCode)
	}
	return p
}

// is checks the status and the slug of a problem.
func (a answer) is(t *testing.T, status int, slug string) map[string]any {
	t.Helper()
	if a.StatusCode != status {
		t.Fatalf("status %d, want %d %s: %s", a.StatusCode, status, slug, a.body)
	}
	p := a.problem(t)
	if p["type"] != "/problems/"+slug {
		t.Errorf("type %v, want %s", p["type"], slug)
	}
	return p
}

// echo sends the input back.
func echo(ctx context.Context, c *call.Call) error {
	if err := c.Input.Receive(ctx); err != nil {
		return err
	}
	if err := c.Reply.Head(call.Head{ContentType: c.Input.ContentType(), Size: c.Input.Size()}); err != nil {
		return err
	}
	_, err := io.Copy(writer{ctx, c.Reply}, c.Input.Reader())
	return err
}

// writer is a reply that is written to under one context.
type writer struct {
	ctx   context.Context
	reply call.Reply
}

func (w writer) Write(p []byte) (int, error) {
	if err := w.reply.Write(w.ctx, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// failing ends every call, once its body is in, with err.
func failing(err error) doer {
	return func(ctx context.Context, c *call.Call) error {
		return cmp.Or(c.Input.Receive(ctx), err)
	}
}

// hanging runs every call until its context ends, and tells on the channel that
// one is running.
func hanging() (doer, <-chan *call.Call) {
	running := make(chan *call.Call, 100)
	return func(ctx context.Context, c *call.Call) error {
		if err := c.Input.Receive(ctx); err != nil {
			return err
		}
		running <- c
		<-ctx.Done()
		return context.Cause(ctx)
	}, running
}

func next[T any](t testing.TB, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(wait):
		t.Fatal("waited for too long")
		panic("unreachable")
	}
}
