package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/hangup/internal/call"
	"example.com/hangup/internal/config"
	"example.com/hangup/internal/event"
	"example.com/hangup/internal/pool"
	"github.com/google/go-cmp/cmp"
)

// TestSwap: what a swap says, and which pools it touches.
func TestSwap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSet(t)
		v1, v2 := work("a", 1), work("a", 2)
		for _, step := range []struct {
			workloads []config.Workload
			want      changes
			opened    string
		}{
			{[]config.Workload{v1, work("b", 1)}, changes{[]string{"a", "b"}, []string{}, []string{}}, "a1 b1"},
			{[]config.Workload{v1, work("b", 1)}, changes{[]string{}, []string{}, []string{}}, "a1 b1"},
			{[]config.Workload{work("b", 1), v1}, changes{[]string{}, []string{}, []string{}}, "a1 b1"},
			{[]config.Workload{v2, work("c", 1)}, changes{[]string{"c"}, []string{"b"}, []string{"a"}}, "a1 b1 a2 c1"},
			{[]config.Workload{v1, work("b", 1)}, changes{[]string{"b"}, []string{"c"}, []string{"a"}}, "a1 b1 a2 c1 a1 b1"},
		} {
			got := s.swap(step.workloads)
			if diff := cmp.Diff(step.want, got, cmp.AllowUnexported(changes{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			synctest.Wait()
			if got := strings.Join(s.opened, " "); got != step.opened {
				t.Errorf("opened %s, want %s", got, step.opened)
			}
			var names []string
			for _, p := range s.snapshots() { // those that have no calls are gone by now
				names = append(names, p.Name)
			}
			var wanted []string
			for _, w := range step.workloads {
				wanted = append(wanted, w.Name)
			}
			if !slices.Equal(names, wanted) {
				t.Errorf("there is %v, want %v", names, wanted)
			}
		}
	})
}

// TestSwapLeavesCallsAlone: a call goes on in the pool it is in; one that comes
// later is the new pool's, or there is none.
func TestSwapLeavesCallsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSet(t)
		s.swap([]config.Workload{work("a", 1), work("b", 1)})
		synctest.Wait()
		changed, removed := s.call("a", time.Minute), s.call("b", time.Minute)
		synctest.Wait()
		s.swap([]config.Workload{work("a", 2)})
		want(t, s.call("a", 0), "a2", nil)
		want(t, s.call("b", 0), "", call.ErrNoSuchWorkload)
		current, retiring := s.all()
		if len(current) != 1 || len(retiring) != 2 {
			t.Errorf("%d pools and %d that go, want 1 and 2", len(current), len(retiring))
		}
		for i, p := range s.snapshots() {
			if p.Retiring != (i > 0) || p.State != "up" {
				t.Errorf("%d: retiring %v, state %s", i, p.Retiring, p.State)
			}
		}
		if s.grace() != time.Second {
			t.Errorf("the grace of those that go does not count: %v", s.grace())
		}
		want(t, changed, "a1", nil)
		want(t, removed, "b1", nil)
		synctest.Wait()
		if _, retiring := s.all(); len(retiring) != 0 {
			t.Errorf("%d pools stay that have no call", len(retiring))
		}
	})
}

// TestSwapLosesNoCall: whatever instant a call comes at, some pool does it.
func TestSwapLosesNoCall(t *testing.T) {
	s := newSet(t)
	s.swap([]config.Workload{work("a", 0)})
	enough := make(chan struct{})
	var callers sync.WaitGroup
	for range 4 {
		callers.Go(func() {
			for {
				select {
				case <-enough:
					return
				default:
				}
				if c := s.call("a", time.Duration(rand.IntN(2))*time.Microsecond); c.wait() != nil {
					t.Errorf("a call was lost: %v", c.err)
					return
				}
			}
		})
	}
	for version := range 500 {
		s.swap([]config.Workload{work("a", version%2+1)})
	}
	close(enough)
	callers.Wait()
}

// TestCloseCoversWhatIsRetiring: after close nothing runs, whenever it was retired.
func TestCloseCoversWhatIsRetiring(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSet(t)
		s.swap([]config.Workload{work("a", 1)})
		synctest.Wait()
		old := s.call("a", time.Hour)
		synctest.Wait()
		s.swap([]config.Workload{work("a", 2)})
		s.drain()
		want(t, s.call("a", 0), "", call.ErrDraining)
		old.cancel(call.ErrDrained)
		want(t, old, "", call.ErrDrained)
		if errs := s.close(t.Context()); len(errs) > 0 {
			t.Error(errs)
		}
	})
}

// TestPlan: until its commit a plan touches nothing, and a dropped one leaves nothing.
func TestPlan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSet(t)
		s.swap([]config.Workload{work("a", 1), work("b", 1)})
		broken := work("broken", 1)
		broken.Command = []string{"broken"}
		p, err := s.prepare([]config.Workload{work("a", 2), broken})
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"a", "b"} {
			want(t, s.call(name, 0), name+"1", nil)
		}
		want(t, s.call("broken", 0), "", call.ErrNoSuchWorkload)
		if wrong := p.settle(t.Context()); !slices.Equal(wrong, []string{"workloads.broken: no such program"}) {
			t.Errorf("wrong with it: %q", wrong)
		}
		s.drop(p)
		synctest.Wait()
		if current, retiring := s.all(); len(current) != 2 || len(retiring) != 0 || len(s.coming) != 0 {
			t.Errorf("after the drop there are %d, %d on their way out, %d to come", len(current), len(retiring), len(s.coming))
		}
		want(t, s.call("a", 0), "a1", nil)

		// The drain may come before the drop: then there is none, and close is enough.
		if p, err = s.prepare([]config.Workload{work("a", 2)}); err != nil {
			t.Fatal(err)
		}
		s.drain()
		s.drop(p)
		if errs := s.close(t.Context()); len(errs) > 0 {
			t.Error(errs)
		}
		if state := p.pools[0].Snapshot(); state.Reason != "closed" {
			t.Errorf("the pool of the plan is %+v", state)
		}
		if _, err := s.prepare(nil); !errors.Is(err, call.ErrDraining) {
			t.Errorf("a plan in the drain: %v", err)
		}
	})
}

