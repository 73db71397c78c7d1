package pool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/hangup/internal/call"
	"example.com/hangup/internal/event"
)

// after is time.After but for no time at all, which the race detector does not
// bear in a bubble (a fault of Go 1.26's runtime).
func after(d time.Duration) <-chan time.Time {
	if d > 0 {
		return time.After(d)
	}
	now := make(chan time.Time, 1)
	now <- time.Now()
	return now
}

// factory launches workers that live in virtual time, and keeps what a pool
// said of them.
type factory struct {
	startTakes time.Duration
	startFails func(n int) bool // of the nth start, from 1
	halfBorn   bool             // a start that fails leaves something to be stopped
	stopTakes  time.Duration
	survives   int  // verdicts that are not empty before the one that is
	deaf       bool // does not acknowledge a cancel

	mu      sync.Mutex
	starts  []time.Time
	workers []*fake
	events  []event.Event
}

func (f *factory) launch(ctx context.Context, exited func()) (Worker, Info, error) {
	f.mu.Lock()
	f.starts = append(f.starts, time.Now())
	n := len(f.starts)
	f.mu.Unlock()
	select {
	case <-after(f.startTakes):
	case <-ctx.Done():
		return nil, Info{}, context.Cause(ctx)
	}
	w := &fake{f: f, n: n, exited: exited}
	fails := f.startFails != nil && f.startFails(n)
	if fails && !f.halfBorn {
		return nil, Info{}, errors.New("no such program")
	}
	f.mu.Lock()
	f.workers = append(f.workers, w)
	f.mu.Unlock()
	if fails {
		return w, Info{}, errors.New("no such program")
	}
	return w, Info{Pid: n, ShimPid: -n, Tasks: []string{"work"}, RSS: func() int64 { return 1 }, Sound: w.sound}, nil
}

func (f *factory) started() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.starts)
}

func (f *factory) emit(e event.Event) {
	f.mu.Lock()
	f.events = append(f.events, e)
	f.mu.Unlock()
}

func of[E event.Event](f *factory) []E {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []E
	for _, e := range f.events {
		if e, ok := e.(E); ok {
			list = append(list, e)
		}
	}
	return list
}

// fake is a worker that takes as long as the call says and replies with the
// call's own input. It panics when used against the rules.
type fake struct {
	f       *factory
	n       int
	exited  func()
	mu      sync.Mutex
	busy    bool
	rotten  bool // broke the protocol while idle
	stops   int
	inDoubt bool // its call was cancelled and nothing has been proved since
}

func (w *fake) sound() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.rotten
}

func (w *fake) Do(ctx context.Context, c *call.Call) error {
	w.mu.Lock()
	if ctx.Err() != nil {
		w.mu.Unlock()
		return context.Cause(ctx)
	}
	if w.busy || w.inDoubt || w.stops > 0 {
		panic("a call was handed to a worker that is not idle")
	}
	w.busy = true
	w.mu.Unlock()
	defer func() { w.mu.Lock(); w.busy = false; w.mu.Unlock() }()

	in := c.Input.(*fakeInput)
	in.mu.Lock()
	in.started++
	in.mu.Unlock()
	select {
	case <-after(in.takes):
		if in.ends == nil {
			return c.Reply.Write(ctx, []byte(c.ID))
		}
		return in.ends
	case <-ctx.Done():
		w.mu.Lock()
		w.inDoubt = true
		w.mu.Unlock()
		return context.Cause(ctx)
	}
}

func (w *fake) Cancel(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Millisecond):
	}
	if w.f.deaf {
		<-ctx.Done()
		return ctx.Err()
	}
	w.mu.Lock()
	w.inDoubt = false
	w.mu.Unlock()
	return nil
}

func (w *fake) Stop(_ context.Context, decided time.Time) event.Stop {
	w.mu.Lock()
	w.stops++
	n := w.stops
	w.mu.Unlock()
	time.Sleep(w.f.stopTakes) // virtual
	s := event.Stop{
		Steps: []event.Step{{Name: "kill", At: time.Since(decided)}}, Killed: 1,
		Took: time.Since(decided), Empty: n > w.f.survives, Proof: "ECHILD",
	}
	if n == 1 {
		w.exited()
	}
	return s
}

// fakeInput says what a call is like.
type fakeInput struct {
	arrives time.Duration // for its body
	takes   time.Duration // to be done
	ends    error

	mu      sync.Mutex
	started int // times a worker began it
}

