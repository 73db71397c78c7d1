package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"example.com/hangup/internal/call"
	"example.com/hangup/internal/connwatch"
)

// A probe is a request that does nothing but wait for its caller to hang up, so
// that whoever stands at the far end of a proxy can find out by doing it whether
// the server would notice. It takes no worker and is no call.
const (
	maxProbes  = 16               // held at once
	probeHold  = 30 * time.Second // how long one is held
	probePulse = 200 * time.Millisecond
	keptProbes = 64 // remembered, those that are held included
)

var errTooManyProbes = errors.New("as many probes as may be are held already")

// probe is what GET /probes/{id} tells.
type probe struct {
	ID      string     `json:"id"`
	State   string     `json:"state"` // held, left: its caller hung up, or ended: its time was over
	HeldAt  time.Time  `json:"held_at"`
	LeftAt  *time.Time `json:"left_at"`
	EndedAt *time.Time `json:"ended_at"`
}

// Probes remembers the last probes, oldest first. It outlives a reload.
type Probes struct {
	mu   sync.Mutex
	list []*probe
	held int
}

// find returns a probe as it is now.
func (p *Probes) find(id string) (probe, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, one := range p.list {
		if one.ID == id {
			return *one, true
		}
	}
	return probe{}, false
}

// hold begins a probe.
func (p *Probes) hold(id string) (*probe, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, one := range p.list {
		if one.ID == id {
			return nil, fmt.Errorf("%w: the probe %q has been held already: make up another id", call.ErrBadRequest, id)
		}
	}
	if p.held == maxProbes {
		return nil, errTooManyProbes
	}
	if len(p.list) == keptProbes {
		for i, one := range p.list {
			if one.State != "held" {
				p.list = append(p.list[:i], p.list[i+1:]...)
				break
			}
		}
	}
	one := &probe{ID: id, State: "held", HeldAt: time.Now()}
	p.list = append(p.list, one)
	p.held++
	return one, nil
}

// end notes what became of a probe, and returns it. The first end counts.
func (p *Probes) end(one *probe, left bool) probe {
	p.mu.Lock()
	defer p.mu.Unlock()
	if one.State == "held" {
		p.held--
		now := time.Now()
		if left {
			one.State, one.LeftAt = "left", &now
		} else {
			one.State, one.EndedAt = "ended", &now
		}
	}
	return *one
}

// holdProbe answers POST /probes/{id}: the reply comes when the caller has not
// hung up for probeHold. With ?stream=1 it begins at once, and a byte follows now
// and then.
func (s *server) holdProbe(v *visit) {
	defer v.body.Close()
	id := v.params[0]
	if !validProbe(id) {
		s.fail(v, nil, fmt.Errorf("%w: %q is no id of a probe: 8 to 64 of the characters 0-9, a-f and -", call.ErrBadRequest, clip(id)))
		return
	}
	if err := v.body.announced(); err != nil {
		s.fail(v, nil, err)
		return
	}
	one, err := s.o.Probes.hold(id)
	if err != nil {
		s.fail(v, nil, err)
		return
	}

	over, cancel := context.WithTimeoutCause(context.WithoutCancel(v.r.Context()), probeHold, errProbeOver)
	defer cancel()
	ctx, hangUp := context.WithCancelCause(over)
	defer hangUp(nil)
	stop := connwatch.AfterHangUp(v.r, func() {
		s.o.Probes.end(one, true)
		hangUp(call.ErrHungUp)
	})
	err = v.body.Receive(ctx)
	if err == nil && v.r.URL.Query().Get("stream") == "1" {
		err = v.pulse(ctx)
	}
	if err == nil {
		<-ctx.Done()
		err = context.Cause(ctx)
	}
	stop()

	ended := s.o.Probes.end(one, errors.Is(err, call.ErrHungUp))
	switch {
	case ended.State == "left":
		v.abort()
	case errors.Is(err, errPulsed): // and said so
	case errors.Is(err, errProbeOver):
		v.body.dismiss()
		s.writeJSON(v, http.StatusOK, ended)
	default:
		s.fail(v, nil, err)
	}
}

var (
	errProbeOver = errors.New("the probe is over")
	errPulsed    = errors.New("the reply of the probe is over")
)

// pulse streams a reply until ctx ends. It always returns an error.
func (v *visit) pulse(ctx context.Context) error {
	_, done := connwatch.Streaming(v.r)
	defer done()
	v.w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	beat := time.NewTicker(probePulse)
	defer beat.Stop()
	for {
		err := interruptible(ctx, v.body.conn, connwatch.SendTimeout, func() error {
			if _, err := v.w.Write([]byte{'.'}); err != nil {
				return err
			}
			return v.body.conn.Flush()
		})
		if err != nil && ctx.Err() == nil {
			return call.ErrHungUp
		}
		select {
		case <-beat.C:
		case <-ctx.Done():
			if errors.Is(context.Cause(ctx), errProbeOver) {
				return errPulsed
			}
			return context.Cause(ctx)
		}
	}
}

// showProbe answers GET /probes/{id}.
func (s *server) showProbe(v *visit) {
	v.body.dismiss()
	one, ok := s.o.Probes.find(v.params[0])
	if !ok {
		s.fail(v, nil, fmt.Errorf("%w: this server holds no probe %q", errNotFound, clip(v.params[0])))
		return
	}
	s.writeJSON(v, http.StatusOK, one)
}

func validProbe(id string) bool {
	if len(id) < 8 || len(id) > 64 {
		return false
	}
	for _, c := range []byte(id) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') && c != '-' {
			return false
		}
	}
	return true
}
