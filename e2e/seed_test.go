package e2e

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.com/hangup/internal/proctest"
)

// seed is a workload of testdata/seed.py.
const seed = "  seed: {command: [python3, seed.py], workers: 4, spares: 2, stop: {grace: 200ms}}\n"

// TestCancelUnderLoad: a worker with an event loop, forked children and a program
// on a terminal is cancelled hundreds of times (HANGUP_TEST_CANCELS says how many) beside others who work. The server
// is the same process afterwards, with nothing more to its name; no caller but
// the one who hung up notices; and of all signals none has reached the server.
func TestCancelUnderLoad(t *testing.T) {
	cancels := 200
	if n, err := strconv.Atoi(os.Getenv("HANGUP_TEST_CANCELS")); err == nil {
		cancels = n
	}
	if os.Geteuid() != 0 || testing.Short() {
		cancels = 50 // an ordinary user cannot trace it: the same again, briefly
	}
	s := start(t, seed+python)
	signals := func() []string { return nil }
	t.Run("traced", func(t *testing.T) { signals = s.trace(t) })

	stop := make(chan struct{})
	var neighbours sync.WaitGroup
	var served atomic.Int64
	for i, path := range []string{"/execute/seed/late_echo", "/execute/py/late_echo", "/execute/py/late_echo"} {
		neighbours.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				in := fmt.Sprintf(`"%d of %d"`, n, i)
				reply, body, err := s.try(path, in)
				if err != nil || reply.StatusCode != http.StatusOK || body != in {
					t.Errorf("a neighbour, POST %s %s: %v %s", path, in, err, body)
					return
				}
				served.Add(1)
			}
		})
	}

	began := time.Now()
	var left atomic.Int64
	left.Store(int64(cancels))
	var callers sync.WaitGroup
	for range 4 {
		callers.Go(func() {
			for left.Add(-1) >= 0 {
				if err := s.hangUpOn("/execute/seed/story"); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	callers.Wait()
	took := time.Since(began)
	close(stop)
	neighbours.Wait()

	s.eventually("the records of all cancels", func() bool { return len(s.records("call cancelled")) >= cancels })
	var empty []float64
	for _, r := range s.records("call cancelled") {
		if r["by"] != "caller" || r["empty"] != true || r["proof"] != "ECHILD" || len(r["survivors"].([]any)) > 0 || r["killed"].(float64) < 1 {
			t.Errorf("the record of a cancel: %v", r)
		}
		empty = append(empty, r["empty_ms"].(float64))
	}
	if n := s.metric(`hangup_calls_total{outcome="cancelled",workload="seed"}`); n != float64(cancels) || len(empty) != cancels {
		t.Errorf("%v calls cancelled and %d records, want %d", n, len(empty), cancels)
	}
	t.Logf("%d cancels in %v beside %d calls of neighbours; from the decision to the proof, ms: p50 %.1f, p99 %.1f, most %.1f",
		cancels, took.Round(time.Millisecond), served.Load(), quantile(empty, 0.5), quantile(empty, 0.99), quantile(empty, 1))

	s.check()
	ours := fmt.Sprintf("SIGTERM from %d", s.cmd.Process.Pid) // the one that check has sent, handed on
	if got := signals(); got != nil && !slices.Equal(got, []string{ours}) {
		t.Errorf("the server has received %q, want %q", got, ours)
	}
}

// TestForkedChildHasNoWakeup: a signal to a forked child of a worker is not taken
// for one to the worker by the event loop there.
func TestForkedChildHasNoWakeup(t *testing.T) {
	s := start(t, seed)
	if r, body := s.post("/execute/seed/cancels_child", "null"); r.StatusCode != http.StatusOK || body != "[]" {
		t.Errorf("%s, the worker believes to have received %s", r.Status, body)
	}
}

// hangUpOn makes a streamed call and hangs up as soon as it says that it runs. It
// may be used from any goroutine.
func (s *server) hangUpOn(path string) error {
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, request(path, "Content-Length: 4\r\n", "null")); err != nil {
		return err
	}
	reply, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return err
	}
	word := make([]byte, 3)
	if _, err := io.ReadFull(reply.Body, word); err != nil || string(word) != "up\n" {
		return fmt.Errorf("POST %s: %s %q %v", path, reply.Status, word, err)
	}
	if rand.IntN(2) == 0 {
		conn.(*net.TCPConn).SetLinger(0) // RST in place of FIN
	}
	return nil
}

// quantile of a list, which it sorts.
func quantile(list []float64, q float64) float64 {
	if len(list) == 0 {
		return 0
	}
	slices.Sort(list)
	return list[int(q*float64(len(list)-1))]
}

var signalLine = regexp.MustCompile(`^--- (SIG\w+) \{.*si_code=(\w+)(?:, si_pid=(\d+))?`)

// trace begins to record every signal that the server receives. What it returns
// waits for the server's end and tells them, but for those of its children's
// deaths and those by which its runtime interrupts its own threads.
func (s *server) trace(t *testing.T) func() []string {
	t.Helper()
	strace := proctest.Need(t, "strace", "strace")
	if os.Geteuid() != 0 {
		t.Skip("only root may trace a server, which hides from its equals")
	}
	file := filepath.Join(s.dir, "signals")
	// The main thread alone: it is the one that the kernel gives a signal to which is sent
	// to the process. To follow the others would be to follow what they start.
	cmd := exec.Command(strace, "-e", "trace=none", "-e", "signal=all", "-o", file, "-p", strconv.Itoa(s.pid))
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(stderr)
	if line, err := lines.ReadString('\n'); !strings.Contains(line, " attached") {
		cmd.Process.Kill()
		cmd.Wait()
		proctest.Lack(t, "cannot trace the server: %s (%v)", line, err)
	}
	told := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, lines)
		cmd.Wait() // it ends as its tracee has ended
		told <- err
	}()
	return func() []string {
		if err := <-told; err != nil {
			t.Error(err)
		}
		data, err := os.ReadFile(file)
		if err != nil {
			t.Error(err)
		}
		got := []string{}
		for line := range strings.Lines(string(data)) {
			m := signalLine.FindStringSubmatch(line)
			switch {
			case m == nil, m[1] == "SIGCHLD", m[1] == "SIGURG" && m[2] == "SI_TKILL" && m[3] == strconv.Itoa(s.pid):
			default:
				got = append(got, m[1]+" from "+m[3])
			}
		}
		return got
	}
}
