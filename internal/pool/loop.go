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
// and the last worker is gone, or when the pool is abandoned.
func (p *Pool) loop(m *machine) {
	defer close(p.done)
	p.step(m, input{what: retryNow}) // nothing to retry: it starts the first workers
	for m.phase != shutting || len(m.workers) > 0 || m.seats > 0 {
		select {
		case in := <-p.inbox:
			p.step(m, in)
		case reply := <-p.looks:
			reply <- p.look(m)
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
	case admit, release:
		e.call.answer <- answer{}
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
		time.AfterFunc(e.after, func() { p.post(input{what: retryNow}) })
		p.o.Emit(event.StartFailed{Workload: p.o.Name, Worker: m.lastID, Err: m.reason, Retry: e.after, At: in.now})
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

func (p *Pool) look(m *machine) event.Pool {
	s := event.Pool{
		Name: p.o.Name, Kind: p.o.Kind, Limit: p.o.Limit, Spares: p.o.Spares, Queued: m.queue.Len(),
		Workers: make([]event.Worker, 0, len(m.workers)),
	}
	s.State, s.Reason = m.standing()
	for _, w := range m.workers {
		if w.stuck {
			s.NotEmpty++
		}
		view := event.Worker{ID: w.id, State: w.state, Calls: w.calls, Since: w.since}
		if w.state != event.Starting {
			view.Pid, view.ShimPid = w.info.Pid, w.info.ShimPid
			view.RSS = w.info.RSS()
		}
		s.Workers = append(s.Workers, view)
	}
	p.mu.Lock()
	s.Tasks = p.tasks
	p.mu.Unlock()
	return s
}
