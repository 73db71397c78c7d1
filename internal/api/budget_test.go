package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"example.com/hangup/internal/call"
	"example.com/hangup/internal/config"
	"example.com/hangup/internal/event"
)

func TestBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget(config.Hangups{Burst: 3, PerMinute: 60})
		one, other := payer{token: "one"}, payer{token: "other"}
		waits := func(when string, p payer, want time.Duration) {
			t.Helper()
			if got := b.wait(p).Round(time.Microsecond); got != want {
				t.Errorf("%s: %s waits %v, want %v", when, p.token, got, want)
			}
		}
		waits("new", one, 0)
		for range 2 {
			b.charge(one)
		}
		waits("one left", one, 0)
		b.charge(one)
		waits("none left", one, time.Second)
		waits("none left to one", other, 0)
		for range 5 {
			b.charge(one)
		}
		waits("in debt, as deep as it gets", one, 4*time.Second)
		time.Sleep(3999 * time.Millisecond)
		waits("just before", one, time.Millisecond)
		time.Sleep(time.Millisecond)
		waits("as long as it was told", one, 0)
		b.charge(one)
		waits("its one was used", one, time.Second)

		time.Sleep(3 * time.Second)
		if b.wait(one); len(b.buckets) != 0 {
			t.Error("a full bucket is kept")
		}
		time.Sleep(time.Hour)
		for range 3 {
			b.charge(one)
		}
		waits("a long time saves nothing up", one, time.Second)
	})
}

func TestBudgetLimitsChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget(config.Hangups{Burst: 10, PerMinute: 60})
		p, other := payer{token: "p"}, payer{token: "other"}
		for range 15 {
			b.charge(p)
		}
		b.SetLimits(config.Hangups{Burst: 2, PerMinute: 120})
		if got := b.wait(p); got != 3*time.Second { // 5 are owed and one is needed, at 2 a second
			t.Errorf("after a reload: %v", got)
		}
		for range 2 {
			b.charge(other)
		}
		if got := b.wait(other); got != 500*time.Millisecond {
			t.Errorf("a new one after a reload: %v", got)
		}
		b.SetLimits(config.Hangups{})
		for range 1000 {
			b.charge(p)
		}
		if got := b.wait(p); got != 0 || len(b.buckets) != 0 {
			t.Errorf("without limit: %v, %d buckets", got, len(b.buckets))
		}
		b.SetLimits(config.Hangups{Burst: 1, PerMinute: 1})
		b.charge(p)
		if got := b.wait(p); got != time.Minute {
			t.Errorf("with a limit again: %v", got)
		}
	})
}

// A crowd costs neither memory, nor those who are no part of it, and who owes much
// is not forgiven for it.
func TestBudgetOfACrowd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget(config.Hangups{Burst: 2, PerMinute: 60})
		debtor := payer{token: "debtor"}
		for range 1000 {
			b.charge(debtor)
		}
		crowd := func(of string, n int) {
			for i := range n {
				b.charge(payer{token: of + strconv.Itoa(i)})
				if len(b.buckets) > maxBuckets {
					t.Fatalf("%d buckets", len(b.buckets))
				}
			}
		}
		crowd("a", 3*maxBuckets)
		if b.wait(debtor) == 0 {
			t.Error("the crowd has freed one who owes 998")
		}
		if b.wait(payer{token: "bystander"}) != 0 {
			t.Error("somebody else pays")
		}
		time.Sleep(2 * time.Second) // the crowd's are full again, and go as others come
		crowd("b", maxBuckets/looksForRoom)
		if n := len(b.buckets); n > maxBuckets/2 {
			t.Errorf("%d buckets are left of a crowd long gone", n)
		}
	})
}

