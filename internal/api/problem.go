package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"example.com/hangup/internal/call"
	"example.com/hangup/internal/connwatch"
	"example.com/hangup/internal/event"
)

// Causes that only a request can have. A wrong method that refuses a call is a
// bad request.
var (
	errNotFound   = errors.New("there is nothing at this path")
	errNoSuchCall = errors.New("no such call")
	errMethod     = fmt.Errorf("%w: method not allowed", call.ErrBadRequest)
)

// methodError is an errMethod that knows the methods there are.
type methodError struct{ allow string }

func (e *methodError) Error() string { return "this path takes " + e.allow }
func (e *methodError) Unwrap() error { return errMethod }

// problem is one kind of error as callers see it.
type problem struct {
	slug   string
	status int
	title  string
	causes []error
	text   string // for a person who looks the type up
}

// problems is the one table from cause to reply. The first row with a cause that
// an error wraps is its own; the last is for all others. A row without causes
// can be looked up, and nothing ends in it yet.
var problems = []problem{
	{
		"cancelled", http.StatusConflict, "The call was cancelled",
		[]error{call.ErrCancelled, call.ErrHungUp}, // the second is told to those who watch
		"An operator cancelled the call with DELETE /calls/{id} while it was queued or running, or, as those who watch a call are " +
			"told, its caller hung up. Its work was stopped.",
	},
	{
		"draining", http.StatusServiceUnavailable, "The server is shutting down",
		[]error{call.ErrDraining, call.ErrDrained},
		"The server takes no new calls because it is about to stop. A call that was still running when the time for it " +
			"was over (drain, in the config) was cancelled. Send the call again, to another server or after the restart.",
	},
	{
		"timed-out", http.StatusGatewayTimeout, "The call took too long",
		[]error{call.ErrTimedOut},
		"The work was not done within the workload's timeout, or the shorter one of the caller's Call-Timeout header. It was stopped.",
	},
	{
		"work-failed", http.StatusInternalServerError, "The work failed",
		[]error{call.ErrFailed},
		"The work raised an error or exited with a code other than 0. The members error, message and stderr say what it " +
			"said of itself. Sending the same input again will most likely fail again.",
	},
	{
		"limit-exceeded", http.StatusInternalServerError, "The work exceeded a limit",
		[]error{call.ErrLimit},
		"The work went over one of the workload's limits, which the detail names, and was stopped. Where that is a limit of the worker's " +
			"process tree (limits.memory, limits.pids), the whole tree was killed, and a new worker takes its place.",
	},
	{
		"worker-died", http.StatusBadGateway, "The worker died",
		[]error{call.ErrDied},
		"The worker process ended in the middle of the call. The members exit and signal say how; the detail says so " +
			"where the kernel may have killed it for want of memory. A new worker takes its place.",
	},
	{
		"bad-worker", http.StatusBadGateway, "The worker broke the protocol",
		[]error{call.ErrBadWorker},
		"The worker sent something that the worker protocol does not allow, and was stopped. This is a defect of the worker.",
	},
	{
		"method-not-allowed", http.StatusMethodNotAllowed, "The method is not allowed here",
		[]error{errMethod},
		"The path exists, but not for this method. The Allow header names those there are.",
	},
	{
		"bad-request", http.StatusBadRequest, "The request is malformed",
		[]error{call.ErrBadRequest},
		"A header or the JSON document could not be understood. The detail says which and, in a document, where.",
	},
	{
		"unauthorized", http.StatusUnauthorized, "A valid token is needed",
		[]error{call.ErrUnauthorized},
		"This server has tokens configured. Send one of them as \"Authorization: Bearer TOKEN\".",
	},
	{
		"forbidden", http.StatusForbidden, "This is not allowed",
		[]error{call.ErrForbidden},
		"The token does not allow this, or not for this workload; or the workload does not allow that On-Hangup policy; or the " +
			"Host is none that this server serves; or a browser sent the request for a page of another site.",
	},
	{
		"no-such-workload", http.StatusNotFound, "There is no such workload",
		[]error{call.ErrNoSuchWorkload},
		"Only workloads declared in the server's config can be called. GET /workloads lists them.",
	},
	{
		"no-such-task", http.StatusNotFound, "The workload has no such task",
		[]error{call.ErrNoSuchTask},
		"A worker says which tasks it has. Where there is more than one, the path must name it: /execute/{workload}/{task}.",
	},
	{
		"no-such-call", http.StatusNotFound, "There is no such call",
		[]error{errNoSuchCall},
		"No call with this id is known, or it has ended already and cannot be cancelled. Calls that have ended are remembered for a while only.",
	},
	{
		"not-found", http.StatusNotFound, "There is nothing here",
		[]error{errNotFound},
		"The path is none that this server has.",
	},
	{
		"body-timeout", http.StatusRequestTimeout, "The body did not arrive in time",
		[]error{call.ErrBodyTimeout},
		"The whole body must arrive within limits.body_timeout. No work was started.",
	},
	{
		"body-too-large", http.StatusRequestEntityTooLarge, "The body is too large",
		[]error{call.ErrBodyTooLarge},
		"A body may have as many bytes as limits.body says in the server's config. No work was started.",
	},
	{
		"invalid-input", http.StatusUnprocessableEntity, "The input is not valid",
		[]error{call.ErrInvalidInput},
		"The input does not match what the workload declares. No work was started.",
	},
	{
		"idempotency-conflict", http.StatusUnprocessableEntity, "The idempotency key was used with another input", nil,
		"The same Idempotency-Key came with another input before. Use a new key for new input.",
	},
	{
		"too-many-calls", http.StatusTooManyRequests, "Too many calls were given up",
		[]error{call.ErrTooManyCalls},
		"This caller has hung up on more calls, or let more of them run into its own Call-Timeout, than limits.hangups in the " +
			"server's config allows: each can cost a worker process. Other callers are served. Wait as long as Retry-After says.",
	},
	{
		"too-many-probes", http.StatusServiceUnavailable, "Too many probes",
		[]error{errTooManyProbes},
		"A probe, as `hangup doctor --url` sends it, is held until its caller hangs up, and the server holds a few at once only. Wait as long as Retry-After says.",
	},
	{
		"queue-full", http.StatusServiceUnavailable, "The queue is full",
		[]error{call.ErrQueueFull},
		"As many calls wait for a worker as the workload's queue.length allows. No work was started; wait as long as Retry-After says.",
	},
	{
		"queue-timeout", http.StatusServiceUnavailable, "No worker became free in time",
		[]error{call.ErrQueueTimeout},
		"The call waited for queue.wait without getting a worker. No work was started; wait as long as Retry-After says.",
	},
	{
		"workload-down", http.StatusServiceUnavailable, "The workload is down",
		[]error{call.ErrDown},
		"Workers of this workload do not start. The server keeps trying, and its log says why; GET /workloads gives the last reason.",
	},
	{
		"spool-full", http.StatusInsufficientStorage, "There is no room for the call's files",
		[]error{call.ErrSpoolFull, call.ErrNoScratch},
		"Large bodies wait in files, which have as much room as spool.max says; and each call has a scratch directory, for which " +
			"the disk may have no room, or no permission. No work was started; send the call again later.",
	},
	{
		"internal-error", http.StatusInternalServerError, "The server failed", nil,
		"This is a defect of the server, not of the request. Its log says more.",
	},
}

