package api

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"example.com/hangup/internal/call"
	"example.com/hangup/internal/event"
)

// counting counts the writes to the connections it accepts.
type counting struct {
	net.Listener
	writes *atomic.Int64
}

func (l counting) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return countingConn{c, l.writes}, err
}

type countingConn struct {
	net.Conn
	writes *atomic.Int64
}

func (c countingConn) Write(p []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(p)
}

func TestSmallReplyIsOneWrite(t *testing.T) {
	g := serve(t, func(ctx context.Context, c *call.Call) error {
		if err := errors.Join(c.Input.Receive(ctx), c.Reply.Head(call.Head{Size: 1000})); err != nil {
			return err
		}
		for range 10 {
			if err := c.Reply.Write(ctx, make([]byte, 100)); err != nil {
				return err
			}
		}
		return nil
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var writes atomic.Int64
	server := &http.Server{Handler: g.handler}
	served := make(chan struct{})
	go func() {
		defer close(served)
		server.Serve(counting{l, &writes})
	}()
	defer func() { server.Close(); <-served }()

	g.addr = l.Addr().String()
	if a := g.do("/execute/echo", "x"); len(a.body) != 1000 {
		t.Errorf("%s, %d bytes", a.Status, len(a.body))
	}
	if n := writes.Load(); n != 1 {
		t.Errorf("%d writes for one small reply", n)
	}
}

// A call whose whole result is in is not torn by what ends it a moment later.
func TestCancelAtTheVeryEnd(t *testing.T) {
	var g *rig
	g = serve(t, func(ctx context.Context, c *call.Call) error {
		err := echo(ctx, c)
		g.calls.Cancel(c.ID)
		<-ctx.Done()
		return err
	})
	c := g.dial()
	for range 50 {
		c.send("POST /execute/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nbody")
		if a := c.receive(); a.StatusCode != 200 || string(a.body) != "body" {
			t.Fatalf("%s: %q", a.Status, a.body)
		}
	}
}

// Who has a whole reply may go away, or send the next request, however large: the
// call is over then, and so the end of a reply waits for the end of its call.
func TestEndOfReplyWaits(t *testing.T) {
	for _, size := range []int{1, 2048, 4096, 100_000} { // around net/http's buffers, and beyond
		t.Run(strconv.Itoa(size), func(t *testing.T) {
			over := make(chan struct{})
			g := serve(t, func(ctx context.Context, c *call.Call) error {
				if err := errors.Join(c.Input.Receive(ctx), c.Reply.Head(call.Head{Size: int64(size)})); err != nil {
					return err
				}
				if err := c.Reply.Write(ctx, make([]byte, size)); err != nil {
					return err
				}
				select {
				case <-over:
					return nil
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			})
			c := g.dial()
			for range 2 {
				c.send("POST /execute/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s", 3*size, make([]byte, 3*size))
				var early bytes.Buffer
				c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
				_, _ = early.ReadFrom(c.in) // until the deadline
				if _, body, _ := bytes.Cut(early.Bytes(), []byte("\r\n\r\n")); len(body) >= size {
					t.Errorf("the whole reply came before the call was over")
				}
				c.SetReadDeadline(time.Now().Add(wait))
				over <- struct{}{}
				c.in = bufio.NewReader(io.MultiReader(&early, c.TCPConn))
				if a := c.receive(); len(a.body) != size || a.err != nil {
					t.Errorf("%s, %d bytes, %v", a.Status, len(a.body), a.err)
				}
				if end := g.end(); end.Cause != nil {
					t.Errorf("the call: %v", end.Cause)
				}
				c.in = bufio.NewReader(c.TCPConn)
			}
		})
	}
}

// More behind a running request than may lie there counts as a hang-up.
func TestTooMuchBehind(t *testing.T) {
	door, running := hanging()
	g := serve(t, door)
	c := g.dial()
	c.send("POST /execute/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx")
	next(t, running)
	c.Write(make([]byte, 200_000)) // it may fail in the middle
	if end := g.end(); !errors.Is(end.Cause, call.ErrHungUp) {
		t.Errorf("%s: %v", end.Outcome, end.Cause)
	}
}

// What a call says in its last moment and what its caller gets agree: who is told
// that it was done has the whole result.
func TestCancelAsTheReplyIsWritten(t *testing.T) {
	const size = 20_000
	var g *rig
	g = serve(t, func(ctx context.Context, c *call.Call) error {
		if err := errors.Join(c.Input.Receive(ctx), c.Reply.Head(call.Head{Size: size})); err != nil {
			return err
		}
		cancelled := make(chan struct{})
		go func() {
			defer close(cancelled)
			g.calls.Cancel(c.ID)
		}()
		err := c.Reply.Write(ctx, make([]byte, size))
		<-cancelled
		return err
	})
	c := g.dial()
	for range 300 {
		c.send("POST /execute/echo HTTP/1.1\r\nHost: localhost\r\n\r\n")
		resp, err := http.ReadResponse(c.in, nil)
		var body []byte
		if err == nil {
			body, err = io.ReadAll(resp.Body)
		}
		end := g.end()
		if end.Outcome == event.Done && (err != nil || len(body) != size) {
			t.Fatalf("done, and its caller has %d bytes: %v", len(body), err)
		}
		if err != nil || resp.Close {
			c.Close()
			c = g.dial()
		}
	}
}

func TestNothingIsWrittenForACallThatHasEnded(t *testing.T) {
	var g *rig
	g = serve(t, func(ctx context.Context, c *call.Call) error {
		if err := errors.Join(c.Input.Receive(ctx), c.Reply.Head(call.Head{Size: 4})); err != nil {
			return err
		}
		if err := c.Reply.Head(call.Head{}); !errors.Is(err, call.ErrBadWorker) {
			t.Errorf("a second head: %v", err)
		}
		g.calls.Cancel(c.ID)
		<-ctx.Done()
		err := c.Reply.Write(ctx, []byte("late"))
		if !errors.Is(err, call.ErrCancelled) {
			t.Errorf("a late write: %v", err)
		}
		return err
	})
	c := g.dial()
	c.send("POST /execute/echo HTTP/1.1\r\nHost: localhost\r\n\r\n")
	c.receive().is(t, 409, "cancelled")
}

// pipes accepts one connection, which takes no byte that the other end does not read.
type pipes struct {
	conn   chan net.Conn
	closed chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conn:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { close(p.closed); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// A torn reply is torn at once, also for a caller who does not read it.
func TestAbortDoesNotWait(t *testing.T) {
	g := serve(t, func(ctx context.Context, c *call.Call) error {
		if err := errors.Join(c.Input.Receive(ctx), c.Reply.Head(call.Head{Size: 5000})); err != nil {
			return err
		}
		if err := c.Reply.Write(ctx, make([]byte, 3000)); err != nil { // net/http holds them back
			return err
		}
		return call.ErrDied
	})
	l := &pipes{make(chan net.Conn), make(chan struct{})}
	closed := make(chan struct{})
	server := &http.Server{Handler: g.handler, ConnState: func(_ net.Conn, s http.ConnState) {
		if s == http.StateClosed {
			close(closed)
		}
	}}
	served := make(chan struct{})
	go func() {
		defer close(served)
		server.Serve(l)
	}()
	defer func() { server.Close(); <-served }()

	here, there := net.Pipe()
	defer here.Close()
	l.conn <- there
	io.WriteString(here, "POST /execute/echo HTTP/1.1\r\nHost: localhost\r\n\r\n")
	next(t, closed)
}

func TestHTTP10(t *testing.T) {
	g := serve(t, func(ctx context.Context, c *call.Call) error {
		if err := errors.Join(c.Input.Receive(ctx), c.Reply.Head(call.Head{Size: -1})); err != nil {
			return err
		}
		err := c.Reply.Write(ctx, []byte("streamed"))
		return err
	})
	c := g.dial()
	c.send("POST /execute/echo HTTP/1.0\r\nContent-Length: 1\r\n\r\nx")
	if a := c.receive(); a.StatusCode != 200 || string(a.body) != "streamed" || !a.Close {
		t.Errorf("%s: %q, close %t", a.Status, a.body, a.Close)
	}
	c.nothing()
}

// A caller who leaves while the reply is written is noticed by the write at the latest.
func TestHangUpWhileReplying(t *testing.T) {
	writing := make(chan struct{}, 1)
	g := serve(t, func(ctx context.Context, c *call.Call) error {
		if err := errors.Join(c.Input.Receive(ctx), c.Reply.Head(call.Head{Size: -1})); err != nil {
			return err
		}
		for {
			if err := c.Reply.Write(ctx, make([]byte, 1<<16)); err != nil {
				return err
			}
			select {
			case writing <- struct{}{}:
			default:
			}
		}
	})
	for _, linger := range []int{-1, 0} {
		c := g.dial()
		c.send("POST /execute/echo HTTP/1.1\r\nHost: localhost\r\n\r\n")
		next(t, writing)
		c.SetLinger(linger)
		c.Close()
		if end := g.end(); !errors.Is(end.Cause, call.ErrHungUp) {
			t.Errorf("linger %d: %s: %v", linger, end.Outcome, end.Cause)
		}
	}
}

func BenchmarkEcho(b *testing.B) {
	g := serve(b, echo)
	c := g.dial()
	c.SetReadDeadline(time.Time{})
	b.ReportAllocs()
	for b.Loop() {
		c.send("POST /execute/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nhi")
		if a := c.receive(); a.StatusCode != 200 {
			b.Fatal(a.Status)
		}
	}
}

// BenchmarkBareEcho is net/http alone, for comparison.
func BenchmarkBareEcho(b *testing.B) {
	g := serve(b, echo)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })}
	served := make(chan struct{})
	go func() {
		defer close(served)
		server.Serve(l)
	}()
	defer func() { server.Close(); <-served }()
	g.addr = l.Addr().String()
	c := g.dial()
	c.SetReadDeadline(time.Time{})
	b.ReportAllocs()
	for b.Loop() {
		c.send("POST /execute/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nhi")
		if a := c.receive(); a.StatusCode != 200 {
			b.Fatal(a.Status)
		}
	}
}
