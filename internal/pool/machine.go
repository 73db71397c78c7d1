package pool

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"example.com/hangup/internal/call"
	"example.com/hangup/internal/event"
)

// The machine of a pool: what is known of its workers and calls, and what is to
// be done next. It does nothing itself. [machine.step] takes one input and
// appends effects; loop.go carries them out and feeds back what came of them.

// gone is the state of a worker that has left the pool.
const gone event.WorkerState = ""

// trigger is what happens to one worker.
type trigger string

const (
	started        trigger = "started"        // it says it is ready
	unborn         trigger = "unborn"         // it could not be started at all
	startFailed    trigger = "start-failed"   // it did not become ready
	assigned       trigger = "assigned"       // it is given a call
	finished       trigger = "finished"       // the call ended, the worker is sound
	broke          trigger = "broke"          // it died, broke the protocol or a limit
	asked          trigger = "asked"          // the call was cancelled, and the worker is asked to stop it
	killed         trigger = "killed"         // the call was cancelled, and the stop sequence runs
	acknowledged   trigger = "acknowledged"   // it has stopped that call and is idle, proved
	unacknowledged trigger = "unacknowledged" // it has not, in time
	exited         trigger = "exited"         // its main process is gone
	retired        trigger = "retired"        // the pool wants it no more
	survived       trigger = "survived"       // the verdict: its tree is not empty yet
	emptied        trigger = "emptied"        // the verdict: nothing is left of it
)

// transition is one row of the table.
type transition struct {
	from event.WorkerState
	on   trigger
	to   event.WorkerState
	do   action
}

// transitions is all that can happen to a worker. What is not in it is illegal.
// docs/states.md is generated from it.
var transitions = []transition{
	{event.Starting, started, event.Idle, nothing},
	{event.Starting, unborn, gone, nothing},
	{event.Starting, startFailed, event.Dying, stop},
	{event.Starting, exited, event.Starting, nothing}, // start-failed follows
	{event.Idle, assigned, event.Busy, handOver},
	{event.Idle, exited, event.Dying, stop},
	{event.Idle, retired, event.Dying, stop},
	{event.Busy, finished, event.Idle, nothing},
	{event.Busy, broke, event.Dying, stop},
	{event.Busy, asked, event.Cancelling, ask},
	{event.Busy, killed, event.Dying, stop},
	{event.Busy, exited, event.Busy, nothing}, // the call's own end follows
	{event.Cancelling, acknowledged, event.Idle, nothing},
	{event.Cancelling, unacknowledged, event.Dying, stop},
	{event.Cancelling, exited, event.Cancelling, nothing}, // unacknowledged follows
	{event.Dying, exited, event.Dying, nothing},
	{event.Dying, survived, event.Dying, nothing},
	{event.Dying, emptied, gone, nothing},
	{gone, exited, gone, nothing}, // the news was slower than the verdict
}

// action is what the loop is to do.
type action string

const (
	nothing  action = ""
	admit    action = "admit"     // tell the call it has a place
	refuse   action = "refuse"    // tell the call no, with effect.err
	release  action = "release"   // tell the call that its leaving is noted
	wait     action = "wait"      // send waitOver after effect.after
	handOver action = "hand-over" // give the call the worker
	launch   action = "launch"    // start the worker
	ask      action = "ask"       // ask the worker to stop its call
	stop     action = "stop"      // run the stop sequence on the worker
	abort    action = "abort"     // give the worker's start up
	retry    action = "retry"     // report the failed start, send retryNow after effect.after
	change   action = "change"    // report the worker's new state
)

type effect struct {
	do     action
	call   *ticket
	worker *worker
	from   event.WorkerState // change
	why    trigger           // change
	err    error             // refuse
	after  time.Duration     // wait, retry
}

// what an input says.
type what string

