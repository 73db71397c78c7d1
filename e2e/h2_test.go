package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"example.com/hangup/internal/proctest"
)

// h2conn is a client of HTTP/2 that sends frames as it is told to. One goroutine
// reads what comes, until the connection ends.
type h2conn struct {
	net.Conn
	patience time.Duration // for what await waits for
	write    sync.Mutex    // one frame after the other; guards out and blocks
	out      *http2.Framer
	block    bytes.Buffer
	hpack    *hpack.Encoder

	mu      sync.Mutex
	changed *sync.Cond
	window  int64 // of the connection, for what is sent
	initial int64 // of a new stream
	streams map[uint32]*h2stream
	last    uint32
	goAway  *http2.GoAwayFrame
	err     error // why nothing more will come
}

// h2stream is one request and what came of it.
type h2stream struct {
	c      *h2conn
	id     uint32
	window int64

	status    string // "" before the head of the reply
	continues bool   // 100 Continue has come
	data      []byte // the reply's; of a long one only the beginning
	size      int64
	ended     bool // with END_STREAM
	reset     bool
	code      http2.ErrCode
	unread    bool // what comes is not acknowledged by a larger window
}

// newH2 begins a connection of HTTP/2.
func newH2(c net.Conn) (*h2conn, error) {
	h := &h2conn{Conn: c, patience: proctest.Patience, out: http2.NewFramer(c, nil), window: 65535, initial: 65535, streams: map[uint32]*h2stream{}, last: 1<<32 - 1}
	h.changed = sync.NewCond(&h.mu)
	h.hpack = hpack.NewEncoder(&h.block)
	// In one write: net/http gives up who is not there with its settings 2 s behind the preface.
	var first bytes.Buffer
	first.WriteString(http2.ClientPreface)
	opening := http2.NewFramer(&first, nil)
	if err := errors.Join(opening.WriteSettings(), opening.WriteWindowUpdate(0, 1<<30)); err != nil {
		return nil, err
	}
	if _, err := c.Write(first.Bytes()); err != nil {
		return nil, err
	}
	go h.read()
	return h, nil
}

func (h *h2conn) read() {
	in := http2.NewFramer(nil, h.Conn)
	in.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	for {
		f, err := in.ReadFrame()
		h.mu.Lock()
		if err != nil {
			h.err = err
			h.changed.Broadcast()
			h.mu.Unlock()
			return
		}
		h.take(f)
		h.changed.Broadcast()
		h.mu.Unlock()
	}
}

// take keeps what a frame says. What it must be answered with is sent by another
// goroutine: the peer may not be reading.
func (h *h2conn) take(f http2.Frame) {
	s := h.streams[f.Header().StreamID]
	switch f := f.(type) {
	case *http2.SettingsFrame:
		if f.IsAck() {
			return
		}
		if size, ok := f.Value(http2.SettingInitialWindowSize); ok {
			for _, s := range h.streams {
				s.window += int64(size) - h.initial
			}
			h.initial = int64(size)
		}
		go h.frame(func() error { return h.out.WriteSettingsAck() })
	case *http2.PingFrame:
		if data := f.Data; !f.IsAck() {
			go h.frame(func() error { return h.out.WritePing(true, data) })
		}
	case *http2.WindowUpdateFrame:
		if s != nil {
			s.window += int64(f.Increment)
		} else if f.StreamID == 0 {
			h.window += int64(f.Increment)
		}
	case *http2.GoAwayFrame:
		copied := *f
		h.goAway = &copied
	case *http2.RSTStreamFrame:
		if s != nil {
			s.reset, s.code = true, f.ErrCode
		}
	case *http2.MetaHeadersFrame:
		if s != nil {
			if status := f.PseudoValue("status"); status == "100" {
				s.continues = true
			} else if status != "" {
				s.status = status
			}
			s.ended = s.ended || f.StreamEnded()
		}
	case *http2.DataFrame:
		if s == nil {
			return
		}
		if len(s.data) < 1<<16 {
			s.data = append(s.data, f.Data()...)
		}
		s.size += int64(len(f.Data()))
		s.ended = s.ended || f.StreamEnded()
		if n := f.Header().Length; n > 0 && !s.unread {
			go h.frame(func() error {
				return errors.Join(h.out.WriteWindowUpdate(0, n), h.out.WriteWindowUpdate(s.id, n))
			})
		}
	}
}

// frame writes one frame, or several that must not be parted.
func (h *h2conn) frame(write func() error) error {
	h.write.Lock()
	defer h.write.Unlock()
	return write()
}

// request begins a stream. headers are pairs.
func (h *h2conn) request(method, path string, end bool, headers ...string) (*h2stream, error) {
	return h.requestRaw(end, append([]string{":method", method, ":scheme", "http", ":path", path, ":authority", "localhost"}, headers...)...)
}

// requestRaw is request with nothing but the headers that are given, as they are.
func (h *h2conn) requestRaw(end bool, headers ...string) (*h2stream, error) {
	h.write.Lock()
	defer h.write.Unlock()
	h.mu.Lock()
	h.last += 2
	s := &h2stream{c: h, id: h.last, window: h.initial}
	h.streams[s.id] = s
	h.mu.Unlock()
	h.block.Reset()
	for i := 0; i < len(headers); i += 2 {
		h.hpack.WriteField(hpack.HeaderField{Name: headers[i], Value: headers[i+1]})
	}
	return s, h.out.WriteHeaders(http2.HeadersFrameParam{StreamID: s.id, BlockFragment: h.block.Bytes(), EndStream: end, EndHeaders: true})
}

// send sends a part of the body as the windows allow. It gives up when the stream ends.
func (s *h2stream) send(body string, end bool) error {
	const most = 16 << 10 // what every peer takes
	for {
		n := int64(min(len(body), most))
		s.c.mu.Lock()
		for n > 0 && (s.window <= 0 || s.c.window <= 0) && s.c.err == nil && !s.reset {
			s.c.changed.Wait()
		}
		if s.c.err != nil || s.reset {
			s.c.mu.Unlock()
			return errors.New("the stream has ended")
		}
		n = max(min(n, s.window, s.c.window), 0)
		s.window -= n
		s.c.window -= n
		s.c.mu.Unlock()
		part, last := body[:n], int(n) == len(body)
		if err := s.c.frame(func() error { return s.c.out.WriteData(s.id, end && last, []byte(part)) }); err != nil {
			return err
		}
		if body = body[n:]; last {
			return nil
		}
	}
}

// cancel resets the stream.
func (s *h2stream) cancel() error {
	return s.c.frame(func() error { return s.c.out.WriteRSTStream(s.id, http2.ErrCodeCancel) })
}

// await waits until something is so of the stream or the connection.
func (s *h2stream) await(is func() bool) error {
	late := time.AfterFunc(s.c.patience, func() {
		s.c.mu.Lock()
		defer s.c.mu.Unlock()
		if s.c.err == nil {
			s.c.err = fmt.Errorf("nothing for %v", s.c.patience)
		}
		s.c.changed.Broadcast()
	})
	defer late.Stop()
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	for !is() {
		if s.c.err != nil {
			return s.c.err
		}
		s.c.changed.Wait()
	}
	return nil
}

// whole waits for the end of the reply and returns its status and body.
func (s *h2stream) whole() (status, body string, err error) {
	err = s.await(func() bool { return s.ended || s.reset })
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if err == nil && !s.ended {
		err = fmt.Errorf("reset with %v", s.code)
	}
	return s.status, string(s.data), err
}
