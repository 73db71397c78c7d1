package e2e

import (
	"fmt"
	"net"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/net/http2"

	"example.com/hangup/internal/proc"
)

// heldWork is a pool whose calls run until they are released, and one that has room for
// but one.
const heldWork = `
  held: {command: [python3, held.py], workers: 6, spares: 0, stop: {grace: 200ms}}
  full: {command: [python3, held.py], workers: 1, spares: 0, stop: {grace: 200ms}}
`

// crowd are the streams of one connection, two in every phase, and one call elsewhere for
// which those that are queued wait.
type crowd struct {
	s       *server
	h       *h2conn
	name    string
	busy    <-chan answer
	streams []crowded
}

// crowded is one of them.
type crowded struct {
	*h2stream
	at     phase
	call   string // its id
	name   string // of the file that releases it
	unsent string // of its body
}

// crowd opens a connection and its streams.
func (s *server) crowd(name string) *crowd {
	s.t.Helper()
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	g := &crowd{s: s, name: name, busy: s.later("/execute/full/held", strconv.Quote(name))}
	s.newest("running", func(c callRecord) bool { return c.State == "running" && c.Workload == "full" })
	if g.h, err = newH2(c); err != nil {
		s.t.Fatal(err)
	}
	for _, at := range phases {
		for range 2 {
			g.open(at)
		}
	}
	return g
}

// open opens one more stream and waits until it is where it should be.
func (g *crowd) open(at phase) {
	g.s.t.Helper()
	one := crowded{at: at, name: fmt.Sprintf("%s-%d", g.name, len(g.streams))}
	path, state, body := "/execute/held/held", "running", strconv.Quote(one.name)
	switch at {
	case receiving:
		state = "queued"
		body, one.unsent = body[:3], body[3:]
	case queued:
		path, state = "/execute/full/held", "queued"
	case replying:
		path = "/execute/held/replies"
	}
	before := len(g.s.calls())
	var err error
	one.h2stream, err = g.h.request("POST", path, false, "content-type", "application/json")
	if err == nil {
		err = one.send(body, one.unsent == "")
	}
	if err == nil && at == replying {
		err = one.await(func() bool { return len(one.data) > 0 })
	}
	if err != nil {
		g.s.t.Fatal(err)
	}
	g.s.eventually("one more "+string(at), func() bool {
		list := g.s.calls()
		last := list[len(list)-1]
		one.call = last.ID
		return len(list) == before+1 && last.State == state
	})
	g.streams = append(g.streams, one)
}

// finish lets a stream go on to its end, which must be the right one.
func (g *crowd) finish(one crowded) {
	g.s.t.Helper()
	if one.unsent != "" {
		if err := one.send(one.unsent, true); err != nil {
			g.s.t.Errorf("%s: %v", one.at, err)
		}
	}
	g.s.write(one.name, "")
	want := `"held"`
	if one.at == replying {
		want = "begun, ended"
	}
	if status, body, err := one.whole(); err != nil || status != "200" || body != want {
		g.s.t.Errorf("%s: %s %q, %v", one.at, status, body, err)
	}
}

// release ends the call for which the queued ones wait.
func (g *crowd) release() {
	g.s.t.Helper()
	g.s.write(g.name, "")
	if got := <-g.busy; got.body != `"held"` {
		g.s.t.Errorf("the call elsewhere got %+v", got)
	}
}

// cancelled waits until the calls of some streams are cancelled by their caller, and makes
// sure that those of the others are not.
func (g *crowd) cancelled(some, others []crowded) {
	g.s.t.Helper()
	find := func(id string) (found callRecord) {
		for _, c := range g.s.calls() {
			if c.ID == id {
				found = c
			}
		}
		return found
	}
	for _, one := range some {
		g.s.eventually("a "+string(one.at)+" call is cancelled", func() bool {
			c := find(one.call)
			return c.Outcome == "cancelled" && c.Cancel != nil && c.Cancel.By == "caller" && c.Cancel.Empty
		})
	}
	for _, one := range others {
		if c := find(one.call); c.State == "ended" && c.Outcome != "done" {
			g.s.t.Errorf("a %s call has ended: %+v", one.at, c)
		}
	}
}

