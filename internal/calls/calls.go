// Package calls knows every call that is queued or runs, who owns it, and the
// recent past.
//
// A call belongs to its owners, not to a goroutine. An owner holds a [Lease];
// when the last lease is dropped the call's context is cancelled with
// call.ErrHungUp: that is the hang-up. Operators and the drain cancel directly.
// The first cause wins, and it is the one [context.Cause] tells.
//
// What a call says on its way is kept, within bounds, for those who watch it
// (see [Registry.Watch]). A watcher owns nothing, and one that is slow misses
// events; nobody waits for it.
//
// The package has no goroutine of its own; a mutex guards the maps. It imports
// call and event.
package calls

import (
	"container/list"
	"context"
	"errors"
	"sync"
	"time"

	"example.com/hangup/internal/call"
	"example.com/hangup/internal/event"
)

// Past is how many ended calls are remembered where [Options] does not say, and
// PastRefused how many of those that were refused: a flood of refusals does not
// wash away the others.
const (
	Past        = 1000
	PastRefused = 200
)

// Options say what a Registry works with.
type Options struct {
	Door call.Doer  // where the work is done
	Emit event.Sink // hears how calls end, and what they emit
	Past int        // ended calls remembered that were not refused; 0: [Past]
}

// Registry is the set of calls a server knows. Its methods may be called from
// any goroutine.
type Registry struct {
	door call.Doer
	emit event.Sink
	base context.Context

	mu      sync.Mutex
	live    map[string]*entry
	known   map[string]*entry // live and remembered
	past    ring              // ended, and not refused
	refused ring
	quiet   chan struct{} // closed while nothing is live
	trails  int           // bytes that all trails take
	most    int           // that they may take
	kept    *list.List    // ended calls with something on their trail, in the order of their ends
}

// entry is one call; mu of the registry guards what changes.
type entry struct {
	record Record
	cancel context.CancelCauseFunc
	leases int
	trail  trail
	past   *list.Element // in kept; nil: it is not there
	cause  error         // of its end

	reply  call.Reply // where the result goes; used inside Do, as is
	result Result     // until it has ended
}

// New makes a Registry whose calls all end, at the latest, when ctx does.
func New(ctx context.Context, o Options) *Registry {
	if o.Past == 0 {
		o.Past = Past
	}
	quiet := make(chan struct{})
	close(quiet)
	return &Registry{
		door: o.Door, emit: o.Emit, base: ctx,
		live: map[string]*entry{}, known: map[string]*entry{},
		past: ring{slots: make([]*entry, o.Past)}, refused: ring{slots: make([]*entry, PastRefused)}, quiet: quiet,
		most: TrailsBytes, kept: list.New(),
	}
}

// ring keeps the newest of what is pushed into it.
type ring struct {
	slots []*entry
	next  int
}

// push returns the entry that e takes the place of, or nil.
func (r *ring) push(e *entry) (oldest *entry) {
	oldest, r.slots[r.next] = r.slots[r.next], e
	r.next = (r.next + 1) % len(r.slots)
	return oldest
}

// Lease is one owner's hold on a call.
type Lease struct {
	r    *Registry
	e    *entry
	once sync.Once
}

// Drop gives the lease up: the owner is gone. Dropping it again does nothing.
func (l *Lease) Drop() {
	l.once.Do(func() {
		l.r.mu.Lock()
		l.e.leases--
		last := l.e.leases == 0
		l.r.mu.Unlock()
		if last {
			l.e.cancel(call.ErrHungUp)
		}
	})
}

// Begin registers c, with one owner, takes what it emits, and returns the
// context its work runs under. That context never comes from the request: it ends when the last lease
// is dropped, when someone cancels the call, or with the server.
// Every call begun must be handed to [Registry.Do] once.
func (r *Registry) Begin(c *call.Call) (context.Context, *Lease) {
	ctx, cancel := context.WithCancelCause(r.base)
	e := &entry{record: newRecord(c), cancel: cancel, leases: 1, trail: trail{last: 1}, reply: c.Reply}
	c.Emit = r.emit
	c.Reply = e
	r.mu.Lock()
	if len(r.live) == 0 {
		r.quiet = make(chan struct{})
	}
	r.live[c.ID] = e
	r.known[c.ID] = e
	r.mu.Unlock()
	return ctx, &Lease{r: r, e: e}
}

// Do has the call done, and records how it ended. It returns what the door
// returned: nil, or the cause.
func (r *Registry) Do(ctx context.Context, c *call.Call) (err error) {
	err = errDefect // unless the door returns
	defer func() { r.end(c, err) }()
	return r.door.Do(ctx, c)
}

