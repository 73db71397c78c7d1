package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"

	"example.com/hangup/internal/proc"
	"example.com/hangup/internal/proctest"
)

// cli is a run of the client as a user starts it.
type cli struct {
	t              *testing.T
	cmd            *exec.Cmd
	stdout, stderr bytes.Buffer
}

// cli prepares a run of the client that asks this server.
func (s *server) cli(args ...string) *cli {
	c := &cli{t: s.t, cmd: exec.Command(s.cmd.Path, args...)}
	c.cmd.Env = append(proctest.Env(), "GORACE=halt_on_error=1 atexit_sleep_ms=0", "HANGUP_URL="+s.url)
	c.cmd.Stdout, c.cmd.Stderr = &c.stdout, &c.stderr
	c.cmd.WaitDelay = proctest.Patience
	return c
}

func (c *cli) start() *cli {
	c.t.Helper()
	if err := c.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		if c.cmd.ProcessState == nil { // the test gave up
			c.cmd.Process.Kill()
			c.cmd.Wait()
		}
	})
	return c
}

// end waits for the exit, which must have that code.
func (c *cli) end(code int) {
	c.t.Helper()
	late := time.AfterFunc(3*proctest.Patience, func() { c.cmd.Process.Kill() })
	defer late.Stop()
	if err := c.cmd.Wait(); err != nil {
		if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) {
			c.t.Errorf("%q: %v", c.cmd.Args[1:], err)
		}
	}
	if got := exitCode(c.cmd.ProcessState); got != code {
		c.t.Errorf("%q: exit code %d, want %d\nstdout: %s\nstderr: %s", c.cmd.Args[1:], got, code, &c.stdout, &c.stderr)
	}
}

// says checks what was written to stderr.
func (c *cli) says(words ...string) {
	c.t.Helper()
	for _, w := range words {
		if !strings.Contains(c.stderr.String(), w) {
			c.t.Errorf("%q: stderr %q lacks %q", c.cmd.Args[1:], &c.stderr, w)
		}
	}
}

func isRunning(c callRecord) bool { return c.State == "running" }

// TestClientInterrupt: Ctrl-C hangs up, whatever the client is doing, and the work
// ends with all its processes.
func TestClientInterrupt(t *testing.T) {
	s := start(t, "  py: {command: [python3, worker.py], workers: 1, spares: 1, stop: {grace: 200ms}}\n")
	for _, tt := range []struct {
		task string
		sig  syscall.Signal
		code int
	}{
		{"py/tree", syscall.SIGINT, 130},
		{"py/tree", syscall.SIGTERM, 143},
		{"py/streams", syscall.SIGINT, 130},
	} {
		c := s.cli("run", tt.task, "--input", "null").start()
		running := s.newest("running", isRunning)
		var tree []proc.Process
		s.eventually("its family is there", func() bool { tree = proc.Look(running.WorkerPid); return len(tree) >= 3 })
		if err := c.cmd.Process.Signal(tt.sig); err != nil {
			t.Fatal(err)
		}
		c.end(tt.code)
		c.says("hung up after", "the server ends the call and all its processes")
		ended := s.newest("cancelled", func(c callRecord) bool { return c.Cancel != nil })
		if ended.ID != running.ID || ended.Outcome != "cancelled" || ended.Cancel.By != "caller" || !ended.Cancel.Empty {
			t.Errorf("%+v", ended)
		}
		for _, p := range tree {
			if p.There() {
				t.Errorf("%d %s is still there", p.Pid, p.Command)
			}
		}
	}

	// With the input on its way, no worker is taken.
	c := s.cli("run", "py/echo", "--input", "-")
	input, err := c.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.start()
	io.WriteString(input, `["half`)
	queued := s.newest("queued", func(c callRecord) bool { return c.State == "queued" })
	c.cmd.Process.Signal(syscall.SIGINT)
	c.end(130)
	ended := s.newest("ended", func(c callRecord) bool { return c.State == "ended" })
	if ended.ID != queued.ID || ended.Outcome != "cancelled" || ended.WorkerPid != 0 {
		t.Errorf("%+v", ended)
	}
	input.Close()
}

// TestClientWithoutReader: who reads the output goes away, and with it the call.
func TestClientWithoutReader(t *testing.T) {
	s := start(t, "  py: {command: [python3, worker.py], workers: 1, spares: 1, stop: {grace: 200ms}}\n")
	c := s.cli("run", "py/streams", "--input", "null")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	c.cmd.Stdout = w
	c.start()
	w.Close()
	if _, err := io.ReadFull(r, make([]byte, 1024)); err != nil {
		t.Error(err)
	}
	r.Close()
	c.end(128 + int(syscall.SIGPIPE))
	if ended := s.newest("cancelled", func(c callRecord) bool { return c.Cancel != nil }); ended.Cancel.By != "caller" {
		t.Errorf("%+v", ended)
	}
}

