package pool

import (
	"context"
	"errors"
	"time"

	"example.com/hangup/internal/call"
	"example.com/hangup/internal/event"
)

// ending is what the stop of a worker is for: a cancelled call, or nobody's.
type ending struct {
	call    *call.Call // nil: no call of its was cancelled
	by      string     // who decided
	decided time.Time
	steps   []event.Step // taken so far
	why     string
}

// loop is the one goroutine that owns the machine. It ends when the pool is shut
// or retired and the last worker is gone, or when the pool is abandoned.
func (p *Pool) loop(m *machine) {
	defer func() {
		p.closed = m.errClosed()
		close(p.done)
	}()
	p.step(m, input{what: retryNow}) // nothing to retry: it starts the first workers
	for !m.ended() {
		select {
		case in := <-p.inbox:
			p.step(m, in)
		case reply := <-p.looks:
			reply <- look(m)
		case <-p.base.Done():
			return
		}
	}
}

func (p *Pool) step(m *machine, in input) {
	in.now = time.Now()
	if in.what == cancelled && in.call.worker != nil {
		t := in.call
		t.worker.ending = ending{call: t.call, by: call.CancelledBy(t.cause), decided: t.decided}
	}
	effects, err := m.step(in)
	if err != nil {
		p.o.Emit(event.Illegal{Workload: p.o.Name, Err: err, At: in.now})
	}
	for _, e := range effects {
		p.carryOut(m, e, in)
	}
}

func (p *Pool) carryOut(m *machine, e effect, in input) {
	switch e.do {
	case admit:
		e.call.answer <- answer{}
	case release:
		e.call.settle(answer{})
	case refuse:
		e.call.settle(answer{err: e.err})
	case wait:
		t := e.call
		t.timer = time.AfterFunc(e.after, func() { p.post(input{what: waitOver, call: t}) })
	case handOver:
		e.call.settle(answer{worker: e.worker})
	case launch:
		p.goLaunch(e.worker)
	case abort:
		e.worker.abandon()
	case ask:
		p.funs.Go(func() { p.ask(e.worker) })
	case stop:
		w := e.worker
		if w.ending.decided.IsZero() {
			w.ending.decided = in.now
		}
		w.ending.why = string(in.what)
		p.funs.Go(func() { p.bury(w) })
	case retry:
		if e.after > 0 {
			time.AfterFunc(e.after, func() { p.post(input{what: retryNow}) })
		}
		p.o.Emit(event.StartFailed{Workload: p.o.Name, Worker: e.worker.id, Err: m.reason, Retry: e.after, At: in.now})
	case change:
		if e.worker.state == event.Idle {
			e.worker.ending = ending{}
		}
		p.o.Emit(event.WorkerChanged{
			Workload: p.o.Name, Worker: e.worker.id, Pid: e.worker.info.Pid,
			From: e.from, To: e.worker.state, Why: string(e.why), At: in.now,
		})
	}
}

// settle gives a waiting call its answer.
func (t *ticket) settle(a answer) {
	if t.timer != nil {
		t.timer.Stop()
	}
	t.answer <- a
}

// errStartTimeout is why a start was given up.
var errStartTimeout = errors.New("it was not ready within start_timeout")

func (p *Pool) goLaunch(w *worker) {
	ctx, cancel := context.WithTimeoutCause(p.base, p.o.StartTimeout, errStartTimeout)
	w.abandon = cancel
	p.funs.Go(func() {
		defer cancel()
		handle, info, err := p.o.Launch(ctx, func() { p.post(input{what: workerExited, worker: w}) })
		w.handle, w.info = handle, info
		p.first.Do(func() {
			p.unready = err
			close(p.settled)
		})
		if err != nil {
			p.post(input{what: workerFailed, worker: w, ok: handle == nil, err: err})
			return
		}
		p.mu.Lock()
		p.tasks = info.Tasks
		p.mu.Unlock()
		p.post(input{what: workerStarted, worker: w})
	})
}

// ask has the worker acknowledge the cancel of its call.
func (p *Pool) ask(w *worker) {
	ctx, cancel := context.WithDeadline(p.base, w.ending.decided.Add(p.o.Cooperative))
	defer cancel()
	e := &w.ending
	e.steps = append(e.steps, event.Step{Name: "cooperative", At: time.Since(e.decided)})
	err := w.handle.Cancel(ctx)
	if err == nil {
		p.evidence(e, event.Stop{Steps: e.steps, Took: time.Since(e.decided), Empty: true, Proof: "acknowledged"})
	}
	p.post(input{what: workerAsked, worker: w, ok: err == nil})
}

// bury stops the worker and reports, until its tree is proved empty or the pool
// is abandoned.
func (p *Pool) bury(w *worker) {
	e := &w.ending
	for empty := false; !empty && p.base.Err() == nil; {
		verdict := w.handle.Stop(p.base, e.decided)
		e.steps = append(e.steps, verdict.Steps...)
		verdict.Steps = e.steps
		p.o.Emit(event.TreeStopped{
			Workload: p.o.Name, Worker: w.id, Pid: w.info.Pid, Why: e.why, Stop: verdict, At: time.Now(),
		})
		p.evidence(e, verdict)
		empty = verdict.Empty
		p.post(input{what: workerStopped, worker: w, ok: empty})
	}
}

// evidence reports what became of the worker of a cancelled call.
func (p *Pool) evidence(e *ending, s event.Stop) {
	if e.call == nil {
		return
	}
	p.o.Emit(event.CallCancelled{
		Call: e.call.ID, Workload: e.call.Workload,
		Cancel: event.Cancel{By: e.by, NoticedAt: e.decided, Stop: s},
	})
}

// view is the pool as the loop's goroutine sees it.
type view struct {
	pool event.Pool
	rss  []func() int64 // of its workers; nil where there is none to ask
}

func look(m *machine) view {
	v := view{pool: event.Pool{Queued: m.queue.Len(), NotEmpty: m.stuck, Workers: make([]event.Worker, 0, len(m.workers))}}
	v.pool.State, v.pool.Reason = m.standing()
	for _, w := range m.workers {
		one := event.Worker{ID: w.id, State: w.state, Calls: w.calls, Since: w.born}
		var rss func() int64
		if w.state != event.Starting {
			one.Pid, one.ShimPid = w.info.Pid, w.info.ShimPid
		}
		if w.state != event.Starting && w.state != event.Dying && !w.exited {
			rss = w.info.RSS
		}
		v.pool.Workers = append(v.pool.Workers, one)
		v.rss = append(v.rss, rss)
	}
	return v
}
