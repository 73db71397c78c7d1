// Package pool keeps the workers of one workload and hands them to calls.
//
// A [Pool] promises: at most limit calls run at once; a call is handed to at
// most one worker, and a worker has at most one call; a worker whose call was
// cancelled is proved idle or destroyed before anything else happens to it; a
// worker leaves the count only when its process tree is proved empty; and a
// caller never waits for a dying tree while a spare is there.
//
// One goroutine a pool owns all of it: it feeds inputs to the pure machine of
// machine.go and carries out its effects (loop.go). The pool knows no kinds of
// work: it asks a [Launch] for a [Worker]. It imports call and event.
package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"example.com/hangup/internal/call"
	"example.com/hangup/internal/event"
)

// Worker is one worker as the pool needs it. Its methods are called one after
// the other, but for Stop, which may come while Do or Cancel is still returning.
type Worker interface {
	// Do has one call done. When ctx ends it returns promptly, and either
	// Cancel or Stop comes next, or has come: a Do whose ctx has ended before
	// it began does nothing.
	Do(ctx context.Context, c *call.Call) error
	// Cancel asks the worker to stop the call whose Do was ended by its
	// context. It returns nil when the worker has acknowledged that very call
	// and is as it was before it; else the pool stops the worker.
	Cancel(ctx context.Context) error
	// Stop runs the stop sequence and returns the verdict on the tree. The
	// steps are told as times after decided. When the verdict is not empty,
	// Stop is called again, to wait on.
	Stop(ctx context.Context, decided time.Time) event.Stop
}

// Info is what there is to know of a worker that has started.
type Info struct {
	Pid, ShimPid int
	Tasks        []string     // the tasks it serves
	RSS          func() int64 // bytes
	// Sound tells of an idle worker whether it can take a call: it costs little
	// and is asked before each.
	Sound func() bool
}

// Launch starts a worker. It returns when the worker is ready for calls. When it
// fails, or ctx ends before, it returns an error, and the Worker too if there is
// anything of it to be stopped. It calls exited once when the worker's main
// process is gone, at any time.
type Launch func(ctx context.Context, exited func()) (Worker, Info, error)

// Options say what a pool is like. All durations are positive, or 0 where it says so.
type Options struct {
	Name, Kind   string
	Limit        int // calls that run at once
	Spares       int // idle workers beyond it
	QueueLength  int // calls that may wait beyond it
	QueueWait    time.Duration
	StartTimeout time.Duration
	Timeout      time.Duration // of a call; 0: none
	Cooperative  time.Duration // for a worker to acknowledge a cancel; 0: it is not asked
	Launch       Launch
	Emit         event.Sink
}

// Pool is the workers of one workload. It is a [call.Doer].
type Pool struct {
	o       Options
	base    context.Context // of starts and stops
	abandon context.CancelFunc
	inbox   chan input
	looks   chan chan view
	done    chan struct{} // closed when the loop has ended
	closed  error         // what calls are told from then on
	settled chan struct{} // closed when the first start of a worker has ended
	unready error         // how it failed, if it did
	first   sync.Once     // guards both
	funs    sync.WaitGroup

	mu    sync.Mutex
	tasks []string // known once a worker has started
}

// New makes a pool and starts its workers. It lives until [Pool.Close], or until
// ctx ends, when it lets go of everything as it is.
func New(ctx context.Context, o Options) *Pool {
	base, abandon := context.WithCancel(ctx)
	p := &Pool{
		o: o, base: base, abandon: abandon,
		inbox: make(chan input), looks: make(chan chan view), done: make(chan struct{}), settled: make(chan struct{}),
	}
	go p.loop(newMachine(o))
	return p
}

// ErrRetired is what [Pool.Do] fails with in a pool that is on its way out, where
// another may have taken its place. The call is as it was: nothing of its input
// has been asked for.
var ErrRetired = errors.New("the pool is retired")

// answer is what the loop tells a call: a refusal, a worker, or just "yes".
type answer struct {
	err    error
	worker *worker
}

// Do has one call done by a worker of the pool.
func (p *Pool) Do(ctx context.Context, c *call.Call) error {
	if err := p.checkTask(c); err != nil {
		return err
	}
	t := &ticket{call: c, answer: make(chan answer, 1)}
	p.post(input{what: placeAsked, call: t})
	if a := p.await(t); a.err != nil {
		return a.err
	}
	if err := c.Input.Receive(ctx); err != nil {
		p.post(input{what: left, call: t})
		p.await(t)
		return err
	}
	for turn := bodyIn; ; turn = declined {
		w, err := p.turn(ctx, t, turn)
		if err != nil {
			return err
		}
		if w.info.Sound() {
			return p.run(ctx, t, w)
		}
	}
}

