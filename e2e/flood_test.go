package e2e

import (
	"bytes"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"example.com/hangup/internal/proctest"
)

// undoings make a server reset a stream of which nobody has said that it should end: each
// is an error of the stream (RFC 9113, section 5.4.2) or near to one.
var undoings = []struct {
	name string
	undo func(out *http2.Framer, id uint32) error
}{
	{"WINDOW_UPDATE of 0", func(out *http2.Framer, id uint32) error {
		return out.WriteRawFrame(http2.FrameWindowUpdate, 0, id, make([]byte, 4))
	}},
	{"WINDOW_UPDATE that overflows", func(out *http2.Framer, id uint32) error { return out.WriteWindowUpdate(id, 1<<31-1) }},
	{"DATA behind the end", func(out *http2.Framer, id uint32) error { return out.WriteData(id, false, []byte("x")) }},
	{"HEADERS behind the end", func(out *http2.Framer, id uint32) error {
		return out.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndStream: true, EndHeaders: true})
	}},
	{"PRIORITY on itself", func(out *http2.Framer, id uint32) error {
		return out.WritePriority(id, http2.PriorityParam{StreamDep: id})
	}},
}

// TestMadeToReset: a call whose stream the server resets because of what the caller sends
// is cancelled like any other, wherever it is.
func TestMadeToReset(t *testing.T) {
	s := start(t, python, telling)
	for _, task := range []string{"sleeps", "pours"} {
		for _, u := range undoings {
			t.Run(task+"/"+u.name, func(t *testing.T) {
				c, err := s.dialTCP()
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				h, err := newH2(c)
				if err != nil {
					t.Fatal(err)
				}
				stream, err := h.request("POST", "/execute/py/"+task, true)
				if err != nil {
					t.Fatal(err)
				}
				id := s.running(task).ID
				if err := h.frame(func() error { return u.undo(h.out, stream.id) }); err != nil {
					t.Fatal(err)
				}
				if err := stream.await(func() bool { return stream.reset || h.goAway != nil }); err != nil {
					t.Error(err)
				}
				s.eventually("cancelled", func() bool {
					c := s.calls()[len(s.calls())-1]
					return c.ID == id && c.Outcome == "cancelled" && c.Cancel != nil && c.Cancel.By == "caller" && c.Cancel.Empty
				})
			})
		}
	}
	s.unhurt()
}

// flood is a connection whose peer sends what it likes.
type flood struct {
	net.Conn
	out  *http2.Framer
	last uint32
}

// floodAddress is where the floods come from: what a caller may is counted by address.
const floodAddress = "127.0.0.66"

// newFlood connects, says hello, and reads nothing of what comes.
func newFlood(s *server, patience time.Duration) (*flood, error) {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(floodAddress)}}
	c, err := dialer.Dial("tcp", s.addr)
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(patience))
	f := &flood{Conn: c, out: http2.NewFramer(c, nil), last: 1<<32 - 1}
	f.out.AllowIllegalWrites = true
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		return nil, err
	}
	return f, f.out.WriteSettings()
}

// block is a header block.
func block(fields ...string) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for i := 0; i < len(fields); i += 2 {
		e.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return b.Bytes()
}

// post is the header block of a call.
func post(path string, more ...string) []byte {
	return block(append([]string{":method", "POST", ":scheme", "http", ":path", path, ":authority", "localhost"}, more...)...)
}

// open begins a stream.
func (f *flood) open(b []byte, end bool) error {
	f.last += 2
	return f.out.WriteHeaders(http2.HeadersFrameParam{StreamID: f.last, BlockFragment: b, EndStream: end, EndHeaders: true})
}

