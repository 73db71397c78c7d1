// Package e2e tells the product from outside: a real server under its real
// supervisor, real workers, raw sockets. Every test that starts a server ends
// with the oracle of [server.check].
package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"example.com/hangup/internal/proc"
	"example.com/hangup/internal/proctest"
)

func TestMain(m *testing.M) { proctest.Main(m) }

// server is a hangup server under test.
type server struct {
	t      *testing.T
	dir    string
	cmd    *exec.Cmd // becomes the supervisor
	listen []string  // every address it listens on
	addr   string    // the first of them, host:port
	url    string
	pid    int // of the server itself
	client *http.Client
	base   state
	ended  bool
	exit   chan error

	mu  sync.Mutex
	log []map[string]any // its records
}

// state is what must be the same before and after a test.
type state struct {
	Descriptors, Goroutines, Processes int
}

// start runs a server with the given workloads (YAML, indented by two) in a
// directory with testdata's workers and the Python SDK. The test's cleanup
// checks with [server.check] that nothing is left.
func start(t *testing.T, workloads string, settings ...string) *server {
	t.Helper()
	s := launch(t, workloads, settings...)
	s.base = s.settled()
	t.Cleanup(s.check)
	return s
}

// launch is start without the oracle, for tests that end the server badly.
func launch(t *testing.T, workloads string, settings ...string) *server {
	t.Helper()
	s := prepare(t, workloads, settings...)
	s.run()
	s.eventually("ready", func() bool {
		code, _ := s.get("/readyz")
		return code == http.StatusOK
	})
	return s
}

// prepare makes the directory and the command of a server, for tests that change
// either before it is run.
func prepare(t *testing.T, workloads string, settings ...string) *server {
	t.Helper()
	t.Cleanup(func() { noGroups(t) }) // after all else
	s := &server{t: t, dir: t.TempDir(), client: &http.Client{Transport: &http.Transport{}}, exit: make(chan error, 1)}
	for _, pattern := range []string{"testdata/*.py", "../python/hangup.py"} {
		paths, err := filepath.Glob(pattern)
		if err != nil || len(paths) == 0 {
			t.Fatalf("no %s (%v)", pattern, err)
		}
		for _, path := range paths {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			s.write(filepath.Base(path), string(data))
		}
	}
	if !slices.ContainsFunc(settings, func(s string) bool { return strings.HasPrefix(s, "listen:") }) {
		settings = append([]string{"listen: [127.0.0.1:0]"}, settings...)
	}
	cert, key := certificate()
	s.write("cert.pem", cert)
	s.write("key.pem", key)
	s.client.Transport = &http.Transport{TLSClientConfig: trust()}
	s.write("hangup.yaml", strings.Join(settings, "\n")+"\nworkloads:\n"+workloads)
	s.cmd = exec.Command(proctest.Build(t, "hangup", "./cmd/hangup", "-race"), "serve", "--config", filepath.Join(s.dir, "hangup.yaml"))
	s.cmd.Env = append(proctest.Env(), "GORACE=halt_on_error=1 atexit_sleep_ms=0")
	proctest.Build(t, "hangup-shim", "./cmd/hangup-shim")
	return s
}

// run starts the server and returns when it serves.
func (s *server) run() {
	s.t.Helper()
	select {
	case <-s.begin():
	case err := <-s.exit:
		s.ended = true
		s.t.Fatalf("the server did not start: %v\n%s", err, s.logText())
	}
}

// begin starts the server. The channel is closed when it serves.
func (s *server) begin() <-chan struct{} {
	s.t.Helper()
	log, err := s.cmd.StderrPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if !s.ended { // the test gave up: whatever state the server is in, it goes
			s.cmd.Process.Kill()
			select {
			case <-s.exit:
			case <-time.After(proctest.Patience):
			}
		}
	})
	serving := make(chan struct{})
	read := make(chan struct{})
	go func() {
		defer close(read)
		s.readLog(log, serving)
	}()
	go func() {
		<-read // Wait closes the pipe
		s.exit <- s.cmd.Wait()
	}()
	return serving
}