func (in *fakeInput) Receive(ctx context.Context) error {
	select {
	case <-after(in.arrives):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
func (in *fakeInput) ContentType() string { return "" }
func (in *fakeInput) Size() int64         { return 0 }
func (in *fakeInput) Check() error        { return nil }
func (in *fakeInput) Reader() io.Reader   { return strings.NewReader("") }

type reply struct{ body strings.Builder }

func (r *reply) Head(call.Head) error { return nil }

func (r *reply) Write(_ context.Context, p []byte) error {
	r.body.Write(p)
	return nil
}

// pending is a call on its way.
type pending struct {
	in     *fakeInput
	reply  reply
	hangUp context.CancelCauseFunc
	done   chan struct{}
	err    error
	took   time.Duration
}

func do(p *Pool, id string, in *fakeInput) *pending {
	ctx, cancel := context.WithCancelCause(context.Background())
	r := &pending{in: in, hangUp: cancel, done: make(chan struct{})}
	c := &call.Call{ID: id, Workload: "w", Input: in, Reply: &r.reply, Emit: func(event.Event) {}}
	began := time.Now()
	go func() {
		r.err = p.Do(ctx, c)
		r.took = time.Since(began)
		close(r.done)
	}()
	return r
}

func (r *pending) wait() error { <-r.done; return r.err }

// pooled runs f in virtual time with a pool, closes the pool, and checks that no
// illegal input was seen and every worker stopped.
func pooled(t *testing.T, f *factory, o Options, test func(t *testing.T, p *Pool)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		o.Name, o.Launch, o.Emit = "w", f.launch, f.emit
		if o.QueueWait == 0 {
			o.QueueWait = 30 * time.Second
		}
		if o.StartTimeout == 0 {
			o.StartTimeout = 30 * time.Second
		}
		p := New(t.Context(), o)
		synctest.Wait()
		test(t, p)
		if err := p.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if bad := of[event.Illegal](f); len(bad) > 0 {
			t.Errorf("illegal: %v", bad[0].Err)
		}
		for _, w := range f.workers {
			if w.stops == 0 {
				t.Errorf("worker %d was never stopped", w.n)
			}
		}
		if err := do(p, "late", &fakeInput{}).wait(); !errors.Is(err, call.ErrDraining) {
			t.Errorf("a call to a closed pool: %v, want %v", err, call.ErrDraining)
		}
	})
}

func want(t *testing.T, r *pending, cause error) {
	t.Helper()
	if err := r.wait(); !errors.Is(err, cause) || (cause == nil && err != nil) {
		t.Errorf("ended with %v, want %v", err, cause)
	}
}

// TestSpareTakesTheNextCall: with workers that take 1 s to start, a kill costs
// the next caller nothing while a spare is there.
func TestSpareTakesTheNextCall(t *testing.T) {
	f := &factory{startTakes: time.Second, stopTakes: time.Second}
	pooled(t, f, Options{Limit: 1, Spares: 1, QueueLength: 10}, func(t *testing.T, p *Pool) {
		time.Sleep(time.Second)
		a := do(p, "a", &fakeInput{takes: time.Hour})
		synctest.Wait()
		b := do(p, "b", &fakeInput{})
		time.Sleep(10 * time.Millisecond)
		a.hangUp(call.ErrHungUp)
		want(t, a, call.ErrHungUp)
		want(t, b, nil)
		if b.took != 10*time.Millisecond {
			t.Errorf("the next call took %v; it should have had the spare the moment the slot was free", b.took)
		}
		if d := a.took - 10*time.Millisecond; d != 0 {
			t.Errorf("the hung-up call's own goroutine waited %v for the funeral", d)
		}
		synctest.Wait()
		if n := f.started(); n != 3 {
			t.Errorf("%d starts, want a replacement at once: 3", n)
		}
	})
	all := of[event.CallCancelled](f)
	if len(all) != 1 || all[0].Call != "a" || !all[0].Cancel.Stop.Empty || all[0].Cancel.By != "caller" {
		t.Errorf("the evidence of the cancel: %+v", all)
	}
}

