package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"example.com/hangup/internal/proc"
	"example.com/hangup/internal/proctest"
)

// answers is a request for testdata's task of that name, whose reply is the nonce.
func answers(pool, headers, nonce string, seconds float64) string {
	input := fmt.Sprintf(`{"seconds": %v, "nonce": %q, "times": 1}`, seconds, nonce)
	return request("/execute/"+pool+"/answers", fmt.Sprintf("%sContent-Type: application/json\r\nContent-Length: %d\r\n", headers, len(input)), input)
}

// patient is one caller that stays, on a connection of its own.
type patient struct {
	net.Conn
	in *bufio.Reader
}

func newPatient(addr string) (*patient, error) {
	return plainTCP.patient(&server{addr: addr})
}

// patient connects by a transport of HTTP/1.1.
func (tr transport) patient(s *server) (*patient, error) {
	c, err := tr.dial(s)
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(time.Minute)) // far from any of these tests
	return &patient{c, bufio.NewReader(c)}, nil
}

// receive reads one whole reply.
func (p *patient) receive() (*http.Response, string, error) {
	reply, err := http.ReadResponse(p.in, nil)
	if err != nil {
		return nil, "", err
	}
	defer reply.Body.Close()
	body, err := io.ReadAll(reply.Body)
	return reply, string(body), err
}

// expect reads one reply, which must be 200 with that body.
func (p *patient) expect(want string) error {
	reply, body, err := p.receive()
	if err != nil {
		return err
	}
	if reply.StatusCode != http.StatusOK || body != want {
		return fmt.Errorf("got %s %.200q, want %q", reply.Status, body, want)
	}
	return nil
}

// send writes all that is given, one after the other with a pause before each
// but the first.
func (p *patient) send(pause time.Duration, parts ...string) error {
	for i, part := range parts {
		if i > 0 {
			time.Sleep(pause) // what a slow caller does
		}
		if _, err := io.WriteString(p, part); err != nil {
			return err
		}
	}
	return nil
}

// largeBody is made once: a caller that makes it after it has connected may take longer
// for that than the server waits for a request.
var largeBody = sync.OnceValue(func() string { return strconv.Quote(strings.Repeat("x", large)) })

// patience are the ways of callers that look as if they might have gone. Each
// makes its calls with nonces that begin with n.
var patience = []struct {
	name  string
	calls int
	rare  bool // it costs more than it tells
	stay  func(p *patient, n string) error
}{
	{"keep-alive with pauses", 5, false, func(p *patient, n string) error {
		for i := range 5 {
			nonce := n + strconv.Itoa(i)
			time.Sleep(20 * time.Millisecond)
			if err := errors.Join(p.send(0, answers("py", "", nonce, 0)), p.expect(nonce)); err != nil {
				return err
			}
		}
		return nil
	}},
	{"slow body", 1, false, func(p *patient, n string) error {
		head, body, _ := strings.Cut(answers("py", "", n, 0), "\r\n\r\n")
		return errors.Join(p.send(10*time.Millisecond, append([]string{head + "\r\n\r\n"}, strings.Split(body, "")...)...), p.expect(n))
	}},
	{"slow chunks", 1, false, func(p *patient, n string) error {
		parts := []string{request("/execute/py/echo", "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n", "")}
		for _, c := range strconv.Quote(n) {
			parts = append(parts, "1\r\n", string(c), "\r\n")
		}
		return errors.Join(p.send(10*time.Millisecond, append(parts, "0\r\n", "\r\n")...), p.expect(strconv.Quote(n)))
	}},
	{"100-continue", 1, false, func(p *patient, n string) error {
		head, body, _ := strings.Cut(answers("py", "Expect: 100-continue\r\n", n, 0), "\r\n\r\n")
		if err := p.send(0, head+"\r\n\r\n"); err != nil {
			return err
		}
		line, err := p.in.ReadString('\n')
		if err != nil || line != "HTTP/1.1 100 Continue\r\n" {
			return fmt.Errorf("%q, %v", line, err)
		}
		_, err = p.in.ReadString('\n')
		return errors.Join(err, p.send(0, body), p.expect(n))
	}},
	{"pipelined", 3, false, func(p *patient, n string) error {
		err := p.send(0, answers("py", "", n+"a", 0.05)+answers("py", "", n+"b", 0.01)+answers("py", "", n+"c", 0))
		return errors.Join(err, p.expect(n+"a"), p.expect(n+"b"), p.expect(n+"c"))
	}},
	{"pipelined byte by byte", 2, false, func(p *patient, n string) error {
		next := answers("py", "", n+"b", 0)
		err := p.send(time.Millisecond, append([]string{answers("py", "", n+"a", 0.1)}, strings.Split(next, "")...)...)
		return errors.Join(err, p.expect(n+"a"), p.expect(n+"b"))
	}},
	{"60 KiB behind", 2, false, func(p *patient, n string) error {
		body := strconv.Quote(strings.Repeat("x", 60_000))
		next := request("/execute/py/echo", fmt.Sprintf("Content-Type: application/json\r\nContent-Length: %d\r\n", len(body)), body)
		return errors.Join(p.send(20*time.Millisecond, answers("py", "", n, 0.1), next), p.expect(n), p.expect(body))
	}},
	{"8 MiB after 8 MiB", 2, true, func(p *patient, n string) error {
		body := largeBody()
		next := request("/execute/py/echo", fmt.Sprintf("Content-Type: application/json\r\nContent-Length: %d\r\n", len(body)), body)
		return errors.Join(p.send(0, next), p.expect(body), p.send(0, next), p.expect(body))
	}},
	{"long poll", 1, false, func(p *patient, n string) error {
		return errors.Join(p.send(0, answers("py", "", n, 0.2)), p.expect(n))
	}},
	{"stream with pauses", 1, false, func(p *patient, n string) error {
		body := `{"parts": 5, "size": 1000, "pause": 0.05}`
		err := p.send(0, request("/execute/py/stream", fmt.Sprintf("Content-Type: application/json\r\nContent-Length: %d\r\n", len(body)), body))
		return errors.Join(err, p.expect(strings.Repeat("x", 5000)))
	}},
}

