package api

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"example.com/hangup/internal/call"
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
			if _, err := c.Reply.Write(make([]byte, 100)); err != nil {
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

func TestHTTP10(t *testing.T) {
	g := serve(t, func(ctx context.Context, c *call.Call) error {
		if err := errors.Join(c.Input.Receive(ctx), c.Reply.Head(call.Head{Size: -1})); err != nil {
			return err
		}
		_, err := io.WriteString(c.Reply, "streamed")
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
			if _, err := c.Reply.Write(make([]byte, 1<<16)); err != nil {
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
