package calls

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"example.com/hangup/internal/call"
	"example.com/hangup/internal/event"
)

// door is a Doer that is a function.
type door func(ctx context.Context, c *call.Call) error

func (d door) Do(ctx context.Context, c *call.Call) error { return d(ctx, c) }

// until is work that goes on until its context ends.
func until(ctx context.Context, _ *call.Call) error {
	<-ctx.Done()
	return context.Cause(ctx)
}

type heard struct {
	mu     sync.Mutex
	events []event.Event
}

func (h *heard) sink(e event.Event) {
	h.mu.Lock()
	h.events = append(h.events, e)
	h.mu.Unlock()
}

func newCall(id string) *call.Call {
	return &call.Call{ID: id, Workload: "w", Caller: "me", OnHangup: "cancel", At: time.Now()}
}

// TestWhoEndsACall: the last owner, an operator, or the drain; the first of them is
// the cause.
func TestWhoEndsACall(t *testing.T) {
	for _, test := range []struct {
		name string
		end  func(*Registry, *Lease)
		want error
		by   string
	}{
		{"its owner hangs up", func(_ *Registry, l *Lease) { l.Drop(); l.Drop() }, call.ErrHungUp, "caller"},
		{"an operator", func(r *Registry, _ *Lease) { r.Cancel("a") }, call.ErrCancelled, "operator"},
		{"the drain", func(r *Registry, _ *Lease) { r.CancelAll(call.ErrDrained) }, call.ErrDrained, "drain"},
		{"two of them", func(r *Registry, l *Lease) { r.Cancel("a"); l.Drop() }, call.ErrCancelled, "operator"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var h heard
			r := New(t.Context(), Options{Door: door(until), Emit: h.sink})
			c := newCall("a")
			ctx, lease := r.Begin(c)
			ended := make(chan error)
			go func() { ended <- r.Do(ctx, c) }()
			test.end(r, lease)
			if err := <-ended; !errors.Is(err, test.want) {
				t.Errorf("ended with %v, want %v", err, test.want)
			}
			<-r.Quiet()
			if r.Cancel("a") {
				t.Error("an ended call could be cancelled")
			}
			rec, ok := r.Get("a")
			if !ok || rec.State != "ended" || rec.Outcome != event.Cancelled || rec.Cancel == nil || rec.Cancel.By != test.by {
				t.Errorf("the record: %+v", rec)
			}
			if len(h.events) != 2 {
				t.Fatalf("%d events, want the end and the evidence", len(h.events))
			}
			if ev := h.events[1].(event.CallCancelled); !ev.Cancel.Stop.Empty || ev.Cancel.Stop.Proof != "never-started" {
				t.Errorf("evidence %+v", ev)
			}
		})
	}
}

// TestServersEnd: calls do not outlive the server's own context.
func TestServersEnd(t *testing.T) {
	base, cancel := context.WithCancel(t.Context())
	r := New(base, Options{Door: door(until), Emit: (&heard{}).sink})
	c := newCall("a")
	ctx, _ := r.Begin(c)
	cancel()
	if err := r.Do(ctx, c); err == nil {
		t.Error("it went on")
	}
}

// TestEvidenceOfAStartedCall is the pool's to give; the record shows it.
func TestEvidenceOfAStartedCall(t *testing.T) {
	var h heard
	var r *Registry
	r = New(t.Context(), Options{Emit: h.sink, Door: door(func(_ context.Context, c *call.Call) error {
		r.Sink(event.CallStarted{Call: c.ID, Pid: 7, At: time.Now()})
		if rec, _ := r.Get(c.ID); rec.State != "running" || rec.WorkerPid != 7 {
			t.Errorf("while it runs: %+v", rec)
		}
		return call.ErrHungUp
	})})
	c := newCall("a")
	ctx, _ := r.Begin(c)
	r.Do(ctx, c)
	if len(h.events) != 1 {
		t.Errorf("%d events, want the end alone", len(h.events))
	}
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	r.Sink(event.CallCancelled{Call: "a", Cancel: event.Cancel{By: "caller", NoticedAt: at, Stop: event.Stop{
		Steps: []event.Step{{Name: "kill", At: 1500 * time.Microsecond}}, Killed: 3, Took: 2 * time.Millisecond,
		Survivors: []event.Survivor{{Pid: 9, State: "D", UID: 1, Wait: "io_schedule"}},
	}}})
	rec, _ := r.Get("a")
	data, err := json.Marshal(rec)
	if err != nil {
		t.Fatal(err)
	}
	var got struct{ Cancel json.RawMessage }
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	want := `{"by":"caller","noticed_at":"2026-01-02T03:04:05Z","steps":[{"step":"kill","at_ms":1.5}],"killed":3,` +
		`"empty_ms":2,"empty":false,"survivors":[{"pid":9,"state":"D","uid":1,"wait_channel":"io_schedule"}]}`
	if diff := cmp.Diff(want, string(got.Cancel)); diff != "" {
		t.Errorf("the JSON (-want +got):\n%s", diff)
	}
}

// TestPastIsBounded: the oldest ended calls are forgotten, the live ones never.
func TestPastIsBounded(t *testing.T) {
	r := New(t.Context(), Options{Door: door(func(context.Context, *call.Call) error { return nil }), Emit: (&heard{}).sink, Past: 3})
	alive := newCall("alive")
	r.Begin(alive)
	for i := range 10 {
		c := newCall(fmt.Sprint(i))
		if i%2 == 0 {
			ctx, _ := r.Begin(c)
			r.Do(ctx, c)
		} else {
			r.Refuse(c, call.ErrQueueFull)
		}
	}
	for i := range PastRefused + 1 { // a flood
		r.Refuse(newCall(fmt.Sprint("refused-", i)), call.ErrForbidden)
	}
	var ids []string
	for _, rec := range r.List() {
		if rec.Outcome != event.Rejected {
			ids = append(ids, rec.ID)
		}
	}
	if n := len(r.List()) - len(ids); n != PastRefused {
		t.Errorf("%d refused calls are known, want %d", n, PastRefused)
	}
	if diff := cmp.Diff([]string{"alive", "4", "6", "8"}, ids); diff != "" {
		t.Errorf("what is known (-want +got):\n%s", diff)
	}
	select {
	case <-r.Quiet():
		t.Error("quiet, and a call is alive")
	default:
	}
}

// TestPanic: even a call whose door panics has an end.
func TestPanic(t *testing.T) {
	r := New(t.Context(), Options{Door: door(func(context.Context, *call.Call) error { panic("a defect") }), Emit: (&heard{}).sink})
	c := newCall("a")
	ctx, _ := r.Begin(c)
	func() {
		defer func() { recover() }()
		r.Do(ctx, c)
	}()
	<-r.Quiet()
	if rec, _ := r.Get("a"); rec.Outcome != event.Failed {
		t.Errorf("the record: %+v", rec)
	}
}
