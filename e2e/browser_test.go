package e2e

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"example.com/hangup/internal/proctest"
)

// browserPatience is what a browser may take to start and to do its worst on a busy machine.
const browserPatience = 2 * time.Minute

// seen is what the server made of one request of a browser.
type seen struct {
	method, path, by, host, site string
	status                       int
}

// browsers is a stand-in for what lies between a browser and the server: it hands
// requests on as they are, notes what becomes of them, and serves the pages that
// make them, under any name.
type browsers struct {
	*httptest.Server
	program string
	mu      sync.Mutex
	list    []seen
	done    chan struct{} // has one when a page has done all it can
}

func newBrowsers(t *testing.T, s *server) *browsers {
	to, err := url.Parse(s.url)
	if err != nil {
		t.Fatal(err)
	}
	b := &browsers{program: proctest.Need(t, "chromium", "chromium")}
	pass := &httputil.ReverseProxy{
		Transport: &http.Transport{DisableKeepAlives: true},
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(to)
			r.Out.Host = r.In.Host
		},
		ModifyResponse: func(r *http.Response) error {
			b.mu.Lock()
			defer b.mu.Unlock()
			in := r.Request
			b.list = append(b.list, seen{in.Method, in.URL.Path, in.URL.Query().Get("by"), in.Host, in.Header.Get("Sec-Fetch-Site"), r.StatusCode})
			return nil
		},
	}
	mux := http.NewServeMux()
	mux.Handle("/", pass)
	mux.HandleFunc("/attack/page", func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, "testdata/attack.html") })
	mux.HandleFunc("/attack/done", func(http.ResponseWriter, *http.Request) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.done <- struct{}{}
	})
	mux.HandleFunc("/favicon.ico", http.NotFound) // every page is asked for it
	b.Server = httptest.NewServer(mux)
	t.Cleanup(b.Close)
	return b
}

// visit has a browser open a page, whatever its name, and returns what the server
// saw of it by the time the page has done all it can. Then the browser is killed:
// some take their time to leave.
func (b *browsers) visit(t *testing.T, page string) []seen {
	t.Helper()
	b.mu.Lock()
	b.list, b.done = nil, make(chan struct{}, 1)
	done := b.done
	b.mu.Unlock()
	cmd := exec.Command(b.program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--disable-breakpad",
		"--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions", "--no-proxy-server",
		"--host-resolver-rules=MAP *.example 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", // nothing leaves the machine
		"--remote-debugging-port=0", // on loopback; without it there is nothing to stay for
		"--user-data-dir="+t.TempDir(), page)
	cmd.Env = append(proctest.Env(), "HOME="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = time.Second
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	came := true
	select {
	case <-done:
	case <-time.After(browserPatience):
		came = false
	}
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	_ = cmd.Wait()
	proctest.Eventually(func() bool { return syscall.Kill(-cmd.Process.Pid, 0) == syscall.ESRCH }) // they write into directories of the test
	b.mu.Lock()
	defer b.mu.Unlock()
	if !came {
		t.Fatalf("the page was not done within %s, after %d requests\n%s", browserPatience, len(b.list), said.Bytes())
	}
	return slices.Clone(b.list)
}

// TestBrowser: a real browser, with a page of another origin, of another site, and
// of a name that was rebound to this server, gets 403 for every path and method,
// and starts nothing. A page at home is let in.
func TestBrowser(t *testing.T) {
	proctest.OneLane(t, "the browser is the same")
	s := start(t, python)
	paths := []string{
		"/execute", "/execute/py", "/execute/py/echo", "/calls", "/calls/x", "/calls/x/events", "/workloads", "/metrics",
		"/healthz", "/readyz", "/probes/x", "/problems/cancelled", "/", "/nowhere",
	}
	b := newBrowsers(t, s)
	_, port, _ := net.SplitHostPort(b.Listener.Addr().String())
	elsewhere := httptest.NewServer(b.Config.Handler) // another origin, for its port
	t.Cleanup(elsewhere.Close)
	_, other, _ := net.SplitHostPort(elsewhere.Listener.Addr().String())

	home := "http://127.0.0.1:" + port
	anywhere := []string{"img", "script", "iframe", "websocket", "eventsource", "form-get", "form-post"}
	methods := []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
	accepted := func() float64 { return s.metric("hangup_calls_accepted_total") }
	for _, test := range []struct {
		name, from, to, site string
		letIn                bool
	}{
		{"another origin", "http://127.0.0.1:" + other, home, "same-site", false},
		{"another site", "http://other.example:" + other, home, "cross-site", false},
		{"a rebound name", "http://evil.example:" + port, "http://evil.example:" + port, "", false}, // to itself it is the same origin
		{"at home", home, home, "same-origin", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			before, paths := accepted(), paths
			if test.letIn {
				paths = []string{"/execute", "/calls", "/healthz"}
			}
			page := fmt.Sprintf("%s/attack/page?base=%s&paths=%s", test.from, url.QueryEscape(test.to), url.QueryEscape(strings.Join(paths, " ")))
			list := b.visit(t, page)
			t.Logf("%d requests", len(list))
			if test.letIn {
				let := slices.ContainsFunc(list, func(r seen) bool {
					return r.method == "POST" && r.path == "/execute" && r.status == http.StatusOK
				})
				if !let || slices.ContainsFunc(list, func(r seen) bool { return r.status == http.StatusForbidden }) {
					t.Errorf("a page of this origin is not let in: %+v", list)
				}
				return
			}
			for _, r := range list {
				if r.status != http.StatusForbidden || r.site != test.site && r.by != "websocket" {
					t.Errorf("%+v", r)
				}
			}
			arrived := func(method, path, by string) {
				if !slices.ContainsFunc(list, func(r seen) bool { return r.method == method && r.path == path && r.by == by }) {
					t.Errorf("%s %s by %s did not arrive", method, path, by)
				}
			}
			for _, path := range paths {
				for _, by := range anywhere {
					arrived(map[bool]string{true: "POST", false: "GET"}[by == "form-post"], path, by)
				}
				for _, method := range methods {
					sent, plain := method, slices.Contains(methods[:3], method)
					if test.site != "" && !plain {
						sent = "OPTIONS" // asks first whether it may
					}
					arrived(sent, path, "cors-"+method)
					if plain {
						arrived(method, path, "no-cors-"+method)
					}
					if test.site != "" {
						sent = "OPTIONS"
					}
					arrived(sent, path, "json-"+method)
				}
			}
			if n := accepted(); n != before {
				t.Errorf("%v calls were started", n-before)
			}
		})
	}
	for _, c := range s.calls() {
		if c.Outcome != "rejected" && c.Outcome != "done" {
			t.Errorf("%+v", c)
		}
	}
}
