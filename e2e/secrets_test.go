package e2e

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"example.com/hangup/internal/proc"
	"example.com/hangup/internal/proctest"
)

// bearer sends a token with each request of the harness.
type bearer struct {
	token string
	*http.Transport
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token)
	return b.Transport.RoundTrip(r)
}

// TestSecretsStayAtTheDoor: a token, wherever a caller or an operator puts it, is
// found nowhere else: in no record, no reply, and nothing that a worker has. What
// callers make up does not make two records of one, either.
func TestSecretsStayAtTheDoor(t *testing.T) {
	const secret = "Zk3vPlantedQ9"
	s := prepare(t, python, "log: {level: debug}",
		fmt.Sprintf("auth: {tokens: [{name: ci, sha256: %x, allow: [execute, observe, operate]}]}", sha256.Sum256([]byte(secret))))
	s.cmd.Env = append(s.cmd.Env, "HANGUP_TOKEN="+secret)
	s.client.Transport = bearer{secret, s.client.Transport.(*http.Transport)}
	s.run()
	s.eventually("ready", func() bool { code, _ := s.get("/readyz"); return code == http.StatusOK })
	s.base = s.settled()
	t.Cleanup(s.check)

	paths := []string{
		"POST /execute/py/echo", "POST /execute/py/fails", "POST /execute/nope", "POST /execute", "PUT /execute/py", "GET /calls",
		"GET /calls/x", "DELETE /calls/x", "GET /workloads", "GET /metrics", "GET /healthz", "GET /nowhere", "OPTIONS *",
		"POST /execute/py/%0d%0a%7b%22msg%22%3a%22made%20up%22%7d%0a%1b%5b2J%c2%9b%00",
	}
	places := []struct{ query, headers string }{
		{"", "Authorization: Bearer " + secret},
		{"", "authorization: bearer  " + secret + " "},
		{"", "Authorization: Bearer x" + secret},
		{"", "Authorization: Basic " + secret},
		{"", "Authorization: " + secret},
		{"", "Authorization: Bearer " + secret + "\r\nAuthorization: Bearer " + secret},
		{"", "Authorization: Bearer " + secret + "\r\nHost: evil.example"},
		{"", "Authorization: Bearer " + secret + "\r\nOrigin: http://evil.example"},
		{"", "Authorization: Bearer " + secret + "\r\nCall-Timeout: x"},
		{"", "Authorization: Bearer " + secret + "\x01"}, // net/http refuses these two
		{"", "Authorization Bearer " + secret},
		{"", "Cookie: token=" + secret + "\r\nX-Api-Key: " + secret + "\r\nProxy-Authorization: Bearer " + secret},
		{"?token=" + secret + "&access_token=" + secret, "X: y"},
		{"?" + secret + ";" + secret, "Authorization: Bearer " + secret + "\r\nReferer: http://localhost/?token=" + secret},
	}
	for _, path := range paths {
		for _, place := range places {
			head := path + place.query + " HTTP/1.1\r\n" + place.headers + "\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: 1\r\n"
			if !strings.Contains(head, "Host:") {
				head += "Host: localhost\r\n"
			}
			c := s.dial()
			c.SetDeadline(time.Now().Add(proctest.Patience))
			io.WriteString(c, head+"\r\n1")
			reply, err := io.ReadAll(c)
			if err != nil || !bytes.HasPrefix(reply, []byte("HTTP/1.1 ")) {
				t.Errorf("%s with %q: %q, %v", path, place, reply, err)
			}
			if bytes.Contains(reply, []byte(secret)) {
				t.Errorf("%s with %q: the reply has it: %s", path, place, reply)
			}
			if foreign := strings.Contains(place.headers, "evil"); foreign != bytes.HasPrefix(reply, []byte("HTTP/1.1 403 ")) {
				t.Errorf("%s with %q: %s", path, place, reply)
			}
			c.Close()
		}
	}

	// A worker at work has no more than one at rest.
	c := s.dial()
	io.WriteString(c, request("/execute/py/sleep", "Authorization: Bearer "+secret+"\r\nContent-Type: application/json\r\nContent-Length: 4\r\n", "1000"))
	s.newest("running", func(c callRecord) bool { return c.State == "running" })
	workers := 0
	for _, p := range proc.Look(s.pid) {
		if p.Pid == s.pid {
			continue // it was given the variable
		}
		for _, file := range []string{"environ", "cmdline"} {
			data, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.Pid, file))
			if errors.Is(err, fs.ErrPermission) {
				continue // a shim
			}
			if err != nil {
				t.Error(err)
			}
			if bytes.Contains(data, []byte(secret)) {
				t.Errorf("the %s of %d, %s, has it: %q", file, p.Pid, p.Command, data)
			}
			if bytes.Contains(data, []byte("HANGUP_WORKLOAD=")) {
				workers++
			}
		}
	}
	if workers == 0 {
		t.Error("looked at no worker")
	}
	c.Close()
	s.newest("cancelled", func(c callRecord) bool { return c.State == "ended" && c.Cancel != nil })

	for _, path := range []string{"/calls", "/workloads", "/metrics", "/healthz"} {
		if code, body := s.get(path); code != http.StatusOK || bytes.Contains(body, []byte(secret)) {
			t.Errorf("GET %s: %d, %s", path, code, body)
		}
	}
	ended := s.metric("hangup_calls_total")
	s.eventually("a record for each call", func() bool { return len(s.records("call ended")) >= int(ended) })
	if n := len(s.records("call ended")); n != int(ended) {
		t.Errorf("%d records of %v calls", n, ended)
	}
	if log := s.logText(); strings.Contains(log, secret) || strings.Contains(log, `"raw":true`) || len(s.records("made up")) > 0 {
		t.Errorf("the log:\n%s", log)
	}
}