func (s *server) write(name, content string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(content), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// readLog keeps the server's records, and closes serving at the one that says
// that it serves.
func (s *server) readLog(log io.Reader, serving chan<- struct{}) {
	lines := bufio.NewScanner(log)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var record map[string]any
		if json.Unmarshal(lines.Bytes(), &record) != nil {
			record = map[string]any{"msg": lines.Text(), "raw": true}
		}
		s.mu.Lock()
		s.log = append(s.log, record)
		s.mu.Unlock()
		if record["msg"] == "serving" && serving != nil {
			s.pid = int(record["pid"].(float64))
			for _, address := range record["listen"].([]any) {
				s.listen = append(s.listen, address.(string))
			}
			s.addr = s.listen[0]
			s.url = "http://" + s.addr
			if record["tls"] == true {
				s.url = "https://" + s.addr
			}
			close(serving)
			serving = nil
		}
	}
}

// records returns the log records with that message.
func (s *server) records(msg string) []map[string]any {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []map[string]any
	for _, r := range s.log {
		if r["msg"] == msg {
			list = append(list, maps.Clone(r))
		}
	}
	return list
}

func (s *server) logText() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	for _, r := range s.log {
		line, _ := json.Marshal(r)
		b.Write(append(line, '\n'))
	}
	return b.String()
}

// eventually waits for what must come true.
func (s *server) eventually(what string, came func() bool) {
	s.t.Helper()
	if !proctest.Eventually(came) {
		s.t.Fatalf("not within %s: %s\nthe log:\n%s", proctest.Patience, what, s.logText())
	}
}

// get asks for a resource. The code is 0 when there was no answer.
func (s *server) get(path string) (code int, body []byte) {
	reply, err := s.client.Get(s.url + path)
	if err != nil {
		return 0, nil
	}
	defer reply.Body.Close()
	body, err = io.ReadAll(reply.Body)
	if err != nil {
		return 0, nil
	}
	return reply.StatusCode, body
}

// fetch reads a JSON resource into to.
func (s *server) fetch(path string, to any) {
	s.t.Helper()
	code, body := s.get(path)
	if code != http.StatusOK {
		s.t.Fatalf("GET %s: %d %s", path, code, body)
	}
	if err := json.Unmarshal(body, to); err != nil {
		s.t.Fatalf("GET %s: %v in %s", path, err, body)
	}
}

// post makes a call with a JSON input and returns the reply, its body read.
func (s *server) post(path, input string) (*http.Response, string) {
	s.t.Helper()
	reply, body, err := s.try(path, input)
	if err != nil {
		s.t.Fatalf("POST %s: %v\nthe log:\n%s", path, err, s.logText())
	}
	return reply, body
}

// try is post for calls that may end without a reply.
func (s *server) try(path, input string) (*http.Response, string, error) {
	return s.tryAs("", path, input)
}

// tryAs is try with a token, if it is not "".
func (s *server) tryAs(token, path, input string) (*http.Response, string, error) {
	r, err := http.NewRequest(http.MethodPost, s.url+path, strings.NewReader(input))
	if err != nil {
		return nil, "", err
	}
	r.Header.Set("Content-Type", "application/json")
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	reply, err := s.client.Do(r)
	if err != nil {
		return nil, "", err
	}
	defer reply.Body.Close()
	body, err := io.ReadAll(reply.Body)
	return reply, string(body), err
}

