package client

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// secret is a token that must be in no error.
const secret = "hunter2-hunter2"

func open(t *testing.T, o Options) *Client {
	t.Helper()
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// says checks an error's words.
func says(t *testing.T, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want %q", words)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
	if strings.Contains(err.Error(), secret) {
		t.Errorf("the token is in %q", err)
	}
}

// calls is a server of GET /calls, with none.
var calls = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, `{"calls": []}`) })

func quiet(s *httptest.Server) *httptest.Server {
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	return s
}

func TestOptions(t *testing.T) {
	for _, url := range []string{
		"", "localhost:8080", "127.0.0.1:8080", "ftp://x", "http://", "http://a b", "unix:", "unix:relative", "http://x/?q", "http://x/#f", "http://u:" + secret + "@x",
	} {
		if _, err := New(Options{URL: url}); err == nil {
			t.Errorf("%q is taken", url)
		} else {
			says(t, err, "cannot use the URL")
		}
	}
	_, err := New(Options{URL: "http://x", Token: secret + "\n"})
	says(t, err, "the token")
	_, err = New(Options{URL: "http://x", CACert: "nowhere.pem"})
	says(t, err, "--cacert", "nowhere.pem")
	_, err = New(Options{URL: "http://x", CACert: "client_test.go"})
	says(t, err, "no certificate in PEM form")
}

func TestUnreachable(t *testing.T) {
	plain := httptest.NewServer(calls)
	defer plain.Close()
	secure := quiet(httptest.NewUnstartedServer(calls))
	secure.StartTLS()
	defer secure.Close()
	mute, err := net.Listen("tcp", "127.0.0.1:0") // closes at once
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	go func() {
		for {
			c, err := mute.Accept()
			if err != nil {
				return
			}
			c.Read(make([]byte, 1))
			c.Close()
		}
	}()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()

	tlsOf := func(s *httptest.Server) string { return "https" + strings.TrimPrefix(s.URL, "http") }
	for _, tt := range []struct {
		url   string
		words []string
	}{
		{"http://" + closed.Addr().String(), []string{"connection refused", "hangup serve", "HANGUP_URL"}},
		{tlsOf(plain), []string{"no TLS", "http://"}},
		{"http" + strings.TrimPrefix(secure.URL, "https"), []string{"TLS", "https://"}},
		{secure.URL, []string{"certificate", "--cacert"}},
		{"unix:" + filepath.Join(t.TempDir(), "none.sock"), []string{"no such socket"}},
		{"http://" + mute.Addr().String(), []string{"closed the connection"}},
		{"http://nowhere.invalid", []string{"nowhere.invalid", "cannot be resolved"}},
	} {
		_, err := open(t, Options{URL: tt.url, Token: secret}).Calls(t.Context(), true)
		says(t, err, append(tt.words, tt.url)...)
	}
}

func TestTrust(t *testing.T) {
	s := quiet(httptest.NewUnstartedServer(calls))
	s.StartTLS()
	defer s.Close()
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, Options{URL: s.URL, CACert: file}).Calls(t.Context(), true); err != nil {
		t.Error(err)
	}
	_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
	_, err := open(t, Options{URL: "https://localhost:" + port, CACert: file}).Calls(t.Context(), true)
	says(t, err, "another name", "localhost")
}

func TestUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(calls)
	s.Listener.Close()
	s.Listener = l
	s.Start()
	defer s.Close()
	for _, url := range []string{"unix:" + path, "unix://" + path} {
		if _, err := open(t, Options{URL: url}).Calls(t.Context(), true); err != nil {
			t.Error(err)
		}
	}
}

// problem answers with a problem document.
func problem(status int, document string, headers ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/problem+json")
		for i := 0; i < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		w.WriteHeader(status)
		io.WriteString(w, document)
	}
}

func TestProblems(t *testing.T) {
	for _, tt := range []struct {
		name    string
		handler http.HandlerFunc
		token   string
		words   []string
	}{
		{"no token", problem(401, `{"type":"/problems/unauthorized","detail":"x"}`), "", []string{"HANGUP_TOKEN", "401"}},
		{"wrong token", problem(401, `{"type":"/problems/unauthorized","detail":"x"}`), secret, []string{"does not know this token"}},
		{"not there", problem(404, `{"type":"/problems/no-such-workload","detail":"no such workload: \"x\"; there is a, b","call":"id-1"}`), "", []string{"there is a, b", "call id-1"}},
		{"busy", problem(503, `{"type":"/problems/queue-full","detail":"the queue is full"}`, "Retry-After", "7"), "", []string{"the queue is full", "in 7 s"}},
		{"died", problem(502, `{"type":"/problems/worker-died","detail":"exit code 3","stderr":"one\ntwo\n"}`), "", []string{"exit code 3", "    one\n    two"}},
		{"strange members", problem(500, `{"type":"/problems/work-failed","detail":"no cat","message":{"a":1},"error":7}`), "", []string{"no cat"}},
		{"escapes", problem(500, `{"type":"/problems/work-failed","detail":"a\u001b[31mb\u0007"}`), "", []string{"a�[31mb�"}},
		{"no document", problem(500, `{"type":`), "", []string{"broke off"}},
		{"a proxy", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Server", "nginx/1.0")
			http.Error(w, "<html>Bad Gateway", http.StatusBadGateway)
		}, "", []string{"nginx/1.0", "502", "not hangup"}},
		{"a redirect", http.RedirectHandler("https://elsewhere.example/", http.StatusMovedPermanently).ServeHTTP, secret, []string{"redirects to https://elsewhere.example/"}},
		{"no hangup", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>") }, "", []string{"another program"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := httptest.NewServer(tt.handler)
			defer s.Close()
			c := open(t, Options{URL: s.URL, Token: tt.token})
			defer c.Close()
			_, err := c.Calls(t.Context(), true)
			if tt.name != "no hangup" {
				_, runErr := c.Run(t.Context(), Call{Workload: "x"})
				says(t, runErr, tt.words...)
			}
			says(t, err, tt.words...)
			if strings.ContainsAny(err.Error(), "\x1b\x07") {
				t.Errorf("%q moves the cursor", err)
			}
		})
	}
}

