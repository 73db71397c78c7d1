package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"example.com/hangup/internal/connwatch"
	"example.com/hangup/internal/proc"
	"example.com/hangup/internal/proctest"
)

// noticedWithin is the promise: how long after the caller left its call is
// decided to end.
const noticedWithin = 100 * time.Millisecond

// lateBy is how much later one of many cases may be on a busy machine.
const lateBy = 2 * time.Second

// phase is where a call is when its caller leaves.
type phase string

const (
	receiving phase = "receiving" // its body is not in yet, and a worker is free
	queued    phase = "queued"    // every worker is busy
	running   phase = "running"
	replying  phase = "replying" // its reply is being streamed
)

var phases = []phase{receiving, queued, running, replying}

// large is a body that is not in memory alone, at the server.
const large = 8 << 20

var (
	second = request("/execute/py/pid", "Content-Length: 4\r\n", "null")

	forms = []form{
		{name: "no body"},
		{name: "body", length: 5, body: `"abc"`},
		{name: "8 MiB", length: large, body: strings.Repeat("x", large)},
		{name: "stray byte behind", length: 5, body: `"abc"`, behind: "P"},
		{name: "second request behind", length: 5, body: `"abc"`, behind: second},
		{
			name: "more than allowed behind", length: 5, body: `"abc"`,
			behind: strings.Repeat(second, (connwatch.MaxBehind+4097+2*16<<10)/len(second)+1),
		},
		{
			name: "8 MiB on its way", partial: true, length: large + 1,
			body: strings.Repeat("x", 1<<20), late: strings.Repeat("x", large-1<<20),
		},
		{name: "body half sent", partial: true, length: 200_000, body: strings.Repeat("x", 100_000)},
		{name: "body not begun", partial: true, length: 5},
		{name: "chunk half sent", partial: true, length: -1, body: `"abc"`},
		{name: "100-continue pending", partial: true, length: 5, expect: true},
	}
)

// TestHangUp: by whatever way a caller has come, whatever it has sent, and wherever
// its call is: when it leaves, that is noticed; a call that waits is never started, one
// that runs is stopped with its whole tree, and what lay behind it never starts.
func TestHangUp(t *testing.T) {
	const workloads = `
  full: {command: [python3, worker.py], workers: 1, spares: 0, stop: {grace: 200ms}}
  py: {command: [python3, worker.py], workers: 2, spares: 2, stop: {grace: 200ms}}
`
	var all []time.Duration
	for _, secure := range []bool{false, true} {
		settings := []string{everywhere}
		if secure {
			settings = append(settings, withTLS)
		}
		s := start(t, workloads, settings...)
		busy, err := transport{dial: (*server).dialUnix}.caller(s)
		if err == nil {
			err = busy.begin("/execute/full/sleeps", form{})
		}
		if err != nil {
			t.Fatal(err)
		}
		s.newest("running", func(c callRecord) bool { return c.State == "running" })
		for _, tr := range transports {
			if tr.secure == secure && !(proctest.SecondLane() && (tr.secure || tr.local)) { // the kinds of sockets are the same for any user
				all = append(all, hangUps(t, s, tr)...)
			}
		}
		busy.leave(fin)
		for _, c := range s.calls() {
			if c.Task == "pid" {
				t.Errorf("a request behind another was started: %+v", c)
			}
		}
	}
	t.Logf("all: noticed after %s", spread(all))
	if p50 := percentile(all, 50); p50 > noticedWithin {
		t.Errorf("hang-ups are noticed after %v, want %v", p50, noticedWithin)
	}
}

// hangUps leaves a server in every way that a transport has, and returns how long the
// server took to notice each.
func hangUps(t *testing.T, s *server, tr transport) (all []time.Duration) {
	for _, at := range phases {
		for _, f := range forms {
			if f.partial && (at == running || at == replying) || !f.partial && at == receiving || f.behind != "" && tr.h2 {
				continue
			}
			manners := tr.manners()
			if len(f.behind) > connwatch.MaxBehind {
				manners = append(slices.Clip(manners), stays)
			}
			for _, m := range manners {
				t.Run(fmt.Sprintf("%s/%s/%s/%s", tr.name, at, f.name, m.name), func(t *testing.T) {
					p := &parting{t: t, s: s, transport: tr, at: at, form: f, manner: m}
					all = append(all, p.run())
				})
			}
		}
	}
	t.Logf("%s: noticed after %s", tr.name, spread(all))
	return all
}