func TestPayers(t *testing.T) {
	token := &config.Token{Name: "ci"}
	from := func(s string) caller { return caller{name: s, from: netip.MustParseAddr(s)} }
	for _, tt := range []struct {
		one, other caller
		same       bool
	}{
		{from("192.0.2.1"), from("192.0.2.1"), true},
		{from("192.0.2.1"), from("192.0.2.2"), false},
		{from("2001:db8::1"), from("2001:db8::ffff:ffff:ffff:ffff"), true},
		{from("2001:db8::1"), from("2001:db8:0:1::1"), false},
		{caller{name: "local"}, caller{name: "local"}, true},
		{caller{name: "local"}, from("192.0.2.1"), false},
		{caller{name: "uid:1"}, caller{name: "uid:2"}, false},
		{caller{token: token, from: netip.MustParseAddr("192.0.2.1")}, caller{token: token, from: netip.MustParseAddr("192.0.2.2")}, true},
		{caller{token: token}, caller{token: &config.Token{Name: "other"}}, false},
		{caller{token: token}, caller{name: "ci"}, false},
	} {
		if same := tt.one.payer() == tt.other.payer(); same != tt.same {
			t.Errorf("%v and %v: the same is %t", tt.one.payer(), tt.other.payer(), same)
		}
	}
}

// Who gave up as many calls as the budget has is refused more, whatever it gave
// up on; before a place, and with the truth about when. Others are not.
func TestGivingUpCosts(t *testing.T) {
	const head = "POST /execute/echo HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer one\r\n"
	token := func(name string) config.Token {
		return config.Token{Name: name, SHA256: sha256.Sum256([]byte(name)), Allow: []string{"execute", "observe"}, Workloads: []string{"*"}}
	}
	for _, tt := range []struct {
		name, sent string
		runs, told bool // the work starts; the caller stays for the reply
	}{
		{"running", head + "\r\n", true, false},
		{"running, told of events", head + "Accept: text/event-stream\r\n\r\n", true, false},
		{"half a body", head + "Content-Length: 4\r\n\r\nbo", false, false},
		{"half a document", "POST /execute HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer one\r\nContent-Length: 40\r\n\r\n{", false, false},
		{"a time limit of its own", head + "Call-Timeout: 1ms\r\n\r\n", true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			running := make(chan *call.Call, 10)
			g := serve(t, func(ctx context.Context, c *call.Call) error {
				if err := c.Input.Receive(ctx); err != nil {
					return err
				}
				if c.Caller == "other" {
					return echo(ctx, c)
				}
				running <- c
				if c.Timeout > 0 {
					return call.ErrTimedOut
				}
				<-ctx.Done()
				return context.Cause(ctx)
			}, func(c *config.Config) {
				c.Limits.Hangups = config.Hangups{Burst: 2, PerMinute: 1}
				c.Auth.Tokens = []config.Token{token("one"), token("other")}
			})
			for range 2 {
				c := g.dial()
				c.send("%s", tt.sent)
				if tt.runs {
					next(t, running)
				}
				if tt.told {
					c.receive().is(t, 504, "timed-out")
				}
				c.Close()
				if end := g.end(); end.Outcome == event.Rejected {
					t.Fatalf("%+v", end)
				}
			}
			// The charge comes right behind the end of the call.
			for deadline := time.Now().Add(wait); g.budget.wait(payer{token: "one"}) == 0; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("nothing was charged")
				}
			}
			for _, body := range []string{"", "Expect: 100-continue\r\nContent-Length: 4\r\n"} {
				c := g.dial()
				c.send("%s%s\r\n", head, body)
				a := c.receive()
				a.is(t, 429, "too-many-calls")
				if after, err := strconv.Atoi(a.Header.Get("Retry-After")); err != nil || after < 50 || after > 60 {
					t.Errorf("Retry-After: %q", a.Header.Get("Retry-After"))
				}
				if !a.Close {
					t.Error("the connection stays")
				}
				c.nothing()
				if end := g.end(); end.Outcome != event.Rejected || end.Caller != "one" {
					t.Errorf("%+v", end)
				}
			}
			if a := g.do("GET /calls", "", "Authorization: Bearer one"); a.StatusCode != 200 {
				t.Errorf("it may not even look: %s", a.Status)
			}
			if a := g.do("/execute/echo", "x", "Authorization: Bearer other"); a.StatusCode != 200 {
				t.Errorf("another caller: %s: %s", a.Status, a.body)
			}
			if len(running) > 0 {
				t.Error("more was started")
			}
		})
	}
}