// pairs parts the streams in the first and the second of each phase.
func (g *crowd) pairs() (firsts, seconds []crowded) {
	for i, one := range g.streams {
		if i%2 == 0 {
			firsts = append(firsts, one)
		} else {
			seconds = append(seconds, one)
		}
	}
	return firsts, seconds
}

// ends waits for the end of the connection.
func (g *crowd) ends() {
	g.s.t.Helper()
	g.s.eventually("the connection ends", func() bool {
		g.h.mu.Lock()
		defer g.h.mu.Unlock()
		return g.h.err != nil
	})
}

// TestStreams: what happens to one stream, or to their connection, ends exactly the calls
// that it should, wherever they are.
func TestStreams(t *testing.T) {
	s := start(t, heldWork)

	t.Run("RST_STREAM", func(t *testing.T) {
		g := s.crowd("reset")
		firsts, seconds := g.pairs()
		for _, one := range firsts {
			if err := one.cancel(); err != nil {
				t.Fatal(err)
			}
		}
		g.cancelled(firsts, seconds)
		g.release()
		for _, one := range seconds {
			g.finish(one)
		}
		next, err := g.h.request("GET", "/healthz", true)
		if err != nil {
			t.Fatal(err)
		}
		if status, _, err := next.whole(); status != "200" {
			t.Errorf("the next stream got %s, %v", status, err)
		}
		g.h.Close()
	})

	t.Run("GOAWAY of the client", func(t *testing.T) {
		g := s.crowd("goaway")
		if err := g.h.frame(func() error { return g.h.out.WriteGoAway(0, http2.ErrCodeNo, nil) }); err != nil {
			t.Fatal(err)
		}
		if err := g.streams[0].await(func() bool { return g.h.goAway != nil }); err != nil {
			t.Error(err) // the server's own says that the client's has come
		}
		g.cancelled(nil, g.streams)
		g.release()
		for _, one := range g.streams {
			g.finish(one)
		}
		g.ends()
	})

	for _, m := range []manner{fin, rst} {
		t.Run("loss by "+m.name, func(t *testing.T) {
			g := s.crowd("loss-" + m.name)
			firsts, seconds := g.pairs()
			g.finish(firsts[2])
			one := seconds[2]
			if err := one.cancel(); err != nil {
				t.Fatal(err)
			}
			g.cancelled([]crowded{one}, g.streams[:4])
			m.leave(g.h.Conn)
			left := append(append([]crowded{}, g.streams[:4]...), g.streams[6:]...)
			g.cancelled(left, firsts[2:3])
			g.release()
		})
	}
}

// TestDrainOfStreams: a server that is told to end takes no new streams, lets those that
// are there come to their end, and says goodbye.
func TestDrainOfStreams(t *testing.T) {
	s := launch(t, heldWork, "drain: 1m")
	g := s.crowd("drain")
	all := proc.Look(s.cmd.Process.Pid)
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.eventually("unready", func() bool { code, _ := s.get("/readyz"); return code == 503 })
	late, err := g.h.request("POST", "/execute/held/echo", true)
	if err != nil {
		t.Fatal(err)
	}
	if status, body, err := late.whole(); status != "503" {
		t.Errorf("a new stream got %s %s, %v", status, body, err)
	}
	if err := late.await(func() bool { return g.h.goAway != nil }); err != nil {
		t.Error(err)
	}
	g.cancelled(nil, g.streams)
	g.release()
	for _, one := range g.streams {
		g.finish(one)
	}
	g.ends()
	if away := g.h.goAway; away == nil || away.ErrCode != http2.ErrCodeNo {
		t.Errorf("the server said goodbye with %v", away)
	}
	s.gone(all, 0)
}