// TestHangUpUnderLoad prints how long it takes to notice a caller that leaves while
// others make call after call. How much that is, on a busy machine, is no matter of a
// test; that each is noticed is.
func TestHangUpUnderLoad(t *testing.T) {
	proctest.OneLane(t, "a connection belongs to the server, whoever it is")
	const neighbours, each = 4, 10
	all := map[string][]time.Duration{}
	for _, secure := range []bool{false, true} {
		settings := []string{everywhere}
		if secure {
			settings = append(settings, withTLS)
		}
		s := start(t, `
  loaded: {command: [python3, worker.py], workers: 2, spares: 0, stop: {grace: 200ms}}
  py: {command: [python3, worker.py], workers: 2, spares: 2, stop: {grace: 200ms}}
`, settings...)
		for range neighbours {
			defer s.neighbour("loaded")()
		}
		for _, tr := range transports {
			if tr.secure != secure {
				continue
			}
			for n := range each {
				for _, at := range []phase{receiving, running, replying} {
					f := forms[1]
					if at == receiving {
						f = forms[slices.IndexFunc(forms, func(f form) bool { return f.partial })]
					}
					m := tr.manners()[n%len(tr.manners())]
					took := (&parting{t: t, s: s, transport: tr, at: at, form: f, manner: m, light: true}).run()
					all[tr.name] = append(all[tr.name], took)
				}
			}
		}
	}
	var together []time.Duration
	for _, tr := range transports {
		t.Logf("%s: noticed after %s", tr.name, spread(all[tr.name]))
		together = append(together, all[tr.name]...)
	}
	t.Logf("under load: noticed after %s (promised: %v)", spread(together), noticedWithin)
}

// parting is one case of TestHangUp.
type parting struct {
	t  *testing.T
	s  *server
	at phase
	transport
	form
	manner
	light  bool     // the work has no family
	task   string   // in place of the one that is usual in this phase
	deaf   bool     // nothing the server says gets through to it
	shares *parting // whose connection it uses
	caller caller
}

// alone tells whether the work has no family. Whether all of a tree dies does not
// depend on how the caller came: by TCP it has one.
func (p *parting) alone() bool { return p.light || p.task != "" || p.secure || p.h2 || p.local }

// path is the work that is left.
func (p *parting) path() string {
	tasks := map[phase]string{receiving: "py/sleeps", queued: "full/sleeps", running: "py/sleeps", replying: "py/pours"}
	if !p.alone() {
		tasks = map[phase]string{receiving: "py/tree", queued: "full/tree", running: "py/tree", replying: "py/streams"}
	}
	if p.task != "" {
		return "/execute/" + p.task
	}
	return "/execute/" + tasks[p.at]
}

// run makes the call, leaves it, checks what became of it, and returns how long
// the server took to notice.
func (p *parting) run() time.Duration {
	before := p.s.known()
	call, tree := p.begin()
	listens := p.manner.reads || p.reset != nil // it reads below
	if p.at == replying && !listens {
		p.caller.drain()
	}

	left := time.Now()
	p.caller.proceed(p.form)
	if len(p.behind) <= connwatch.MaxBehind {
		left = time.Now()
	}
	p.caller.leave(p.manner)
	p.s.eventually("the evidence", func() bool {
		p.s.fetch("/calls/"+call.ID, &call)
		return call.State == "ended" && call.Cancel != nil
	})
	p.checkRecord(call, tree)
	if listens && p.reset == nil {
		p.checkSilence()
	}
	for _, c := range p.s.calls() {
		if !before[c.ID] && c.ID != call.ID && !p.light { // else there are others'
			p.t.Errorf("another call came of it: %+v", c)
		}
	}
	took := call.Cancel.NoticedAt.Sub(left)
	if took > noticedWithin+lateBy {
		p.t.Errorf("noticed after %v", took)
	}
	return took
}