func TestQueue(t *testing.T) {
	f := &factory{}
	pooled(t, f, Options{Limit: 1, QueueLength: 1, QueueWait: time.Second}, func(t *testing.T, p *Pool) {
		a := do(p, "a", &fakeInput{takes: 1500 * time.Millisecond})
		synctest.Wait()
		b := do(p, "b", &fakeInput{})
		synctest.Wait()
		full := do(p, "full", &fakeInput{})
		want(t, full, call.ErrQueueFull)
		var retry *call.RetryError
		if !errors.As(full.err, &retry) || retry.After <= 0 {
			t.Errorf("%v does not say when to come back", full.err)
		}
		want(t, b, call.ErrQueueTimeout)
		if b.took != time.Second {
			t.Errorf("queue-timeout after %v, want 1s", b.took)
		}
		want(t, a, nil)
		if b.in.started != 0 || full.in.started != 0 {
			t.Error("a refused call was started")
		}
		// Forgotten at once: the one who leaves makes room for the next.
		a = do(p, "a2", &fakeInput{takes: time.Hour})
		synctest.Wait()
		b = do(p, "b2", &fakeInput{})
		synctest.Wait()
		b.hangUp(call.ErrHungUp)
		want(t, b, call.ErrHungUp)
		c := do(p, "c", &fakeInput{takes: time.Second})
		synctest.Wait()
		a.hangUp(call.ErrHungUp)
		want(t, c, nil)
		if b.in.started != 0 {
			t.Error("a call whose owner had left was started")
		}
	})
}

// TestBodyHoldsAPlaceButNoWorker: a slow upload does not keep others from working.
func TestBodyHoldsAPlaceButNoWorker(t *testing.T) {
	pooled(t, &factory{}, Options{Limit: 1, QueueLength: 1}, func(t *testing.T, p *Pool) {
		slow := do(p, "slow", &fakeInput{arrives: time.Minute})
		synctest.Wait()
		quick := do(p, "quick", &fakeInput{})
		want(t, quick, nil)
		if quick.took != 0 {
			t.Errorf("waited %v for a body that was not its own", quick.took)
		}
		gone := do(p, "gone", &fakeInput{arrives: time.Minute})
		synctest.Wait()
		gone.hangUp(call.ErrHungUp)
		want(t, gone, call.ErrHungUp)
		want(t, slow, nil)
	})
}

func TestTimeLimits(t *testing.T) {
	f := &factory{}
	pooled(t, f, Options{Limit: 1, Timeout: time.Second}, func(t *testing.T, p *Pool) {
		a := do(p, "a", &fakeInput{takes: time.Minute})
		want(t, a, call.ErrTimedOut)
		if a.took != time.Second {
			t.Errorf("ended after %v", a.took)
		}
	})
	if all := of[event.CallCancelled](f); len(all) != 1 || all[0].Cancel.By != "timeout" {
		t.Errorf("evidence %+v", all)
	}
}

func TestCooperativeCancelKeepsTheWorker(t *testing.T) {
	f := &factory{}
	pooled(t, f, Options{Limit: 1, QueueLength: 1, Cooperative: time.Second}, func(t *testing.T, p *Pool) {
		for range 3 {
			a := do(p, "a", &fakeInput{takes: time.Hour})
			synctest.Wait()
			a.hangUp(call.ErrHungUp)
			want(t, a, call.ErrHungUp)
			want(t, do(p, "b", &fakeInput{}), nil)
		}
		if n := f.started(); n != 1 {
			t.Errorf("%d workers were started, want the one kept", n)
		}
	})
	for _, e := range of[event.CallCancelled](f) {
		if s := e.Cancel.Stop; s.Proof != "acknowledged" || len(s.Steps) != 1 || s.Steps[0].Name != "cooperative" {
			t.Errorf("evidence %+v", s)
		}
	}
}

func TestDeafWorkerIsStopped(t *testing.T) {
	f := &factory{deaf: true}
	pooled(t, f, Options{Limit: 1, Cooperative: time.Second}, func(t *testing.T, p *Pool) {
		a := do(p, "a", &fakeInput{takes: time.Hour})
		synctest.Wait()
		a.hangUp(call.ErrHungUp)
		want(t, a, call.ErrHungUp)
	})
	all := of[event.CallCancelled](f)
	if len(all) != 1 {
		t.Fatalf("%d records of evidence, want 1", len(all))
	}
	var steps []string
	for _, s := range all[0].Cancel.Stop.Steps {
		steps = append(steps, fmt.Sprintf("%s@%v", s.Name, s.At))
	}
	if got := strings.Join(steps, " "); got != "cooperative@0s kill@1s" {
		t.Errorf("steps %s", got)
	}
}

