package e2e

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
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
		sent += s.flood(t, s.from(t, "127.0.0.2"), 20_000, false)
		if r, body := s.post("/execute/py/echo", `"another"`); r.StatusCode != http.StatusOK {
			t.Errorf("another caller: %s: %s", r.Status, body)
		}
	}
	s.eventually("all of it has ended", func() bool { return len(s.underWay()) == 0 })
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

// from opens a connection to the server from another address, with TLS where it has it.
func (s *server) from(t *testing.T, address string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
	c, err := d.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	if strings.HasPrefix(s.url, "https:") {
		secure := trust()
		secure.NextProtos = []string{"h2"}
		return tls.Client(c, secure)
	}
	return c
}

// flood opens and resets streams on a connection, until the server sends GOAWAY or that
// many were sent, and returns how many were. If it is deaf, it goes on until the
// connection is closed.
func (s *server) flood(t *testing.T, c net.Conn, most int, deaf bool) (sent int) {
	t.Helper()
	defer c.Close()
	c.SetDeadline(time.Now().Add(proctest.Patience))
	io.WriteString(c, http2.ClientPreface)
	frames := http2.NewFramer(c, c)
	frames.WriteSettings()
	away := make(chan error, 1)
	go func() {
		told := false
		for {
			f, err := frames.ReadFrame()
			_, now := f.(*http2.GoAwayFrame)
			told = told || now
			if told && !deaf || err != nil {
				if told {
					err = nil
				}
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
	// They may wait in the kernel, because they are read slowly.
	if !deaf {
		if err := <-away; err != nil {
			t.Errorf("after %d streams, without a GOAWAY: %v", sent, err)
		}
	}
	return sent
}
