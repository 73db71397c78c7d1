package api

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"example.com/hangup/internal/call"
	"example.com/hangup/internal/config"
)

// state is the state of a probe, "" where there is none.
func (g *rig) probe(id string) string {
	g.t.Helper()
	a := g.do("GET /probes/"+id, "")
	if a.StatusCode == http.StatusNotFound {
		return ""
	}
	var state string
	for _, s := range []string{"held", "left", "ended"} {
		if strings.Contains(string(a.body), `"state":"`+s+`"`) {
			state = s
		}
	}
	return state
}

func (g *rig) probeBecomes(id, state string) {
	g.t.Helper()
	for end := time.Now().Add(wait); g.probe(id) != state; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			g.t.Fatalf("the probe %s is %q, want %q", id, g.probe(id), state)
		}
	}
}

// A probe is held while its caller is there, and is left when it is gone,
// whatever has been sent by then.
func TestProbes(t *testing.T) {
	g := serve(t, echo)
	for i, request := range []string{
		"Content-Length: 0\r\n\r\n",
		"Content-Length: 3\r\n\r\nabc",
		"Content-Length: 200000\r\n\r\n" + strings.Repeat("x", 100_000),
		"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n",
		"Content-Length: 3\r\n\r\nabc" + "P",
	} {
		id := fmt.Sprintf("abcdef-%d", i)
		c := g.dial()
		c.send("POST /probes/%s HTTP/1.1\r\nHost: localhost\r\n%s", id, request)
		g.probeBecomes(id, "held")
		c.Close()
		g.probeBecomes(id, "left")
		one := decode(t, g.do("GET /probes/"+id, ""))
		if one["id"] != id || one["held_at"] == nil || one["left_at"] == nil || one["ended_at"] != nil {
			t.Errorf("%v", one)
		}
		g.do("/probes/"+id, "").is(t, 400, "bad-request") // an id is used once
	}
	if n := len(g.calls.List()); n != 0 {
		t.Errorf("%d calls", n)
	}
}

func TestProbeWhoseReplyStreams(t *testing.T) {
	g := serve(t, echo)
	c := g.dial()
	c.send("POST /probes/0123456789?stream=1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
	reply, err := http.ReadResponse(c.in, nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if n, err := reply.Body.Read(make([]byte, 1)); n != 1 {
			t.Fatalf("%d, %v", n, err)
		}
	}
	g.probeBecomes("0123456789", "held")
	c.Close()
	g.probeBecomes("0123456789", "left")
}

// Few are held at once, a place is free again when its caller has left, and few
// are remembered.
func TestProbesAreBounded(t *testing.T) {
	g := serve(t, echo)
	id := func(i int) string { return fmt.Sprintf("%08x", i) }
	var held []*raw
	for i := range maxProbes {
		held = append(held, g.dial())
		held[i].send("POST /probes/%s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n", id(i))
		g.probeBecomes(id(i), "held")
	}
	a := g.do("/probes/ffffffff", "")
	a.is(t, 503, "too-many-probes")
	if a.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	for i, c := range held {
		c.Close()
		g.probeBecomes(id(i), "left")
	}
	for i := maxProbes; i < keptProbes+10; i++ {
		c := g.dial()
		c.send("POST /probes/%s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n", id(i))
		g.probeBecomes(id(i), "held")
		c.Close()
		g.probeBecomes(id(i), "left")
	}
	if first, last := g.probe(id(0)), g.probe(id(keptProbes+9)); first != "" || last != "left" {
		t.Errorf("the first is %q, the last %q", first, last)
	}
}

func TestProbeIDs(t *testing.T) {
	g := serve(t, echo, func(c *config.Config) { c.Limits.Body = 10 })
	for _, id := range []string{"1234567", "abcdefgh", "ABCDEF01", strings.Repeat("a", 65), "abcdef01%20", "abcdef01%2F"} {
		g.do("/probes/"+id, "").is(t, 400, "bad-request")
	}
	g.do("/probes/abcdef01", "more than ten").is(t, 413, "body-too-large")
	g.do("GET /probes/abcdef01", "").is(t, 404, "not-found")
}

// The end of a probe that comes first is the one that counts.
func TestProbeEndsOnce(t *testing.T) {
	var p Probes
	one, err := p.hold("abcdef01")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.hold("abcdef01"); !errors.Is(err, call.ErrBadRequest) {
		t.Errorf("held twice: %v", err)
	}
	if first, second := p.end(one, false), p.end(one, true); first.State != "ended" || second.State != "ended" || second.LeftAt != nil || p.held != 0 {
		t.Errorf("%+v, %+v, %d held", first, second, p.held)
	}
}
