package api

import (
	"context"
	"crypto/sha256"
	"net/http"
	"slices"
	"strings"
	"testing"

	"example.com/hangup/internal/call"
	"example.com/hangup/internal/config"
	"example.com/hangup/internal/event"
)

// targets is one path for each of the routes, and some that are none.
func targets() []string {
	list := []string{"/", "/nowhere", "/favicon.ico"}
	for _, route := range routes {
		path := route.path
		for _, name := range []string{"{workload}", "{task...}", "{id}", "{slug}"} {
			path = strings.ReplaceAll(path, name, map[string]string{
				"{workload}": "echo", "{task...}": "up", "{id}": "call-1", "{slug}": "cancelled",
			}[name])
		}
		list = append(list, path)
	}
	return list
}

var everyMethod = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"}

// A web page of another origin, or one whose name was rebound to this server, gets
// nothing and starts nothing, whatever it asks for, and be it that it has a token.
func TestForeignRequests(t *testing.T) {
	g := serve(t, func(_ context.Context, c *call.Call) error {
		t.Errorf("a call of %s was started", c.Workload)
		return nil
	}, func(c *config.Config) {
		c.Auth.Tokens = []config.Token{{
			Name: "all", SHA256: sha256.Sum256([]byte("secret")), Allow: []string{"execute", "observe", "operate"}, Workloads: []string{"*"},
		}}
		c.Hosts = []string{"app.example.com"}
	})
	for _, from := range []struct{ name, prefix, headers string }{
		{"foreign host", "", "Host: evil.example"},
		{"rebound host", "", "Host: evil.example\r\nSec-Fetch-Site: same-origin\r\nOrigin: http://evil.example"},
		{"host that begins like ours", "", "Host: app.example.com.evil.example"},
		{"empty host", "", "Host:"},
		{"absolute form", "http://evil.example", "Host: localhost"},
		{"absolute form with a user", "http://localhost@evil.example", "Host: localhost"},
		{"another site", "", "Host: localhost\r\nSec-Fetch-Site: cross-site\r\nOrigin: http://evil.example"},
		{"another site without origin", "", "Host: localhost\r\nSec-Fetch-Site: cross-site"},
		{"another origin of the site", "", "Host: app.example.com\r\nSec-Fetch-Site: same-site\r\nOrigin: http://www.example.com"},
		{"another origin, older browser", "", "Host: app.example.com\r\nOrigin: http://www.example.com"},
		{"another port, older browser", "", "Host: localhost:8080\r\nOrigin: http://localhost:3000"},
		{"no origin", "", "Host: localhost\r\nOrigin: null"},
		{"no origin, of this site", "", "Host: localhost\r\nOrigin: null\r\nSec-Fetch-Site: cross-site"},
	} {
		c := g.dial() // one for all: each refusal leaves it as it was
		for _, path := range targets() {
			for _, method := range everyMethod {
				c.send("%s %s HTTP/1.1\r\n%s\r\nAuthorization: Bearer secret\r\nContent-Length: 0\r\n\r\n", method, from.prefix+path, from.headers)
				resp, err := http.ReadResponse(c.in, &http.Request{Method: method})
				if err != nil {
					t.Fatalf("%s: %s %s: %v", from.name, method, path, err)
				}
				resp.Write(discard{}) // to its end
				if resp.StatusCode != 403 {
					t.Errorf("%s: %s %s: %s", from.name, method, path, resp.Status)
				}
				if allowed := resp.Header.Get("Access-Control-Allow-Origin"); allowed != "" {
					t.Errorf("%s: %s %s is allowed to %s", from.name, method, path, allowed)
				}
				if strings.HasPrefix(path, "/execute") {
					if end := g.end(); end.Outcome != event.Rejected {
						t.Errorf("%s: %s %s: %+v", from.name, method, path, end)
					}
				}
			}
		}
	}
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// Two hosts are none, and a target that is no path is not taken for one.
func TestOddTargets(t *testing.T) {
	g := serve(t, echo)
	for _, tt := range []struct {
		request string
		status  int
	}{
		{"GET /calls HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", 400},
		{"GET /calls HTTP/1.1\r\nHost: evil.example\r\nHost: localhost\r\n\r\n", 400},
		{"GET /calls HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400},
		{"GET /calls HTTP/1.1\r\nHost: localhost@evil.example\r\n\r\n", 400},
		{"GET /calls HTTP/1.1\r\nHost: evil@localhost\r\n\r\n", 400},
		{"GET /calls HTTP/1.1\r\n\r\n", 400},
		{"GET /calls HTTP/1.0\r\nHost: evil.example\r\n\r\n", 403},
		{"GET http://localhost/calls HTTP/1.1\r\nHost: localhost\r\n\r\n", 200},
		{"GET evil:calls HTTP/1.1\r\nHost: localhost\r\n\r\n", 404},
		{"GET //evil.example/calls HTTP/1.1\r\nHost: localhost\r\n\r\n", 404},
		{"CONNECT evil.example:80 HTTP/1.1\r\nHost: localhost\r\n\r\n", 403},
		{"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n", 404},
		{"GET /calls?token=x#y HTTP/1.1\r\nHost: localhost\r\n\r\n", 200},
		{"GET /calls HTTP/1.1\r\nHost: local\x00host\r\n\r\n", 400},
		{"GET /calls HTTP/1.1\r\nHost: local host\r\n\r\n", 400},
		{"GET /calls\x1b HTTP/1.1\r\nHost: localhost\r\n\r\n", 400},
	} {
		c := g.dial()
		c.send("%s", tt.request)
		if a := c.receive(); a.StatusCode != tt.status {
			t.Errorf("%q: %s, want %d", tt.request, a.Status, tt.status)
		}
	}
}

// A token with one scope opens what needs that scope, and nothing else.
func TestScopes(t *testing.T) {
	scopes := []scope{execute, observe, operate}
	g := serve(t, echo, func(c *config.Config) {
		for _, s := range scopes {
			c.Auth.Tokens = append(c.Auth.Tokens, config.Token{
				Name: string(s), SHA256: sha256.Sum256([]byte(s)), Allow: []string{string(s)}, Workloads: []string{"*"},
			})
		}
	})
	paths := targets()[3:]
	for i, route := range routes {
		for method, e := range route.methods {
			if e.needs == open {
				continue
			}
			for _, s := range append(slices.Clone(scopes), "none") {
				want := map[bool]int{true: 0, false: 403}[s == e.needs]
				if s == "none" {
					want = 401
				}
				a := g.do(method+" "+paths[i], "", "Authorization: Bearer "+string(s))
				let := a.StatusCode != 401 && a.StatusCode != 403
				if let != (want == 0) || !let && a.StatusCode != want {
					t.Errorf("%s %s with a token for %s: %s", method, route.path, s, a.Status)
				}
			}
		}
	}
}