// begin makes the call, on a connection of its own if it has none yet, and returns it when
// it is in its phase, with what must die.
func (p *parting) begin() (call callRecord, tree []proc.Process) {
	p.t.Helper()
	before := p.s.known()
	p.connect()
	if err := p.caller.begin(p.path(), p.form); err != nil {
		p.t.Fatal(err)
	}
	call = p.s.find("in its phase", func(c callRecord) bool {
		return !before[c.ID] && c.Workload != "loaded" && p.inPhase(c)
	})
	if p.expect && !p.deaf {
		p.must(p.caller.head("100"))
	}
	if call.WorkerPid != 0 {
		tree = p.tree(call.WorkerPid)
	}
	if p.at == replying {
		p.must(p.caller.head("200"))
	}
	return call, tree
}

// connect opens the connection, unless there is one.
func (p *parting) connect() {
	p.t.Helper()
	if p.caller != nil {
		return
	}
	if p.shares != nil {
		p.caller = &h2caller{conn: p.shares.caller.(*h2caller).conn}
		return
	}
	var err error
	if p.caller, err = p.transport.caller(p.s); err != nil {
		p.t.Fatal(err)
	}
}

// known is the ids of the calls so far.
func (s *server) known() map[string]bool {
	s.t.Helper()
	ids := map[string]bool{}
	for _, c := range s.calls() {
		ids[c.ID] = true
	}
	return ids
}

func (p *parting) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *parting) inPhase(c callRecord) bool {
	switch p.at {
	case receiving:
		return c.State == "queued"
	case queued:
		return c.State == "queued" && (p.partial || p.s.pool("full").Queued > 0)
	default:
		return c.State == "running"
	}
}

// tree is what must die with the worker.
func (p *parting) tree(pid int) []proc.Process {
	p.t.Helper()
	if !p.alone() {
		return p.s.family(pid)
	}
	for _, one := range proc.Look(p.s.pid) {
		if one.Pid == pid {
			return []proc.Process{one}
		}
	}
	p.t.Fatalf("the worker %d is not there", pid)
	return nil
}

// checkRecord checks what is told of the call, and that nothing of the tree is left.
func (p *parting) checkRecord(c callRecord, tree []proc.Process) {
	p.t.Helper()
	if c.Outcome != "cancelled" || c.Cancel.By != "caller" || !c.Cancel.Empty || len(c.Cancel.Survivors) > 0 {
		p.t.Errorf("%+v, %+v", c, *c.Cancel)
	}
	if p.at == receiving || p.at == queued {
		if c.StartedAt != nil || c.WorkerPid != 0 || c.Cancel.Killed != 0 || len(c.Cancel.Steps) != 0 {
			p.t.Errorf("it was started: %+v, %+v", c, *c.Cancel)
		}
		return
	}
	checkKill(p.t, c, len(tree))
	for _, one := range tree {
		if one.There() { // the verdict said that it is not
			p.t.Errorf("left behind: %+v", one)
		}
	}
}

// checkKill checks the evidence that a tree of so many processes was killed.
func checkKill(t *testing.T, c callRecord, size int) {
	t.Helper()
	steps := c.Cancel.Steps
	if len(steps) != 2 || steps[0].Step != "signal" || steps[1].Step != "kill" || steps[0].AtMs > steps[1].AtMs || steps[1].AtMs > c.Cancel.EmptyMs {
		t.Errorf("steps %+v, empty after %v ms", steps, c.Cancel.EmptyMs)
	}
	if c.Cancel.Killed < size {
		t.Errorf("%d were killed of %d", c.Cancel.Killed, size)
	}
	if bound := 200*time.Millisecond + 250*time.Millisecond + lateBy; c.Cancel.EmptyMs > float64(bound.Milliseconds()) {
		t.Errorf("empty after %v ms", c.Cancel.EmptyMs)
	}
}

// checkSilence checks that a caller who can still read gets nothing more, and
// no whole reply.
func (p *parting) checkSilence() {
	p.t.Helper()
	size, whole, err := p.caller.rest()
	if err != nil {
		p.t.Errorf("the connection is not closed: %v", err)
	}
	if p.at != replying && size > 0 || whole {
		p.t.Errorf("it was replied to: %d bytes, to the end: %v", size, whole)
	}
}

