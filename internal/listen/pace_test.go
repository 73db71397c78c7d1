package listen

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"
)

// guestOf is a connection of a gate, with the end that its peer writes to.
func guestOf(t *testing.T, g *gate, from string) (*conn, net.Conn) {
	t.Helper()
	near, far := net.Pipe()
	c := g.pacer.conn(near)
	c.from = from
	if !g.enter(c, c) {
		t.Fatal("no room")
	}
	return c, far
}

// takes is how long it takes to read n bytes that are there.
func takes(t *testing.T, c *conn, far net.Conn, n int) time.Duration {
	t.Helper()
	began := time.Now()
	go far.Write(make([]byte, n)) //nolint:errcheck // ReadFull tells
	if _, err := io.ReadFull(c, make([]byte, n)); err != nil {
		t.Fatal(err)
	}
	return time.Since(began)
}

// TestWhoIsShownOutIsReadSlowly: a connection whose peer was shown out, and
// new ones from its address until they bring a request; nobody else, and not for long.
func TestWhoIsShownOutIsReadSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = (pacedReads + pacedReads/2) * pacedBytes // takes half a second, once the burst is over
		g := newGate(nil)
		g.setLimit(10)
		set := &Set{gate: g}
		out, outFar := guestOf(t, g, "a")
		served, servedFar := guestOf(t, g, "a")
		other, otherFar := guestOf(t, g, "b")
		request := func(c *conn, reply http.HandlerFunc) {
			r := httptest.NewRequest(http.MethodPost, "/", nil)
			set.Handler(reply).ServeHTTP(httptest.NewRecorder(), r.WithContext(set.ConnContext(r.Context(), c)))
		}
		request(served, func(http.ResponseWriter, *http.Request) {})
		request(out, func(_ http.ResponseWriter, r *http.Request) { ShowOut(r) })

		if out.shown.Load() == nil {
			t.Fatal("it does not count as shown out")
		}
		fresh, freshFar := guestOf(t, g, "a")
		if d := takes(t, fresh, freshFar, n); d < 400*time.Millisecond {
			t.Errorf("a new connection from the address was read in %v", d)
		}
		if d := takes(t, out, outFar, n); d < 400*time.Millisecond {
			t.Errorf("the connection was read in %v", d)
		}
		if d := takes(t, served, servedFar, n); d > 0 {
			t.Errorf("a connection from there that serves another took %v", d)
		}
		if d := takes(t, other, otherFar, n); d > 0 {
			t.Errorf("a connection from elsewhere took %v", d)
		}
		time.Sleep(pacedFor)
		again, againFar := guestOf(t, g, "a")
		if d := takes(t, again, againFar, n); d > 0 {
			t.Errorf("a new connection from there, later, took %v", d)
		}

		// A pause ends when net/http takes the Read back, and with the connection.
		for _, end := range []func() error{
			func() error { return out.SetReadDeadline(time.Unix(1, 0)) },
			out.Close,
		} {
			for out.shown.Load().reads.Allow() {
			}
			began, ended := time.Now(), make(chan error)
			go func() {
				_, err := out.Read(make([]byte, 1))
				ended <- err
			}()
			synctest.Wait()
			if err := end(); err != nil {
				t.Fatal(err)
			}
			if err := <-ended; err == nil || time.Since(began) > 0 {
				t.Errorf("a read that pauses: %v after %v", err, time.Since(began))
			}
		}
	})
}

// TestPacedAddressesAreBounded: in number, and those whose time is over go.
func TestPacedAddressesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pacer{paces: map[string]*pace{}}
		address := func(i int) string {
			return source(&net.TCPAddr{IP: net.IPv4(10, byte(i>>16), byte(i>>8), byte(i))})
		}
		for i := range 2 * maxPaced {
			p.slow(address(i))
		}
		if len(p.paces) > maxPaced {
			t.Errorf("%d addresses", len(p.paces))
		}
		time.Sleep(2 * pacedFor)
		for i := range maxPaced / 2 {
			p.slow(address(2*maxPaced + i))
		}
		if len(p.paces) > maxPaced*3/4 {
			t.Errorf("%d addresses are left", len(p.paces))
		}
	})
}

func TestSource(t *testing.T) {
	for _, c := range []struct{ address, want string }{
		{"192.0.2.1:99", "192.0.2.1"},
		{"[::ffff:192.0.2.1]:99", "192.0.2.1"},
		{"[2001:db8:1:2:3:4:5:6]:99", "2001:db8:1:2::/64"},
		{"[fe80::1%lo]:99", "fe80::/64"},
	} {
		a, err := net.ResolveTCPAddr("tcp", c.address)
		if err != nil {
			t.Fatal(err)
		}
		if got := source(a); got != c.want {
			t.Errorf("%s is of %s, want %s", c.address, got, c.want)
		}
	}
	if got := source(peer("uid:7")); got != "uid:7" {
		t.Errorf("a user is of %s", got)
	}
}
