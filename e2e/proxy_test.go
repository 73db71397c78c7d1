package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"example.com/hangup/internal/proc"
	"example.com/hangup/internal/proctest"
)

// proxy is a program between callers and the server.
type proxy struct {
	name         string
	program, pkg string                          // the command, and Debian's package of it
	file         string                          // its config in deploy/
	argv         func(dir, file string) []string // to run it in the foreground
	old, changed string                          // a change to that config; none if old is ""
	h2           bool                            // callers come by HTTP/2
	h2Only       bool                            // and cannot come otherwise
	hides        string                          // the departures, while the call runs, that do not get through
}

// The addresses in the configs of deploy/ where callers come in and where the
// server is, as each proxy writes them.
var (
	frontends = []string{"0.0.0.0:80", "0.0.0.0,80"}
	backends  = []string{"127.0.0.1:8080", "127.0.0.1,8080"}
)

var (
	// nginxMain is what Debian's /etc/nginx/nginx.conf is to a file in conf.d, less what
	// needs root.
	nginxMain = "pid nginx.pid;\nerror_log stderr;\nevents {}\nhttp {\n" +
		"access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;\n" +
		"include %s;\n}\n"

	nginx   = proxy{name: "nginx", program: "nginx", pkg: "nginx-light", file: "nginx.conf", argv: nginxArgv}
	haproxy = proxy{name: "haproxy", program: "haproxy", pkg: "haproxy", file: "haproxy.cfg", argv: func(_, file string) []string {
		return []string{"-db", "-f", file}
	}}
	nghttpx = proxy{name: "nghttpx", program: "nghttpx", pkg: "nghttp2-proxy", file: "nghttpx.conf", h2: true, argv: func(_, file string) []string {
		return []string{"--conf=" + file}
	}}
)

// nginxArgv has nginx run in one process, in the foreground, with all its files in dir.
func nginxArgv(dir, file string) []string {
	main := filepath.Join(dir, "main.conf")
	if err := os.WriteFile(main, fmt.Appendf(nil, nginxMain, file), 0o644); err != nil {
		panic(err)
	}
	return []string{"-p", dir, "-e", "stderr", "-c", main, "-g", "daemon off; master_process off;"}
}

// as is the proxy with another name, and one change to its config.
func (p proxy) as(name, old, changed string) proxy {
	p.name, p.old, p.changed = name, old, changed
	return p
}

// overH2 has all callers come by HTTP/2.
func (p proxy) overH2() proxy {
	p.h2, p.h2Only = true, true
	return p
}

// hiding says which departures the changed config keeps from the server.
func (p proxy) hiding(departures string) proxy {
	p.hides = departures
	return p
}

// run starts the proxy in front of the server and returns its address. It is
// ended by the test's cleanup.
func (p proxy) run(t *testing.T, s *server) string {
	t.Helper()
	path, dir, addr := proctest.Need(t, p.program, p.pkg), t.TempDir(), freeAddress(t)
	data, err := os.ReadFile(filepath.Join("..", "deploy", p.file))
	if err != nil {
		t.Fatal(err)
	}
	config := string(data)
	if !strings.Contains(config, p.old) {
		t.Fatalf("%s has no %q", p.file, p.old)
	} else if p.old != "" {
		config = strings.ReplaceAll(config, p.old, p.changed)
	}
	config = readdress(t, config, frontends, addr)
	config = readdress(t, config, backends, s.addr)
	file := filepath.Join(dir, "proxy.conf")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	cmd := exec.Command(path, p.argv(dir, file)...)
	cmd.Env, cmd.Stdout, cmd.Stderr = proctest.Env(), &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		all := proc.Look(cmd.Process.Pid)
		cmd.Process.Signal(syscall.SIGTERM)
		<-ended
		for _, one := range all {
			if !proctest.Eventually(func() bool { return !one.There() }) {
				t.Errorf("left of %s: %+v", p.name, one)
			}
		}
		if t.Failed() {
			t.Logf("%s says:\n%s", p.name, log.Bytes())
		}
	})
	if !proctest.Eventually(func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err == nil || len(ended) > 0
	}) || len(ended) > 0 {
		t.Fatalf("%s does not listen on %s", p.name, addr)
	}
	return addr
}

