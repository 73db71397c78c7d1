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
	t := Trial{Moment: moment}
	var random [16]byte
	rand.Read(random[:]) //nolint:errcheck // never fails
	id := hex.EncodeToString(random[:])

	caller, hangUp := context.WithCancel(ctx)
	h := &held{began: make(chan struct{}), ended: make(chan struct{})}
	go func() {
		defer close(h.ended)
		h.err = c.hold(caller, id, moment, h.began)
	}()
	defer func() {
		hangUp()
		<-h.ended
	}()

	state, err := c.await(ctx, &t, id, heldWithin, h, "held")
	switch {
	case err != nil:
		return t, err
	case state != "held" && moment == Sending && !t.Elsewhere:
		t.Result = Withheld
		return t, nil
	case state != "held":
		t.Result, t.Elsewhere = Scattered, true
		return t, nil
	}
	if moment == Streaming {
		select {
		case <-h.began:
		case <-time.After(replyWithin):
			t.Buffered = true
		case <-h.ended:
			return t, h.err
		}
	}

	hangUp()
	at := time.Now()
	state, err = c.await(ctx, &t, id, noticeWithin, nil, "left")
	switch {
	case err != nil:
		return t, err
	case state == "left":
		t.Result, t.Took = Noticed, time.Since(at)
	default:
		t.Result = Unnoticed
	}
	return t, nil
}

// held is a probe under way: its caller, in a goroutine of its own.
type held struct {
	began chan struct{} // closed: the reply has, and something of it came
	ended chan struct{} // closed: err is set
	err   error
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

// await asks for the state of a probe until it is the one that is wanted, the
// probe has ended by itself (if h is not nil), or the time is over, and returns
// the last state told.
func (c *Client) await(ctx context.Context, t *Trial, id string, within time.Duration, h *held, want string) (string, error) {
	var ended <-chan struct{}
	if h != nil {
		ended = h.ended
	}
	last := ""
	next := time.NewTicker(pollEach)
	defer next.Stop()
	deadline := time.After(within)
	for {
		var one struct{ State string }
		header, err := c.ask(ctx, http.MethodGet, &one, "probes", id)
		if header != nil {
			t.Server, t.Via = Plain(header.Get("Server")), Plain(header.Get("Via"))
		}
		var p *Problem
		switch {
		case err == nil && one.State == want:
			return want, nil
		case err == nil:
			last = one.State
		case errors.As(err, &p) && p.Slug() == "not-found":
			// Before it is held it may only be on its way.
			t.Elsewhere = t.Elsewhere || last != "" || want == "left"
		case h == nil:
			return last, err
		default:
			select {
			case <-ended: // which tells more
				return last, h.err
			case <-time.After(askTimeout):
				return last, err
			}
		}
		select {
		case <-next.C:
		case <-ended:
			return last, h.err
		case <-deadline:
			return last, nil
		case <-ctx.Done():
			return last, context.Cause(ctx)
		}
	}
}
