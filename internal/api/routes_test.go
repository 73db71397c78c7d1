package api

import (
	"strings"
	"testing"
)

func TestRoutes(t *testing.T) {
	g := serve(t, echo)
	for _, tt := range []struct {
		path   string
		status int
		slug   string
		allow  string
	}{
		{"GET /", 404, "not-found", ""},
		{"GET /nowhere", 404, "not-found", ""},
		{"GET /calls/", 404, "no-such-call", ""},
		{"GET /calls/x/y", 404, "not-found", ""},
		{"GET /calls/%2e%2e%2fworkloads", 404, "no-such-call", ""},
		{"GET //calls", 404, "not-found", ""},
		{"GET /./calls", 404, "not-found", ""},
		{"GET /x/../calls", 404, "not-found", ""},
		{"GET /CALLS", 404, "not-found", ""},
		{"GET /calls%2F", 404, "not-found", ""},
		{"GET /executed", 404, "not-found", ""},
		{"GET /problems/nope", 404, "not-found", ""},
		{"GET /execute", 405, "method-not-allowed", "POST"},
		{"PUT /execute/echo", 405, "method-not-allowed", "POST"},
		{"HEAD-less /execute/echo/x", 405, "method-not-allowed", "POST"},
		{"POST /calls", 405, "method-not-allowed", "GET, HEAD"},
		{"POST /calls/x", 405, "method-not-allowed", "DELETE, GET, HEAD"},
		{"DELETE /workloads", 405, "method-not-allowed", "GET, HEAD"},
		{"OPTIONS /metrics", 405, "method-not-allowed", "GET, HEAD"},
		{"POST /healthz", 405, "method-not-allowed", "GET, HEAD"},
		{"get /readyz", 405, "method-not-allowed", "GET, HEAD"},
	} {
		t.Run(tt.path, func(t *testing.T) {
			a := g.do(tt.path, "")
			a.is(t, tt.status, tt.slug)
			if allow := a.Header.Get("Allow"); allow != tt.allow {
				t.Errorf("Allow: %q, want %q", allow, tt.allow)
			}
			if a.Header.Get("X-Content-Type-Options") != "nosniff" {
				t.Error("a reply without nosniff")
			}
		})
	}
}

func TestHead(t *testing.T) {
	g := serve(t, echo)
	for _, path := range []string{"/calls", "/workloads", "/metrics", "/healthz", "/readyz", "/problems/cancelled"} {
		get, head := g.do("GET "+path, ""), g.do("HEAD "+path, "")
		if head.StatusCode != 200 || head.ContentLength != get.ContentLength || int(get.ContentLength) != len(get.body) {
			t.Errorf("%s: %s of %d bytes, GET has %d", path, head.Status, head.ContentLength, get.ContentLength)
		}
	}
	if a := g.do("HEAD /execute/echo", ""); a.StatusCode != 405 {
		t.Errorf("HEAD of a call: %s", a.Status)
	}
}

// An endpoint without a scope is open to all: there are as many as are meant to be.
func TestOnlyThisIsOpen(t *testing.T) {
	var paths []string
	for _, route := range routes {
		for method, e := range route.methods {
			if e.needs == open {
				paths = append(paths, method+" "+route.path)
			}
		}
	}
	if got, want := strings.Join(paths, ", "), "GET /healthz, GET /readyz, GET /problems/{slug}"; got != want {
		t.Errorf("open to all: %s", got)
	}
}
