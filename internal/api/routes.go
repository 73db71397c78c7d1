// Package api is the outside of the server: one [http.Handler] that lets
// requests in, turns some of them into calls, and writes what became of them.
//
// Its promises: nobody gets past the door without a Host it knows, the same
// origin and, where tokens are configured, a token that allows it; every request
// for work is recorded as a call with exactly one end, also when it is refused;
// who hangs up more than the budget allows is refused for a while, and nobody else;
// a call's context never comes from its request, its hang-up comes from
// connwatch; and every error is a problem document (RFC 9457) from one table.
//
// The package has no goroutine of its own but the one that writes the events of a
// call to its caller, which ends before the handler does. It imports call, calls, config,
// connwatch, event and spool.
package api

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"example.com/hangup/internal/call"
	"example.com/hangup/internal/calls"
	"example.com/hangup/internal/config"
	"example.com/hangup/internal/event"
	"example.com/hangup/internal/spool"
)

// Options say what the handler works with. All of them are needed.
type Options struct {
	Config    *config.Config
	Calls     *calls.Registry
	Spool     *spool.Spool
	Workloads func() []event.Pool // how the pools stand
	Metrics   http.Handler
	Ready     func() error // why the server cannot serve; nil: it can
	NewID     func() string
	Budget    *Budget // of hang-ups; it outlives the handler, as do the
	Probes    *Probes
	ShowOut   func(*http.Request) // is told whose connection is to end because of the budget

	// What GET /workloads says of the server itself.
	Containment              event.Containment
	ServerPid, SupervisorPid int
}

// New makes the handler.
func New(o Options) http.Handler {
	s := &server{o: o, door: newDoor(o.Config), workloads: map[string]config.Workload{}}
	for _, w := range o.Config.Workloads {
		s.workloads[w.Name] = w
	}
	return s
}

type server struct {
	o         Options
	door      door
	workloads map[string]config.Workload
}

// visit is one request on its way through the server.
type visit struct {
	w      http.ResponseWriter
	r      *http.Request
	at     time.Time // when its headers had been read
	caller caller
	params []string // what the path's wildcards stand for
	body   *body
}

// scope is what a token must allow.
type scope string

const (
	open    scope = "" // no token needed
	execute scope = "execute"
	observe scope = "observe"
	operate scope = "operate"
)

type endpoint struct {
	needs scope
	serve func(*server, *visit)
}

type methods map[string]endpoint

// routes is every path there is. A GET endpoint serves HEAD, too.
var routes = []struct {
	path    string // {x} is one segment, {x...} all that are left
	methods methods
}{
	{"/execute", methods{"POST": {execute, (*server).executeDocument}}},
	{"/execute/{workload}", methods{"POST": {execute, (*server).execute}}},
	{"/execute/{workload}/{task...}", methods{"POST": {execute, (*server).execute}}},
	{"/calls", methods{"GET": {observe, (*server).listCalls}}},
	{"/calls/{id}", methods{"GET": {observe, (*server).showCall}, "DELETE": {operate, (*server).cancelCall}}},
	{"/calls/{id}/events", methods{"GET": {observe, (*server).watchCall}}},
	{"/workloads", methods{"GET": {observe, (*server).listWorkloads}}},
	{"/metrics", methods{"GET": {observe, (*server).metrics}}},
	{"/healthz", methods{"GET": {open, (*server).healthy}}},
	{"/readyz", methods{"GET": {open, (*server).ready}}},
	{"/probes/{id}", methods{"GET": {execute, (*server).showProbe}, "POST": {execute, (*server).holdProbe}}},
	{"/problems/{slug}", methods{"GET": {open, (*server).explain}}},
}

// ServeHTTP takes a request to the door, to its endpoint, or to an error.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v := &visit{w: w, r: r, at: time.Now(), caller: s.door.arrive(r), body: newBody(w, r, s.o.Config.Limits, s.o.Spool)}
	w.Header().Set("X-Content-Type-Options", "nosniff")

	segments := split(r.URL)
	isCall := segments[0] == "execute"
	if !isCall && segments[0] != "probes" {
		v.body.dismiss() // only those two have one
	}
	endpoint, err := s.admit(v, segments)
	switch {
	case err == nil:
		endpoint.serve(s, v)
	case isCall:
		s.refuse(v, s.newCall(v), err)
	default:
		s.fail(v, nil, err)
	}
}

// admit lets a request in, or says why not.
func (s *server) admit(v *visit, segments []string) (endpoint, error) {
	if err := s.door.check(v.r); err != nil {
		return endpoint{}, err
	}
	e, params, err := find(v.r.Method, segments)
	v.params = params
	if err != nil {
		return endpoint{}, err
	}
	if v.caller, err = s.door.identify(v.r, v.caller, e.needs); err != nil || e.needs != execute {
		return e, err
	}
	if wait := s.o.Budget.wait(v.caller.payer()); wait > 0 {
		return e, &call.RetryError{Err: call.ErrTooManyCalls, After: wait}
	}
	return e, nil
}

func find(method string, segments []string) (endpoint, []string, error) {
	for _, route := range routes {
		params, ok := match(route.path, segments)
		if !ok {
			continue
		}
		e, ok := route.methods[method]
		if method == http.MethodHead {
			e, ok = route.methods[http.MethodGet]
		}
		if !ok {
			return endpoint{}, params, &methodError{allow(route.methods)}
		}
		return e, params, nil
	}
	return endpoint{}, nil, errNotFound
}

// allow is the value of the Allow header.
func allow(m methods) string {
	var names []string
	for name := range m {
		names = append(names, name)
		if name == http.MethodGet {
			names = append(names, http.MethodHead)
		}
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// split cuts a path at its slashes, and only then decodes it: an escaped slash
// is part of a name. Nothing is cleaned or redirected; a path that is not in the
// table is not there. The result has at least one element.
func split(u *url.URL) []string {
	segments := strings.Split(strings.TrimPrefix(u.EscapedPath(), "/"), "/")
	for i, segment := range segments {
		if name, err := url.PathUnescape(segment); err == nil { // net/url has seen to it
			segments[i] = name
		}
	}
	return segments
}

func match(path string, segments []string) (params []string, ok bool) {
	for path != "" {
		var want string
		want, path, _ = strings.Cut(path[1:], "/")
		if path != "" {
			path = "/" + path
		}
		switch {
		case len(segments) == 0:
			return nil, false
		case strings.HasSuffix(want, "...}"):
			return append(params, strings.Join(segments, "/")), true
		case strings.HasPrefix(want, "{"):
			params = append(params, segments[0])
		case want != segments[0]:
			return nil, false
		}
		segments = segments[1:]
	}
	return params, len(segments) == 0
}
