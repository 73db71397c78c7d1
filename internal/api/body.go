package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"example.com/hangup/internal/call"
	"example.com/hangup/internal/config"
	"example.com/hangup/internal/connwatch"
	"example.com/hangup/internal/spool"
)

// What is done with a body that nobody wants is bounded in time and bytes, so
// that a refusal is as fast for the sender of a slow body as for any other.
const (
	dismissWait  = 5 * time.Millisecond // what a body sent with its headers takes to arrive
	dismissBytes = 256 << 10
)

// past is a deadline that makes a blocked read or write return.
var past = time.Unix(1, 0)

// body is the body of a request as a call's input. It is taken in whole, into
// the spool.
//
// The request's context plays no part: over HTTP/1 it does not learn of a
// hang-up while the body is unread. A sender who leaves is noticed by the read.
type body struct {
	w       http.ResponseWriter
	r       *http.Request
	conn    *http.ResponseController
	limits  config.Limits
	spool   *spool.Spool
	spooled *spool.Body // nil: nothing was taken in
	over    bool        // nothing of it is left to read
	release func()      // of the bound on what comes behind it
}

func newBody(w http.ResponseWriter, r *http.Request, limits config.Limits, s *spool.Spool) *body {
	return &body{
		w: w, r: r, conn: http.NewResponseController(w), limits: limits, spool: s,
		over: r.ContentLength == 0, release: func() {},
	}
}

// announced refuses a body whose length says that it is too large, or says nothing, before
// it has a place and before a byte of it is asked for.
func (b *body) announced() error {
	if lengths := b.r.Header.Values("Content-Length"); len(lengths) > 0 {
		// Over HTTP/2, net/http takes one that is malformed for 0 and the first of several.
		if _, err := strconv.ParseUint(lengths[0], 10, 63); err != nil || len(slices.Compact(slices.Clone(lengths))) > 1 {
			return fmt.Errorf("%w: Content-Length: %q is no number of bytes", call.ErrBadRequest, clip(strings.Join(lengths, ", ")))
		}
	}
	if b.r.ContentLength > b.limits.Body {
		return b.tooLarge()
	}
	return nil
}

func (b *body) tooLarge() error {
	return fmt.Errorf("%w: at most %d bytes are allowed", call.ErrBodyTooLarge, b.limits.Body)
}

// Receive takes the body in to its end; see [call.Input].
func (b *body) Receive(ctx context.Context) error {
	if !b.over {
		if err := b.take(ctx); err != nil {
			return err
		}
		b.over = true
	}
	b.release = connwatch.Bound(b.r)
	return nil
}

func (b *body) take(ctx context.Context) error {
	// The deadline bounds the whole body. One in the past ends a read that is
	// waiting when the call ends.
	_ = b.conn.SetReadDeadline(time.Now().Add(b.limits.BodyTimeout))
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = b.conn.SetReadDeadline(past)
		close(woken)
	})
	from := &source{r: b.r.Body}
	b.spooled = b.spool.Body(b.limits.Body)
	b.spooled.Expect(b.r.ContentLength)
	err := b.spooled.Fill(from)
	if !stop() {
		<-woken
	}
	if err == nil {
		// net/http reads on behind the body from now on, and must not be
		// told that time is up.
		_ = b.conn.SetReadDeadline(time.Time{})
		return nil
	}
	return b.cause(ctx, err, from.err)
}

// source remembers how reading failed, to tell the sender's faults from the spool's.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// cause says why a body could not be taken in: err is what the spool says,
// readErr the error of reading, if it was that.
func (b *body) cause(ctx context.Context, err, readErr error) error {
	var network net.Error
	switch {
	case errors.Is(err, spool.ErrTooLarge):
		return b.tooLarge()
	case readErr == nil:
		return fmt.Errorf("%w: %v", call.ErrSpoolFull, err)
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(readErr, os.ErrDeadlineExceeded): // not ETIMEDOUT, which is of a peer that vanished
		return fmt.Errorf("%w: it has %v", call.ErrBodyTimeout, b.limits.BodyTimeout)
	case errors.Is(readErr, io.ErrUnexpectedEOF), errors.As(readErr, &network):
		return call.ErrHungUp // in the middle of it
	case b.r.ProtoMajor >= 2:
		// The stream was reset, or is shorter or longer than it said, to which RFC 9113,
		// section 8.1.1, has the answer be a reset, too.
		return call.ErrHungUp
	default:
		return fmt.Errorf("%w: cannot read the body: %v", call.ErrBadRequest, readErr)
	}
}

func (b *body) ContentType() string { return b.r.Header.Get("Content-Type") }

func (b *body) Size() int64 {
	if b.spooled == nil {
		return 0
	}
	return b.spooled.Size()
}

func (b *body) Reader() io.Reader {
	if b.spooled == nil {
		return http.NoBody
	}
	return b.spooled.Reader()
}

func (b *body) Check() error {
	if isJSON, _ := textual(b.ContentType()); !isJSON {
		return nil
	}
	return checkJSON(b.Reader())
}

// Close gives back what the body takes up, and lifts the bound on what comes
// behind it. The reply must not have ended yet.
func (b *body) Close() {
	b.release()
	if b.spooled != nil {
		_ = b.spooled.Close() // an unlinked file: nothing is lost
	}
}

// dismiss prepares a reply to a request whose body will not be taken in. Left
// alone, net/http would read the rest first, as slowly as it comes. Here what has
// arrived is read, so that the connection can be used again; from a sender who is
// not done by then, the connection is closed behind the reply.
func (b *body) dismiss() {
	if b.over {
		return
	}
	b.over = true
	_ = b.conn.SetReadDeadline(time.Now().Add(dismissWait)) // net/http tries once more behind the reply
	// Reading would ask for a body that waits for "100 Continue".
	if b.r.ContentLength <= dismissBytes && b.r.Header.Get("Expect") == "" {
		if _, err := io.CopyN(io.Discard, b.r.Body, dismissBytes+1); err == io.EOF {
			_ = b.conn.SetReadDeadline(time.Time{})
			return
		}
	}
	// net/http closes a connection with bytes unread at once, which resets it
	// and can cost the sender the reply. It waits a little if a limit was hit;
	// this hits one.
	_, _ = http.MaxBytesReader(b.w, io.NopCloser(strings.NewReader("x")), 0).Read(make([]byte, 1))
}