// streams are the ways of patient callers over HTTP/2.
var streams = []struct {
	name    string
	calls   int
	givesUp int // calls beside those
	stay    func(h *h2conn, n string) error
}{
	{"one after the other", 5, 0, func(h *h2conn, n string) error {
		for i := range 5 {
			if err := h.answers(fmt.Sprint(n, i), 0, nil); err != nil {
				return err
			}
		}
		return nil
	}},
	{"at once", 8, 0, func(h *h2conn, n string) error {
		failed := make(chan error, 8)
		for i := range 8 {
			go func() { failed <- h.answers(fmt.Sprint(n, i), 0.02*float64(i), nil) }()
		}
		var all []error
		for range 8 {
			all = append(all, <-failed)
		}
		return errors.Join(all...)
	}},
	{"slow body", 1, 0, func(h *h2conn, n string) error {
		return h.answers(n, 0, func() { time.Sleep(time.Millisecond) }) // what a slow caller does
	}},
	{"beside one that is given up", 1, 1, func(h *h2conn, n string) error {
		s, err := h.request("POST", "/execute/py/echo", false, "content-length", "10")
		if err != nil {
			return err
		}
		given := make(chan error, 1)
		go func() { given <- s.cancel() }()
		return errors.Join(h.answers(n, 0.05, nil), <-given)
	}},
	{"settings, pings and priorities meanwhile", 1, 0, func(h *h2conn, n string) error {
		return h.answers(n, 0, func() {
			h.frame(func() error {
				return errors.Join(h.out.WritePing(false, [8]byte{1}), h.out.WriteSettings(),
					h.out.WritePriority(h.last, http2.PriorityParam{Weight: 9}))
			})
		})
	}},
	{"a window that is shut for a while", 1, 0, func(h *h2conn, n string) error {
		body := `{"parts": 8, "size": 100000, "pause": 0.01}`
		s, err := h.request("POST", "/execute/py/stream", false, "content-type", "application/json")
		if err != nil {
			return err
		}
		h.mu.Lock()
		s.unread = true
		h.mu.Unlock()
		if err := s.send(body, true); err != nil {
			return err
		}
		if err := s.await(func() bool { return s.size >= 65535 }); err != nil { // all that it may send
			return err
		}
		h.mu.Lock()
		s.unread = false
		h.mu.Unlock()
		if err := h.frame(func() error { return h.out.WriteWindowUpdate(s.id, 1<<20) }); err != nil {
			return err
		}
		if _, _, err := s.whole(); err != nil || s.size != 800_000 {
			return fmt.Errorf("%d bytes, %v", s.size, err)
		}
		return nil
	}},
}