func TestClientPsAndCancel(t *testing.T) {
	s := start(t, "  py: {command: [python3, worker.py], workers: 1, spares: 1, stop: {grace: 200ms}}\n")
	for _, task := range []string{"sleep", "streams"} {
		c := s.cli("run", "py/"+task, "--input", "1000").start()
		running := s.newest("running", isRunning)

		ps := s.cli("ps").start()
		ps.end(0)
		lines := strings.Split(strings.TrimSpace(ps.stdout.String()), "\n")
		if len(lines) != 2 || !strings.HasPrefix(lines[1], running.ID+"  py/"+task+"  running  ") {
			t.Errorf("ps: %q", lines)
		}
		ps = s.cli("ps", "--json").start()
		ps.end(0)
		var list struct{ Calls []callRecord }
		if err := json.Unmarshal(ps.stdout.Bytes(), &list); err != nil || len(list.Calls) != 1 || list.Calls[0].WorkerPid != running.WorkerPid {
			t.Errorf("ps --json: %v: %s", err, &ps.stdout)
		}
		words := s.cli("__complete", "cancel", "").start()
		words.end(0)
		if want := running.ID + "\tpy/" + task + ", running\n"; !strings.HasPrefix(words.stdout.String(), want) {
			t.Errorf("completions: %q", &words.stdout)
		}

		cancel := s.cli("cancel", running.ID[len(running.ID)-8:], "no-such-call").start()
		cancel.end(1)
		cancel.says("no-such-call")
		if got, want := cancel.stdout.String(), running.ID+"  py/"+task+": cancelled\n"; got != want {
			t.Errorf("cancel: %q, want %q", got, want)
		}
		c.end(1)
		if task == "sleep" {
			c.says("cancelled by an operator", running.ID)
		} else { // and told from a whole result
			c.says("broke off", running.ID)
		}
	}
	ps := s.cli("ps", "--all").start()
	ps.end(0)
	if n := strings.Count(ps.stdout.String(), "  cancelled  "); n != 2 {
		t.Errorf("ps --all: %s", &ps.stdout)
	}
	words := s.cli("__complete", "run", "").start()
	words.end(0)
	if !strings.Contains(words.stdout.String(), "py/stubborn\n") {
		t.Errorf("completions: %s", &words.stdout)
	}
}

// TestClientOnTerminal: what the call takes is told on a terminal, and wiped.
func TestClientOnTerminal(t *testing.T) {
	s := start(t, "  py: {command: [python3, worker.py], workers: 1, spares: 1}\n")
	c := s.cli("run", "py/sleep", "--input", "0.5")
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	c.cmd.Stderr = slave
	c.start()
	slave.Close()
	shown, _ := io.ReadAll(master) // EIO is the end
	c.end(0)
	if c.stdout.String() != `"slept"` {
		t.Errorf("stdout %q", &c.stdout)
	}
	if text := string(shown); !strings.Contains(text, "py/sleep  0.") || !strings.HasSuffix(text, "\r\x1b[K") {
		t.Errorf("the terminal shows %q", text)
	}
}

// TestClientDoctorHost: doctor ends a tree as the server would, and leaves nothing.
func TestClientDoctorHost(t *testing.T) {
	s := prepare(t, "  py: {command: [python3, worker.py]}\n") // not run
	proctest.Check(t)
	c := s.cli("doctor").start()
	c.end(0)
	level, cgroup := "subreaper", "weaker   cgroup"
	if groups() {
		level, cgroup = "cgroup", "ok       cgroup"
	}
	isolation := "signals"
	if os.Geteuid() == 0 || strings.Contains(c.stdout.String(), "weaker   signals") {
		isolation = "none"
	}
	for _, want := range []string{"ok       containment        " + level + ", isolation " + isolation + ": a tree of 3 processes", "ok       no_new_privs", "ok       shim", cgroup} {
		if !strings.Contains(c.stdout.String(), want) {
			t.Errorf("%q is not in\n%s", want, &c.stdout)
		}
	}
	s.write("strict.yaml", "containment: {minimum: cgroup}\nworkloads:\n  py: {command: [python3, worker.py]}\n")
	c = s.cli("doctor", "--config", s.dir+"/strict.yaml").start()
	if groups() {
		c.end(0)
	} else {
		c.end(1)
	}
	s.write("user.yaml", "workloads:\n  py: {command: [python3, worker.py], user: \"65141:65141\"}\n")
	c = s.cli("doctor", "--config", s.dir+"/user.yaml").start()
	code, want := 1, "missing  user               workloads.py.user: only root can run workers as 65141"
	if os.Geteuid() == 0 {
		code, want = 0, ", isolation uid: a tree of 3"
	}
	c.end(code)
	if said := c.stdout.String(); !strings.Contains(said, want) || code == 0 && strings.Contains(said, "weaker   user") {
		t.Errorf("%q is not in\n%s", want, said)
	}
	s.write("bad.yaml", "listen: 5\n")
	c = s.cli("doctor", "--config", s.dir+"/bad.yaml").start()
	c.end(2)
	c.says("bad.yaml:1:")
}