func problemOf(err error) *problem {
	for i := range problems {
		if slices.ContainsFunc(problems[i].causes, func(cause error) bool { return errors.Is(err, cause) }) {
			return &problems[i]
		}
	}
	return &problems[len(problems)-1]
}

// minRetry is what Retry-After says where nobody knows better.
const minRetry = time.Second

// fail replies with the problem that err is. c is the call it ends, nil where
// the request was for none.
func (s *server) fail(v *visit, c *call.Call, err error) {
	p := problemOf(err)
	h := v.w.Header()
	switch p.status {
	case http.StatusUnauthorized:
		h.Set("WWW-Authenticate", `Bearer realm="hangup"`)
	case http.StatusTooManyRequests:
		h.Set("Retry-After", retryAfter(err))
		// This ends a flood of streams: over HTTP/2 net/http makes it a GOAWAY. A
		// proxy's connection stays, because others share it.
		if !v.caller.proxied {
			h.Set("Connection", "close")
			s.o.ShowOut(v.r)
		}
	case http.StatusServiceUnavailable:
		h.Set("Retry-After", retryAfter(err))
	}
	if errors.Is(err, call.ErrDraining) || errors.Is(err, call.ErrDrained) {
		h.Set("Connection", "close") // over HTTP/2 it makes net/http send GOAWAY; what is under way goes on
	}
	var m *methodError
	if errors.As(err, &m) {
		h.Set("Allow", m.allow)
	}
	v.body.dismiss()
	v.write(p.status, "application/problem+json", p.document(s.shown(v, c, err), err))
}