// answers makes a call of testdata's task of that name, whose reply is the nonce. Where
// between is given, it is called between the bytes of the body.
func (h *h2conn) answers(nonce string, seconds float64, between func()) error {
	input := fmt.Sprintf(`{"seconds": %v, "nonce": %q, "times": 1}`, seconds, nonce)
	s, err := h.request("POST", "/execute/py/answers", false, "content-type", "application/json")
	if err != nil {
		return err
	}
	if between != nil {
		for i := range len(input) {
			if err := s.send(input[i:i+1], false); err != nil {
				return err
			}
			between()
		}
		input = ""
	}
	if err := s.send(input, true); err != nil {
		return err
	}
	if status, body, err := s.whole(); err != nil || status != "200" || body != nonce {
		return fmt.Errorf("got %s %.200q, %v, want %q", status, body, err, nonce)
	}
	return nil
}

// patientCallers is how many callers stay in TestPatience; the environment
// variable says another number, such as 100000.
const patientCallers, patientVariable = 300, "HANGUP_TEST_CALLERS"

// TestPatience: a caller that is there is never taken for gone, however little it
// says, by whatever way it has come.
func TestPatience(t *testing.T) {
	callers, workers := patientCallers, 6
	if n, err := strconv.Atoi(os.Getenv(patientVariable)); err == nil {
		callers = n
	}
	if callers > patientCallers {
		proctest.OneLane(t, "so many callers are for once")
		workers = 24
	}
	for _, secure := range []bool{false, true} {
		settings := []string{everywhere, "limits: {hangups: {burst: 0}}"} // some give a stream up, of one address
		if secure {
			settings = append(settings, withTLS)
		}
		s := start(t, fmt.Sprintf(`
  py: {command: [python3, worker.py], workers: %d, spares: 0, queue: {length: 2000, wait: 1m}, stop: {grace: 200ms}}
`, workers), settings...)
		var ways []transport
		for _, tr := range transports {
			if tr.secure == secure {
				ways = append(ways, tr)
			}
		}
		stayAll(t, s, ways, callers/2)
	}
}

// stayAll has so many callers come by these ways and stay.
func stayAll(t *testing.T, s *server, ways []transport, callers int) {
	const atOnce = 200
	largeBody()
	var turn, calls, givenUp atomic.Int64
	var all sync.WaitGroup
	for range atOnce {
		all.Go(func() {
			for !t.Failed() {
				n := int(turn.Add(1)) - 1
				if n >= callers {
					return
				}
				tr, k := ways[n%len(ways)], n/len(ways)
				made, up, err := stay(s, tr, k, fmt.Sprintf("n%d-", n))
				calls.Add(int64(made))
				givenUp.Add(int64(up))
				if err != nil {
					t.Errorf("%s: %.1000v", tr.name, err)
				}
			}
		})
	}
	all.Wait()
	s.eventually("all over", func() bool {
		return int64(s.metric(`hangup_calls_total`)) == calls.Load()+givenUp.Load()
	})
	t.Logf("%d callers, %d calls; %d more were given up beside them", callers, calls.Load(), givenUp.Load())
	for outcome, want := range map[string]int64{"done": calls.Load(), "cancelled": givenUp.Load()} {
		if got := int64(s.metric(fmt.Sprintf(`hangup_calls_total{outcome="%s`, outcome))); got != want {
			t.Errorf("%d calls ended %s, want %d", got, outcome, want)
		}
	}
}

// stay has the k-th caller come by tr, and returns how many calls it made, and how many
// more it gave up.
func stay(s *server, tr transport, k int, n string) (calls, givenUp int, err error) {
	if tr.h2 {
		way := streams[k%len(streams)]
		c, err := tr.dial(s)
		if err != nil {
			return 0, 0, err
		}
		defer c.Close()
		h, err := newH2(c)
		if err == nil {
			h.patience = time.Minute // as with newPatient
			err = way.stay(h, n)
		}
		if err != nil {
			err = fmt.Errorf("%s: %w", way.name, err)
		}
		return way.calls, way.givesUp, err
	}
	way := patience[k%len(patience)]
	if way.rare && k%1000 >= len(patience) {
		way = patience[0]
	}
	p, err := tr.patient(s)
	if err == nil {
		err = way.stay(p, n)
		p.Close()
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", way.name, err)
	}
	return way.calls, 0, err
}

