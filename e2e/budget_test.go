package e2e

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"strconv"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"example.com/hangup/internal/proctest"
)

// TestRapidReset: who opens streams of HTTP/2 and resets them, as fast as they can be
// written and on one connection after the other, uses up its own budget and is shown
// out. Others are served all the while.
func TestRapidReset(t *testing.T) {
	const burst, streams, connections = 10, 10, 5
	s := start(t, python, "limits: {streams: "+strconv.Itoa(streams)+", hangups: {burst: "+strconv.Itoa(burst)+", per_minute: 1}}")
	sent := 0
	for range connections {
		sent += s.flood(t, "127.0.0.2", 20_000)
		if r, body := s.post("/execute/py/echo", `"another"`); r.StatusCode != http.StatusOK {
			t.Errorf("another caller: %s: %s", r.Status, body)
		}
	}
	s.eventually("all of it has ended", func() bool {
		for _, c := range s.calls() {
			if c.State != "ended" {
				return false
			}
		}
		return true
	})
	outcomes := map[string]int{}
	for _, c := range s.calls() {
		if c.Caller == "127.0.0.2" {
			outcomes[c.Outcome]++
		}
	}
	t.Logf("%d streams, of which %v", sent, outcomes)
	// Those of the first connection that were under way when the budget was used up come on top.
	if n := outcomes["cancelled"]; n < burst || n > burst+streams || len(outcomes) > 2 {
		t.Errorf("its calls ended as %v, the budget is %d", outcomes, burst)
	}
}

// flood opens and resets streams from an address, until the server sends GOAWAY or that
// many were sent, and returns how many were.
func (s *server) flood(t *testing.T, from string, most int) (sent int) {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	c, err := d.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(proctest.Patience))
	io.WriteString(c, http2.ClientPreface)
	frames := http2.NewFramer(c, c)
	frames.WriteSettings()
	away := make(chan error, 1)
	go func() {
		for {
			f, err := frames.ReadFrame()
			if _, ok := f.(*http2.GoAwayFrame); ok || err != nil {
				away <- err
				return
			}
		}
	}()
	var block bytes.Buffer
	headers := hpack.NewEncoder(&block)
	for ; sent < most; sent++ {
		select {
		case err := <-away:
			if err != nil {
				t.Errorf("after %d streams, without a GOAWAY: %v", sent, err)
			}
			return sent
		default:
		}
		block.Reset()
		for _, f := range []hpack.HeaderField{
			{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":authority", Value: "localhost"}, {Name: ":path", Value: "/execute/py/stubborn"},
		} {
			headers.WriteField(f)
		}
		id := uint32(2*sent + 1)
		frames.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true})
		frames.WriteRSTStream(id, http2.ErrCodeCancel)
	}
	t.Errorf("%d streams were taken", sent)
	return sent
}
