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
	"example.com/hangup/internal/calls"
	"example.com/hangup/internal/connwatch"
)

// streamedFrom is the size, in bytes, from which a reply of known size counts as
// streamed: more than a socket takes in at once.
const streamedFrom = 64 << 10

// piece is how many bytes of a reply a caller must take within connwatch.SendTimeout
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

	tally
	begun bool          // something may be on the wire
	each  time.Duration // for the caller to take a piece; 0: the kernel sees to it
	done  func()        // ends the watch on a peer that vanishes in the middle
	stop  func() bool   // ends that on one that hangs up
}

// tally holds a reply to what it said of itself.
type tally struct {
	headed  bool // Head was called
	head    call.Head
	written int64
}

// begin takes in the head.
func (t *tally) begin(h call.Head) error {
	switch {
	case t.headed:
		return fmt.Errorf("%w: it began its reply twice", call.ErrBadWorker)
	case !validValue(h.ContentType):
		return fmt.Errorf("%w: its content type %q cannot be sent", call.ErrBadWorker, clip(h.ContentType))
	}
	t.headed, t.head = true, h
	return nil
}

// count tells whether n bytes more may be written for a call.
func (t *tally) count(ctx context.Context, n int) error {
	if !t.headed {
		return errors.New("cannot write a reply before its head")
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	t.written += int64(n)
	if t.head.Size >= 0 && t.written > t.head.Size {
		return fmt.Errorf("%w: its result is longer than the %d bytes it said", call.ErrBadWorker, t.head.Size)
	}
	return nil
}

// outlet is the reply to a caller, plain or as events. Its call is begun, started, done
// and ended, in this order.
type outlet interface {
	call.Reply
	// start gives the caller's lease up once the caller has gone.
	start(lease *calls.Lease)
	// end is told how the call ended. It fails with that where nothing is on the wire,
	// and with errCut where something is and the rest cannot follow.
	end(err error) error
}

// errCut says that a reply broke off in the middle.
var errCut = errors.New("the reply was cut off")

func (p *reply) start(lease *calls.Lease) { p.stop = connwatch.AfterHangUp(p.r, lease.Drop) }

// Head begins the reply.
func (p *reply) Head(h call.Head) error {
	if err := p.begin(h); err != nil {
		return err
	}
	p.each = connwatch.SendTimeout
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
	for {
		n := len(b)
		if p.each > 0 {
			n = min(n, piece)
		}
		if err := p.count(ctx, n); err != nil || n == 0 {
			return err
		}
		p.begun = true
		if err := interruptible(ctx, p.conn, p.each, func() error { return p.pass(b[:n]) }); err != nil {
			return err
		}
		if b = b[n:]; len(b) == 0 {
			return nil
		}
	}
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
	if p.written == p.head.Size {
		if _, err := p.w.Write(b[:len(b)-1]); err != nil {
			return err
		}
		b = b[len(b)-1:]
	}
	_, err := p.w.Write(b)
	if err == nil && p.head.Size < 0 {
		err = p.conn.Flush()
	}
	return err
}

func (p *reply) end(err error) error {
	p.stop()
	if p.done != nil {
		p.done()
	}
	switch {
	case err == nil:
		// What net/http still holds goes out behind the handler.
		_ = p.conn.SetWriteDeadline(time.Now().Add(connwatch.SendTimeout))
		return nil
	case p.begun:
		return errCut
	default:
		p.withdraw()
		return err
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