// TestKeepAlive: a connection whose call went wrong is closed, or the next reply
// on it belongs to the next request, whether that is sent afterwards or was
// there already.
func TestKeepAlive(t *testing.T) {
	s := start(t, `
  py: {command: [python3, worker.py], workers: 3, spares: 2, stop: {grace: 100ms}}
  warm: {command: [python3, worker.py], workers: 1, spares: 1, stop: {cooperative: 5s, grace: 100ms}}
  full: {command: [python3, worker.py], workers: 1, spares: 0, queue: {length: 0}, stop: {grace: 100ms}}
`, "limits: {body: 64KiB, body_timeout: 300ms}")
	body := func(n int) string { return fmt.Sprintf("Content-Length: %d\r\n", n) }
	busy := s.dial()
	io.WriteString(busy, answers("full", "", "busy", 1000))
	s.newest("running", func(c callRecord) bool { return c.State == "running" })
	defer s.neighbour("py")()

	for _, test := range []struct {
		name    string
		request string
		cancel  bool // by an operator
		status  int
		slug    string
		closes  bool // what is left of the request cannot be skipped
	}{
		{"cancelled", answers("py", "", "stale", 1000), true, 409, "cancelled", false},
		{"cancelled, warm", answers("warm", "", "stale", 1000), true, 409, "cancelled", false},
		{"timed out", answers("py", "Call-Timeout: 50ms\r\n", "stale", 1000), false, 504, "timed-out", false},
		{"timed out, warm", answers("warm", "Call-Timeout: 50ms\r\n", "stale", 1000), false, 504, "timed-out", false},
		{"no such workload", answers("nothing", "", "stale", 0), false, 404, "no-such-workload", false},
		{"no such task", request("/execute/py/nothing", body(4), "null"), false, 404, "no-such-task", false},
		{"bad header", answers("py", "Call-Timeout: soon\r\n", "stale", 0), false, 400, "bad-request", false},
		{"bad document", request("/execute", body(5), `{"a":`), false, 400, "bad-request", false},
		{"not allowed", answers("py", "On-Hangup: detach\r\n", "stale", 0), false, 403, "forbidden", false},
		{"wrong method", "PUT" + strings.TrimPrefix(answers("py", "", "stale", 0), "POST"), false, 405, "method-not-allowed", false},
		{"queue full", answers("full", "", "stale", 0), false, 503, "queue-full", false},
		{"failed", request("/execute/py/raises", body(4), "null"), false, 500, "work-failed", false},
		{"died", request("/execute/py/exits", "Content-Type: application/json\r\n"+body(1), "3"), false, 502, "worker-died", false},
		{"broke the protocol", request("/execute/py/garbage", body(4), "null"), false, 502, "bad-worker", false},
		{"smuggled a header", request("/execute/py/smuggles", body(4), "null"), false, 502, "bad-worker", false},
		{"too large, announced", request("/execute/py/echo", body(64<<10+1), strings.Repeat("x", 64<<10+1)), false, 413, "body-too-large", false},
		{"too large, not sent", request("/execute/py/echo", "Expect: 100-continue\r\n"+body(64<<10+1), ""), false, 413, "body-too-large", true},
		{"too large, chunked", request("/execute/py/echo", "Transfer-Encoding: chunked\r\n", "20000\r\n"+strings.Repeat("x", 0x20000)+"\r\n0\r\n\r\n"), false, 413, "body-too-large", false},
		{"too large, half sent", request("/execute/py/echo", "Transfer-Encoding: chunked\r\n", "1000000\r\n"+strings.Repeat("x", 0x60000)), false, 413, "body-too-large", true},
		{"too slow", request("/execute/py/echo", body(10), "123"), false, 408, "body-timeout", true},
	} {
		for _, pipelined := range []bool{false, true} {
			if pipelined && test.closes {
				continue // then it would be part of the body
			}
			t.Run(fmt.Sprintf("%s/pipelined=%v", test.name, pipelined), func(t *testing.T) {
				p, err := newPatient(s.addr)
				if err != nil {
					t.Fatal(err)
				}
				defer p.Close()
				nonce := "next-" + test.name
				next := answers("py", "", nonce, 0)
				first := test.request
				if pipelined {
					first += next
				}
				if err := p.send(0, first); err != nil {
					t.Fatal(err)
				}
				if test.cancel {
					running := s.find("running", func(c callRecord) bool {
						return c.State == "running" && c.Task == "answers" && c.Workload != "full"
					})
					s.cancel(running.ID, http.StatusAccepted)
				}
				reply, text, err := p.receive()
				if err != nil {
					t.Fatal(err)
				}
				if reply.StatusCode != test.status || !strings.Contains(text, `"/problems/`+test.slug+`"`) {
					t.Errorf("%s %s", reply.Status, text)
				}
				if reply.Close != test.closes {
					t.Errorf("the connection closes: %v, want %v", reply.Close, test.closes)
				}
				if reply.Close {
					if rest, err := io.ReadAll(p.in); err != nil && !errors.Is(err, syscall.ECONNRESET) || len(rest) > 0 {
						t.Errorf("behind the last reply came %q, %v", rest, err)
					}
					return
				}
				if !pipelined {
					if err := p.send(0, next); err != nil {
						t.Fatal(err)
					}
				}
				if err := p.expect(nonce); err != nil {
					t.Error(err)
				}
				if n := p.in.Buffered(); n > 0 {
					t.Errorf("%d stale bytes", n)
				}
			})
		}
	}
	fin.leave(busy)
}

