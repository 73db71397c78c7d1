package e2e

import (
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.com/hangup/internal/proctest"
)

// TestFloodFromOneAddress: whatever one address does, another's calls are answered, the memory
// stays within a bound, and no more workers are started than the budget of hang-ups
// allows. bench/flood measures how well.
func TestFloodFromOneAddress(t *testing.T) {
	proctest.OneLane(t, "what an address costs is the same")
	const (
		length           = 2 * time.Second
		flooders         = 4
		burst, perMinute = 10, 60
		streams          = 10
		memory           = 192 << 20 // with the race detector, which makes it several times as much
	)
	for _, test := range []struct {
		name, settings string
		flooders       int
		flood          func(s *server, t *testing.T, end time.Time) // once
	}{
		{"slow headers", "", 300, slowHeaders},
		{"connections for nothing", "", flooders, func(s *server, t *testing.T, _ time.Time) { s.from(t, "127.0.0.2").Close() }},
		{"resets", "", flooders, func(s *server, t *testing.T, _ time.Time) { s.flood(t, s.from(t, "127.0.0.2"), 100_000, false) }},
		{"resets, deaf", "", flooders, func(s *server, t *testing.T, _ time.Time) { s.flood(t, s.from(t, "127.0.0.2"), 100_000, true) }},
		{"resets over TLS", "tls: {cert: cert.pem, key: key.pem}", flooders, func(s *server, t *testing.T, _ time.Time) {
			s.flood(t, s.from(t, "127.0.0.2"), 100_000, false)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := start(t, python, fmt.Sprintf("limits: {connections: 200, streams: %d, hangups: {burst: %d, per_minute: %d}}", streams, burst, perMinute), test.settings)
			workers := s.metric("hangup_kill_seconds_count")
			before := s.peak()
			began := time.Now()
			stop := s.neighbour("py")
			var turns atomic.Int64
			var all sync.WaitGroup
			for range test.flooders {
				all.Go(func() {
					for end := began.Add(length); time.Now().Before(end) && !t.Failed(); turns.Add(1) {
						test.flood(s, t, end)
					}
				})
			}
			all.Wait()
			stop()
			s.eventually("no call is under way", func() bool { return len(s.underWay()) == 0 })
			killed := s.metric("hangup_kill_seconds_count") - workers
			grown := s.peak() - before
			// Those that are under way when the budget is used up come on top.
			most := burst + perMinute*time.Since(began).Minutes() + flooders*streams
			t.Logf("%d connections, %d MiB more, %v workers replaced", turns.Load(), grown>>20, killed)
			if killed > most {
				t.Errorf("%v workers were replaced, want at most %v", killed, most)
			}
			if grown > memory {
				t.Errorf("the server took %d MiB more", grown>>20)
			}
		})
	}
}

// slowHeaders sends a byte of a header now and then, until it is thrown out.
func slowHeaders(s *server, t *testing.T, end time.Time) {
	c := s.from(t, "127.0.0.2")
	defer c.Close()
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		_, _ = io.Copy(io.Discard, c) // its end is what matters
	}()
	_, _ = io.WriteString(c, "POST /execute/py/echo HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for time.Now().Before(end) {
		select {
		case <-closed:
			return
		case <-tick.C:
			_, _ = io.WriteString(c, "x")
		}
	}
}

// underWay are the calls that have not ended.
func (s *server) underWay() (list []callRecord) {
	for _, c := range s.calls() {
		if c.State != "ended" {
			list = append(list, c)
		}
	}
	return list
}