// TestSurvivors: a tree that does not die is counted until it does. Up to the first
// verdict its place is bounded with the dying ones, from then on with the quarantine.
func TestSurvivors(t *testing.T) {
	const verdict = 2 * time.Second
	f := &factory{survives: 5, stopTakes: verdict}
	pooled(t, f, Options{Limit: 1, QueueLength: 1, Timeout: time.Millisecond}, func(t *testing.T, p *Pool) {
		began := time.Now()
		stuck := func(notEmpty, workers int) {
			t.Helper()
			if s := p.Snapshot(); s.NotEmpty != notEmpty || len(s.Workers) != workers {
				t.Errorf("%v: %d trees not empty among %d workers, want %d among %d", time.Since(began), s.NotEmpty, len(s.Workers), notEmpty, workers)
			}
		}
		hang := func() *pending { return do(p, "hangs", &fakeInput{takes: time.Hour}) }
		want(t, hang(), call.ErrTimedOut)
		want(t, hang(), call.ErrTimedOut) // by a replacement
		stuck(0, 2)
		third := hang() // two trees are dying: it has to wait for the first verdict
		want(t, third, call.ErrTimedOut)
		if third.took < verdict-10*time.Millisecond {
			t.Errorf("the third is done after %v: the number of dying trees is not bounded", third.took)
		}
		synctest.Wait()
		stuck(2, 3) // two are in quarantine, which is full; the third is dying

		refused := do(p, "refused", &fakeInput{})
		want(t, refused, call.ErrDown)
		if got := refused.err.Error(); !strings.Contains(got, "2 process trees were killed and do not die") {
			t.Errorf("refused because %q", got)
		}
		var retry *call.RetryError
		if !errors.As(refused.err, &retry) || retry.After != stuckRetry {
			t.Errorf("refused with %+v, want to be told to ask again after %v", retry, stuckRetry)
		}
		if s := p.Snapshot(); s.State != "down" || !strings.Contains(s.Reason, "do not die") {
			t.Errorf("the pool is %s: %s", s.State, s.Reason)
		}
		time.Sleep(verdict + 10*time.Millisecond)
		stuck(3, 3)

		time.Sleep(5 * verdict) // they die at last
		stuck(0, 1)
		want(t, do(p, "served", &fakeInput{}), nil)
	})
	if all := of[event.CallCancelled](f); len(all) != 18 || all[0].Cancel.Stop.Empty || !all[17].Cancel.Stop.Empty {
		t.Errorf("%d records of evidence, want 6 for each of three calls, the last one empty", len(all))
	}
}

// TestQuarantineLeavesOthers: a full quarantine takes nothing from the workers that live.
func TestQuarantineLeavesOthers(t *testing.T) {
	now := time.Now()
	m := newMachine(Options{Limit: 1, Spares: 1, QueueLength: 1, QueueWait: time.Second})
	step := func(in input) {
		t.Helper()
		in.now = now
		if _, err := m.step(in); err != nil {
			t.Fatal(err)
		}
	}
	serve := func() *ticket { // as soon as all are ready
		t.Helper()
		for _, w := range m.workers {
			if w.state == event.Starting {
				step(input{what: workerStarted, worker: w})
			}
		}
		c := &ticket{}
		step(input{what: placeAsked, call: c})
		step(input{what: bodyIn, call: c})
		if c.seat != running {
			t.Fatalf("a call is not served, with %d workers alive", m.alive())
		}
		return c
	}
	hang := func() *worker {
		t.Helper()
		c := serve()
		w := c.worker
		step(input{what: cancelled, call: c})
		step(input{what: workerStopped, worker: w, ok: false})
		return w
	}
	step(input{what: retryNow})
	var stuck []*worker
	for range m.maxStuck() {
		stuck = append(stuck, hang())
		step(input{what: workerStopped, worker: stuck[0], ok: false}) // once more: it counts once
	}
	if m.alive() != m.full() {
		t.Errorf("%d workers are alive, want %d: the quarantine was not full before", m.alive(), m.full())
	}
	stuck = append(stuck, hang())
	if m.alive() != m.full()-1 {
		t.Errorf("%d workers are alive, want %d: none is replaced now", m.alive(), m.full()-1)
	}
	step(input{what: returned, call: serve(), ok: true})
	for _, w := range stuck {
		step(input{what: workerStopped, worker: w, ok: true})
	}
	if m.alive() != m.full() || m.stuck != 0 || len(m.workers) != m.full() {
		t.Errorf("%d workers, %d alive, %d stuck: want %d, and none stuck", len(m.workers), m.alive(), m.stuck, m.full())
	}
}