// floods are what is sent over and over. round 0 is the first.
var floods = func() []flooding {
	all := []flooding{
		{"PING", func(f *flood, _ int) error { return f.out.WritePing(false, [8]byte{}) }},
		{"SETTINGS", func(f *flood, _ int) error { return f.out.WriteSettings() }},
		{"SETTINGS that change windows", func(f *flood, n int) error {
			return f.out.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(n)})
		}},
		{"PRIORITY", func(f *flood, n int) error {
			return f.out.WritePriority(uint32(2*n+1), http2.PriorityParam{StreamDep: 0})
		}},
		{"WINDOW_UPDATE", func(f *flood, _ int) error { return f.out.WriteWindowUpdate(0, 1) }},
		{"unknown frames", func(f *flood, _ int) error { return f.out.WriteRawFrame(0xbe, 0xff, 0, make([]byte, 1000)) }},
		{"empty DATA", func(f *flood, n int) error {
			if n == 0 {
				return f.open(post("/execute/py/echo"), false)
			}
			return f.out.WriteData(f.last, false, nil)
		}},
		{"padding alone", func(f *flood, n int) error {
			if n == 0 {
				return f.open(post("/execute/py/echo"), false)
			}
			return f.out.WriteDataPadded(f.last, false, nil, make([]byte, 255))
		}},
		{"CONTINUATION", func(f *flood, n int) error {
			if n == 0 {
				return f.out.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: post("/execute/py/echo")})
			}
			return f.out.WriteContinuation(1, false, block("x", "y"))
		}},
		{"empty CONTINUATION", func(f *flood, n int) error {
			if n == 0 {
				return f.out.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: post("/execute/py/echo")})
			}
			return f.out.WriteContinuation(1, false, nil)
		}},
		{"header bombs", func(f *flood, _ int) error { // 4 KB in the dynamic table, named 10,000 times
			var b bytes.Buffer
			b.Write(post("/execute/py/echo"))
			b.Write(hpackLiteral("x", strings.Repeat("x", 3900)))
			b.Write(bytes.Repeat([]byte{0x80 | 62}, 10_000))
			return f.open(b.Bytes(), true)
		}},
		{"unfinished calls", func(f *flood, _ int) error { return f.open(post("/execute/py/echo"), false) }},
		{"rapid reset", func(f *flood, _ int) error {
			if err := f.open(post("/execute/py/sleeps"), true); err != nil {
				return err
			}
			return f.out.WriteRSTStream(f.last, http2.ErrCodeCancel)
		}},
	}
	for _, u := range undoings {
		all = append(all, flooding{"made to reset by " + u.name, func(f *flood, _ int) error {
			if err := f.open(post("/execute/py/sleeps"), true); err != nil {
				return err
			}
			return u.undo(f.out, f.last)
		}})
	}
	return all
}()

type flooding struct {
	name string
	send func(f *flood, round int) error
}

// hpackLiteral is a field that goes into the dynamic table, in which it is the newest.
func hpackLiteral(name, value string) []byte {
	b := []byte{0x40, byte(len(name))}
	b = append(b, name...)
	n := len(value) - 127 // a length of 7 bits, and the rest of it
	b = append(b, 127)
	for ; n >= 128; n >>= 7 {
		b = append(b, byte(n)|0x80)
	}
	return append(append(b, byte(n)), value...)
}

// TestFloodOfFrames: a connection of HTTP/2 on which frames come as fast as they go does no harm
// to others, keeps no memory, and leaves nothing behind.
func TestFloodOfFrames(t *testing.T) {
	proctest.OneLane(t, "frames are the same, whoever serves them")
	const (
		during = 200 * time.Millisecond // a flood lasts at most so long
		rounds = 20_000
		bound  = 128 << 20 // of what the server may need for all of it, race detector and all
	)
	s := start(t, python+"  near: {command: [python3, worker.py], workers: 1, spares: 0}\n", telling)
	tinyFrames(t, s)
	before := s.peak()
	stop := s.neighbour("near")
	for _, one := range floods {
		f, err := newFlood(s, during)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for ; n < rounds && err == nil; n++ {
			err = one.send(f, n) // until the time is over, or the server has enough
		}
		f.Close()
		t.Logf("%s: %d, then %v", one.name, n, err)
	}
	stop()
	s.eventually("no call is left", func() bool {
		for _, c := range s.calls() {
			if c.State != "ended" {
				return false
			}
		}
		return true
	})
	more := s.peak() - before
	t.Logf("%v calls cancelled, %v processes killed; memory at its peak: %d MiB more",
		s.metric(`hangup_calls_total{outcome="cancelled"`), s.metric("hangup_killed_processes_total"), more>>20)
	if more > bound {
		t.Errorf("%d bytes of memory more", more)
	}
	s.unhurt()
}

// tinyFrames: 10,000 bytes in as many frames are a body like any other.
func tinyFrames(t *testing.T, s *server) {
	c, err := s.dialTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	h, err := newH2(c)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := h.request("POST", "/execute/py/echo", false, "content-type", "application/json")
	if err != nil {
		t.Fatal(err)
	}
	body := strconv.Quote(strings.Repeat("x", 10_000))
	for i := range body {
		if err := stream.send(body[i:i+1], i == len(body)-1); err != nil {
			t.Fatal(err)
		}
	}
	if status, got, err := stream.whole(); status != "200" || got != body {
		t.Errorf("%s, %d bytes, %v", status, len(got), err)
	}
}