// TestEveryKeyIsCompared: a key of the config that a reload does not look at would
// change without a word.
func TestEveryKeyIsCompared(t *testing.T) {
	inFile := reflect.TypeFor[config.Config]().NumField() - len([]string{"Workloads", "Warnings", "File", "Dir"})
	if len(keys) != inFile {
		t.Errorf("%d keys are compared, and the config has %d", len(keys), inFile)
	}
	var c config.Config
	filled := reflect.ValueOf(&c).Elem()
	for i, key := range keys {
		field := filled.FieldByIndex([]int{i})
		if name := strings.ToLower(filled.Type().Field(i).Name); name != strings.ReplaceAll(key.name, "_", "") {
			t.Errorf("key %d is %s, and the config has %s there", i, key.name, name)
		} else if !reflect.DeepEqual(field.Interface(), key.of(&c)) {
			t.Errorf("%s compares something else", key.name)
		}
	}
}

// set is pools with workers that reply with the name and version of what they
// were made for.
type set struct {
	*pools
	opened []string
}

func newSet(t *testing.T) *set {
	ctx, cancel := context.WithCancel(context.Background())
	s := &set{}
	s.pools = &pools{open: func(w config.Workload) *pool.Pool {
		name := w.Name + w.Env["VERSION"]
		s.opened = append(s.opened, name)
		return pool.New(ctx, pool.Options{
			Name: w.Name, Limit: 2, Spares: 1, QueueLength: 100, QueueWait: time.Hour, StartTimeout: time.Hour,
			Launch: func(_ context.Context, exited func()) (pool.Worker, pool.Info, error) {
				if len(w.Command) > 0 {
					return nil, pool.Info{}, errors.New("no such program")
				}
				return &echo{name, exited}, pool.Info{Pid: 1, Tasks: []string{"work"}, Sound: func() bool { return true }}, nil
			},
			Emit: func(e event.Event) {
				if bad, ok := e.(event.Illegal); ok {
					t.Error(bad.Err)
				}
			},
		})
	}}
	s.isolation = func(config.Workload) string { return event.NoIsolation }
	t.Cleanup(func() {
		if errs := s.close(ctx); len(errs) > 0 {
			t.Error(errs)
		}
		cancel()
	})
	return s
}

// swap is a whole reload, as soon as the new pools are warm.
func (s *set) swap(workloads []config.Workload) changes {
	p, err := s.prepare(workloads)
	if err != nil {
		panic(err)
	}
	p.settle(context.Background())
	s.commit(p)
	return p.changes
}

func work(name string, version int) config.Workload {
	return config.Workload{
		Name: name, Env: map[string]string{"VERSION": fmt.Sprint(version)},
		Stop: config.Stop{Grace: time.Duration(2-version) * time.Second},
	}
}

type echo struct {
	name   string
	exited func()
}

func (w *echo) Do(ctx context.Context, c *call.Call) error {
	if takes := time.Duration(c.Input.Size()); takes > 0 {
		select {
		case <-time.After(takes):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return c.Reply.Write(ctx, []byte(w.name))
}

func (w *echo) Cancel(context.Context) error { return errors.New("deaf") }

func (w *echo) Stop(context.Context, time.Time) event.Stop {
	w.exited()
	return event.Stop{Empty: true}
}

// pending is a call on its way. Its input's size is how long it takes.
type pending struct {
	takes  time.Duration
	reply  strings.Builder
	cancel context.CancelCauseFunc
	ended  chan struct{}
	err    error
}

func (s *set) call(workload string, takes time.Duration) *pending {
	ctx, cancel := context.WithCancelCause(context.Background())
	p := &pending{takes: takes, cancel: cancel, ended: make(chan struct{})}
	go func() {
		p.err = s.Do(ctx, &call.Call{ID: "x", Workload: workload, Input: p, Reply: p, Emit: func(event.Event) {}})
		close(p.ended)
	}()
	return p
}

func (p *pending) wait() error {
	<-p.ended
	return p.err
}

func (p *pending) Receive(context.Context) error { return nil }
func (p *pending) ContentType() string           { return "" }
func (p *pending) Size() int64                   { return int64(p.takes) }
func (p *pending) Check() error                  { return nil }
func (p *pending) Reader() io.Reader             { return strings.NewReader("") }
func (p *pending) Head(call.Head) error          { return nil }
func (p *pending) Write(_ context.Context, b []byte) error {
	p.reply.Write(b)
	return nil
}

func want(t *testing.T, p *pending, reply string, cause error) {
	t.Helper()
	if err := p.wait(); !errors.Is(err, cause) || cause == nil && err != nil || p.reply.String() != reply {
		t.Errorf("%q and %v, want %q and %v", p.reply.String(), err, reply, cause)
	}
}