// TestAbandon: what will not die does not keep Close for ever.
func TestAbandon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &factory{survives: 1 << 30, stopTakes: 2 * time.Second}
		p := New(t.Context(), Options{Name: "w", Limit: 1, QueueWait: time.Second, StartTimeout: time.Second, Launch: f.launch, Emit: f.emit})
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := p.Close(ctx); err == nil {
			t.Error("a worker was left and nobody says so")
		}
	})
}

// TestCrashLoop: starts back off, doubling from 1 s to 60 s; callers are told.
func TestCrashLoop(t *testing.T) {
	for _, halfBorn := range []bool{false, true} {
		crashLoop(t, &factory{startFails: func(n int) bool { return n <= 9 }, halfBorn: halfBorn})
	}
}

func crashLoop(t *testing.T, f *factory) {
	pooled(t, f, Options{Limit: 1, QueueLength: 5}, func(t *testing.T, p *Pool) {
		a := do(p, "a", &fakeInput{})
		want(t, a, call.ErrDown)
		var retry *call.RetryError
		if !errors.As(a.err, &retry) || retry.After != time.Second {
			t.Errorf("%#v does not say when the next try is", a.err)
		}
		if s := p.Snapshot(); s.State != "down" || s.Reason != "no such program" {
			t.Errorf("the pool says %q: %q", s.State, s.Reason)
		}
		time.Sleep(10 * time.Minute)
		want(t, do(p, "b", &fakeInput{}), nil)
		if s := p.Snapshot(); s.State != "up" {
			t.Errorf("the pool says %q: %q", s.State, s.Reason)
		}
	})
	var gaps []time.Duration
	for i := range f.starts[1:] {
		gaps = append(gaps, f.starts[i+1].Sub(f.starts[i]))
	}
	if got := fmt.Sprint(gaps); got != "[1s 2s 4s 8s 16s 32s 1m0s 1m0s 1m0s]" {
		t.Errorf("the tries came after %s", got)
	}
}

// TestReadyThenExits: being ready and exiting at once is a crash loop, too.
func TestReadyThenExits(t *testing.T) {
	f := &factory{}
	pooled(t, f, Options{Limit: 1}, func(t *testing.T, p *Pool) {
		for range 4 {
			synctest.Wait()
			f.workers[len(f.workers)-1].exited()
			synctest.Wait()
			time.Sleep(20 * time.Second)
		}
		if n := len(of[event.StartFailed](f)); n != 4 {
			t.Errorf("%d failures reported, want 4", n)
		}
	})
}

// TestOneDeath: a worker that dies before its first call is replaced at once; one
// death is no crash loop.
func TestOneDeath(t *testing.T) {
	f := &factory{}
	pooled(t, f, Options{Limit: 1, QueueLength: 1}, func(t *testing.T, p *Pool) {
		f.workers[0].exited()
		r := do(p, "a", &fakeInput{})
		want(t, r, nil)
		if r.took != 0 {
			t.Errorf("the next call waited %v", r.took)
		}
	})
}

func TestStartTimeout(t *testing.T) {
	f := &factory{startTakes: time.Hour}
	pooled(t, f, Options{Limit: 1, QueueLength: 5, StartTimeout: time.Second}, func(t *testing.T, p *Pool) {
		a := do(p, "a", &fakeInput{})
		want(t, a, call.ErrDown)
		if !strings.Contains(a.err.Error(), "start_timeout") {
			t.Errorf("%v does not name the limit", a.err)
		}
	})
}

func TestBrokenWorkerIsReplaced(t *testing.T) {
	f := &factory{}
	pooled(t, f, Options{Limit: 1, QueueLength: 5}, func(t *testing.T, p *Pool) {
		for i, end := range []error{
			&call.DiedError{Exit: 1}, call.ErrBadWorker, fmt.Errorf("%w: output", call.ErrLimit),
		} {
			want(t, do(p, "bad", &fakeInput{ends: end}), end)
			want(t, do(p, "good", &fakeInput{}), nil)
			if n := f.started(); n != i+2 {
				t.Errorf("after %v: %d starts, want %d", end, n, i+2)
			}
		}
		n := f.started()
		want(t, do(p, "raises", &fakeInput{ends: &call.FailureError{Message: "no"}}), call.ErrFailed)
		want(t, do(p, "good", &fakeInput{}), nil)
		if f.started() != n {
			t.Error("a worker whose work raised was replaced; it should have lived on")
		}
	})
}