const (
	// of a call
	placeAsked what = "place-asked" // its headers are in
	bodyIn     what = "body-in"     // its body is, too
	left       what = "left"        // it goes, not having been handed a worker as far as it knows
	waitOver   what = "wait-over"   // queue.wait is over
	cancelled  what = "cancelled"   // its context ended while it ran
	returned   what = "returned"    // the worker's Do has returned; ok: the worker is sound
	givenBack  what = "given-back"  // it does not want the worker any more, and has not used it
	declined   what = "declined"    // the worker turned out to be broken before it was used
	// of a worker
	workerStarted what = "worker-started"
	workerFailed  what = "worker-failed" // to start; ok: nothing is left of it
	workerExited  what = "worker-exited"
	workerAsked   what = "worker-asked"   // the answer; ok: acknowledged
	workerStopped what = "worker-stopped" // the verdict; ok: empty
	// of the pool
	retryNow what = "retry-now"
	drain    what = "drain"  // no new calls
	retire   what = "retire" // and no workers but those that the calls inside need
	shut     what = "shut"   // no workers at all
)

type input struct {
	what   what
	call   *ticket
	worker *worker
	ok     bool
	err    error // worker-failed: why
	now    time.Time
}

// seat is where a call stands in the pool.
type seat string

const (
	outside   seat = ""          // not in the pool, or no longer
	receiving seat = "receiving" // it has a place, its body is arriving
	waiting   seat = "waiting"   // in the queue
	running   seat = "running"   // paired with a worker
)

// ticket is a call in the pool. The machine owns the first block, the loop and
// the call's own goroutine the second.
type ticket struct {
	seat   seat
	place  *list.Element // in machine.queue while waiting
	worker *worker       // while running

	call    *call.Call
	answer  chan answer
	timer   *time.Timer // of its waiting
	cause   error       // why it was cancelled
	decided time.Time   // when it was
}

// worker is a worker of the pool. The machine owns the first block, the loop
// the second.
type worker struct {
	id     uint64 // its generation
	state  event.WorkerState
	call   *ticket // while busy
	calls  int     // calls it has taken
	exited bool    // its main process is gone
	unmade bool    // its start is being given up
	stuck  bool    // it is in quarantine: a verdict on its tree was not empty
	born   time.Time

	handle  Worker
	info    Info
	abandon context.CancelFunc // gives the start up
	ending  ending             // what its stop is for
}

// phase is where a pool stands in its own life.
type phase int

const (
	open phase = iota
	draining
	retiring // ends by itself, after the last call
	shutting // ends after the last worker
)

// The back-off of a workload whose workers do not start (promise P8).
const (
	firstBackoff = time.Second
	maxBackoff   = time.Minute
	// forgetAfter is how long a pool without a failed start must be to begin at
	// firstBackoff again.
	forgetAfter = 2 * maxBackoff
)

type machine struct {
	limit, spares, queueLength int
	queueWait                  time.Duration
	cooperative                bool

	phase   phase
	workers []*worker                 // in the order of their start
	idle    []*worker                 // a stack: the warmest is on top
	count   map[event.WorkerState]int // of workers
	stuck   int                       // workers in quarantine
	queue   *list.List                // of tickets waiting
	seats   int                       // calls in the pool: receiving, waiting and running
	lastID  uint64

	failures    int       // starts that failed one after the other
	lastFailure time.Time // the newest of them
	reason      error     // and why it failed
	retryAt     time.Time // no start before it; zero: none is awaited

	effects []effect
}

func newMachine(o Options) *machine {
	return &machine{
		limit: o.Limit, spares: o.Spares, queueLength: o.QueueLength, queueWait: o.QueueWait,
		cooperative: o.Cooperative > 0,
		count:       map[event.WorkerState]int{}, queue: list.New(),
	}
}

// step applies one input and returns what is to be done, valid until the next
// step. An input that cannot happen changes nothing and is an error.
func (m *machine) step(in input) ([]effect, error) {
	m.effects = m.effects[:0]
	err := m.apply(in)
	m.settle(in.now)
	if (in.what == bodyIn || in.what == declined) && in.call.seat == waiting {
		m.do(effect{do: wait, call: in.call, after: m.queueWait})
	}
	return m.effects, err
}