// What the workload does not do in its own time is no fault of the caller's, nor is
// anything else that ends a call.
func TestNobodyElsePays(t *testing.T) {
	for _, err := range []error{nil, call.ErrTimedOut, call.ErrCancelled, call.ErrDied, call.ErrQueueFull, call.ErrFailed, call.ErrDrained} {
		g := serve(t, func(ctx context.Context, c *call.Call) error { return errors.Join(echo(ctx, c), err) }, func(c *config.Config) {
			c.Limits.Hangups = config.Hangups{Burst: 1, PerMinute: 1}
			c.Workloads[0].Timeout = time.Second
		})
		for range 3 {
			if a := g.do("/execute/echo", "", "Call-Timeout: 1s"); a.StatusCode == 429 {
				t.Errorf("%v: %s", err, a.body)
			}
		}
		if len(g.budget.buckets) > 0 {
			t.Errorf("%v was charged", err)
		}
	}
}

// A caller behind a trusted proxy pays for itself, and the proxy's connection stays.
func TestBudgetBehindAProxy(t *testing.T) {
	door, running := hanging()
	g := serve(t, door, func(c *config.Config) {
		c.Limits.Hangups = config.Hangups{Burst: 1, PerMinute: 1}
		c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	})
	const head = "POST /execute/echo HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: %s\r\n\r\n"
	c := g.dial()
	c.send(head, "192.0.2.1")
	next(t, running)
	c.Close()
	g.end()
	for deadline := time.Now().Add(wait); g.budget.wait(payer{network: netip.MustParsePrefix("192.0.2.1/32")}) == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nothing was charged")
		}
	}
	c = g.dial()
	for range 2 {
		c.send(head, "198.51.100.1, 192.0.2.1")
		a := c.receive()
		if a.is(t, 429, "too-many-calls"); a.Close {
			t.Error("the proxy's connection is closed")
		}
		if end := g.end(); end.Caller != "192.0.2.1" {
			t.Errorf("%+v", end)
		}
	}
	c.send(head, "192.0.2.1, 192.0.2.2")
	if started := next(t, running); started.Caller != "192.0.2.2" {
		t.Errorf("the caller is %s", started.Caller)
	}
}

// Streams that are opened and reset cost as many calls as the budget has. Then the
// connection ends, though nobody waits for the replies that say so.
func TestResetStreamsAreCharged(t *testing.T) {
	const burst, late = 20, 2 // a charge comes right behind the end of its call
	g := serve(t, func(ctx context.Context, c *call.Call) error {
		<-ctx.Done()
		return context.Cause(ctx)
	}, func(c *config.Config) { c.Limits.Hangups = config.Hangups{Burst: burst, PerMinute: 1} })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	// Without connwatch, which does not know streams.
	server := &http.Server{Handler: g.handler, Protocols: new(http.Protocols)}
	server.Protocols.SetUnencryptedHTTP2(true)
	served := make(chan struct{})
	go func() {
		defer close(served)
		server.Serve(l)
	}()
	defer func() { server.Close(); <-served }()

	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(wait))
	io.WriteString(c, http2.ClientPreface)
	frames := http2.NewFramer(c, c)
	frames.WriteSettings()
	away := make(chan string, 1)
	go func() {
		for {
			f, err := frames.ReadFrame()
			if f, ok := f.(*http2.GoAwayFrame); ok {
				away <- f.ErrCode.String()
				return
			}
			if err != nil {
				away <- err.Error()
				return
			}
		}
	}()
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	outcomes := map[event.Outcome]int{}
	sent := false // a GOAWAY
	for id := uint32(1); id < 2000; id += 2 {
		block.Reset()
		for _, f := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":authority", "localhost"}, {":path", "/execute/echo"}} {
			encoder.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
		}
		frames.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true})
		frames.WriteRSTStream(id, http2.ErrCodeCancel)
		// One after the other: net/http has a bound of its own on those ahead.
		select {
		case end := <-g.ended:
			outcomes[end.Outcome]++
			continue
		case code := <-away:
			if code != "NO_ERROR" {
				t.Errorf("the connection ended with %s", code)
			}
		}
		sent = true
		break
	}
	t.Logf("%v", outcomes)
	if !sent {
		t.Error("the connection goes on")
	}
	if n := outcomes[event.Cancelled]; n < burst || n > burst+late || outcomes[event.Rejected] == 0 || len(outcomes) != 2 {
		t.Errorf("the calls ended as %v, the budget is %d", outcomes, burst)
	}
}