// way runs doctor --url and returns its findings, by their names.
func (s *server) way(t *testing.T, url string, code int) map[string]string {
	t.Helper()
	c := s.cli("doctor", "--json", "--url", url)
	c.t = t
	c.start()
	c.end(code)
	var all struct {
		OK       bool
		Findings []struct{ Check, Verdict, Detail, Remedy string }
	}
	if err := json.Unmarshal(c.stdout.Bytes(), &all); err != nil || all.OK != (code == 0) {
		t.Fatalf("%v: %s %s", err, &c.stdout, &c.stderr)
	}
	found := map[string]string{}
	for _, f := range all.Findings {
		found[f.Check] = f.Verdict + ": " + f.Detail + " → " + f.Remedy
	}
	return found
}

// TestClientDoctorWay: doctor tells by doing it whether hang-ups get through.
func TestClientDoctorWay(t *testing.T) {
	s := start(t, "  py: {command: [python3, worker.py], workers: 1, spares: 1}\n")
	expect := func(found map[string]string, check, verdict, words string) {
		t.Helper()
		if !strings.HasPrefix(found[check], verdict+": ") || !strings.Contains(found[check], words) {
			t.Errorf("%s is %q, want %s with %q", check, found[check], verdict, words)
		}
	}

	direct := s.way(t, s.url, 0)
	for _, check := range []string{"while waiting", "while streaming", "while sending"} {
		expect(direct, check, "ok", "noticed within")
	}
	expect(direct, "proxy", "ok", "none says")

	hiding := s.way(t, hidingProxy(t, s.url), 1)
	expect(hiding, "while waiting", "missing", "proxy_ignore_client_abort off")
	expect(hiding, "while streaming", "missing", "proxy_buffering off")
	expect(hiding, "while sending", "weaker", "proxy_request_buffering off")
	expect(hiding, "proxy", "ok", "nginx/1.0")

	several := s.way(t, severalServers(t, s.url), 0)
	expect(several, "while waiting", "ok", "noticed within")
	expect(several, "servers", "weaker", "several servers")
	if n := len(s.calls()); n != 0 {
		t.Errorf("%d calls were made", n)
	}
}

// reverseProxy is one to target whose requests end with the test at last.
func reverseProxy(t *testing.T, target string, wrap func(through http.Handler, ctx context.Context) http.Handler) string {
	t.Helper()
	to, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	through := &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(to) },
		Transport:     transport,
		FlushInterval: -1,
		ErrorLog:      log.New(io.Discard, "", 0),
		ErrorHandler:  func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
	}
	ctx, cancel := context.WithCancel(context.Background())
	front := httptest.NewServer(wrap(through, ctx))
	t.Cleanup(func() {
		cancel()
		front.CloseClientConnections()
		front.Close()
		transport.CloseIdleConnections()
	})
	return front.URL
}

// hidingProxy does what a proxy must not: it takes whole bodies in before it asks
// the server, and asks on when its caller has gone.
func hidingProxy(t *testing.T, target string) string {
	return reverseProxy(t, target, func(through http.Handler, ctx context.Context) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return
			}
			r = r.WithContext(ctx)
			r.Body = io.NopCloser(bytes.NewReader(body))
			w.Header().Set("Server", "nginx/1.0")
			through.ServeHTTP(unheeding{w}, r)
		})
	})
}

// unheeding is a reply that goes on when nobody takes it.
type unheeding struct{ http.ResponseWriter }

func (p unheeding) Write(b []byte) (int, error) {
	p.ResponseWriter.Write(b)
	return len(b), nil
}

func (p unheeding) FlushError() error {
	http.NewResponseController(p.ResponseWriter).Flush()
	return nil
}

// severalServers has every second question about a probe answered by a server
// that does not know it.
func severalServers(t *testing.T, target string) string {
	var asked atomic.Int64
	return reverseProxy(t, target, func(through http.Handler, _ context.Context) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet && asked.Add(1)%2 == 0 {
				w.Header().Set("Content-Type", "application/problem+json")
				w.WriteHeader(http.StatusNotFound)
				io.WriteString(w, `{"type":"/problems/not-found","status":404}`)
				return
			}
			through.ServeHTTP(w, r)
		})
	})
}
