package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"example.com/hangup/internal/call"
)

// Bounds on what a caller says that goes into records or to the worker, in bytes.
const (
	maxTask        = 255
	maxContentType = 255
	maxTraceparent = 255
)

// execute answers POST /execute/{workload} and POST /execute/{workload}/{task}:
// the body is the input.
func (s *server) execute(v *visit) {
	c := s.newCall(v)
	err := s.name(v, c, v.params[0], strings.Join(v.params[1:], ""))
	if err == nil {
		err = s.read(v.r.Header, c)
	}
	if err == nil {
		err = v.body.announced()
	}
	if err != nil {
		s.refuse(v, c, err)
		return
	}
	c.Input = v.body
	s.do(v, c)
}

// executeDocument answers POST /execute: the body says it all. It must be in
// before the workload is known, and so before the call has a place.
func (s *server) executeDocument(v *visit) {
	defer v.body.Close()
	c := s.newCall(v)
	d, err := s.takeDocument(v)
	if err == nil {
		err = s.name(v, c, d.workload, d.task)
	}
	if err == nil {
		err = s.read(v.r.Header, c)
	}
	if err != nil {
		s.refuse(v, c, err)
		return
	}
	c.Input = d.input(v.body)
	s.do(v, c)
}

func (s *server) takeDocument(v *visit) (document, error) {
	if err := v.body.announced(); err != nil {
		return document{}, err
	}
	// Nobody can cancel what is no call yet: it ends with its body, or limits.body_timeout.
	if err := v.body.Receive(context.WithoutCancel(v.r.Context())); err != nil {
		return document{}, err
	}
	return parseDocument(v.body.Reader())
}

// newCall makes the call that a request is for, as far as can be told before its
// headers are looked at: even a refused one is recorded.
func (s *server) newCall(v *visit) *call.Call {
	c := &call.Call{ID: s.o.NewID(), Caller: v.caller.name, OnHangup: "cancel", At: v.at}
	if len(v.params) > 0 {
		if _, ok := s.workloads[v.params[0]]; ok {
			c.Workload = v.params[0]
		}
	}
	return c
}

// name finds the workload and the task that are asked for. A name that cannot
// exist stays out of the call, and so out of records and metrics.
func (s *server) name(v *visit, c *call.Call, workload, task string) error {
	if !v.caller.may(workload) {
		return fmt.Errorf("%w: the token %q does not allow the workload %q", call.ErrForbidden, v.caller.name, clip(workload))
	}
	if _, ok := s.workloads[workload]; !ok {
		return fmt.Errorf("%w: %q; there is %s", call.ErrNoSuchWorkload, clip(workload), s.names(v.caller))
	}
	c.Workload = workload
	if len(task) > maxTask || !printable(task) {
		return fmt.Errorf("%w: %q", call.ErrNoSuchTask, clip(task))
	}
	c.Task = task
	return nil
}

// printable tells whether a name can be shown to people as it is: others than the
// caller see it, on terminals, which obey control characters.
func printable(name string) bool {
	return utf8.ValidString(name) && !strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) })
}

