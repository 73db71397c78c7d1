package api

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"example.com/hangup/internal/call"
	"example.com/hangup/internal/calls"
	"example.com/hangup/internal/connwatch"
)

// heldResult, in bytes, is the largest result that is held until its call has
// ended. A larger one is sent as it comes, in base64.
const heldResult = 1 << 20

// eventReply is a [call.Reply] to a caller who asked for events: it writes them as
// they come, and the result as the last.
//
// The stream begins when the call's input is in, so that whatever is refused
// before has a status of its own. From then on a goroutine of its own follows the
// call's events, until the call has ended or a large result comes; only then the
// call's own goroutine writes. A caller who reads slowly holds up nobody before
// that: the events that the trail has let go meanwhile are a gap.
type eventReply struct {
	*eventWriter
	calls *calls.Registry
	call  *call.Call
	visit *visit
	watch *calls.Watch
	// timing is the value of Server-Timing when the stream begins.
	timing func() string
	drop   func() // gives up the caller's lease: it does not read any more
	stop   func() // ends the watch on a peer that hangs up

	begun    bool
	each     time.Duration // for the caller to take a piece of a large result; 0: the kernel sees to it
	unwatch  func()        // ends the watch on a peer that vanishes
	large    chan struct{} // closed when a large result waits to be written
	followed chan struct{} // closed when nobody follows any more; then there are
	last     int64         // the id of the last event, 0 before that, and
	err      error         // why the stream is broken

	tally
	held   []byte
	encode io.WriteCloser // of a large result, into buf; nil before its first byte
}

func (s *server) newEventReply(v *visit, c *call.Call) *eventReply {
	p := &eventReply{
		eventWriter: newEventWriter(v), calls: s.o.Calls, call: c, visit: v,
		timing: func() string { return s.timing(c, true) },
		large:  make(chan struct{}), followed: make(chan struct{}),
	}
	c.Input = placed{c.Input, p}
	return p
}

func (p *eventReply) start(lease *calls.Lease) {
	p.drop = lease.Drop
	p.watch, _ = p.calls.Watch(p.call.ID, 0)
	p.stop = hangUp(p.visit, func() {
		lease.Drop()
		p.leave()
	})
}

func (p *eventReply) end(err error) error {
	defer p.close()
	switch {
	case errors.Is(err, call.ErrHungUp):
		p.leave()
		return err
	case err != nil && !p.begun:
		return err
	case p.finish(err) != nil:
		return errCut
	default:
		return nil
	}
}

// placed is an input whose call has a place once it is received.
type placed struct {
	call.Input
	out *eventReply
}

func (p placed) Receive(ctx context.Context) error {
	if err := p.Input.Receive(ctx); err != nil {
		return err
	}
	p.out.launch()
	return nil
}

// launch begins the stream. The goroutine ends with the call, with the stream,
// or when a large result comes; close waits for it.
func (p *eventReply) launch() {
	if p.begun {
		return
	}
	p.begun = true
	p.each, p.unwatch = connwatch.Streaming(p.visit.r)
	p.w.Header().Set("Server-Timing", p.timing())
	go func() {
		defer close(p.followed)
		if p.err = p.open(); p.err == nil {
			p.last, p.err = p.follow(p.watch, p.large)
		}
		if p.err != nil {
			p.drop()
		}
	}()
}

// close lets go of the connection. The call has ended.
func (p *eventReply) close() {
	p.stop()
	if p.begun {
		<-p.followed
		p.unwatch()
	}
}

// Head notes what the result is.
func (p *eventReply) Head(h call.Head) error {
	if err := p.begin(h); err != nil {
		return err
	}
	if h.Size <= heldResult {
		p.held = make([]byte, 0, max(h.Size, 0))
	}
	return nil
}

// Write takes a part of the result: it is held, or sent.
func (p *eventReply) Write(ctx context.Context, b []byte) error {
	if err := p.count(ctx, len(b)); err != nil {
		return err
	}
	if p.encode == nil {
		if p.head.Size <= heldResult && p.written <= heldResult {
			p.held = append(p.held, b...)
			return nil
		}
		if err := p.take(ctx); err != nil {
			return err
		}
	}
	_, _ = p.encode.Write(b) // into buf
	for left := p.buf; len(left) > 0; {
		part := left[:min(len(left), piece)]
		left = left[len(part):]
		if err := interruptible(ctx, p.conn, p.each, func() error { return p.pass(part) }); err != nil {
			return err
		}
	}
	p.buf = p.buf[:0]
	return nil
}

// take takes the stream over from the goroutine that follows the call, once that
// has written what has come so far, and begins the event of a large result.
func (p *eventReply) take(ctx context.Context) error {
	p.launch()
	close(p.large)
	select {
	case <-p.followed:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if p.err != nil {
		return call.ErrHungUp
	}
	id, _ := json.Marshal(p.call.ID)
	kind, _ := json.Marshal(p.head.ContentType)
	p.buf = fmt.Appendf(p.buf, "event: result\ndata: {\"call\":%s,\"content_type\":%s,\"base64\":\"", id, kind)
	p.encode = base64.NewEncoder(base64.StdEncoding, (*appender)(&p.buf))
	_, _ = p.encode.Write(p.held)
	p.held = nil
	return nil
}

// pass sends a part of a large result.
func (p *eventReply) pass(part []byte) error {
	if _, err := p.w.Write(part); err != nil {
		return err
	}
	return p.conn.Flush()
}

// finish writes the last event of a call that has ended with err.
func (p *eventReply) finish(err error) error {
	p.launch() // where nobody has received the input
	<-p.followed
	switch {
	case p.err != nil:
		return p.err
	case p.encode == nil && p.last == 0: // a large result came to nothing before its first byte
		if p.last, p.err = p.follow(p.watch, nil); p.err != nil {
			return p.err
		}
		return p.finish(err)
	case p.encode == nil && err == nil:
		p.event(p.lastID(), "result", resultData(p.call.ID, p.head.ContentType, p.held))
	case p.encode == nil:
		p.problem(p.lastID(), p.call, err)
	case err != nil:
		return err // in the middle of its result
	default:
		_ = p.encode.Close()
		p.buf = fmt.Appendf(p.buf, "\"}\nid: %d\n\n", p.lastID())
	}
	return p.send()
}

// lastID is the id of the last event of a call that has ended. What came while a
// large result was written, and was not told, lies before it.
func (p *eventReply) lastID() int64 {
	for p.last == 0 {
		events, _ := p.watch.Next()
		if ev := events[len(events)-1]; ev.Name == "ended" {
			p.last = ev.ID
		}
	}
	return p.last
}

// appender is an [io.Writer] that appends.
type appender []byte

func (a *appender) Write(p []byte) (int, error) {
	*a = append(*a, p...)
	return len(p), nil
}
