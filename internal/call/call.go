// Package call is the one door between those who ask for work and those who do
// it: a [Call], the [Doer] that does it, and the causes for which a call can end.
//
// The package has no goroutine. It imports event and nothing else of this module.
package call

import (
	"context"
	"io"
	"time"

	"example.com/hangup/internal/event"
)

// Doer does calls. Do returns when the call has ended: nil when the whole
// result went into c.Reply, else the cause (see errors.go). When ctx ends, Do
// returns its [context.Cause] promptly and does not wait for the funeral of the
// worker. Do may be called for many calls at once, once for each.
type Doer interface {
	Do(ctx context.Context, c *Call) error
}

// Call is one request for a workload. Its owner fills it in and then hands it
// to a Doer; nothing changes it after that.
type Call struct {
	ID       string // UUIDv7: unique, and in the order of arrival
	Workload string
	Task     string        // "" asks for the only task there is
	Caller   string        // who asked, for records and budgets
	OnHangup string        // the caller's policy, as granted
	Timeout  time.Duration // the caller's own limit; 0: none; only ever shortens

	// Traceparent is the caller's W3C trace context, "" where it sent none.
	Traceparent string

	Input Input
	Reply Reply
	Emit  event.Sink // what the work tells while it runs; never nil

	// At is when the call's headers had been read.
	At time.Time
}

// Input is what the caller sent. It has one user at a time.
type Input interface {
	// Receive takes the input in to its end. The Doer calls it once, when the
	// call has a place, so that a refusal costs the caller no upload. It fails
	// with ErrBodyTooLarge, ErrBodyTimeout, ErrSpoolFull, ErrBadRequest, or the
	// cause of ctx.
	Receive(ctx context.Context) error
	// ContentType is the media type the caller gave; it may be "".
	ContentType() string
	// Size is the length in bytes, known once Receive has returned.
	Size() int64
	// Reader reads the received input from its start.
	Reader() io.Reader
	// Check reads the received input through, and tells where it is not what its
	// content type says: then it fails with ErrBadRequest. A Doer that is told so by
	// the work, which has to decode the input anyhow, asks for the place.
	Check() error
}

// Reply takes the result. It has one user: the goroutine inside Do. What its
// methods fail with is the cause for which the call ends: ErrHungUp where the
// caller is gone.
type Reply interface {
	// Head begins the reply. It is called once, before the first Write. As long
	// as nothing is written, the call can still end in an error that is told.
	Head(h Head) error
	// Write sends a part of the body on its way. It blocks while the caller
	// does not read, until ctx ends: then it fails with its cause.
	Write(ctx context.Context, p []byte) error
}

// Head is what comes before the body of a result.
type Head struct {
	ContentType string
	Size        int64 // of the whole body; -1 when unknown
}
