package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"example.com/hangup/internal/proctest"
)

const (
	lots         = 100 << 20 // bytes of the replies that are not read to their end
	much         = 20 << 20  // of those that are: more than all buffers take
	firstBytes   = 64 << 10  // of them, before the first pause
	forgiven     = 20 * time.Second
	pauseTooLong = 35 * time.Second
	// slowMemory is how much the server may grow for all its slow readers, under the race
	// detector: with the replies in memory it were ten times as much.
	slowMemory = 96 << 20
)

// TestReaderPauses: who pauses for 20 s in the middle of a long reply gets all of it, who
// pauses for 35 s has hung up, and who takes a little all the time has not; the server
// holds none of their replies in memory.
func TestReaderPauses(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 40 s")
	}
	if os.Geteuid() != 0 {
		t.Skip("takes 40 s, and nothing of it depends on the user: it is tested in root's lane")
	}
	t.Parallel() // beside TestVanish alone: both do little but wait
	const workloads = "  py: {command: [python3, worker.py], workers: 12, spares: 0, stop: {grace: 200ms}, limits: {output: 0}}\n"
	var all sync.WaitGroup
	read := func(r *slowReader) {
		all.Go(func() {
			if err := r.how(r); err != nil {
				t.Errorf("%s: %v", r, err)
			}
		})
	}
	var memory []*peak
	for _, secure := range []bool{false, true} {
		settings := []string{everywhere}
		if secure {
			settings = append(settings, withTLS)
		}
		s := start(t, workloads, settings...)
		memory = append(memory, &peak{pid: s.pid, base: residentSize(t, s.pid)})
		for _, tr := range transports {
			if tr.secure != secure {
				continue
			}
			ways := []slowness{{"much", (*slowReader).pauses}, {"lots", (*slowReader).stalls}, {"lots", (*slowReader).sips}}
			for _, m := range ways {
				read(newSlowReader(s, tr, false, m))
			}
			if tr.h2 { // not a stream, but its connection
				for _, m := range ways[:2] {
					read(newSlowReader(s, tr, true, m))
				}
			}
		}
	}

	over := make(chan struct{})
	go func() { all.Wait(); close(over) }()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for waiting := true; waiting; {
		select {
		case <-over:
			waiting = false
		case <-tick.C:
		}
		for _, m := range memory {
			m.max = max(m.max, residentSize(t, m.pid))
		}
	}
	for _, m := range memory {
		t.Logf("the server grew by %d KiB from %d KiB", (m.max-m.base)>>10, m.base>>10)
		if m.max-m.base > slowMemory {
			t.Errorf("the server grew by %d bytes", m.max-m.base)
		}
	}
}

// slowness is how a reply is read.
type slowness struct {
	task string // which replies
	read func(*slowReader) error
}

// slowReader is a caller with a long reply.
type slowReader struct {
	s     *server
	tr    transport
	path  string
	whole bool // it is the whole connection of HTTP/2 that is not read
	how   func(*slowReader) error

	conn   *valve
	call   callRecord
	body   io.Reader // HTTP/1.1
	stream *h2stream // HTTP/2
	taken  int64     // of the stream
}

func (r *slowReader) String() string {
	if r.whole {
		return r.tr.name + ", the connection"
	}
	return r.tr.name
}

// valve is a connection that is not read while it is shut.
type valve struct {
	net.Conn
	shut sync.Mutex // held while it is
}

func (v *valve) Read(b []byte) (int, error) {
	n, err := v.Conn.Read(b)
	v.shut.Lock() // waits; what came meanwhile is not much
	defer v.shut.Unlock()
	return n, err
}

// newSlowReader makes the call.
func newSlowReader(s *server, tr transport, whole bool, how slowness) *slowReader {
	s.t.Helper()
	r := &slowReader{s: s, tr: tr, whole: whole, how: how.read, path: "/execute/py/" + how.task}
	before := s.known()
	c, err := tr.dial(s)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	r.conn = &valve{Conn: c}
	if tr.h2 {
		err = r.beginH2()
	} else {
		_, err = io.WriteString(c, request(r.path, "Content-Length: 0\r\n", ""))
	}
	if err != nil {
		s.t.Fatal(err)
	}
	r.call = s.newest("running", func(c callRecord) bool { return !before[c.ID] && c.State == "running" })
	return r
}

// beginH2 makes the call on a connection of its own. What comes of the reply is not
// acknowledged by a larger window of the stream, until the rest is read.
func (r *slowReader) beginH2() error {
	h, err := newH2(r.conn)
	if err != nil {
		return err
	}
	h.patience = time.Minute // for all of the reply
	if r.stream, err = h.request("POST", r.path, true); err != nil {
		return err
	}
	h.mu.Lock()
	r.stream.unread = true
	h.mu.Unlock()
	if r.whole { // the window of the stream is never in the way
		return r.widen(2 * lots)
	}
	return nil
}

func (r *slowReader) widen(n int) error {
	return r.stream.c.frame(func() error { return r.stream.c.out.WriteWindowUpdate(r.stream.id, uint32(n)) })
}

