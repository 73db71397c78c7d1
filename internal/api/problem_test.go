package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"example.com/hangup/internal/call"
	"example.com/hangup/internal/event"
)

// Every cause with which a call can end, as its caller sees it.
func TestCauses(t *testing.T) {
	for _, tt := range []struct {
		err     error
		status  int
		slug    string
		outcome event.Outcome
		retry   string
	}{
		{call.ErrBadRequest, 400, "bad-request", event.Rejected, ""},
		{call.ErrUnauthorized, 401, "unauthorized", event.Rejected, ""},
		{call.ErrForbidden, 403, "forbidden", event.Rejected, ""},
		{call.ErrNoSuchWorkload, 404, "no-such-workload", event.Rejected, ""},
		{call.ErrNoSuchTask, 404, "no-such-task", event.Rejected, ""},
		{&methodError{"POST"}, 405, "method-not-allowed", event.Rejected, ""},
		{call.ErrBodyTimeout, 408, "body-timeout", event.Rejected, ""},
		{call.ErrCancelled, 409, "cancelled", event.Cancelled, ""},
		{call.ErrBodyTooLarge, 413, "body-too-large", event.Rejected, ""},
		{&call.RetryError{Err: call.ErrTooManyCalls, After: 61 * time.Second}, 429, "too-many-calls", event.Rejected, "61"},
		{call.ErrInvalidInput, 422, "invalid-input", event.Rejected, ""},
		{call.ErrFailed, 500, "work-failed", event.Failed, ""},
		{&call.FailureError{Class: "ValueError", Message: "no"}, 500, "work-failed", event.Failed, ""},
		{call.ErrLimit, 500, "limit-exceeded", event.Failed, ""},
		{errors.New("whatever"), 500, "internal-error", event.Failed, ""},
		{call.ErrDied, 502, "worker-died", event.Crashed, ""},
		{&call.DiedError{Exit: 3}, 502, "worker-died", event.Crashed, ""},
		{call.ErrBadWorker, 502, "bad-worker", event.Crashed, ""},
		{call.ErrQueueFull, 503, "queue-full", event.Rejected, "1"},
		{&call.RetryError{Err: call.ErrQueueFull, After: 1}, 503, "queue-full", event.Rejected, "1"},
		{&call.RetryError{Err: call.ErrQueueFull, After: 2 * time.Second}, 503, "queue-full", event.Rejected, "2"},
		{&call.RetryError{Err: call.ErrDown, After: 2*time.Second + 1}, 503, "workload-down", event.Rejected, "3"},
		{call.ErrQueueTimeout, 503, "queue-timeout", event.Rejected, "1"},
		{call.ErrDown, 503, "workload-down", event.Rejected, "1"},
		{call.ErrDraining, 503, "draining", event.Rejected, "1"},
		{call.ErrDrained, 503, "draining", event.Cancelled, "1"},
		{call.ErrTimedOut, 504, "timed-out", event.TimedOut, ""},
		{call.ErrSpoolFull, 507, "spool-full", event.Rejected, ""},
	} {
		for _, err := range []error{tt.err, fmt.Errorf("cannot do it: %w", tt.err)} {
			t.Run(err.Error(), func(t *testing.T) {
				g := serve(t, failing(err))
				a := g.do("/execute/echo", "x")
				p := a.is(t, tt.status, tt.slug)
				if retry := a.Header.Get("Retry-After"); retry != tt.retry {
					t.Errorf("Retry-After: %q, want %q", retry, tt.retry)
				}
				end := g.end()
				if end.Outcome != tt.outcome {
					t.Errorf("outcome %s, want %s", end.Outcome, tt.outcome)
				}
				workload := any("echo")
				if tt.status == 401 { // which there are is not for anybody
					workload = nil
				}
				for name, want := range map[string]any{
					"call": end.Call, "instance": "/calls/" + end.Call, "workload": workload, "outcome": string(tt.outcome), "detail": err.Error(),
				} {
					if p[name] != want {
						t.Errorf("%s is %v, want %v", name, p[name], want)
					}
				}
				if timing := a.Header.Get("Server-Timing"); !strings.Contains(timing, "run;dur=") || a.Header.Get("Hangup-Call") != end.Call {
					t.Errorf("Server-Timing %q, Hangup-Call %q", timing, a.Header.Get("Hangup-Call"))
				}
			})
		}
	}
}

