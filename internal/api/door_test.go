package api

import (
	"crypto/sha256"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"example.com/hangup/internal/call"
	"example.com/hangup/internal/config"
	"example.com/hangup/internal/event"
)

func TestHosts(t *testing.T) {
	g := serve(t, echo, func(c *config.Config) {
		c.Listen = []string{"127.0.0.1:0", "0.0.0.0:80", "[::]:80", "box.example.org:8080", "unix:/run/x.sock", "192.0.2.7:1"}
		c.Hosts = []string{"App.Example.com"}
	})
	served := []string{
		"localhost", "localhost:8080", "LOCALHOST", "localhost.", "127.0.0.1", "127.0.0.1:1", "127.8.9.10:8080", "[::1]", "[::1]:8080",
		"app.example.com", "APP.EXAMPLE.COM:443", "box.example.org", "192.0.2.7:9", g.addr,
	}
	foreign := []string{
		"", "evil.example", "localhost.evil.example", "evil.example:8080", "127.0.0.1.evil.example", "192.0.2.8", "0.0.0.0", "[::]", "::1",
		"x.app.example.com", "localhost:80:80", "localhost:x", "[::1", "[::1]x", "[localhost]", "2130706433", "/run/x.sock", "unix",
	}
	for _, host := range append(slices.Clone(served), foreign...) {
		for _, path := range []string{"/execute/echo", "GET /healthz", "GET /calls"} {
			a := g.do(path, "", "Host: "+host)
			if strings.Contains(string(a.body), "malformed Host header") {
				continue // net/http has refused it
			}
			if slices.Contains(served, host) {
				if a.StatusCode != 200 {
					t.Errorf("%s of %q: %s: %s", path, host, a.Status, a.body)
				}
			} else {
				a.is(t, 403, "forbidden")
			}
		}
	}
	c := g.dial()
	c.send("GET /healthz HTTP/1.0\r\n\r\n")
	if a := c.receive(); a.StatusCode != 200 {
		t.Errorf("HTTP/1.0 without a Host: %s", a.Status)
	}
}

// A server behind all addresses serves the one that a connection came in on.
func TestLocalAddress(t *testing.T) {
	d := newDoor(&config.Config{Listen: []string{"0.0.0.0:80"}})
	if d.hosts["0.0.0.0"] || len(d.hosts) != 1 {
		t.Errorf("a wildcard is served as a host: %v", d.hosts)
	}
}

func TestCrossSite(t *testing.T) {
	g := serve(t, echo)
	for _, tt := range []struct {
		headers string
		fine    bool
	}{
		{"Sec-Fetch-Site: same-origin", true},
		{"Sec-Fetch-Site: none", true},
		{"Sec-Fetch-Site: same-site", false},
		{"Sec-Fetch-Site: cross-site", false},
		{"Sec-Fetch-Site: ", false},
		{"Sec-Fetch-Site: none\r\nSec-Fetch-Site: cross-site", false},
		{"Origin: http://localhost", true},
		{"Origin: http://localhost:1", false},
		{"Origin: http://evil.example", false},
		{"Origin: null", false},
		{"Origin: ", false},
		{"Origin: http://localhost\r\nOrigin: http://evil.example", false},
		{"Sec-Fetch-Site: same-origin\r\nOrigin: https://proxied.example", true},
	} {
		for _, path := range []string{"/execute/echo", "GET /calls", "GET /healthz", "DELETE /calls/x", "OPTIONS /calls", "GET /nowhere"} {
			a := g.do(path, "", tt.headers)
			if refused := a.StatusCode == 403; refused == tt.fine {
				t.Errorf("%s with %q: %s", path, tt.headers, a.Status)
			}
		}
	}
}