// neighbour has a caller make one call after the other, each of which must get
// its own reply. stop ends it and prints how long they took.
func (s *server) neighbour(pool string) (stop func()) {
	ended, end := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		var times []time.Duration
		for n := 0; ; n++ {
			select {
			case <-end:
				s.t.Logf("the neighbour's calls: %s", spread(times))
				return
			default:
			}
			began := time.Now()
			nonce := fmt.Sprintf(`"neighbour %d"`, n)
			reply, body, err := s.try("/execute/"+pool+"/echo", nonce)
			if err != nil || reply.StatusCode != http.StatusOK || body != nonce {
				s.t.Errorf("the neighbour got %s, %v", body, err)
			}
			times = append(times, time.Since(began))
			time.Sleep(2 * time.Millisecond) // it is to notice, not to load
		}
	}()
	return func() {
		close(end)
		<-ended
	}
}

// find waits until there is a call as it must be, and returns the newest such.
func (s *server) find(what string, is func(callRecord) bool) (found callRecord) {
	s.t.Helper()
	s.eventually("a call is "+what, func() bool {
		list := slices.DeleteFunc(s.calls(), func(c callRecord) bool { return !is(c) })
		if len(list) > 0 {
			found = list[len(list)-1]
		}
		return len(list) > 0
	})
	return found
}

// cancel is DELETE /calls/{id}, which must be answered with that status.
func (s *server) cancel(id string, status int) {
	s.t.Helper()
	r, err := http.NewRequest(http.MethodDelete, s.url+"/calls/"+id, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	reply, err := s.client.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer reply.Body.Close()
	if body, _ := io.ReadAll(reply.Body); reply.StatusCode != status {
		s.t.Errorf("DELETE /calls/%s: %s %s", id, reply.Status, body)
	}
}

// TestSlowBodies: bodies that trickle in take no worker, and end with 408 while
// all others go on.
func TestSlowBodies(t *testing.T) {
	const slow = 40
	s := start(t, "  py: {command: [python3, worker.py], workers: 1, spares: 1, stop: {grace: 100ms}}\n", "limits: {body_timeout: 500ms}")
	stop := s.neighbour("py")
	var all sync.WaitGroup
	for range slow {
		all.Go(func() {
			p, err := newPatient(s.addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer p.Close()
			answered := make(chan struct{})
			var trickle sync.WaitGroup
			trickle.Go(func() {
				part := request("/execute/py/pid", "Content-Length: 100\r\n", "x")
				for p.send(0, part) == nil {
					select {
					case <-answered:
						return
					case <-time.After(100 * time.Millisecond):
						part = "x"
					}
				}
			})
			reply, body, err := p.receive()
			close(answered)
			if err != nil || reply.StatusCode != http.StatusRequestTimeout || !reply.Close {
				t.Errorf("%v %s, %v", reply, body, err)
			}
			trickle.Wait()
		})
	}
	all.Wait()
	stop()
	for _, c := range s.calls() {
		if c.Task == "pid" && (c.Outcome != "rejected" || c.StartedAt != nil || c.WorkerPid != 0) {
			t.Errorf("%+v", c)
		}
	}
}

// peak is the most memory the server has held so far, in bytes.
func (s *server) peak() int {
	s.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.pid))
	if err != nil {
		s.t.Fatal(err)
	}
	for line := range bytes.Lines(status) {
		if fields := bytes.Fields(line); string(fields[0]) == "VmHWM:" {
			kib, err := strconv.Atoi(string(fields[1]))
			if err != nil {
				s.t.Fatal(err)
			}
			return kib << 10
		}
	}
	s.t.Fatal("no VmHWM")
	return 0
}