// names lists the workloads that a caller may know of.
func (s *server) names(who caller) string {
	var names []string
	for _, w := range s.o.Config.Workloads {
		if who.may(w.Name) {
			names = append(names, w.Name)
		}
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// read takes what the headers say into the call. What this version cannot do is
// refused: a caller who asked for it must not believe to have got it.
func (s *server) read(h http.Header, c *call.Call) error {
	if len(h.Values("Idempotency-Key")) > 0 {
		return fmt.Errorf("%w: Idempotency-Key is not available here: send the call without it", call.ErrBadRequest)
	}
	if len(h.Values("Last-Event-ID")) > 0 { // a reader that comes back by itself must not start the work again
		return fmt.Errorf("%w: Last-Event-ID: a call cannot be resumed, only watched: GET /calls/{id}/events", call.ErrBadRequest)
	}

	if kind := h.Get("Content-Type"); len(kind) > maxContentType || !utf8.ValidString(kind) {
		return fmt.Errorf("%w: Content-Type: %q is no media type", call.ErrBadRequest, clip(kind))
	}

	policy, ok, err := single(h, "On-Hangup")
	if err != nil {
		return err
	}
	if ok {
		if err := s.allowPolicy(c, policy); err != nil {
			return err
		}
	}

	limit, ok, err := single(h, "Call-Timeout")
	if err != nil {
		return err
	}
	if ok {
		c.Timeout, err = time.ParseDuration(limit)
		if err != nil || c.Timeout <= 0 {
			return fmt.Errorf("%w: Call-Timeout: %q is no duration above 0, such as 5s or 1m30s", call.ErrBadRequest, clip(limit))
		}
	}

	if parent, ok, err := single(h, "Traceparent"); ok && err == nil && validTraceparent(parent) {
		c.Traceparent = parent
	}
	return nil
}

// allowPolicy takes the On-Hangup policy into the call if the workload allows it.
func (s *server) allowPolicy(c *call.Call, policy string) error {
	name, after, lingers := strings.Cut(policy, "=")
	switch {
	case policy == "cancel", policy == "detach":
	case name == "linger" && lingers:
		if d, err := time.ParseDuration(after); err != nil || d <= 0 {
			return fmt.Errorf("%w: On-Hangup: %q is no duration above 0", call.ErrBadRequest, clip(after))
		}
	default:
		return fmt.Errorf("%w: On-Hangup: %q is none of cancel, linger=DURATION, detach", call.ErrBadRequest, clip(policy))
	}
	if allowed := s.workloads[c.Workload].OnHangup.Allow; !slices.Contains(allowed, name) {
		return fmt.Errorf("%w: the workload %q does not allow On-Hangup: %s; it allows %s",
			call.ErrForbidden, c.Workload, name, strings.Join(allowed, ", "))
	}
	c.OnHangup = policy
	return nil
}

// single is the value of a header that may come once.
func single(h http.Header, name string) (value string, ok bool, err error) {
	values := h.Values(name)
	switch len(values) {
	case 0:
		return "", false, nil
	case 1:
		return strings.TrimSpace(values[0]), true, nil
	default:
		return "", false, fmt.Errorf("%w: %s was sent %d times", call.ErrBadRequest, name, len(values))
	}
}

// validTraceparent tells whether v is a W3C trace context. One that is not is to
// be ignored, as the standard says.
func validTraceparent(v string) bool {
	if len(v) < 55 || len(v) > 55 && (v[:2] == "00" || v[55] != '-') || len(v) > maxTraceparent || v[:2] == "ff" {
		return false
	}
	for i, c := range []byte(v[:55]) {
		if i == 2 || i == 35 || i == 52 {
			if c != '-' {
				return false
			}
		} else if !strings.ContainsRune("0123456789abcdef", rune(c)) {
			return false
		}
	}
	return strings.Trim(v[3:35], "0") != "" && strings.Trim(v[36:52], "0") != ""
}

// do has a call done whose owner is the connection, and replies.
//
// It returns as soon as the call has ended, whatever its worker still needs to
// die. Once the call is begun nothing may come between that and its Do, so that
// it has an end.
func (s *server) do(v *visit, c *call.Call) {
	defer v.body.Close()
	out := s.outlet(v, c)
	c.Reply = out
	v.w.Header().Set("Hangup-Call", c.ID)

	ctx, lease := s.o.Calls.Begin(c)
	out.start(lease)
	err := s.o.Calls.Do(ctx, c)
	if s.walkedOut(c, err) {
		s.o.Budget.charge(v.caller.payer())
	}
	switch err = out.end(err); {
	case err == nil:
	case errors.Is(err, errCut), errors.Is(err, call.ErrHungUp):
		v.abort()
	default:
		s.end(v, c, err)
	}
}

// outlet is where the reply to a call goes: to the caller as it is, or as events.
func (s *server) outlet(v *visit, c *call.Call) outlet {
	if wantsEvents(v.r.Header) {
		return s.newEventReply(v, c)
	}
	return &reply{
		w: v.w, conn: v.body.conn, r: v.r,
		timing: func(streamed bool) string { return s.timing(c, streamed) },
	}
}

// refuse turns a call away that has not begun.
func (s *server) refuse(v *visit, c *call.Call, err error) {
	s.o.Calls.Refuse(c, err)
	if errors.Is(err, call.ErrHungUp) { // in the middle of its document
		s.o.Budget.charge(v.caller.payer())
		v.abort()
	}
	v.w.Header().Set("Hangup-Call", c.ID)
	s.end(v, c, err)
}

// walkedOut tells whether the caller put an end to its call: it hung up, or had
// said beforehand when it would. One that could choose the latter to get past the
// budget costs as many workers.
func (s *server) walkedOut(c *call.Call, err error) bool {
	limit := s.workloads[c.Workload].Timeout
	return errors.Is(err, call.ErrHungUp) ||
		errors.Is(err, call.ErrTimedOut) && c.Timeout > 0 && (limit == 0 || c.Timeout < limit)
}

// end replies to a call that ended without a result.
func (s *server) end(v *visit, c *call.Call, err error) {
	v.w.Header().Set("Server-Timing", s.timing(c, false))
	s.fail(v, c, err)
}

// abort closes the connection without another byte: a reply that has begun
// cannot say anything else, and a caller who hung up gets nothing. net/http would
// first write what it has buffered, even to a peer who does not read.
func (v *visit) abort() {
	_ = v.body.conn.SetWriteDeadline(past)
	panic(http.ErrAbortHandler)
}

// timing is the value of Server-Timing, from the same record that GET /calls shows.
func (s *server) timing(c *call.Call, queueOnly bool) string {
	now := time.Now()
	queue, run := now.Sub(c.At), time.Duration(0)
	if rec, ok := s.o.Calls.Get(c.ID); ok {
		end := now
		if rec.EndedAt != nil {
			end = *rec.EndedAt
		}
		queue = end.Sub(rec.QueuedAt)
		if rec.StartedAt != nil {
			queue, run = rec.StartedAt.Sub(rec.QueuedAt), end.Sub(*rec.StartedAt)
		}
	}
	if queueOnly {
		return fmt.Sprintf("queue;dur=%.3f", milliseconds(queue))
	}
	return fmt.Sprintf("queue;dur=%.3f, run;dur=%.3f", milliseconds(queue), milliseconds(run))
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