// readdress puts an address where the config has one of some others, spelled as
// that one is.
func readdress(t *testing.T, config string, olds []string, addr string) string {
	t.Helper()
	for _, old := range olds {
		if strings.Contains(config, old) {
			if strings.Contains(old, ",") {
				addr = strings.ReplaceAll(addr, ":", ",")
			}
			return strings.ReplaceAll(config, old, addr)
		}
	}
	t.Fatalf("the config has none of %q", olds)
	return ""
}

// freeAddress is a loopback address where nothing listens.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// callersAddress is where callers of proxies come from. The proxies themselves come
// from 127.0.0.1.
const callersAddress = "127.0.0.2"

// visit is one call on a connection of its own.
type visit struct {
	conn   *net.TCPConn
	cancel context.CancelFunc
	reply  *http.Response
	err    error
	done   chan struct{} // closed when reply or err is there
}

// visit makes a call with as much of a body of size bytes as is given. It may be used
// from any goroutine.
func (p proxy) visit(t *testing.T, addr, path, body string, size int) *visit {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	v := &visit{cancel: cancel, done: make(chan struct{})}
	rest, unsent := io.Pipe() // never written: the rest of the body stays away
	var content io.Reader = strings.NewReader(body)
	if size > len(body) {
		// With a Close, without which the client waits for the rest before it resets a stream.
		content = struct {
			io.Reader
			io.Closer
		}{io.MultiReader(content, rest), rest}
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+path, content)
	var dialed net.Conn
	if err == nil {
		dialed, err = (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(callersAddress)}}).Dial("tcp", addr)
	}
	if err != nil {
		cancel()
		v.err = err
		close(v.done)
		return v
	}
	r.ContentLength = int64(size)
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("X-Forwarded-For", "203.0.113.9") // which is not so
	v.conn = dialed.(*net.TCPConn)
	var protocols http.Protocols
	protocols.SetHTTP1(!p.h2)
	protocols.SetUnencryptedHTTP2(p.h2)
	transport := &http.Transport{
		Protocols:   &protocols,
		DialContext: func(context.Context, string, string) (net.Conn, error) { return v.conn, nil },
	}
	go func() {
		defer close(v.done)
		v.reply, v.err = transport.RoundTrip(r)
	}()
	t.Cleanup(func() {
		cancel()
		v.conn.Close()
		unsent.Close()
		<-v.done
	})
	return v
}

// departure is how a caller of a proxy leaves.
type departure struct {
	name  string
	leave func(*visit)
}

var (
	byFIN    = departure{"FIN", func(v *visit) { v.conn.Close() }}
	byRST    = departure{"RST", func(v *visit) { v.conn.SetLinger(0); v.conn.Close() }}
	byStream = departure{"RST_STREAM", func(v *visit) { v.cancel() }}
)

func (p proxy) departures() []departure {
	if p.h2 {
		return []departure{byStream, byFIN, byRST}
	}
	return []departure{byFIN, byRST}
}

// proxyPools is fit for many killed trees, one after the other, beside a caller who stays.
const proxyPools = "  py: {command: [python3, worker.py], workers: 3, spares: 2, stop: {grace: 50ms}}\n"

// TestProxies: behind each proxy, with the config that deploy/ has for it, a caller
// who leaves is noticed whatever the state of the call, and one who stays is not cancelled.
// Without the line that makes it so, it is not: each such line is there for a reason.
func TestProxies(t *testing.T) {
	proctest.OneLane(t, "the proxies are the same")
	s := start(t, proxyPools, "trusted_proxies: [127.0.0.1/32]")
	for _, p := range []proxy{
		nginx,
		nginx.as("nginx, from HTTP/2", "0.0.0.0:80", "0.0.0.0:80 http2").overH2(),
		nginx.as("nginx that ignores it", "proxy_ignore_client_abort off", "proxy_ignore_client_abort on").hiding("FIN RST"),
		haproxy,
		haproxy.as("haproxy that asks for readiness", "#: ", ""),
		haproxy.as("haproxy, from HTTP/2", "0.0.0.0:80", "0.0.0.0:80 proto h2").overH2(),
		haproxy.as("haproxy without abortonclose", "option abortonclose", "").hiding("FIN RST"),
		nghttpx,
		nghttpx.as("nghttpx, to HTTP/1.1", ";;proto=h2", ""),
	} {
		t.Run(p.name, func(t *testing.T) {
			addr := p.run(t, s)
			stop := p.patient(t, addr)
			defer stop()
			for _, at := range []phase{receiving, running, replying} {
				for _, d := range p.departures() {
					t.Run(fmt.Sprintf("%s/%s", at, d.name), func(t *testing.T) {
						p.leave(t, s, addr, at, d)
					})
				}
			}
			if !p.h2Only { // without TLS doctor speaks HTTP/1.1
				t.Run("doctor", func(t *testing.T) { p.diagnose(t, s, addr) })
			}
		})
	}
}