// TestSlowReader: a large reply to a caller who reads slowly is held back at its
// worker, and that caller's leaving is noticed though nothing can be written to it.
func TestSlowReader(t *testing.T) {
	const (
		parts, size = 1600, 64 << 10 // 100 MiB
		bound       = 32 << 20       // of what the server may need for it, race detector and all
	)
	s := start(t, "  py: {command: [python3, worker.py], workers: 2, spares: 1, stop: {grace: 200ms}, limits: {output: 200MiB}}\n")
	input := fmt.Sprintf(`{"parts": %d, "size": %d, "pause": 0}`, parts, size)
	ask := func() *patient {
		p, err := newPatient(s.addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Close() })
		p.Conn.(*net.TCPConn).SetReadBuffer(64 << 10)
		if err := p.send(0, request("/execute/py/stream", fmt.Sprintf("Content-Type: application/json\r\nContent-Length: %d\r\n", len(input)), input)); err != nil {
			t.Fatal(err)
		}
		return p
	}
	// stuck waits until the worker cannot write on: nothing moves from its pipe.
	stuck := func() callRecord {
		running := s.find("running", func(c callRecord) bool { return c.State == "running" && c.Task == "stream" })
		s.eventually("the worker waits for the reader", func() bool {
			waits, err := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", running.WorkerPid))
			return err == nil && strings.Contains(string(waits), "pipe_w")
		})
		return running
	}
	before := s.peak()
	slow := ask()
	stuck()
	stop := s.neighbour("py")
	reply, err := http.ReadResponse(slow.in, nil)
	if err != nil {
		t.Fatal(err)
	}
	total, buf := 0, make([]byte, 1<<20)
	for n := 0; err == nil; {
		n, err = reply.Body.Read(buf)
		if total += n; total < 64<<10 {
			time.Sleep(10 * time.Millisecond) // slow at first, then as fast as can be
		}
	}
	if err != io.EOF || total != parts*size {
		t.Errorf("%d bytes of %d, %v", total, parts*size, err)
	}
	stop()
	grown := s.peak() - before
	t.Logf("the server needed %d KiB for %d KiB", grown>>10, total>>10)
	if grown > bound {
		t.Errorf("the server needed %d bytes more", grown)
	}

	for _, m := range manners {
		t.Run(m.name, func(t *testing.T) {
			p := ask()
			call := stuck()
			left := time.Now()
			m.leave(p.Conn)
			s.eventually("the evidence", func() bool {
				s.fetch("/calls/"+call.ID, &call)
				return call.State == "ended" && call.Cancel != nil
			})
			if took := call.Cancel.NoticedAt.Sub(left); call.Outcome != "cancelled" || call.Cancel.By != "caller" || took > noticedWithin+lateBy {
				t.Errorf("noticed after %v: %+v", took, call)
			} else {
				t.Logf("noticed after %v", took)
			}
			checkKill(t, call, 1)
		})
	}
}

