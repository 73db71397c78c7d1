package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"example.com/hangup/internal/call"
	"example.com/hangup/internal/connwatch"
)

// streamedFrom is the size, in bytes, from which a reply of known size counts as
// streamed: more than a socket takes in at once.
const streamedFrom = 64 << 10

// piece is how many bytes of a stream a caller must take within connwatch.SendTimeout
// where the kernel does not watch over it.
const piece = 16 << 10

// reply is a [call.Reply] that goes to a ResponseWriter, body untouched.
//
// Nothing is on the wire before the first Write. A reply of known size leaves in
// as few pieces as net/http's buffers allow, a small one in one; of an unknown
// size every Write is sent at once, because it may be the last for a long time.
type reply struct {
	w    http.ResponseWriter
	conn *http.ResponseController
	r    *http.Request // for connwatch only
	// timing is the value of Server-Timing now: the queue alone, or the run too.
	timing func(streamed bool) string

	headed  bool  // Head was called
	begun   bool  // something may be on the wire
	size    int64 // -1: unknown
	written int64
	each    time.Duration // for the caller to take a piece of a stream; 0: the kernel sees to it
	done    func()        // ends the watch on a peer that vanishes in the middle
}

// Head begins the reply.
func (p *reply) Head(h call.Head) error {
	switch {
	case p.headed:
		return fmt.Errorf("%w: it began its reply twice", call.ErrBadWorker)
	case !validValue(h.ContentType):
		return fmt.Errorf("%w: its content type %q cannot be sent", call.ErrBadWorker, clip(h.ContentType))
	}
	p.headed, p.size, p.done = true, h.Size, func() {}
	if h.Size < 0 || h.Size > streamedFrom {
		p.each, p.done = connwatch.Streaming(p.r)
	}
	header := p.w.Header()
	header["Content-Type"] = nil // as the work said, never guessed
	if h.ContentType != "" {
		header.Set("Content-Type", h.ContentType)
	}
	if h.Size >= 0 {
		header.Set("Content-Length", strconv.FormatInt(h.Size, 10))
	}
	header.Set("Server-Timing", p.timing(h.Size < 0))
	return nil
}

// withdraw takes the head back, of a reply that has not begun.
func (p *reply) withdraw() {
	for _, name := range []string{"Content-Type", "Content-Length", "Server-Timing"} {
		p.w.Header().Del(name)
	}
}

// Write sends a part of the body.
func (p *reply) Write(ctx context.Context, b []byte) error {
	if !p.headed {
		return errors.New("cannot write a reply before its head")
	}
	if p.each == 0 {
		return p.write(ctx, b)
	}
	for len(b) > 0 {
		n := min(len(b), piece)
		if err := p.write(ctx, b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// write sends a part that may not last longer than p.each, if that is above 0.
func (p *reply) write(ctx context.Context, b []byte) error {
	if len(b) == 0 {
		return nil
	}
	p.written += int64(len(b))
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if p.size >= 0 && p.written > p.size {
		return fmt.Errorf("%w: its result is longer than the %d bytes it said", call.ErrBadWorker, p.size)
	}
	p.begun = true
	return interruptible(ctx, p.conn, p.each, func() error { return p.pass(b) })
}

// interruptible runs a write for a call, which fails when the call ends: a caller
// who does not read must not keep one that has ended. It may last no longer than
// each, if that is above 0.
func interruptible(ctx context.Context, conn *http.ResponseController, each time.Duration, write func() error) error {
	if each > 0 {
		_ = conn.SetWriteDeadline(time.Now().Add(each))
	}
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = conn.SetWriteDeadline(past)
		close(woken)
	})
	err := write()
	if stop() {
		if each > 0 {
			_ = conn.SetWriteDeadline(time.Time{}) // the next part may be long in coming
		}
	} else {
		<-woken
		_ = conn.SetWriteDeadline(time.Time{}) // this may have been the last part
	}
	if err != nil {
		return cmp.Or(context.Cause(ctx), call.ErrHungUp)
	}
	return nil
}

// pass hands b to net/http. The last byte of a known size comes alone: one byte
// always stays in the buffer of the ResponseWriter, until the handler returns.
func (p *reply) pass(b []byte) error {
	if p.written == p.size {
		if _, err := p.w.Write(b[:len(b)-1]); err != nil {
			return err
		}
		b = b[len(b)-1:]
	}
	_, err := p.w.Write(b)
	if err == nil && p.size < 0 {
		err = p.conn.Flush()
	}
	return err
}

// end lets go of the connection.
func (p *reply) end() {
	if p.headed {
		p.done()
	}
}

// validValue tells whether v can be the value of a header.
func validValue(v string) bool {
	for i := range len(v) {
		if v[i] < ' ' && v[i] != '\t' || v[i] == 0x7f {
			return false
		}
	}
	return true
}