// shown is the call as its problem shows it. Whether a workload exists is not for
// those who may not have to do with it.
func (s *server) shown(v *visit, c *call.Call, err error) *call.Call {
	if c == nil || !errors.Is(err, call.ErrUnauthorized) && v.caller.may(c.Workload) {
		return c
	}
	hidden := *c
	hidden.Workload = ""
	return &hidden
}

// retryAfter is the value of Retry-After: whole seconds, rounded up, at least 1.
func retryAfter(err error) string {
	after := minRetry
	var r *call.RetryError
	if errors.As(err, &r) {
		after = max(after, r.After)
	}
	return strconv.FormatInt(int64(math.Ceil(after.Seconds())), 10)
}

// document is the problem as application/problem+json.
func (p *problem) document(c *call.Call, err error) []byte {
	standard := struct {
		Type     string        `json:"type"`
		Title    string        `json:"title"`
		Status   int           `json:"status"`
		Detail   string        `json:"detail"`
		Instance string        `json:"instance,omitempty"`
		Call     string        `json:"call,omitempty"`
		Workload string        `json:"workload,omitempty"`
		Outcome  event.Outcome `json:"outcome,omitempty"`
	}{Type: "/problems/" + p.slug, Title: p.title, Status: p.status, Detail: err.Error()}
	if c != nil {
		standard.Instance = "/calls/" + c.ID
		standard.Call, standard.Workload, standard.Outcome = c.ID, c.Workload, call.Outcome(err)
	}
	doc, _ := json.Marshal(standard) // strings and a number: it cannot fail
	more, jsonErr := json.Marshal(members(err))
	if jsonErr != nil || len(more) == len("{}") {
		return append(doc, '\n')
	}
	doc[len(doc)-1] = ','
	return append(append(doc, more[1:]...), '\n')
}

// taken are the members that work may not set: a caller must be able to rely on
// who says them.
var taken = []string{"type", "title", "status", "detail", "instance", "call", "workload", "outcome"}

// members are what a problem says beyond the standard.
func members(err error) map[string]any {
	m := map[string]any{}
	var (
		failure *call.FailureError
		died    *call.DiedError
		where   *positionError
	)
	switch {
	case errors.As(err, &failure):
		maps.Copy(m, failure.Members)
		for _, name := range taken {
			delete(m, name)
		}
		m["error"], m["message"] = failure.Class, failure.Message
		if failure.Tail != "" {
			m["stderr"] = failure.Tail
		}
	case errors.As(err, &died):
		if died.Signal != "" {
			m["signal"] = died.Signal
		} else {
			m["exit"] = died.Exit
		}
		if died.Tail != "" {
			m["stderr"] = died.Tail
		}
	case errors.As(err, &where):
		m["line"], m["column"], m["offset"] = where.at.line, where.at.column, where.at.offset
	}
	return m
}

// explain answers GET /problems/{slug}, for a person.
func (s *server) explain(v *visit) {
	for _, p := range problems {
		if p.slug == v.params[0] {
			text := fmt.Sprintf("%s\n%s\n\nstatus %d, type /problems/%s\n\n%s\n",
				p.title, strings.Repeat("=", len(p.title)), p.status, p.slug, p.text)
			v.write(http.StatusOK, "text/plain; charset=utf-8", []byte(text))
			return
		}
	}
	s.fail(v, nil, fmt.Errorf("%w: there is no problem type %q", errNotFound, clip(v.params[0])))
}

// write sends a whole reply of the server's own making. From its first byte on the
// next request may come behind it; and a caller who does not take it does not keep
// the connection for good.
func (v *visit) write(status int, contentType string, body []byte) {
	v.body.release()
	h := v.w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("Cache-Control", "no-store")
	v.w.WriteHeader(status)
	for len(body) > 0 {
		n := min(len(body), piece)
		_ = v.body.conn.SetWriteDeadline(time.Now().Add(connwatch.SendTimeout)) // also of what net/http still holds
		if _, err := v.w.Write(body[:n]); err != nil {
			return // a caller who is gone needs no answer
		}
		body = body[n:]
	}
}

// writeJSON sends a value of the server's own, which can be marshalled.
func (s *server) writeJSON(v *visit, status int, value any) {
	body, err := json.Marshal(value)
	if err != nil {
		s.fail(v, nil, fmt.Errorf("cannot encode the reply: %w", err))
		return
	}
	v.write(status, "application/json", append(body, '\n'))
}

// clip bounds a name of the caller's, for an error text.
func clip(name string) string {
	const most = 64 // bytes: as long as any name that can exist
	if len(name) <= most {
		return name
	}
	return strings.ToValidUTF8(name[:most], "") + "…"
}