// TestQueue: refusals come with a hint when to come back, an operator can cancel
// what waits and what runs, and what waits is never started once it is over.
func TestQueue(t *testing.T) {
	s := start(t, `
  py: {command: [python3, worker.py], workers: 1, spares: 1, queue: {length: 2, wait: 300ms}, stop: {grace: 100ms}}
  patient: {command: [python3, worker.py], workers: 1, spares: 0, queue: {length: 2, wait: 30s}, stop: {grace: 100ms}}
`)
	type answer struct {
		reply *http.Response
		body  string
		took  time.Duration
	}
	ask := func(path, input string) <-chan answer {
		done := make(chan answer, 1)
		go func() {
			began := time.Now()
			reply, body, err := s.try(path, input)
			if err != nil {
				t.Errorf("%s: %v", path, err)
				reply = &http.Response{}
			}
			done <- answer{reply, body, time.Since(began)}
		}()
		return done
	}
	refused := func(a answer, status int, slug string) {
		t.Helper()
		if a.reply.StatusCode != status || !strings.Contains(a.body, `"/problems/`+slug+`"`) {
			t.Errorf("%s %s", a.reply.Status, a.body)
		}
		if after, err := strconv.Atoi(a.reply.Header.Get("Retry-After")); status == 503 && (err != nil || after < 1) {
			t.Errorf("Retry-After: %q", a.reply.Header.Get("Retry-After"))
		}
	}
	waiting := func(pool string, n int) {
		t.Helper()
		s.eventually(fmt.Sprintf("%d calls wait", n), func() bool { return s.pool(pool).Queued == n })
	}
	of := func(task string) callRecord {
		return s.find("of "+task, func(c callRecord) bool { return c.Task == task && c.State != "ended" })
	}

	runs := ask("/execute/py/tree", "null")
	s.newest("running", func(c callRecord) bool { return c.State == "running" })
	one, two := ask("/execute/py/echo", "1"), ask("/execute/py/echo", "2")
	waiting("py", 2)
	full := <-ask("/execute/py/pid", "null")
	refused(full, 503, "queue-full")
	for _, late := range []<-chan answer{one, two} {
		a := <-late
		refused(a, 503, "queue-timeout")
		if a.took < 300*time.Millisecond || a.took > 300*time.Millisecond+lateBy {
			t.Errorf("refused after %v", a.took)
		}
	}
	t.Logf("refused after %v: the queue is full", full.took)
	for _, c := range s.calls() {
		if c.Task != "tree" && (c.Outcome != "rejected" || c.StartedAt != nil || c.WorkerPid != 0) {
			t.Errorf("%+v", c)
		}
	}

	call := of("tree")
	tree := s.family(call.WorkerPid)
	s.cancel(call.ID, http.StatusAccepted)
	refused(<-runs, 409, "cancelled")
	s.eventually("the evidence", func() bool {
		s.fetch("/calls/"+call.ID, &call)
		return call.Cancel != nil
	})
	if call.Outcome != "cancelled" || call.Cancel.By != "operator" || !call.Cancel.Empty {
		t.Errorf("%+v, %+v", call, *call.Cancel)
	}
	checkKill(t, call, len(tree))
	gone(t, tree)
	s.cancel(call.ID, http.StatusNotFound) // it has ended
	s.cancel("nothing", http.StatusNotFound)

	runs = ask("/execute/patient/sleep", "0.5")
	s.newest("running", func(c callRecord) bool { return c.State == "running" })
	cancelled := ask("/execute/patient/pid", "null")
	waiting("patient", 1)
	behind := ask("/execute/patient/echo", `"behind"`)
	waiting("patient", 2)
	call = of("pid")
	s.cancel(call.ID, http.StatusAccepted)
	refused(<-cancelled, 409, "cancelled")
	waiting("patient", 1)
	if a := <-runs; a.body != `"slept"` {
		t.Errorf("the running call: %s", a.body)
	}
	if a := <-behind; a.body != `"behind"` {
		t.Errorf("the call behind: %s", a.body)
	}
	s.fetch("/calls/"+call.ID, &call)
	if call.Outcome != "cancelled" || call.StartedAt != nil || call.WorkerPid != 0 || call.Cancel == nil || call.Cancel.By != "operator" {
		t.Errorf("%+v", call)
	}
}

// gone checks that nothing of a tree whose verdict was "empty" is left.
func gone(t *testing.T, tree []proc.Process) {
	t.Helper()
	for _, p := range tree {
		if p.There() {
			t.Errorf("left behind: %+v", p)
		}
	}
}
