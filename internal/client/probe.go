package client

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// The moments at which a caller can hang up.
const (
	Waiting   = "waiting"   // for the reply, the request sent
	Streaming = "streaming" // while the reply streams
	Sending   = "sending"   // with the body half sent
)

// Moments lists them.
var Moments = []string{Waiting, Streaming, Sending}

// What became of a hang-up that was tried.
const (
	Noticed   = "noticed"
	Unnoticed = "unnoticed"
	Withheld  = "withheld"  // the server did not even get the request
	Scattered = "scattered" // the server that holds the probe could not be asked
)

// Bounds of a trial.
const (
	heldWithin   = 3 * time.Second
	replyWithin  = 2 * time.Second
	noticeWithin = 3 * time.Second
	pollEach     = 10 * time.Millisecond
)

// Trial is what one hang-up, done on purpose, has shown.
type Trial struct {
	Moment      string
	Result      string
	Took        time.Duration // from the hang-up to the sight of it, when Noticed
	Buffered    bool          // the reply had begun, and nothing of it came through
	Elsewhere   bool          // some requests went to a server that does not know the probe
	Server, Via string        // what the headers say of who stands in between
}

// HangUp makes a probe, hangs up on it at a moment, and asks the server what it
// saw of that. The error says why it could not be tried.
func (c *Client) HangUp(ctx context.Context, moment string) (Trial, error) {
	var random [16]byte
	rand.Read(random[:]) //nolint:errcheck // never fails
	caller, hangUp := context.WithCancel(ctx)
	p := &probing{
		c: c, id: hex.EncodeToString(random[:]), trial: Trial{Moment: moment},
		began: make(chan struct{}), ended: make(chan struct{}),
	}
	go func() {
		defer close(p.ended)
		p.err = c.hold(caller, p.id, moment, p.began)
	}()
	defer func() {
		hangUp()
		<-p.ended
	}()
	err := p.hangUp(ctx, hangUp)
	return p.trial, err
}

// probing is a probe under way. Its caller has a goroutine of its own.
type probing struct {
	c     *Client
	id    string
	trial Trial         // what is known so far
	began chan struct{} // closed: the reply has, and something of it came
	ended chan struct{} // closed: err is set
	err   error         // of the caller
}

// hangUp takes the probe from its start to the trial's result; leave is the hang-up.
func (p *probing) hangUp(ctx context.Context, leave func()) error {
	t := &p.trial
	state, err := p.awaitHeld(ctx)
	switch {
	case err != nil:
		return err
	case state != "held" && t.Moment == Sending && !t.Elsewhere:
		t.Result = Withheld
		return nil
	case state != "held":
		t.Result, t.Elsewhere = Scattered, true
		return nil
	}
	if t.Moment == Streaming {
		select {
		case <-p.began:
		case <-time.After(replyWithin):
			t.Buffered = true
		case <-p.ended:
			return p.err
		}
	}

	leave()
	at := time.Now()
	state, err = p.awaitLeft(ctx)
	switch {
	case err != nil:
		return err
	case state == "left":
		t.Result, t.Took = Noticed, time.Since(at)
	default:
		t.Result = Unnoticed
	}
	return nil
}

// hold is the caller of a probe. It returns when the probe has ended, or ctx.
func (c *Client) hold(ctx context.Context, id, moment string, began chan<- struct{}) error {
	var body io.Reader = http.NoBody
	size, query := int64(0), ""
	switch moment {
	case Streaming:
		query = "stream=1"
	case Sending:
		const half = 32 << 10 // more than net/http keeps back
		size = 2 * half
		body = io.MultiReader(strings.NewReader(strings.Repeat("x", half)), never{ctx})
	}
	reply, err := c.send(ctx, http.MethodPost, []string{"probes", id}, query, http.Header{"Content-Type": {"text/plain"}}, body, size)
	if err != nil {
		return err
	}
	defer reply.Body.Close()
	if reply.StatusCode/100 != 2 {
		err = c.problem(reply)
		var p *Problem
		if errors.As(err, &p) && p.Slug() == "not-found" {
			return fmt.Errorf("the server at %s has no probes: it is older than this client", c.shown)
		}
		return err
	}
	if _, err := io.ReadFull(reply.Body, make([]byte, 1)); err == nil {
		close(began)
	}
	_, err = io.Copy(io.Discard, reply.Body)
	if err == nil || ctx.Err() == nil {
		err = fmt.Errorf("the probe ended by itself: something between here and %s closed it", c.shown)
	}
	return err
}

// never is the half of a body that does not come.
type never struct{ ctx context.Context }

func (n never) Read([]byte) (int, error) {
	<-n.ctx.Done()
	return 0, n.ctx.Err()
}

// awaitHeld asks until the server holds the probe, and returns the last state told. It
// ends early with the probe, whose error tells more than that of a question.
func (p *probing) awaitHeld(ctx context.Context) (last string, err error) {
	next := time.NewTicker(pollEach)
	defer next.Stop()
	deadline := time.After(heldWithin)
	for {
		state, err := p.ask(ctx)
		switch {
		case err != nil:
			select {
			case <-p.ended:
				return last, p.err
			case <-time.After(askTimeout):
				return last, err
			}
		case state == "held":
			return state, nil
		case state != "":
			last = state
		case last != "": // before it is known it may only be on its way
			p.trial.Elsewhere = true
		}
		select {
		case <-next.C:
		case <-p.ended:
			return last, p.err
		case <-deadline:
			return last, nil
		case <-ctx.Done():
			return last, context.Cause(ctx)
		}
	}
}

// awaitLeft asks until the server has seen the hang-up, and returns the last state told.
func (p *probing) awaitLeft(ctx context.Context) (last string, err error) {
	next := time.NewTicker(pollEach)
	defer next.Stop()
	deadline := time.After(noticeWithin)
	for {
		state, err := p.ask(ctx)
		switch {
		case err != nil:
			return last, err
		case state == "left":
			return state, nil
		case state != "":
			last = state
		default:
			p.trial.Elsewhere = true
		}
		select {
		case <-next.C:
		case <-deadline:
			return last, nil
		case <-ctx.Done():
			return last, context.Cause(ctx)
		}
	}
}

// ask asks for the state of the probe; "" is a server that does not know it.
func (p *probing) ask(ctx context.Context) (state string, err error) {
	var one struct{ State string }
	header, err := p.c.ask(ctx, http.MethodGet, &one, "probes", p.id)
	if header != nil {
		p.trial.Server, p.trial.Via = Plain(header.Get("Server")), Plain(header.Get("Via"))
	}
	var unknown *Problem
	if errors.As(err, &unknown) && unknown.Slug() == "not-found" {
		return "", nil
	}
	return one.State, err
}