// family waits until the task of testdata's worker has all its descendants, and
// returns the whole tree, without its shim.
func (s *server) family(pid int) (tree []proc.Process) {
	s.t.Helper()
	s.eventually("the whole family", func() bool {
		shim := 0
		for _, p := range proc.Look(s.pid) {
			if p.Pid == pid {
				shim = p.Parent
			}
		}
		tree = proc.Look(shim)[1:]
		sleeps, orphans := 0, 0
		for _, p := range tree {
			if p.Command == "sleep 1000" {
				sleeps++
			}
			if p.Parent == shim && p.Pid != pid && p.Session == p.Pid {
				orphans++
			}
		}
		return sleeps == 2 && orphans == 1
	})
	return tree
}

// pool is the workload of that name as it stands.
func (s *server) pool(name string) workload {
	s.t.Helper()
	for _, w := range s.workloads() {
		if w.Name == name {
			return w
		}
	}
	s.t.Fatalf("no workload %s", name)
	return workload{}
}

func percentile(times []time.Duration, p int) time.Duration {
	if len(times) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(times))
	return sorted[(len(sorted)-1)*p/100]
}

func spread(times []time.Duration) string {
	return fmt.Sprintf("p50 %v, p99 %v, max %v of %d",
		percentile(times, 50), percentile(times, 99), percentile(times, 100), len(times))
}

// TestHangUpAtTheEdge: callers leave just as their call is dispatched, as its work
// ends, and while the reply is on its way. Each call has one outcome, and no
// reply goes to anybody else, with workers that are killed and with workers that
// stay warm.
func TestHangUpAtTheEdge(t *testing.T) {
	s := start(t, `
  warm: {command: [python3, worker.py], workers: 3, spares: 1, stop: {cooperative: 5s, grace: 100ms}}
  cold: {command: [python3, worker.py], workers: 3, spares: 2, stop: {grace: 100ms}}
`)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	var e edge
	var leavers, stayers sync.WaitGroup
	done := make(chan struct{})
	for n, pool := range []struct {
		name   string
		rounds int
	}{{"warm", 300}, {"cold", 36}} {
		stayers.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-done:
					return
				default:
					e.stay(s, pool.name, fmt.Sprintf("stays-%d-%d", n, i))
				}
			}
		})
		for leaver := range 2 {
			leavers.Go(func() {
				random := rand.New(rand.NewPCG(seed, uint64(2*n+leaver)))
				for i := range pool.rounds / 2 {
					e.leave(s, pool.name, i%3, fmt.Sprintf("leaves-%d-%d-%d", n, leaver, i), random)
				}
			})
		}
	}
	leavers.Wait()
	close(done)
	stayers.Wait()
	s.eventually("at rest", s.atRest)

	outcome := func(name string) int { return int(s.metric(fmt.Sprintf("hangup_calls_total{outcome=%q", name))) }
	total, finished, cancelled := int(s.metric("hangup_calls_total")), outcome("done"), outcome("cancelled")
	t.Logf("%d stayed, %d left, of which the server may have missed %d; %d done, %d cancelled",
		e.stayed.Load(), e.left.Load(), e.unseen.Load(), finished, cancelled)
	if most := int(e.stayed.Load() + e.left.Load()); total > most || total < most-int(e.unseen.Load()) {
		t.Errorf("%d outcomes of %d calls, %d of which the server may have missed", total, most, e.unseen.Load())
	}
	if finished+cancelled != total {
		t.Errorf("%d calls ended in another way", total-finished-cancelled)
	}
	if finished <= int(e.stayed.Load()) || cancelled < int(e.left.Load())/10 {
		t.Errorf("this did not meet the edge from both sides")
	}
	s.checkLog(total, cancelled)
}

// checkLog checks that so many calls have ended, each once, and that so many
// left one record of evidence, each showing that nothing is left.
func (s *server) checkLog(ended, cancelled int) {
	s.t.Helper()
	s.eventually("all records", func() bool {
		return len(s.records("call ended")) >= ended && len(s.records("call cancelled")) >= cancelled
	})
	for msg, want := range map[string]int{"call ended": ended, "call cancelled": cancelled} {
		times := map[any]int{}
		for _, r := range s.records(msg) {
			times[r["call"]]++
			if times[r["call"]] > 1 || msg == "call cancelled" && r["empty"] != true {
				s.t.Errorf("%v", r)
			}
		}
		if len(times) != want {
			s.t.Errorf("%q is told of %d calls, want %d", msg, len(times), want)
		}
	}
}