// take reads so many bytes more.
func (r *slowReader) take(n int) error {
	if r.stream == nil {
		if r.body == nil {
			reply, err := http.ReadResponse(bufio.NewReader(r.conn), nil)
			if err != nil {
				return err
			}
			r.body = reply.Body
		}
		_, err := io.CopyN(io.Discard, r.body, int64(n))
		return err
	}
	if !r.whole {
		if err := r.widen(n); err != nil {
			return err
		}
	}
	r.taken += int64(n)
	return r.stream.await(func() bool { return r.stream.size >= r.taken })
}

// rest reads all that is left.
func (r *slowReader) rest() (err error) {
	if r.stream == nil {
		var n int64
		n, err = io.Copy(io.Discard, r.body)
		r.taken += n
		return err
	}
	if !r.whole {
		r.stream.c.mu.Lock()
		r.stream.unread = false
		r.stream.c.mu.Unlock()
		if err := r.widen(1 << 20); err != nil {
			return err
		}
	}
	if _, _, err := r.stream.whole(); err != nil {
		return err
	}
	r.taken = r.stream.size
	return nil
}

// stop takes a little and then no more. To continue is to open the valve.
func (r *slowReader) stop() error {
	if err := r.take(firstBytes); err != nil {
		return err
	}
	if r.stream == nil || r.whole {
		r.conn.shut.Lock()
	}
	return nil
}

func (r *slowReader) resume() {
	if r.stream == nil || r.whole {
		r.conn.shut.Unlock()
	}
}

// pauses stops for as long as is forgiven, and must get the whole reply.
func (r *slowReader) pauses() error {
	if err := r.stop(); err != nil {
		return err
	}
	time.Sleep(forgiven) // the pause is the test
	r.resume()
	if err := r.rest(); err != nil {
		return fmt.Errorf("after a pause of %v: %w", forgiven, err)
	}
	if r.stream == nil {
		r.taken += firstBytes
	}
	if r.taken != much {
		return fmt.Errorf("%d bytes came of %d", r.taken, much)
	}
	return r.ends(func(c callRecord) error {
		if c.Outcome != "done" {
			return fmt.Errorf("it has all of its reply: %+v", c)
		}
		return nil
	})
}

// stalls stops for good.
func (r *slowReader) stalls() error {
	if err := r.stop(); err != nil {
		return err
	}
	defer r.resume()
	stopped := time.Now()
	err := r.ends(func(c callRecord) error {
		if c.Outcome != "cancelled" || c.Cancel.By != "caller" || !c.Cancel.Empty {
			return fmt.Errorf("it reads no more: %+v", c)
		}
		took := c.Cancel.NoticedAt.Sub(stopped)
		r.s.t.Logf("%s: given up after %v", r, took.Round(time.Millisecond))
		if took <= forgiven || took > pauseTooLong+lateBy {
			return fmt.Errorf("given up after %v, want %v", took, pauseTooLong)
		}
		return nil
	})
	if err != nil || r.stream == nil || r.whole {
		return err
	}
	next, err := r.stream.c.request("POST", "/execute/py/echo", true) // the connection lives
	if err != nil {
		return err
	}
	status, _, err := next.whole()
	if err == nil && status != "200" {
		err = fmt.Errorf("the next call on its connection: %s", status)
	}
	return err
}

// sips takes a little all the time, for longer than anybody may pause, and then leaves.
func (r *slowReader) sips() error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(pauseTooLong + time.Second); time.Now().Before(end); <-tick.C {
		if err := r.take(1 << 10); err != nil {
			return fmt.Errorf("it reads all the time: %w", err)
		}
	}
	left := time.Now()
	r.conn.Close()
	return r.ends(func(c callRecord) error {
		if c.Outcome != "cancelled" || c.Cancel.NoticedAt.Before(left) {
			return fmt.Errorf("before it left: %+v", c)
		}
		return nil
	})
}

// ends waits for the end of the call, and judges it.
func (r *slowReader) ends(right func(callRecord) error) error {
	for end := time.Now().Add(pauseTooLong + proctest.Patience); ; {
		code, body := r.s.get("/calls/" + r.call.ID)
		var c callRecord
		if err := json.Unmarshal(body, &c); err != nil {
			return fmt.Errorf("GET /calls/%s: %d %s", r.call.ID, code, body)
		}
		if c.State == "ended" && (c.Outcome != "cancelled" || c.Cancel != nil) {
			return right(c)
		}
		if time.Now().After(end) {
			return fmt.Errorf("it has not ended: %+v", c)
		}
		time.Sleep(500 * time.Millisecond) // there is nobody to tell, and to ask costs the others
	}
}

// peak is how large a process has been.
type peak struct {
	pid       int
	base, max int64
}

// residentSize is how much memory a process has, in bytes.
func residentSize(t *testing.T, pid int) int64 {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.ParseInt(string(bytes.Fields(data)[1]), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}