func (m *machine) apply(in input) error {
	switch in.what {
	case placeAsked:
		m.seatCall(in.call, in.now)
	case bodyIn:
		if in.call.seat != receiving {
			return m.illegal(in)
		}
		in.call.seat = waiting
		in.call.place = m.queue.PushBack(in.call)
	case left:
		// A call that has been handed a worker meanwhile will find it.
		if in.call.seat == receiving || in.call.seat == waiting {
			m.unseat(in.call)
			m.do(effect{do: release, call: in.call})
		}
	case waitOver:
		if in.call.seat == waiting { // else the timer is late
			m.unseat(in.call)
			m.refuse(in.call, call.ErrQueueTimeout, time.Second)
		}
	case cancelled:
		if in.call.seat != running {
			return m.illegal(in)
		}
		w := m.unpair(in.call)
		if m.cooperative && !w.exited {
			return m.move(w, asked, in.now)
		}
		return m.move(w, killed, in.now)
	case returned:
		if in.call.seat != running {
			return m.illegal(in)
		}
		w := m.unpair(in.call)
		if in.ok && !w.exited {
			m.failures, m.reason = 0, nil
			return m.move(w, finished, in.now)
		}
		return m.move(w, broke, in.now)
	case givenBack:
		if in.call.seat != running {
			return m.illegal(in)
		}
		w := m.unpair(in.call)
		w.calls--
		if !w.exited {
			return m.move(w, finished, in.now)
		}
		return m.move(w, broke, in.now)
	case declined:
		if in.call.seat != running {
			return m.illegal(in)
		}
		w := m.detach(in.call)
		w.calls--
		in.call.seat = waiting
		in.call.place = m.queue.PushFront(in.call)
		return m.move(w, broke, in.now)
	case workerStarted:
		if err := m.move(in.worker, started, in.now); err != nil || !in.worker.exited {
			return err
		}
		return m.exit(in.worker, in.now)
	case workerFailed:
		m.failed(in.worker, in.err, in.now)
		if in.ok {
			return m.move(in.worker, unborn, in.now)
		}
		return m.move(in.worker, startFailed, in.now)
	case workerExited:
		in.worker.exited = true
		return m.exit(in.worker, in.now)
	case workerAsked:
		if in.ok && !in.worker.exited {
			return m.move(in.worker, acknowledged, in.now)
		}
		return m.move(in.worker, unacknowledged, in.now)
	case workerStopped:
		if in.ok {
			return m.buried(in.worker, in.now)
		}
		return m.quarantine(in.worker, in.now)
	case retryNow:
		if !in.now.Before(m.retryAt) { // else the timer is of an older failure
			m.retryAt = time.Time{}
		}
	case drain:
		m.phase = max(m.phase, draining)
	case retire:
		m.phase = max(m.phase, retiring)
	case shut:
		m.phase = shutting
	default:
		return m.illegal(in)
	}
	return nil
}

// errUnused is why a pool is down whose workers are ready and then exit.
var errUnused = errors.New("the worker exited before its first call")

// exit moves a worker whose main process is gone.
func (m *machine) exit(w *worker, now time.Time) error {
	if w.state == event.Idle && w.calls == 0 {
		m.failed(w, errUnused, now) // a crash loop, too
	}
	return m.move(w, exited, now)
}

