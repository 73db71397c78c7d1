package pool

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"example.com/hangup/internal/call"
	"example.com/hangup/internal/event"
)

// retirement starts a retire and returns a channel that is closed when the pool is gone.
func retirement(p *Pool) <-chan struct{} {
	gone := make(chan struct{})
	go func() {
		p.Retire()
		close(gone)
	}()
	synctest.Wait()
	return gone
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// leaving is pooled for a pool that ends by itself.
func leaving(t *testing.T, f *factory, o Options, test func(t *testing.T, p *Pool)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		o.Name, o.Launch, o.Emit = "w", f.launch, f.emit
		o.QueueWait, o.StartTimeout = 30*time.Second, 30*time.Second
		p := New(t.Context(), o)
		test(t, p)
		for _, w := range f.workers {
			if w.stops == 0 {
				t.Errorf("worker %d was never stopped", w.n)
			}
		}
		if bad := of[event.Illegal](f); len(bad) > 0 {
			t.Errorf("illegal: %v", bad[0].Err)
		}
		if n := len(of[event.StartFailed](f)); n > 0 {
			t.Errorf("%d failed starts were reported", n)
		}
		if err := do(p, "later", &fakeInput{}).wait(); !errors.Is(err, ErrRetired) {
			t.Errorf("a call to a pool that is gone: %v", err)
		}
	})
}

// TestRetire: calls that are in a retired pool, running, waiting or still
// arriving, go on to their end; nobody else gets in; idle workers go at once, and
// the pool with the last call.
func TestRetire(t *testing.T) {
	f := &factory{stopTakes: time.Millisecond}
	leaving(t, f, Options{Limit: 2, Spares: 2, QueueLength: 5}, func(t *testing.T, p *Pool) {
		synctest.Wait()
		running := []*pending{do(p, "a", &fakeInput{takes: time.Second}), do(p, "b", &fakeInput{takes: 10 * time.Second})}
		synctest.Wait()
		waiting := do(p, "c", &fakeInput{takes: time.Second})
		arriving := do(p, "d", &fakeInput{arrives: 5 * time.Second, takes: time.Second})
		synctest.Wait()
		gone := retirement(p)
		time.Sleep(2 * time.Millisecond)
		if s := p.Snapshot(); len(s.Workers) != 2 {
			t.Errorf("with two running calls %d workers stay", len(s.Workers))
		}
		late := do(p, "late", &fakeInput{})
		want(t, late, ErrRetired)
		if late.took != 0 || late.in.started != 0 {
			t.Errorf("a late call was handed back after %v, started %d times", late.took, late.in.started)
		}
		for _, r := range append(running, waiting, arriving) {
			if closed(gone) {
				t.Fatal("it is gone before its calls have ended")
			}
			want(t, r, nil)
		}
		<-gone
		if n := f.started(); n != 4 {
			t.Errorf("%d workers were started, and the first 4 were enough", n)
		}
	})
}

// TestRetireIdle: a pool without calls goes at once.
func TestRetireIdle(t *testing.T) {
	leaving(t, &factory{}, Options{Limit: 2, Spares: 1}, func(t *testing.T, p *Pool) {
		synctest.Wait()
		if !closed(retirement(p)) {
			t.Error("it stays")
		}
	})
}

// TestRetireWhileStarting: starts that nobody waits for are given up, and are no
// failures; one that a call waits for goes on.
func TestRetireWhileStarting(t *testing.T) {
	leaving(t, &factory{startTakes: 10 * time.Second}, Options{Limit: 3, Spares: 1, QueueLength: 1}, func(t *testing.T, p *Pool) {
		r := do(p, "a", &fakeInput{})
		synctest.Wait()
		gone := retirement(p)
		if s := p.Snapshot(); len(s.Workers) != 1 || s.Queued != 1 {
			t.Errorf("%d workers start for %d calls", len(s.Workers), s.Queued)
		}
		want(t, r, nil)
		if r.took != 10*time.Second {
			t.Errorf("it waited %v for a worker", r.took)
		}
		<-gone
	})
}

// TestRetireReplaces: a worker that dies while calls still wait is replaced; one
// that dies for the last call is not.
func TestRetireReplaces(t *testing.T) {
	f := &factory{}
	leaving(t, f, Options{Limit: 1, QueueLength: 2}, func(t *testing.T, p *Pool) {
		synctest.Wait()
		a := do(p, "a", &fakeInput{takes: time.Second, ends: call.ErrDied})
		synctest.Wait()
		b := do(p, "b", &fakeInput{takes: time.Second, ends: call.ErrDied})
		synctest.Wait()
		gone := retirement(p)
		want(t, a, call.ErrDied)
		want(t, b, call.ErrDied)
		<-gone
		if n := f.started(); n != 2 {
			t.Errorf("%d workers were started, want 2", n)
		}
	})
}

// TestCloseEndsARetirement: a server that ends does not wait for it.
func TestCloseEndsARetirement(t *testing.T) {
	f := &factory{stopTakes: time.Second}
	pooled(t, f, Options{Limit: 1, QueueLength: 1}, func(t *testing.T, p *Pool) {
		a := do(p, "a", &fakeInput{takes: time.Hour})
		synctest.Wait()
		gone := retirement(p)
		a.hangUp(call.ErrDrained)
		want(t, a, call.ErrDrained)
		if err := p.Close(t.Context()); err != nil {
			t.Error(err)
		}
		<-gone
	})
}