// errDefect is how a call ends when the door panics.
var errDefect = errors.New("the server has a defect")

// Refuse records a call that was turned away before [Registry.Begin].
func (r *Registry) Refuse(c *call.Call, cause error) {
	e := &entry{record: newRecord(c), cancel: func(error) {}, trail: trail{last: 1}}
	r.mu.Lock()
	r.known[c.ID] = e
	r.mu.Unlock()
	r.end(c, cause)
}

func (r *Registry) end(c *call.Call, cause error) {
	now := time.Now()
	outcome := call.Outcome(cause)
	heavy := weight(cause)

	r.mu.Lock()
	e := r.known[c.ID]
	e.record.State = "ended"
	e.record.Outcome = outcome
	e.record.EndedAt = &now
	ended := event.CallEnded{
		Call: c.ID, Workload: c.Workload, Task: c.Task, Caller: c.Caller,
		Outcome: outcome, Cause: cause, At: now,
	}
	ended.Waited, ended.Ran = e.record.durations(now)
	ended.Started = e.record.StartedAt != nil
	var evidence *event.Cancel
	if outcome == event.Cancelled && !ended.Started {
		evidence = neverStarted(cause, now)
		e.record.Cancel = evidence
	}
	delete(r.live, c.ID)
	if len(r.live) == 0 {
		select {
		case <-r.quiet: // a refused call: it was never live
		default:
			close(r.quiet)
		}
	}
	r.conclude(e, cause, heavy)
	r.remember(e)
	r.mu.Unlock()

	e.cancel(context.Canceled) // frees what hangs on the context
	r.emit(ended)
	if evidence != nil {
		r.emit(event.CallCancelled{Call: c.ID, Workload: c.Workload, Cancel: *evidence})
	}
}

// neverStarted is the evidence for a call that left before it had a worker.
func neverStarted(cause error, at time.Time) *event.Cancel {
	return &event.Cancel{
		By: call.CancelledBy(cause), NoticedAt: at,
		Stop: event.Stop{Empty: true, Proof: "never-started"},
	}
}

// remember puts an ended call into the bounded past.
func (r *Registry) remember(e *entry) {
	past := &r.past
	if e.record.Outcome == event.Rejected {
		past = &r.refused
	}
	if oldest := past.push(e); oldest != nil {
		delete(r.known, oldest.record.ID)
		r.letGo(oldest)
	}
}

// Cancel ends a call for an operator. It is false when no such call is queued
// or running.
func (r *Registry) Cancel(id string) bool {
	r.mu.Lock()
	e := r.live[id]
	r.mu.Unlock()
	if e == nil {
		return false
	}
	e.cancel(call.ErrCancelled)
	return true
}

// CancelAll ends every call that is queued or runs, with the given cause.
func (r *Registry) CancelAll(cause error) {
	r.mu.Lock()
	cancels := make([]context.CancelCauseFunc, 0, len(r.live))
	for _, e := range r.live {
		cancels = append(cancels, e.cancel)
	}
	r.mu.Unlock()
	for _, cancel := range cancels {
		cancel(cause)
	}
}

// Quiet returns a channel that is closed when no call is queued or runs. A call
// begun after it was asked for does not count.
func (r *Registry) Quiet() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.quiet
}

// Get returns the record of one call, if it is still known.
func (r *Registry) Get(id string) (Record, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.known[id]
	if e == nil {
		return Record{}, false
	}
	return e.record, true
}

// List returns the records of all calls known, in the order of arrival.
func (r *Registry) List() []Record {
	r.mu.Lock()
	list := make([]Record, 0, len(r.known))
	for _, e := range r.known {
		list = append(list, e.record)
	}
	r.mu.Unlock()
	sortByArrival(list)
	return list
}

// Sink keeps the records and trails up to date with what the rooms below report.
func (r *Registry) Sink(ev event.Event) {
	switch ev := ev.(type) {
	case event.CallStarted:
		r.update(ev.Call, func(e *entry) {
			e.record.State = "running"
			e.record.WorkerPid = ev.Pid
			e.record.StartedAt = &ev.At
			e.trail.last++
			e.trail.told()
		})
	case event.Output:
		if ev.Stream != "failure" { // that one is for the log
			r.add(ev.Call, Event{Name: "output", Stream: ev.Stream, Data: ev.Text, Left: ev.Dropped})
		}
	case event.CallProgress:
		r.add(ev.Call, Event{Name: "progress", Data: ev.JSON})
	case event.CallCancelled:
		r.update(ev.Call, func(e *entry) { e.record.Cancel = &ev.Cancel })
	}
}

func (r *Registry) update(id string, f func(*entry)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.known[id]; e != nil {
		f(e)
	}
}