// What the command line says arrives as it is.
func TestRun(t *testing.T) {
	got := make(chan *http.Request, 1)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got <- r
		w.Header().Set("Hangup-Call", "id-1")
		w.Header().Set("Server-Timing", "queue;dur=1.500, run;dur=20.000")
		w.Write(body)
	}))
	defer s.Close()
	c := open(t, Options{URL: s.URL + "/base/", Token: secret})
	defer c.Close()
	reply, err := c.Run(t.Context(), Call{
		Workload: "a b", Task: "c?d/e", Input: strings.NewReader("in"), Size: -1, ContentType: "text/x", Timeout: time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(reply.Body)
	reply.Body.Close()
	if string(body) != "in" || err != nil || reply.Call != "id-1" || *reply.QueueMs != 1.5 || *reply.RunMs != 20 {
		t.Errorf("%q, %v, %+v", body, err, reply)
	}
	r := <-got
	if r.URL.EscapedPath() != "/base/execute/a%20b/c%3Fd/e" || r.Method != "POST" {
		t.Errorf("%s %s", r.Method, r.URL.EscapedPath())
	}
	for name, want := range map[string]string{
		"Authorization": "Bearer " + secret, "Content-Type": "text/x", "Call-Timeout": "1m0s", "Accept": "",
	} {
		if r.Header.Get(name) != want {
			t.Errorf("%s: %q, want %q", name, r.Header.Get(name), want)
		}
	}
}

// The end of the context is a hang-up, whatever is under way, and its cause is
// the error.
func TestHangsUp(t *testing.T) {
	reached, left := make(chan struct{}), make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/execute/streams" {
			w.Header().Set("Hangup-Call", "id-1")
			w.WriteHeader(200)
			w.(http.Flusher).Flush()
		}
		reached <- struct{}{}
		<-r.Context().Done()
		left <- struct{}{}
	}))
	defer s.Close()
	c := open(t, Options{URL: s.URL})
	enough := errors.New("enough")
	for _, workload := range []string{"waits", "streams"} {
		ctx, cancel := context.WithCancelCause(t.Context())
		ended := make(chan error)
		go func() {
			reply, err := c.Run(ctx, Call{Workload: workload})
			if err == nil {
				_, err = io.ReadAll(reply.Body)
				reply.Body.Close()
			}
			ended <- err
		}()
		<-reached
		cancel(enough)
		<-left
		if err := <-ended; err != enough {
			t.Errorf("%s: %v", workload, err)
		}
	}
}

// A reply that is cut off is told from a whole one, with the reason the server knows.
func TestTruncated(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/calls/id-1" {
			io.WriteString(w, `{"id":"id-1","state":"ended","outcome":"cancelled","cancel":{"by":"operator"}}`)
			return
		}
		w.Header().Set("Hangup-Call", "id-1")
		io.WriteString(w, "half")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}))
	defer s.Close()
	c := open(t, Options{URL: s.URL})
	reply, err := c.Run(t.Context(), Call{Workload: "x"})
	if err != nil {
		t.Fatal(err)
	}
	defer reply.Body.Close()
	body, err := io.ReadAll(reply.Body)
	if string(body) != "half" || !errors.Is(err, ErrBrokeOff) {
		t.Errorf("%q, %v", body, err)
	}
	says(t, err, "after 4 bytes", "cancelled by operator", "id-1")
}

func TestCancel(t *testing.T) {
	var gone []string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch id := strings.TrimPrefix(r.URL.Path, "/calls/"); {
		case r.URL.Path == "/calls":
			io.WriteString(w, `{"calls":[{"id":"0001-aaaa","state":"running"},{"id":"0002-baaa","state":"queued"},{"id":"0002-dddd","state":"queued"},{"id":"0003-cccc","state":"ended"}]}`)
		case id == "0001-aaaa" || id == "0002-baaa":
			gone = append(gone, id)
			w.WriteHeader(202)
			fmt.Fprintf(w, `{"id":%q}`, id)
		default:
			problem(404, `{"type":"/problems/no-such-call","detail":"no such call"}`)(w, r)
		}
	}))
	defer s.Close()
	c := open(t, Options{URL: s.URL})
	for id, want := range map[string]string{
		"0001-aaaa": "0001-aaaa", "aaaa": "0001-aaaa", "0002-b": "0002-baaa", "0002": "", "cccc": "", "zzzz": "", "": "", "1-a": "", "0003": "",
	} {
		gone = nil
		r, err := c.Cancel(t.Context(), id)
		if (err == nil) != (want != "") || r.ID != want || strings.Join(gone, " ") != want {
			t.Errorf("%s: %+v, %v, cancelled %q", id, r, err, gone)
		}
	}
	_, err := c.Cancel(t.Context(), "0002")
	says(t, err, "0002-baaa, 0002-dddd", "write more")
	_, err = c.Cancel(t.Context(), "")
	says(t, err, "at least 4 characters")
}