// edge counts the callers of TestHangUpAtTheEdge.
type edge struct{ stayed, left, unseen atomic.Int64 }

// stay makes one call and must get its own reply.
func (e *edge) stay(s *server, pool, nonce string) {
	e.stayed.Add(1)
	reply, body, err := s.try("/execute/"+pool+"/answers", fmt.Sprintf(`{"seconds": 0.001, "nonce": %q, "times": 1}`, nonce))
	if err != nil || reply.StatusCode != http.StatusOK || body != nonce {
		s.t.Errorf("%s got %q, %v", nonce, body, err)
	}
}

// leave makes one call and leaves it at about the given edge.
func (e *edge) leave(s *server, pool string, at int, nonce string, random *rand.Rand) {
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		s.t.Error(err)
		return
	}
	defer c.Close()
	seconds, times, m := 0.0, 1, manners[random.IntN(len(manners))]
	pause := time.Duration(random.Int64N(int64(4 * time.Millisecond))) // dispatched
	switch at {
	case 1: // its work ends
		seconds = 0.02
		pause = 17*time.Millisecond + time.Duration(random.Int64N(int64(10*time.Millisecond)))
	case 2: // it is replied to
		times = 200_000
	}
	input := fmt.Sprintf(`{"seconds": %v, "nonce": %q, "times": %d}`, seconds, nonce, times)
	e.left.Add(1)
	if m.loses && at == 0 {
		e.unseen.Add(1)
	}
	io.WriteString(c, request("/execute/"+pool+"/answers", fmt.Sprintf("Content-Type: application/json\r\nContent-Length: %d\r\n", len(input)), input))
	if at == 2 {
		io.CopyN(io.Discard, c, 1+random.Int64N(int64(len(nonce)*times))) // of that and its head
	} else {
		time.Sleep(pause) // the timing is the test: nothing is waited for
	}
	m.leave(c)
	if !m.reads || at == 2 {
		return
	}
	// It may have been replied to before: then with its own.
	c.SetReadDeadline(time.Now().Add(proctest.Patience))
	reply, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) {
			return
		}
		s.t.Errorf("%s: %v", nonce, err)
		return
	}
	defer reply.Body.Close()
	if body, err := io.ReadAll(reply.Body); err == nil && (reply.StatusCode != http.StatusOK || string(body) != nonce) {
		s.t.Errorf("%s got %s %q", nonce, reply.Status, body)
	}
}

// TestLeaveWithTheReply: a caller that has its whole reply and leaves at once
// has not hung up. Its call is done, and its worker is not killed.
func TestLeaveWithTheReply(t *testing.T) {
	s := start(t, "  py: {command: [python3, worker.py], workers: 2, spares: 0, stop: {grace: 200ms}}\n")
	const callers, rounds = 2, 150
	var all sync.WaitGroup
	for range callers {
		all.Go(func() {
			for n := range rounds {
				body := strconv.Quote(strings.Repeat("x", 1<<(n%17))) // in one piece to the caller, or in several
				p, err := newPatient(s.addr)
				if err == nil {
					err = p.send(0, request("/execute/py/echo", fmt.Sprintf("Content-Type: application/json\r\nContent-Length: %d\r\n", len(body)), body))
				}
				if err == nil {
					err = p.expect(body)
					manners[n%len(manners)].leave(p.Conn)
					p.Close()
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	s.eventually("all over", func() bool { return s.metric("hangup_calls_total") == callers*rounds })
	if done := s.metric(`hangup_calls_total{outcome="done"`); done != callers*rounds {
		t.Errorf("%v calls of %d are done", done, callers*rounds)
	}
	taken := 0
	for _, w := range s.pool("py").Workers {
		taken += w.Calls
	}
	if taken != callers*rounds {
		t.Errorf("the workers have taken %d calls of %d: some are not those of the beginning", taken, callers*rounds)
	}
}