// diagnose has doctor find out what gets through the proxy, which must be the truth.
func (p proxy) diagnose(t *testing.T, s *server, addr string) {
	want := map[string]string{"while waiting": "ok", "while streaming": "ok", "while sending": "ok"}
	code := 0
	if strings.Contains(p.hides, byFIN.name) { // by which doctor leaves
		want["while waiting"], code = "missing", 1
	}
	found := s.way(t, "http://"+addr, code)
	for check, verdict := range want {
		if !strings.HasPrefix(found[check], verdict+": ") {
			t.Errorf("%s is %q, want %s", check, found[check], verdict)
		}
		if verdict == "missing" && !strings.Contains(found[check], p.old) {
			t.Errorf("%s: the remedy in %q is not %q", check, found[check], p.old)
		}
	}
}

// leave makes a call through the proxy, leaves it in that phase, and checks what
// becomes of it.
func (p proxy) leave(t *testing.T, s *server, addr string, at phase, d departure) {
	t.Helper()
	before := map[string]bool{}
	for _, c := range s.calls() {
		before[c.ID] = true
	}
	task, state, body, size := "tree", "running", `"abc"`, len(`"abc"`)
	switch at {
	case receiving:
		state, body, size = "queued", strings.Repeat("x", 100_000), 200_000
	case replying:
		task = "streams"
	}
	v := p.visit(t, addr, "/execute/py/"+task, body, size)
	if v.conn == nil {
		t.Fatal(v.err)
	}
	call := s.find("in its phase", func(c callRecord) bool { return !before[c.ID] && c.Task == task && c.State == state })
	if call.Caller != callersAddress {
		t.Errorf("the call is said to come from %s", call.Caller)
	}
	var tree []proc.Process
	if at != receiving {
		tree = s.family(call.WorkerPid)
	}
	if at == replying {
		<-v.done
		if v.err != nil || v.reply.StatusCode != http.StatusOK {
			t.Fatalf("%v, %v", v.reply, v.err)
		}
		if _, err := io.CopyN(io.Discard, v.reply.Body, 2000); err != nil { // more than one part: it streams
			t.Fatal(err)
		}
		go io.Copy(io.Discard, v.reply.Body) // ends with the connection
	}

	d.leave(v)
	by := "caller"
	if at == running && slices.Contains(strings.Fields(p.hides), d.name) {
		by = "operator"
		time.Sleep(noticedWithin) // nothing tells of what does not happen
		s.fetch("/calls/"+call.ID, &call)
		if call.State != "running" {
			t.Errorf("it was noticed all the same: %+v", call)
		}
		s.cancel(call.ID, http.StatusAccepted)
	}
	s.eventually("the evidence", func() bool {
		s.fetch("/calls/"+call.ID, &call)
		return call.State == "ended" && call.Cancel != nil
	})
	if call.Outcome != "cancelled" || call.Cancel.By != by || !call.Cancel.Empty {
		t.Errorf("%+v, %+v", call, *call.Cancel)
	}
	if at != receiving {
		checkKill(t, call, len(tree))
	}
	gone(t, tree)
}

// patient has a caller make one call after the other through the proxy, none of which may be
// cancelled, until it is told to stop.
func (p proxy) patient(t *testing.T, addr string) (stop func()) {
	ended, end := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for n := 0; ; n++ {
			select {
			case <-end:
				t.Logf("%d patient calls", n)
				return
			default:
			}
			input := fmt.Sprintf(`{"seconds": 0.3, "nonce": "patient-%d", "times": 1}`, n)
			v := p.visit(t, addr, "/execute/py/answers", input, len(input))
			<-v.done
			if v.err != nil {
				t.Errorf("a patient caller got %v", v.err)
				return
			}
			text, err := io.ReadAll(v.reply.Body)
			if err != nil || string(text) != fmt.Sprintf("patient-%d", n) {
				t.Errorf("a patient caller got %s %q, %v", v.reply.Status, text, err)
			}
			v.conn.Close()
		}
	}()
	return func() {
		close(end)
		<-ended
	}
}
