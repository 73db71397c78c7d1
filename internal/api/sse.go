package api

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"example.com/hangup/internal/call"
	"example.com/hangup/internal/calls"
	"example.com/hangup/internal/connwatch"
)

// heartbeat is how long a stream is silent at most. A peer that vanished is missed
// from the first byte that it does not acknowledge, for connwatch.SendTimeout: with
// this before it, still within 35 s.
const heartbeat = 4 * time.Second

// errGone ends a stream whose reader has left.
var errGone = errors.New("the reader of the events has gone")

// eventWriter writes the events of one call, as server-sent events. One goroutine at
// a time writes; leave may be called by another.
type eventWriter struct {
	w    http.ResponseWriter
	conn *http.ResponseController
	buf  []byte // what is not sent yet

	gone  chan struct{} // closed when the reader has left
	leave func()        // closes it and ends a write that waits; may be called again
}

func newEventWriter(v *visit) *eventWriter {
	e := &eventWriter{w: v.w, conn: v.body.conn, gone: make(chan struct{})}
	e.leave = sync.OnceFunc(func() {
		close(e.gone)
		_ = e.conn.SetWriteDeadline(past)
	})
	return e
}

// open sends the head of the reply.
func (e *eventWriter) open() error {
	h := e.w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // a proxy that collects replies must not do it with this one
	e.w.WriteHeader(http.StatusOK)
	return e.conn.Flush()
}

// event puts an event behind what is not sent yet. The data is one line.
func (e *eventWriter) event(id int64, name string, data []byte) {
	e.buf = fmt.Appendf(e.buf, "id: %d\nevent: %s\ndata: ", id, name)
	e.buf = append(append(e.buf, data...), "\n\n"...)
}

// send sends what has been put together. It fails when the reader has gone, or
// takes longer than connwatch.SendTimeout for a piece, whatever the connection.
func (e *eventWriter) send() error {
	left := e.buf
	e.buf = e.buf[:0]
	for len(left) > 0 {
		part := left[:min(len(left), piece)]
		left = left[len(part):]
		_ = e.conn.SetWriteDeadline(time.Now().Add(connwatch.SendTimeout))
		select {
		case <-e.gone: // and its deadline may have come before this one
			return errGone
		default:
		}
		if _, err := e.w.Write(part); err != nil {
			return err
		}
		if err := e.conn.Flush(); err != nil {
			return err
		}
	}
	_ = e.conn.SetWriteDeadline(time.Time{})
	return nil
}

// follow writes the events of a call as they come. It returns the id of the last
// one, which is left to the caller, or 0 if stop was closed and nothing more was there.
func (e *eventWriter) follow(w *calls.Watch, stop <-chan struct{}) (last int64, err error) {
	silent := time.NewTicker(heartbeat)
	defer silent.Stop()
	for {
		events, news := w.Next()
		for _, ev := range events {
			if ev.Name == "ended" {
				return ev.ID, e.send()
			}
			e.event(ev.ID, ev.Name, eventData(w, ev))
		}
		if len(events) > 0 {
			if err := e.send(); err != nil {
				return 0, err
			}
			silent.Reset(heartbeat)
			continue
		}
		select {
		case <-news:
		case <-silent.C:
			e.buf = append(e.buf, ":\n\n"...)
			if err := e.send(); err != nil {
				return 0, err
			}
		case <-stop:
			return 0, nil
		case <-e.gone:
			return 0, errGone
		}
	}
}

// lastEventID is the id of the last event that a reader has had, 0 where it says none.
func lastEventID(h http.Header) (int64, error) {
	said, ok, err := single(h, "Last-Event-ID")
	if err != nil || !ok || said == "" {
		return 0, err
	}
	id, err := strconv.ParseInt(said, 10, 64)
	if err != nil || id < 0 {
		return 0, fmt.Errorf("%w: Last-Event-ID: %q is no id of an event here", call.ErrBadRequest, clip(said))
	}
	return id, nil
}

// wantsEvents tells whether a caller prefers an event stream to a plain reply:
// it names text/event-stream, no other type that it names is as welcome, and no
// wildcard more.
func wantsEvents(h http.Header) bool {
	events, named, wild := 0.0, 0.0, 0.0
	for part := range strings.SplitSeq(strings.Join(h.Values("Accept"), ","), ",") {
		media, params, _ := strings.Cut(part, ";")
		media = strings.ToLower(strings.TrimSpace(media))
		q, ok := quality(params)
		switch {
		case media == "" || !ok:
		case media == "text/event-stream":
			events = max(events, q)
		case strings.HasSuffix(media, "/*"):
			wild = max(wild, q)
		default:
			named = max(named, q)
		}
	}
	return events > named && events >= wild
}

// quality is the weight in the parameters of a media range, which is 1 where
// they do not say.
func quality(params string) (q float64, ok bool) {
	for param := range strings.SplitSeq(params, ";") {
		name, value, _ := strings.Cut(strings.TrimSpace(param), "=")
		if strings.EqualFold(name, "q") {
			q, err := strconv.ParseFloat(value, 64)
			return q, err == nil && q >= 0 && q <= 1
		}
	}
	return 1, true
}

// hangUp has f called when the peer goes. The returned stop prevents that, or
// waits until f is done.
func hangUp(v *visit, f func()) (stop func()) {
	done := make(chan struct{})
	cut := connwatch.AfterHangUp(v.r, func() {
		defer close(done)
		f()
	})
	return func() {
		if !cut() {
			<-done
		}
	}
}