func TestTokens(t *testing.T) {
	token := func(name string, workloads []string, allow ...string) config.Token {
		return config.Token{Name: name, SHA256: sha256.Sum256([]byte(name + "-secret")), Allow: allow, Workloads: workloads}
	}
	door, running := hanging()
	g := serve(t, door, func(c *config.Config) {
		c.Auth.Tokens = []config.Token{
			token("all", []string{"*"}, "execute", "observe", "operate"),
			token("echoer", []string{"echo"}, "execute", "observe", "operate"),
			token("watcher", []string{"*"}, "observe"),
		}
	})
	g.pools = []event.Pool{{Name: "echo"}, {Name: "resize"}}
	bearer := func(name string) string { return "Authorization: Bearer " + name + "-secret" }

	for _, tt := range []struct {
		header, path string
		status       int
	}{
		{"X: y", "GET /healthz", 200},
		{"X: y", "GET /readyz", 200},
		{"X: y", "GET /problems/unauthorized", 200},
		{"X: y", "GET /calls", 401},
		{"X: y", "GET /workloads", 401},
		{"X: y", "GET /metrics", 401},
		{"X: y", "DELETE /calls/x", 401},
		{"X: y", "/execute/echo", 401},
		{"X: y", "/execute/nope", 401},
		{"X: y", "/execute", 401},
		{"Authorization: Bearer wrong", "GET /calls", 401},
		{"Authorization: Bearer", "GET /calls", 401},
		{"Authorization: Bearer ", "GET /calls", 401},
		{"Authorization: Basic all-secret", "GET /calls", 401},
		{"Authorization: all-secret", "GET /calls", 401},
		{bearer("all") + "\r\n" + bearer("watcher"), "GET /calls", 401},
		{"Authorization: bearer all-secret", "GET /calls", 200},
		{bearer("all"), "GET /metrics", 200},
		{bearer("watcher"), "GET /metrics", 200},
		{bearer("watcher"), "/execute/echo", 403},
		{bearer("watcher"), "DELETE /calls/x", 403},
		{bearer("echoer"), "GET /metrics", 403},
		{bearer("echoer"), "/execute/resize", 403},
		{bearer("echoer"), "/execute/nope", 403},
		{bearer("all"), "/execute/nope", 404},
	} {
		a := g.do(tt.path, "", tt.header)
		if a.StatusCode != tt.status {
			t.Errorf("%s with %q: %s, want %d", tt.path, tt.header, a.Status, tt.status)
		}
		if challenge := a.Header.Get("WWW-Authenticate"); (challenge == `Bearer realm="hangup"`) != (tt.status == 401) {
			t.Errorf("%s with %q: WWW-Authenticate %q", tt.path, tt.header, challenge)
		}
	}
	g.do("/execute", `{"workload":"resize"}`, bearer("echoer")).is(t, 403, "forbidden")

	// Of a workload that is not its own a token sees nothing.
	c := g.dial()
	c.send("POST /execute/resize HTTP/1.1\r\nHost: localhost\r\n%s\r\n\r\n", bearer("all"))
	id := next(t, running).ID
	g.do("GET /calls/"+id, "", bearer("echoer")).is(t, 404, "no-such-call")
	g.do("DELETE /calls/"+id, "", bearer("echoer")).is(t, 404, "no-such-call")
	for name, want := range map[string]bool{"all": true, "watcher": true, "echoer": false} {
		if list := string(g.do("GET /calls", "", bearer(name)).body); strings.Contains(list, `"`+id+`"`) != want {
			t.Errorf("%s sees: %s", name, list)
		}
		var all struct{ Workloads []struct{ Name string } }
		if err := json.Unmarshal(g.do("GET /workloads", "", bearer(name)).body, &all); err != nil || (len(all.Workloads) == 2) != want {
			t.Errorf("%s sees %v, %v", name, all, err)
		}
	}
	if record, _ := g.calls.Get(id); record.Caller != "all" {
		t.Errorf("the caller is %q", record.Caller)
	}
	if a := g.do("DELETE /calls/"+id, "", bearer("all")); a.StatusCode != 202 {
		t.Errorf("%s: %s", a.Status, a.body)
	}
	c.receive().is(t, 409, "cancelled")
}

// Whatever turns a call away, it is recorded with its one end.
func TestRefusalsAreRecorded(t *testing.T) {
	g := serve(t, failing(call.ErrQueueFull), func(c *config.Config) {
		c.Auth.Tokens = []config.Token{{Name: "x", SHA256: sha256.Sum256([]byte("x")), Allow: []string{"execute"}, Workloads: []string{"*"}}}
	})
	const token = "Authorization: Bearer x"
	for _, tt := range []struct {
		path, header, workload string
		status                 int
	}{
		{"/execute/echo", "X: y", "echo", 401},
		{"/execute/echo", token + "\r\nHost: evil.example", "", 403},
		{"/execute/echo", token + "\r\nOrigin: http://evil.example", "", 403},
		{"GET /execute/echo", token, "echo", 405},
		{"/execute/nope", token, "", 404},
		{"/execute/echo", token + "\r\nCall-Timeout: x", "echo", 400},
		{"/execute", token, "", 400},
		{"/execute/echo", token, "echo", 503},
	} {
		a := g.do(tt.path, "", tt.header)
		p := a.problem(t)
		end := g.end()
		if a.StatusCode != tt.status || end.Outcome != event.Rejected || end.Workload != tt.workload {
			t.Errorf("%s %q: %s, recorded %+v", tt.path, tt.header, a.Status, end)
		}
		if id := a.Header.Get("Hangup-Call"); id != end.Call || p["call"] != id || p["outcome"] != "rejected" {
			t.Errorf("%s %q: call %q, %v", tt.path, tt.header, id, p)
		}
		if record, ok := g.calls.Get(end.Call); !ok || record.State != "ended" {
			t.Errorf("%s %q: %+v", tt.path, tt.header, record)
		}
	}
	select {
	case end := <-g.ended:
		t.Errorf("a second end: %+v", end)
	default:
	}
}