func TestUnknownTask(t *testing.T) {
	f := &factory{startTakes: time.Second}
	pooled(t, f, Options{Limit: 1, QueueLength: 5}, func(t *testing.T, p *Pool) {
		for _, takes := range []time.Duration{time.Second, 0} { // before and after the tasks are known
			r := &pending{in: &fakeInput{}}
			began := time.Now()
			err := p.Do(t.Context(), &call.Call{Workload: "w", Task: "wrok", Input: r.in, Reply: &r.reply})
			if !errors.Is(err, call.ErrNoSuchTask) || !strings.Contains(err.Error(), "has work") {
				t.Errorf("%v does not say what exists", err)
			}
			if d := time.Since(began); d != takes || r.in.started != 0 {
				t.Errorf("refused after %v, started %d times", d, r.in.started)
			}
		}
	})
}

func TestDrain(t *testing.T) {
	pooled(t, &factory{}, Options{Limit: 1, QueueLength: 5}, func(t *testing.T, p *Pool) {
		a := do(p, "a", &fakeInput{takes: time.Second})
		synctest.Wait()
		b := do(p, "b", &fakeInput{takes: time.Second})
		synctest.Wait()
		p.Drain()
		want(t, do(p, "c", &fakeInput{}), call.ErrDraining)
		want(t, a, nil)
		want(t, b, nil)
	})
}

// TestOneOutcome throws calls at a pool that end in every way at nearly the same
// moment: each ends once, is started at most once, and gets its own reply.
func TestOneOutcome(t *testing.T) {
	f := &factory{startTakes: 5 * time.Millisecond, stopTakes: 2 * time.Millisecond}
	causes := []error{nil, nil, call.ErrHungUp, call.ErrCancelled, call.ErrDrained}
	var ended int
	pooled(t, f, Options{Limit: 3, Spares: 1, QueueLength: 20, QueueWait: 20 * time.Millisecond, Timeout: 9 * time.Millisecond, Cooperative: 0}, func(t *testing.T, p *Pool) {
		var wg sync.WaitGroup
		for i := range 10_000 {
			rnd := rand.New(rand.NewPCG(1, uint64(i)))
			in := &fakeInput{
				arrives: time.Duration(rnd.IntN(3)) * time.Millisecond,
				takes:   time.Duration(rnd.IntN(10)) * time.Millisecond,
			}
			id := fmt.Sprint("call-", i)
			r := do(p, id, in)
			if cause := causes[rnd.IntN(len(causes))]; cause != nil {
				time.AfterFunc(time.Duration(1+rnd.IntN(12))*time.Millisecond, func() { r.hangUp(cause) })
			}
			wg.Go(func() {
				err := r.wait()
				switch {
				case in.started > 1:
					t.Errorf("%s was started %d times", id, in.started)
				case err == nil && r.reply.body.String() != id:
					t.Errorf("%s got the reply %q", id, r.reply.body.String())
				case call.Outcome(err) == event.Rejected && in.started > 0:
					t.Errorf("%s was started and then refused: %v", id, err)
				}
			})
			if i%4 == 0 {
				time.Sleep(time.Millisecond)
			}
		}
		wg.Wait()
		ended = 10_000
		synctest.Wait()
		if s := p.Snapshot(); s.Queued != 0 {
			t.Errorf("%d are queued and nobody is there", s.Queued)
		}
	})
	started, evidence := map[string]bool{}, map[string]int{}
	for _, e := range of[event.CallStarted](f) {
		started[e.Call] = true
	}
	for _, e := range of[event.CallCancelled](f) {
		evidence[e.Call]++
		if !started[e.Call] {
			t.Errorf("%s was never started, and there is evidence of a kill", e.Call)
		}
	}
	if ended != 10_000 || len(evidence) == 0 {
		t.Errorf("%d ended, %d were killed: the test tested nothing", ended, len(evidence))
	}
	for id, n := range evidence {
		if n != 1 {
			t.Errorf("%d records of evidence for %s", n, id)
		}
	}
}