// settle does what follows from the state alone: waiting calls get workers,
// missing workers get started, and a pool that is shut lets go of everything.
func (m *machine) settle(now time.Time) {
	if m.phase == shutting || m.down(now) {
		cause, after := m.errClosed(), time.Second
		if m.phase != shutting {
			after, cause = m.errDown(now)
		}
		for m.queue.Len() > 0 {
			t := m.queue.Front().Value.(*ticket)
			m.unseat(t)
			m.refuse(t, cause, after)
		}
	}
	if m.phase == shutting {
		m.letGo(now)
		return
	}
	for m.queue.Len() > 0 && len(m.idle) > 0 && m.count[event.Busy] < m.limit {
		m.pair(m.queue.Front().Value.(*ticket), m.idle[len(m.idle)-1], now)
	}
	if m.retryAt.IsZero() && m.stuck < m.maxStuck() {
		for m.alive() < m.want() && len(m.workers)-m.stuck < m.want()+m.maxDying() {
			m.start(now)
		}
	}
	if m.phase == retiring {
		m.letGo(now)
	}
}

// letGo has the workers go that nobody will need: idle ones, the coldest first,
// and then those that start.
func (m *machine) letGo(now time.Time) {
	for len(m.idle) > 0 && m.alive() > m.want() {
		m.must(m.idle[0], retired, now)
	}
	surplus := m.alive() - m.want()
	for _, w := range m.workers {
		if w.unmade {
			surplus--
		}
	}
	for _, w := range slices.Backward(m.workers) {
		if surplus > 0 && w.state == event.Starting && !w.unmade {
			w.unmade = true
			m.do(effect{do: abort, worker: w})
			surplus--
		}
	}
}

// full is how many workers a pool has at most alive: one a running call, and the spares.
func (m *machine) full() int { return m.limit + m.spares }

// want is how many workers a pool keeps alive. One that ends keeps them for the
// calls that are in it.
func (m *machine) want() int {
	switch m.phase {
	case retiring:
		return min(m.limit, m.seats)
	case shutting:
		return 0
	default:
		return m.full()
	}
}

// maxDying bounds the trees that may be dying while replacements start. Past it
// new calls wait.
func (m *machine) maxDying() int { return m.full() }

// ended tells whether nothing is left to be done, nor will be.
func (m *machine) ended() bool {
	return m.phase >= retiring && len(m.workers) == 0 && m.seats == 0
}

// errClosed is why a pool that is not open takes no call.
func (m *machine) errClosed() error {
	if m.phase == retiring {
		return ErrRetired
	}
	return call.ErrDraining
}

// alive counts the workers that are not dying.
func (m *machine) alive() int { return len(m.workers) - m.count[event.Dying] }

// down tells whether the pool has no worker, and is waiting to try again or for its
// quarantine.
func (m *machine) down(now time.Time) bool {
	return m.alive() == 0 && (m.stuck >= m.maxStuck() || now.Before(m.retryAt))
}

// errDown is what callers are told, and when to ask again. What a worker wrote is
// not for them.
func (m *machine) errDown(now time.Time) (after time.Duration, cause error) {
	if m.stuck >= m.maxStuck() {
		return stuckRetry, fmt.Errorf("%w: %w", call.ErrDown, m.errStuck())
	}
	after = m.retryAt.Sub(now)
	var start *call.StartError
	if errors.As(m.reason, &start) {
		return after, fmt.Errorf("%w: cannot start a worker: %s", call.ErrDown, start.Why)
	}
	return after, fmt.Errorf("%w: %v", call.ErrDown, m.reason)
}

// standing says up, starting or down, and why it is not up.
func (m *machine) standing() (state, reason string) {
	switch {
	case m.alive() > m.count[event.Starting]:
		return "up", ""
	case m.phase == shutting:
		return "down", "shutting down"
	case m.phase == retiring:
		return "down", "it waits for its last workers to end"
	case m.stuck >= m.maxStuck():
		return "down", m.errStuck().Error()
	case m.reason == nil:
		return "starting", "no worker is ready yet"
	default:
		return "down", m.reason.Error()
	}
}

