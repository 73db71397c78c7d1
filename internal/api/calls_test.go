package api

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"example.com/hangup/internal/call"
	"example.com/hangup/internal/event"
)

func decode(t *testing.T, a answer) map[string]any {
	t.Helper()
	if a.StatusCode >= 300 || a.Header.Get("Content-Type") != "application/json" {
		t.Fatalf("%s, %s: %s", a.Status, a.Header.Get("Content-Type"), a.body)
	}
	if a.Header.Get("Cache-Control") != "no-store" {
		t.Error("it may be cached")
	}
	var m map[string]any
	if err := json.Unmarshal(a.body, &m); err != nil {
		t.Fatalf("%v: %s", err, a.body)
	}
	return m
}

func TestCalls(t *testing.T) {
	door, running := hanging()
	g := serve(t, door)
	if a := g.do("GET /calls", ""); string(a.body) != `{"calls":[]}`+"\n" {
		t.Errorf("at first: %s", a.body)
	}

	c := g.dial()
	c.send("POST /execute/echo/up HTTP/1.1\r\nHost: localhost\r\n\r\n")
	next(t, running)
	one := decode(t, g.do("GET /calls/call-1", ""))
	if one["id"] != "call-1" || one["workload"] != "echo" || one["task"] != "up" || one["outcome"] != "" || one["on_hangup"] != "cancel" {
		t.Errorf("%v", one)
	}
	all := decode(t, g.do("GET /calls", ""))
	if diff := cmp.Diff(map[string]any{"calls": []any{one}}, all); diff != "" {
		t.Errorf("the list (-one +list):\n%s", diff)
	}

	if a := g.do("DELETE /calls/call-1", ""); a.StatusCode != 202 || decode(t, a)["id"] != "call-1" {
		t.Errorf("%s: %s", a.Status, a.body)
	}
	c.receive().is(t, 409, "cancelled")
	if one := decode(t, g.do("GET /calls/call-1", "")); one["state"] != "ended" || one["outcome"] != "cancelled" {
		t.Errorf("%v", one)
	}
	p := g.do("DELETE /calls/call-1", "").is(t, 404, "no-such-call")
	if !strings.Contains(p["detail"].(string), "has ended (cancelled)") {
		t.Errorf("%v", p)
	}
	for _, path := range []string{"GET /calls/nope", "DELETE /calls/nope", "GET /calls/" + strings.Repeat("x", 4000)} {
		g.do(path, "").is(t, 404, "no-such-call")
	}
}

func TestWorkloads(t *testing.T) {
	g := serve(t, echo)
	g.pools = []event.Pool{
		{Name: "echo", Kind: "worker", Limit: 4, Spares: 1, Queued: 2, State: "up", Tasks: []string{"up"}, Isolation: "uid", Workers: []event.Worker{
			{ID: 9, Pid: 100, ShimPid: 99, State: event.Busy, Calls: 3, Since: time.Now().Add(-time.Minute), RSS: 4096},
		}},
		{Name: "resize", Kind: "worker", State: "down", Reason: "no such file", Isolation: "signals"},
		{Name: "echo", Kind: "worker", Limit: 2, Queued: 1, State: "up", Retiring: true, Isolation: "signals"},
	}
	all := decode(t, g.do("GET /workloads", ""))
	worker := all["workloads"].([]any)[0].(map[string]any)["workers"].([]any)[0].(map[string]any)
	if age := worker["age_s"].(float64); age < 60 || age > 120 {
		t.Errorf("age_s is %v", age)
	}
	delete(worker, "age_s")
	want := map[string]any{
		"server_pid": 11., "supervisor_pid": 10., "containment": "subreaper", "isolation": "signals",
		"layers": []any{map[string]any{"name": "cgroup", "on": false, "detail": "is read-only", "remedy": "write"}}, "workloads": []any{
			map[string]any{
				"name": "echo", "kind": "worker", "limit": 4., "spares": 1., "queued": 2., "state": "up", "reason": "", "isolation": "uid", "tasks": []any{"up"},
				"workers": []any{map[string]any{"pid": 100., "shim_pid": 99., "state": "busy", "calls": 3., "rss": 4096.}},
			},
			map[string]any{
				"name": "resize", "kind": "worker", "limit": 0., "spares": 0., "queued": 0., "state": "down", "reason": "no such file", "isolation": "signals", "tasks": []any{},
				"workers": []any{},
			},
		},
		"retiring": []any{
			map[string]any{
				"name": "echo", "kind": "worker", "limit": 2., "spares": 0., "queued": 1., "state": "up", "reason": "", "isolation": "signals", "tasks": []any{},
				"workers": []any{},
			},
		},
	}
	if diff := cmp.Diff(want, all); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestHealth(t *testing.T) {
	g := serve(t, echo)
	for _, path := range []string{"GET /healthz", "GET /readyz"} {
		if got := decode(t, g.do(path, "")); got["status"] != "ok" {
			t.Errorf("%s: %v", path, got)
		}
	}
	for _, tt := range []struct {
		err  error
		slug string
	}{
		{call.ErrDraining, "draining"},
		{call.ErrDown, "workload-down"},
		{errors.New("no worker of echo is ready"), "workload-down"},
	} {
		g.ready = tt.err
		p := g.do("GET /readyz", "").is(t, 503, tt.slug)
		if !strings.Contains(p["detail"].(string), tt.err.Error()) {
			t.Errorf("%v", p)
		}
		if a := g.do("GET /healthz", ""); a.StatusCode != 200 {
			t.Errorf("not alive: %s", a.Status)
		}
	}
	if a := g.do("GET /metrics", ""); string(a.body) != "hangup_calls 1\n" {
		t.Errorf("%s: %s", a.Status, a.body)
	}
}
