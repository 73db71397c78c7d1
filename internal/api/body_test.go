package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"example.com/hangup/internal/call"
	"example.com/hangup/internal/config"
	"example.com/hangup/internal/event"
)

func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

func TestBodyLimits(t *testing.T) {
	const limit = 100_000
	chunked := func(n int) string {
		return fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", n, strings.Repeat("x", n))
	}
	length := func(n int) string {
		return fmt.Sprintf("Content-Length: %d\r\n\r\n%s", n, strings.Repeat("x", n))
	}
	for _, tt := range []struct {
		name, rest string
		status     int
		slug       string
	}{
		{"as much as allowed", length(limit), 200, ""},
		{"one more", length(limit + 1), 413, "body-too-large"},
		{"chunked, as much", chunked(limit), 200, ""},
		{"chunked, one more", chunked(limit + 1), 413, "body-too-large"},
		{"announced only", "Content-Length: 100001\r\n\r\n", 413, "body-too-large"},
		{"announced, to be continued", "Expect: 100-continue\r\nContent-Length: 100001\r\n\r\n", 413, "body-too-large"},
		{"beyond any number", "Content-Length: 9223372036854775807\r\n\r\n", 413, "body-too-large"},
		{"bad chunk length", "Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "bad-request"},
		{"bad chunk end", "Transfer-Encoding: chunked\r\n\r\n1\r\nxyz\r\n", 400, "bad-request"},
	} {
		for _, path := range []string{"/execute/echo", "/execute"} {
			if path == "/execute" && tt.status == 200 {
				continue // no document
			}
			t.Run(tt.name+" "+path, func(t *testing.T) {
				g := serve(t, func(ctx context.Context, c *call.Call) error {
					if strings.Contains(tt.rest, "Content-Length") && tt.status == 413 {
						t.Error("the call got a place")
					}
					return echo(ctx, c)
				}, func(c *config.Config) { c.Limits.Body = limit })
				c := g.dial()
				c.send("POST %s HTTP/1.1\r\nHost: localhost\r\n%s", path, tt.rest)
				a := c.receive() // "100 Continue" would be the first reply
				if tt.status == 200 {
					if a.StatusCode != 200 || len(a.body) != limit {
						t.Errorf("%s, %d bytes", a.Status, len(a.body))
					}
					return
				}
				a.is(t, tt.status, tt.slug)
				if end := g.end(); end.Outcome != event.Rejected {
					t.Errorf("outcome %s", end.Outcome)
				}
			})
		}
	}
}

func TestContinueIsSentWhenTheCallHasAPlace(t *testing.T) {
	g := serve(t, echo)
	c := g.dial()
	c.send("POST /execute/echo HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
	if line, err := c.in.ReadString('\n'); err != nil || !strings.HasPrefix(line, "HTTP/1.1 100 ") {
		t.Fatalf("%q, %v", line, err)
	}
	c.in.ReadString('\n')
	c.send("body")
	if a := c.receive(); string(a.body) != "body" {
		t.Errorf("%s: %s", a.Status, a.body)
	}
}

func TestBodyTimeout(t *testing.T) {
	g := serve(t, echo, func(c *config.Config) { c.Limits.BodyTimeout = 50 * time.Millisecond })
	for _, path := range []string{"/execute/echo", "/execute"} {
		c := g.dial()
		c.send("POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nslow", path)
		c.receive().is(t, 408, "body-timeout")
		c.nothing()
		if end := g.end(); end.Outcome != event.Rejected {
			t.Errorf("outcome %s", end.Outcome)
		}
	}
}

func TestSpoolFull(t *testing.T) {
	g := serve(t, echo, func(c *config.Config) { c.Spool.Max = 1000 })
	g.do("/execute/echo", strings.Repeat("x", 100_000)).is(t, 507, "spool-full")
	if a := g.do("/execute/echo", "small ones need none"); a.StatusCode != 200 {
		t.Errorf("%s: %s", a.Status, a.body)
	}
}

// A call that ends while its body is still arriving ends at once.
func TestCancelWhileTheBodyArrives(t *testing.T) {
	receiving := make(chan struct{})
	g := serve(t, func(ctx context.Context, c *call.Call) error {
		close(receiving)
		return c.Input.Receive(ctx)
	})
	c := g.dial()
	c.send("POST /execute/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nhalf")
	<-receiving
	if !g.calls.Cancel("call-1") {
		t.Fatal("no such call")
	}
	c.receive().is(t, 409, "cancelled")
	c.nothing()
}

// A refusal does not wait for the rest of a body.
func TestRefusalsDoNotWait(t *testing.T) {
	g := serve(t, func(context.Context, *call.Call) error { return call.ErrQueueFull })
	for _, request := range []string{
		"POST /execute/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nhalf",
		"POST /execute/nope HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
		"POST /execute/echo HTTP/1.1\r\nHost: elsewhere\r\nContent-Length: 10\r\n\r\n",
		"POST /execute/echo HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n",
		"GET /calls HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nhalf",
		"GET /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nhalf",
		"DELETE /calls/x HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n",
	} {
		c := g.dial()
		c.send("%s", request)
		if a := c.receive(); a.err != nil || a.StatusCode == 100 || !a.Close {
			t.Errorf("%q: %s, %v, close %t", request, a.Status, a.err, a.Close)
		}
		c.nothing() // what comes behind must not be taken for a request
	}
}

// A refused call whose body is there costs no connection, and leaves nothing of
// the body behind.
func TestRefusalsKeepTheConnection(t *testing.T) {
	g := serve(t, func(context.Context, *call.Call) error { return call.ErrQueueFull })
	c := g.dial()
	for range 3 {
		c.send("POST /execute/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 30\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x")
		a := c.receive()
		if a.is(t, 503, "queue-full"); a.Close {
			t.Error("closed")
		}
	}
	c.send("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
	if a := c.receive(); a.StatusCode != 200 {
		t.Errorf("%s", a.Status)
	}
}

// The sender of a body that is refused in the middle can read the refusal, though
// it is still sending: the connection is not reset at once.
func TestRefusalReachesAStubbornSender(t *testing.T) {
	part := strings.Repeat("x", 1<<16)
	for _, tt := range []struct {
		name, head string
		parts      int // before the refusal
		door       doer
	}{
		{"too large", "Transfer-Encoding: chunked\r\n\r\n1000000\r\n", 16 + 4 + 2, echo},
		{"queue full", "Content-Length: 262144\r\n\r\n", 1, func(context.Context, *call.Call) error { return call.ErrQueueFull }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := serve(t, tt.door)
			c := g.dial()
			c.send("POST /execute/echo HTTP/1.1\r\nHost: localhost\r\n%s", tt.head)
			for range tt.parts {
				c.send("%s", part)
			}
			if a := c.receive(); a.StatusCode < 400 || a.err != nil {
				t.Errorf("%s, %v", a.Status, a.err)
			}
			c.send("x") // a reset would be the answer
			c.send("x")
			if _, err := io.Copy(io.Discard, c.in); err != nil {
				t.Error(err)
			}
		})
	}
}

// ETIMEDOUT says that it is a time-out. It is the kernel's, of a peer that vanished, and
// not that of the body.
func TestBodyOfVanishedPeer(t *testing.T) {
	b := &body{}
	read := &net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", syscall.ETIMEDOUT)}
	if err := b.cause(context.Background(), read, read); !errors.Is(err, call.ErrHungUp) {
		t.Errorf("ETIMEDOUT: %v", err)
	}
	read.Err = os.ErrDeadlineExceeded
	if err := b.cause(context.Background(), read, read); !errors.Is(err, call.ErrBodyTimeout) {
		t.Errorf("the deadline: %v", err)
	}
}