func (m *machine) seatCall(t *ticket, now time.Time) {
	switch {
	case m.phase != open:
		m.refuse(t, m.errClosed(), time.Second)
	case m.down(now):
		after, cause := m.errDown(now)
		m.refuse(t, cause, after)
	case m.seats >= m.limit+m.queueLength:
		m.refuse(t, call.ErrQueueFull, time.Second)
	default:
		t.seat = receiving
		m.seats++
		m.do(effect{do: admit, call: t})
	}
}

func (m *machine) unseat(t *ticket) {
	if t.place != nil {
		m.queue.Remove(t.place)
		t.place = nil
	}
	t.seat = outside
	m.seats--
}

func (m *machine) pair(t *ticket, w *worker, now time.Time) {
	m.queue.Remove(t.place)
	t.place = nil
	t.seat, t.worker = running, w
	w.call = t
	w.calls++
	m.must(w, assigned, now)
}

// unpair ends a call's hold on its worker, and its place.
func (m *machine) unpair(t *ticket) *worker {
	w := m.detach(t)
	m.unseat(t)
	return w
}

// detach ends a call's hold on its worker.
func (m *machine) detach(t *ticket) *worker {
	w := t.worker
	w.call, t.worker = nil, nil
	return w
}

func (m *machine) start(now time.Time) {
	m.lastID++
	w := &worker{id: m.lastID, state: event.Starting, born: now}
	m.workers = append(m.workers, w)
	m.count[event.Starting]++
	m.do(effect{do: change, worker: w, from: gone})
	m.do(effect{do: launch, worker: w})
}

// failed counts a failed start and sets the time of the next. Workers that were
// started together and fail one after the other count as one.
func (m *machine) failed(w *worker, cause error, now time.Time) {
	if m.phase == shutting || w.unmade {
		return
	}
	m.reason = cause
	if w.born.After(m.lastFailure) {
		if now.Sub(m.lastFailure) > forgetAfter {
			m.failures = 0
		}
		m.failures++
		m.lastFailure = now
		m.retryAt = now.Add(backoff(m.failures))
		if cause == errUnused && m.failures == 1 {
			m.retryAt = time.Time{} // one such death is no crash loop yet
		}
	}
	m.do(effect{do: retry, worker: w, after: max(0, m.retryAt.Sub(now))})
}

// backoff is how long to wait after n failures in a row.
func backoff(n int) time.Duration {
	if shift := n - 1; shift < 6 {
		return min(firstBackoff<<shift, maxBackoff)
	}
	return maxBackoff
}

// move applies the table.
func (m *machine) move(w *worker, on trigger, now time.Time) error {
	for _, row := range transitions {
		if row.from != w.state || row.on != on {
			continue
		}
		from := w.state
		if row.to != from {
			m.count[from]--
			m.count[row.to]++
			if from == event.Idle {
				m.idle = without(m.idle, w)
			}
			if row.to == event.Idle {
				m.idle = append(m.idle, w)
			}
			if row.to == gone {
				delete(m.count, gone)
				m.workers = without(m.workers, w)
			}
			w.state = row.to
			m.do(effect{do: change, worker: w, from: from, why: on})
		}
		if row.do != nothing {
			m.do(effect{do: row.do, worker: w, call: w.call})
		}
		return nil
	}
	return fmt.Errorf("worker %d cannot be %s while %s", w.id, on, w.state)
}

// must is move for what the machine itself decided.
func (m *machine) must(w *worker, on trigger, now time.Time) {
	if err := m.move(w, on, now); err != nil {
		panic(err)
	}
}

func without(list []*worker, w *worker) []*worker {
	i := slices.Index(list, w)
	return slices.Delete(list, i, i+1)
}

func (m *machine) do(e effect) { m.effects = append(m.effects, e) }

func (m *machine) refuse(t *ticket, cause error, after time.Duration) {
	m.do(effect{do: refuse, call: t, err: &call.RetryError{Err: cause, After: after}})
}

func (m *machine) illegal(in input) error {
	return fmt.Errorf("a call cannot be %s while %q", in.what, in.call.seat)
}