// turn waits until the call is handed a worker.
func (p *Pool) turn(ctx context.Context, t *ticket, what what) (*worker, error) {
	p.post(input{what: what, call: t})
	var a answer
	select {
	case a = <-t.answer:
	case <-p.done:
		// The loop may have answered before it ended. It never ends by itself
		// while a call waits.
		select {
		case a = <-t.answer:
		default:
			a.err = call.ErrDraining
		}
	case <-ctx.Done():
		p.post(input{what: left, call: t})
		if a = p.await(t); a.worker == nil {
			a.err = context.Cause(ctx)
		}
	}
	return a.worker, a.err
}

// run has the call done by the worker it was handed. It ends the pairing in
// exactly one way: given back, returned or cancelled.
func (p *Pool) run(ctx context.Context, t *ticket, w *worker) error {
	c := t.call
	err := p.checkTask(c) // the tasks may not have been known before
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		p.post(input{what: givenBack, call: t})
		return err
	}

	if limit := shorter(p.o.Timeout, c.Timeout); limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, limit, call.ErrTimedOut)
		defer cancel()
	}
	now := time.Now()
	p.o.Emit(event.CallStarted{Call: c.ID, Workload: c.Workload, Pid: w.info.Pid, Waited: now.Sub(c.At), At: now})

	// The worker is taken out at the very moment the context ends, whatever
	// Do is busy with.
	taken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		p.cancel(t, context.Cause(ctx))
		close(taken)
	})
	err = w.handle.Do(ctx, c)
	if !stop() {
		<-taken // the place is free again when the caller hears of it
		return context.Cause(ctx)
	}
	if call.Outcome(err) == event.Cancelled {
		p.cancel(t, err) // the reply found the caller gone first
		return err
	}
	p.post(input{what: returned, call: t, ok: err == nil || errors.Is(err, call.ErrFailed)})
	return err
}

func (p *Pool) cancel(t *ticket, cause error) {
	t.cause, t.decided = cause, time.Now()
	p.post(input{what: cancelled, call: t})
}

// checkTask refuses a call for a task that the workload does not have. Before
// the first worker is ready any task may exist.
func (p *Pool) checkTask(c *call.Call) error {
	p.mu.Lock()
	tasks := p.tasks
	p.mu.Unlock()
	switch {
	case len(tasks) == 0, slices.Contains(tasks, c.Task), c.Task == "" && len(tasks) == 1:
		return nil
	case c.Task == "":
		return fmt.Errorf("%w: none was given; workload %q has %s", call.ErrNoSuchTask, c.Workload, strings.Join(tasks, ", "))
	default:
		return fmt.Errorf("%w: %q; workload %q has %s", call.ErrNoSuchTask, c.Task, c.Workload, strings.Join(tasks, ", "))
	}
}

// Drain lets no new calls in. Those that are in go on.
func (p *Pool) Drain() { p.post(input{what: drain}) }

// Settle waits until a first worker is ready, and returns nil; or until the start of
// one has failed, and returns how; or until ctx ends, when it returns what is known.
func (p *Pool) Settle(ctx context.Context) error {
	select {
	case <-p.settled:
	case <-ctx.Done():
	}
	select {
	case <-p.settled:
		return p.unready
	default:
		return nil
	}
}

// Retire lets no new calls in: they fail with [ErrRetired]. Those that are in go on
// to their end, and no worker stays that they do not need. It returns when the last
// call has ended and the last tree is gone, or when the pool was closed.
func (p *Pool) Retire() {
	p.post(input{what: retire})
	<-p.done
	p.abandon()
	p.funs.Wait()
}

// Close drains, lets go of every worker, and returns when the last tree is gone
// or ctx ends: then it leaves behind what would not die, which is an error.
// Calls that run are waited for: cancel them first.
func (p *Pool) Close(ctx context.Context) error {
	p.post(input{what: shut})
	var err error
	select {
	case <-p.done:
	case <-ctx.Done():
		err = fmt.Errorf("cannot end all workers of %s: %w", p.o.Name, context.Cause(ctx))
	}
	p.abandon()
	<-p.done
	p.funs.Wait()
	return err
}

// Snapshot tells how the pool stands.
func (p *Pool) Snapshot() event.Pool {
	s := view{pool: event.Pool{State: "down", Reason: "closed"}}
	reply := make(chan view, 1)
	select {
	case p.looks <- reply:
		s = <-reply
	case <-p.done:
	}
	for i, rss := range s.rss {
		if rss != nil {
			s.pool.Workers[i].RSS = rss()
		}
	}
	s.pool.Name, s.pool.Kind, s.pool.Limit, s.pool.Spares = p.o.Name, p.o.Kind, p.o.Limit, p.o.Spares
	p.mu.Lock()
	s.pool.Tasks = p.tasks
	p.mu.Unlock()
	return s.pool
}

func (p *Pool) post(in input) {
	select {
	case p.inbox <- in:
	case <-p.done:
	}
}

func (p *Pool) await(t *ticket) answer {
	select {
	case a := <-t.answer:
		return a
	case <-p.done:
		return answer{err: p.closed}
	}
}

// shorter is the smaller of two limits of which 0 means none.
func shorter(a, b time.Duration) time.Duration {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}
