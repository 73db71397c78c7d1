package api

import (
	"context"
	"errors"
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"example.com/hangup/internal/call"
	"example.com/hangup/internal/connwatch"
)

// sendTimeout is the TCP_USER_TIMEOUT of a connection, in milliseconds.
func sendTimeout(t *testing.T, c net.Conn) (ms int) {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var sockErr error
	err = raw.Control(func(fd uintptr) {
		ms, sockErr = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
	})
	if err := errors.Join(err, sockErr); err != nil {
		t.Fatal(err)
	}
	return ms
}

// A peer that vanishes from a stream is given up, one that waits is not.
func TestVanishedReader(t *testing.T) {
	size := make(chan int64, 1)
	var g *rig
	g = serve(t, func(ctx context.Context, c *call.Call) error {
		n := <-size
		if err := errors.Join(c.Input.Receive(ctx), c.Reply.Head(call.Head{Size: n})); err != nil {
			return err
		}
		want := 0
		if n < 0 || n > streamedFrom {
			want = int(connwatch.SendTimeout.Milliseconds())
		}
		if got := sendTimeout(t, next(t, g.conns)); got != want {
			t.Errorf("size %d: %d ms, want %d", n, got, want)
		}
		err := c.Reply.Write(ctx, make([]byte, max(n, 1)))
		return err
	})
	for _, n := range []int64{-1, 2 * streamedFrom, 10} {
		size <- n
		if a := g.do("/execute/echo", ""); a.StatusCode != 200 || a.err != nil {
			t.Errorf("size %d: %s, %v", n, a.Status, a.err)
		}
	}
}