// dial opens a raw connection that the test closes itself, or its cleanup does.
func (s *server) dial() *net.TCPConn {
	s.t.Helper()
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

// request is the head of a call as raw bytes, followed by body.
func request(path, headers, body string) string {
	return "POST " + path + " HTTP/1.1\r\nHost: localhost\r\n" + headers + "\r\n" + body
}

// callRecord is a call in GET /calls.
type callRecord struct {
	ID, Workload, Task, State, Outcome, Caller string
	WorkerPid                                  int        `json:"worker_pid"`
	StartedAt                                  *time.Time `json:"started_at"`
	EndedAt                                    *time.Time `json:"ended_at"`
	Cancel                                     *struct {
		By        string
		NoticedAt time.Time `json:"noticed_at"`
		Steps     []struct {
			Step string
			AtMs float64 `json:"at_ms"`
		}
		Killed    int
		EmptyMs   float64 `json:"empty_ms"`
		Empty     bool
		Survivors []any
	}
}

// calls lists the calls the server knows, oldest first.
func (s *server) calls() []callRecord {
	s.t.Helper()
	var all struct{ Calls []callRecord }
	s.fetch("/calls", &all)
	return all.Calls
}

// newest waits until the newest call is as it must be, and returns it.
func (s *server) newest(what string, is func(callRecord) bool) callRecord {
	s.t.Helper()
	var found callRecord
	s.eventually("the newest call is "+what, func() bool {
		list := s.calls()
		if len(list) == 0 {
			return false
		}
		found = list[len(list)-1]
		return is(found)
	})
	return found
}

// workload is one pool in GET /workloads.
type workload struct {
	Name, State, Reason   string
	Limit, Spares, Queued int
	Workers               []struct {
		Pid     int
		ShimPid int `json:"shim_pid"`
		State   string
		Calls   int
	}
}

func (s *server) workloads() []workload {
	s.t.Helper()
	var all struct {
		SupervisorPid int `json:"supervisor_pid"`
		ServerPid     int `json:"server_pid"`
		Workloads     []workload
	}
	s.fetch("/workloads", &all)
	if all.SupervisorPid != s.cmd.Process.Pid || all.ServerPid != s.pid {
		s.t.Errorf("the server says it is %d under %d, and it is %d under %d", all.ServerPid, all.SupervisorPid, s.pid, s.cmd.Process.Pid)
	}
	return all.Workloads
}

// atRest tells whether every pool is whole and idle, and the stock of shims full.
func (s *server) atRest() bool {
	processes := 2 + proc.DefaultStock // supervisor and server
	for _, w := range s.workloads() {
		if w.Queued > 0 || len(w.Workers) != w.Limit+w.Spares {
			return false
		}
		for _, one := range w.Workers {
			if one.State != "idle" {
				return false
			}
		}
		processes += 2 * len(w.Workers)
	}
	return len(proc.Look(s.cmd.Process.Pid)) == processes
}

// metric is the value of one series, or the sum of all that begin like it.
func (s *server) metric(series string) float64 {
	s.t.Helper()
	code, body := s.get("/metrics")
	if code != http.StatusOK {
		s.t.Fatalf("GET /metrics: %d", code)
	}
	sum := 0.0
	for line := range bytes.Lines(body) {
		if name, value, ok := strings.Cut(strings.TrimSpace(string(line)), " "); ok && strings.HasPrefix(name, series) {
			n, err := strconv.ParseFloat(value, 64)
			if err != nil {
				s.t.Fatalf("GET /metrics: %s", line)
			}
			sum += n
		}
	}
	return sum
}

// state is how the server is now, with one connection of ours. To close that one
// each time would be to count connections that are on their way out.
func (s *server) state() state {
	return state{
		Descriptors: int(s.metric("process_open_fds")),
		Goroutines:  int(s.metric("go_goroutines")),
		Processes:   len(proc.Look(s.cmd.Process.Pid)),
	}
}

// settled waits until the server is at rest and nothing of it changes, and
// returns how it is then.
func (s *server) settled() (now state) {
	s.t.Helper()
	s.client.CloseIdleConnections()
	s.eventually("at rest", s.atRest)
	s.eventually("the same for a while", func() bool {
		before := now
		now = s.least()
		return now == before
	})
	return now
}

// least is the least of some states. The server counts its descriptors and
// goroutines while it opens files and has goroutines to count with, now more of
// them and now less.
func (s *server) least() state {
	least := s.state()
	for range 10 {
		now := s.state()
		least.Descriptors = min(least.Descriptors, now.Descriptors)
		least.Goroutines = min(least.Goroutines, now.Goroutines)
		least.Processes = max(least.Processes, now.Processes)
	}
	return least
}

// scrapers are goroutines that the metrics' own gathering may or may not have
// running when it counts them. A leak of one a call or a kill is far more.
const scrapers = 3

// within tells whether there is no more of anything than in the base line.
func (s state) within(base state) bool {
	return s.Processes == base.Processes && s.Descriptors <= base.Descriptors && s.Goroutines <= base.Goroutines+scrapers
}

// check is the oracle. The server comes back to where it was: no process, no
// zombie, no descriptor, no goroutine more; its sums balance; the next call works; and
// when it is told to end, nothing of it is left.
func (s *server) check() {
	if s.ended {
		return
	}
	s.client.CloseIdleConnections()
	s.eventually("at rest", s.atRest)
	var now state
	if !proctest.Eventually(func() bool { now = s.state(); return now.within(s.base) }) {
		s.t.Errorf("before the test %+v, after it %+v\n%s", s.base, now, s.tree())
		s.end(syscall.SIGQUIT, 2) // which has it write down its goroutines
		s.t.Logf("the log:\n%s", s.logText())
		return
	}
	for _, p := range proc.Look(s.cmd.Process.Pid) {
		if p.State == "Z" {
			s.t.Errorf("zombie %d, child of %d: %s", p.Pid, p.Parent, p.Command)
		}
	}
	if r, body := s.post("/execute/"+s.workloads()[0].Name+"/echo", `"still there"`); r.StatusCode != http.StatusOK || body != `"still there"` {
		s.t.Errorf("the next call: %s %s", r.Status, body)
	}
	accepted, total := s.metric("hangup_calls_accepted_total"), s.metric("hangup_calls_total")
	rejected := s.metric(`hangup_calls_total{outcome="rejected"`) // of workloads that a reload has removed, too
	if accepted != total-rejected {
		s.t.Errorf("%v calls accepted, %v ended, of which %v rejected: the sums do not balance", accepted, total, rejected)
	}
	if bad := s.records("illegal transition: a defect of hangup"); len(bad) > 0 {
		s.t.Errorf("the machine was told what cannot happen: %v", bad)
	}
	s.end(syscall.SIGTERM, 0)
	if s.t.Failed() {
		s.t.Logf("the log:\n%s", s.logText())
	}
}

func (s *server) tree() string {
	var b strings.Builder
	for _, p := range proc.Look(s.cmd.Process.Pid) {
		fmt.Fprintf(&b, "\t%d < %d %s %s\n", p.Pid, p.Parent, p.State, p.Command)
	}
	return b.String()
}

// end sends the supervisor a signal, waits for its end with that exit code, and
// makes sure that nothing of the server is left.
func (s *server) end(sig syscall.Signal, code int) {
	s.t.Helper()
	all := proc.Look(s.cmd.Process.Pid)
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
	s.gone(all, code)
}

// gone waits for the end of the supervisor and of all the given processes.
func (s *server) gone(all []proc.Process, code int) {
	s.t.Helper()
	s.ended = true
	s.client.CloseIdleConnections()
	select {
	case <-s.exit:
	case <-time.After(proctest.Patience + 10*time.Second):
		s.cmd.Process.Kill()
		s.t.Fatalf("the supervisor has not ended\n%s\nthe log:\n%s", s.tree(), s.logText())
	}
	if got := exitCode(s.cmd.ProcessState); got != code {
		s.t.Errorf("exit code %d, want %d\nthe log:\n%s", got, code, s.logText())
	}
	for _, p := range all {
		if !proctest.Eventually(func() bool { return !p.There() }) {
			s.t.Errorf("left behind: %d %s", p.Pid, p.Command)
		}
	}
}

// exitCode is the code as a shell has it.
func exitCode(p *os.ProcessState) int {
	if status := p.Sys().(syscall.WaitStatus); status.Signaled() {
		return 128 + int(status.Signal())
	}
	return p.ExitCode()
}