func TestMembers(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
		want map[string]any
	}{
		{"a failure", &call.FailureError{Class: "ValueError", Message: "too wide", Tail: "last words"}, map[string]any{
			"error": "ValueError", "message": "too wide", "stderr": "last words", "detail": "ValueError: too wide",
		}},
		{"members of the work's own", &call.FailureError{Message: "m", Members: map[string]any{"width": 7., "nested": map[string]any{"a": []any{1., nil}}}}, map[string]any{
			"error": "", "message": "m", "detail": "m", "width": 7., "nested": map[string]any{"a": []any{1., nil}},
		}},
		{"members that are taken", &call.FailureError{Class: "C", Message: "m", Members: map[string]any{
			"type": "x", "title": "x", "status": 200, "detail": "x", "instance": "x", "call": "x", "workload": "x", "outcome": "done",
			"error": "x", "message": "x",
		}}, map[string]any{"error": "C", "message": "m", "detail": "C: m"}},
		{"an exit", &call.DiedError{Exit: 3, Tail: "oh no"}, map[string]any{"exit": 3., "stderr": "oh no", "detail": "the worker exited with code 3"}},
		{"a signal", &call.DiedError{Exit: -1, Signal: "SIGKILL"}, map[string]any{"signal": "SIGKILL", "detail": "the worker was ended by SIGKILL"}},
		{"hostile text", &call.FailureError{Message: "a\r\nEvil: 1\x1b[31m\x00\xff"}, map[string]any{
			"error": "", "message": "a\r\nEvil: 1\x1b[31m\x00\ufffd", "detail": "a\r\nEvil: 1\x1b[31m\x00\ufffd",
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := serve(t, failing(tt.err))
			a := g.do("/execute/echo", "x")
			got := a.problem(t)
			if a.Header.Get("Evil") != "" || strings.ContainsAny(strings.TrimSuffix(string(a.body), "\n"), "\r\n\x1b\x00") {
				t.Errorf("control characters got through: %q", a.body)
			}
			p := problemOf(tt.err)
			for name, want := range map[string]any{
				"type": "/problems/" + p.slug, "title": p.title, "status": float64(p.status), "call": "call-1", "instance": "/calls/call-1",
				"workload": "echo", "outcome": string(call.Outcome(tt.err)),
			} {
				tt.want[name] = want
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// The order of the members is for people: what it is comes first.
func TestProblemOrder(t *testing.T) {
	g := serve(t, failing(call.ErrQueueFull))
	body := g.do("/execute/echo", "x").body
	in := json.NewDecoder(strings.NewReader(string(body)))
	var names []string
	for in.Token(); in.More(); {
		name, _ := in.Token()
		names = append(names, name.(string))
		in.Token()
	}
	want := []string{"type", "title", "status", "detail", "instance", "call", "workload", "outcome"}
	if !slices.Equal(names, want) {
		t.Errorf("%v, want %v", names, want)
	}
}

func TestProblemPages(t *testing.T) {
	g := serve(t, echo)
	for _, slug := range []string{
		"bad-request", "unauthorized", "forbidden", "no-such-workload", "no-such-task", "no-such-call", "method-not-allowed",
		"body-timeout", "body-too-large", "cancelled", "invalid-input", "idempotency-conflict", "too-many-calls", "work-failed",
		"limit-exceeded", "worker-died", "bad-worker", "queue-full", "queue-timeout", "workload-down", "draining", "timed-out", "spool-full",
	} {
		a := g.do("GET /problems/"+slug, "")
		if a.StatusCode != 200 || !strings.HasPrefix(a.Header.Get("Content-Type"), "text/plain") || !strings.Contains(string(a.body), slug) {
			t.Errorf("%s: %s: %s", slug, a.Status, a.body)
		}
	}
	seen := map[string]bool{}
	for _, p := range problems {
		if seen[p.slug] || p.title == "" || p.text == "" || http.StatusText(p.status) == "" {
			t.Errorf("a bad row: %+v", p)
		}
		seen[p.slug] = true
	}
}

// spied is a ResponseWriter that looks at each Write.
type spied struct {
	*httptest.ResponseRecorder
	look func()
}

func (s spied) Write(p []byte) (int, error) {
	s.look()
	return s.ResponseRecorder.Write(p)
}

// TestBoundIsLiftedBeforeTheReply: a caller who has had the whole of a reply may send
// its next request, however long that is, though the handler has not returned.
func TestBoundIsLiftedBeforeTheReply(t *testing.T) {
	bound, writes := true, 0
	w := spied{httptest.NewRecorder(), func() {
		writes++
		if bound {
			t.Error("a part of the reply is out, and the bound stands")
		}
	}}
	v := &visit{w: w, body: &body{conn: http.NewResponseController(w), release: func() { bound = false }}}
	v.write(http.StatusOK, "text/plain", make([]byte, 100_000))
	if writes == 0 || w.Body.Len() != 100_000 {
		t.Errorf("%d bytes in %d writes", w.Body.Len(), writes)
	}
}