// TestRottenWorker: a worker that broke while it was idle costs the next caller
// nothing; the call goes to another, before those who came later.
func TestRottenWorker(t *testing.T) {
	f := &factory{}
	pooled(t, f, Options{Limit: 1, Spares: 1, QueueLength: 5}, func(t *testing.T, p *Pool) {
		for _, w := range f.workers {
			w.mu.Lock()
			w.rotten = true
			w.mu.Unlock()
		}
		r := do(p, "a", &fakeInput{})
		want(t, r, nil)
		if r.in.started != 1 {
			t.Errorf("started %d times", r.in.started)
		}
		synctest.Wait()
		if n := f.started(); n != 4 {
			t.Errorf("%d starts, want one for each that was rotten: 4", n)
		}
	})
	if n := len(of[event.CallStarted](f)); n != 1 {
		t.Errorf("%d starts of the call were told, want 1", n)
	}
}

// TestOneRoundCountsOnce: workers that fail together back off as one.
func TestOneRoundCountsOnce(t *testing.T) {
	f := &factory{startTakes: time.Millisecond, startFails: func(n int) bool { return n <= 24 }}
	pooled(t, f, Options{Limit: 7, Spares: 1}, func(t *testing.T, p *Pool) {
		time.Sleep(time.Minute)
	})
	var rounds []time.Duration
	for i := range f.starts[1:] {
		if gap := f.starts[i+1].Sub(f.starts[i]); gap > 0 {
			rounds = append(rounds, gap.Truncate(100*time.Millisecond))
		}
	}
	if got := fmt.Sprint(rounds); got != "[1s 2s 4s]" {
		t.Errorf("the rounds came after %s", got)
	}
	failed := map[uint64]bool{}
	for _, e := range of[event.StartFailed](f) {
		failed[e.Worker] = true
	}
	if len(failed) != 24 {
		t.Errorf("%d workers were named, want 24", len(failed))
	}
}

// TestForgottenAtOnce: nothing is kept of a call that left the queue.
func TestForgottenAtOnce(t *testing.T) {
	pooled(t, &factory{}, Options{Limit: 1, QueueLength: 100, QueueWait: time.Hour}, func(t *testing.T, p *Pool) {
		a := do(p, "a", &fakeInput{takes: time.Minute})
		synctest.Wait()
		var freed atomic.Int32
		for range 50 {
			b := do(p, "b", &fakeInput{})
			runtime.AddCleanup(b.in, func(n *atomic.Int32) { n.Add(1) }, &freed)
			synctest.Wait()
			b.hangUp(call.ErrHungUp)
			want(t, b, call.ErrHungUp)
		}
		for range 10 {
			runtime.GC()
		}
		want(t, a, nil)
		if n := freed.Load(); n < 45 {
			t.Errorf("%d of 50 calls were freed; the others hang on a timer", n)
		}
	})
}

// TestSettle: what became of the first start, and only of that.
func TestSettle(t *testing.T) {
	for _, test := range []struct {
		name  string
		fails func(n int) bool
		wait  time.Duration
		want  string
	}{
		{"ready", nil, time.Hour, "<nil> after 10s"},
		{"fails", func(n int) bool { return n == 1 }, time.Hour, "no such program after 10s"},
		{"a later one fails", func(n int) bool { return n > 1 }, time.Hour, "<nil> after 10s"},
		{"not known yet", nil, time.Second, "<nil> after 1s"},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := &factory{startTakes: 10 * time.Second, startFails: test.fails}
			pooled(t, f, Options{Limit: 1}, func(t *testing.T, p *Pool) {
				began := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), test.wait)
				defer cancel()
				err := p.Settle(ctx)
				if got := fmt.Sprint(err, " after ", time.Since(began)); got != test.want {
					t.Errorf("%s, want %s", got, test.want)
				}
				if test.wait > time.Minute {
					time.Sleep(time.Minute) // what comes later changes nothing
					if again := p.Settle(ctx); again != err {
						t.Errorf("then %v, and before %v", again, err)
					}
				}
			})
		})
	}
}

// TestShutWhileStarting: a start that is given up is no failure to report.
func TestShutWhileStarting(t *testing.T) {
	f := &factory{startTakes: time.Hour}
	synctest.Test(t, func(t *testing.T) {
		p := New(t.Context(), Options{Name: "w", Limit: 2, QueueWait: time.Second, StartTimeout: time.Hour, Launch: f.launch, Emit: f.emit})
		synctest.Wait()
		if err := p.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
	if n := len(of[event.StartFailed](f)); n != 0 {
		t.Errorf("%d failures were reported", n)
	}
}
