package calls

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"example.com/hangup/internal/call"
	"example.com/hangup/internal/event"
)

// play is a registry whose calls do what a test says while they run.
type play struct {
	*Registry
	work chan func(*call.Call) error
}

func newPlay(t testing.TB, past int) *play {
	p := &play{work: make(chan func(*call.Call) error)}
	p.Registry = New(t.Context(), Options{Past: past, Emit: func(e event.Event) { p.Sink(e) }, Door: door(func(_ context.Context, c *call.Call) error {
		c.Emit(event.CallStarted{Call: c.ID, Pid: 7, At: time.Now()})
		return (<-p.work)(c)
	})})
	return p
}

// run has a call done whose work is f.
func (p *play) run(id string, f func(*call.Call) error) {
	c := newCall(id)
	ctx, _ := p.Begin(c)
	ended := make(chan error)
	go func() { ended <- p.Do(ctx, c) }()
	p.work <- f
	<-ended
}

// prints is work that says n lines of size bytes and ends with err.
func prints(n, size int, err error) func(*call.Call) error {
	return func(c *call.Call) error {
		for i := range n {
			line := bytes.Repeat([]byte{byte('a' + i%26)}, size)
			c.Emit(event.Output{Call: c.ID, Stream: "stdout", Text: line})
			clear(line) // it is used again
		}
		return err
	}
}

// all is what a watch gets to the end of its call, in short.
func all(t testing.TB, w *Watch) (list []string) {
	t.Helper()
	for {
		events, news := w.Next()
		for _, ev := range events {
			list = append(list, strings.TrimSpace(fmt.Sprintf("%d %s %s", ev.ID, ev.Name, short(ev))))
		}
		switch {
		case len(events) > 0:
		case news == nil:
			return list
		default:
			<-news
		}
	}
}

func short(ev Event) string {
	switch ev.Name {
	case "output":
		return fmt.Sprintf("%s %.3s left %d", ev.Stream, ev.Data, ev.Left)
	case "progress":
		return string(ev.Data)
	case "gap":
		return fmt.Sprint(ev.Left)
	}
	return ""
}

// Whoever watches sees the same, from the point they name, while the call runs or
// after.
func TestWatch(t *testing.T) {
	p := newPlay(t, 0)
	want := []string{
		"1 queued", "2 started", "3 output stdout aaa left 0", "4 output stderr err left 5", `5 progress {"done":1}`, "6 ended",
	}
	var watching sync.WaitGroup
	var got [3][]string
	p.run("a", func(c *call.Call) error {
		for i := range got {
			w, ok := p.Watch("a", int64(i))
			if !ok {
				t.Error("a running call is not known")
			}
			watching.Go(func() { got[i] = all(t, w) })
		}
		prints(1, 4, nil)(c)
		c.Emit(event.Output{Call: "a", Stream: "stderr", Text: []byte("err"), Dropped: 5})
		c.Emit(event.Output{Call: "a", Stream: "failure", Text: []byte("a traceback")})
		c.Emit(event.Output{Call: "", Stream: "stdout", Text: []byte("nobody's")})
		c.Emit(event.CallProgress{Call: "a", JSON: []byte(`{"done":1}`)})
		return nil
	})
	p.Sink(event.Output{Call: "a", Stream: "stdout", Text: []byte("too late")})
	watching.Wait()
	for i := range want {
		w, ok := p.Watch("a", int64(i))
		if !ok {
			t.Fatal("an ended call is not known")
		}
		if diff := cmp.Diff(want[i:], all(t, w)); diff != "" {
			t.Errorf("after %d, later (-want +got):\n%s", i, diff)
		}
		if !w.Over() {
			t.Error("not over at its end")
		}
		if i < len(got) {
			if diff := cmp.Diff(want[i:], got[i]); diff != "" {
				t.Errorf("after %d (-want +got):\n%s", i, diff)
			}
		}
	}
	if w, _ := p.Watch("a", 6); !w.Over() {
		t.Error("not over behind the last event")
	}
	if _, ok := p.Watch("b", 0); ok {
		t.Error("there is no such call")
	}
}

// A call that never started has two events, also one that was refused.
func TestWatchOfCallsThatNeverStarted(t *testing.T) {
	r := New(t.Context(), Options{Emit: func(event.Event) {}, Door: door(until)})
	r.Refuse(newCall("refused"), call.ErrQueueFull)
	c := newCall("left")
	ctx, lease := r.Begin(c)
	lease.Drop()
	r.Do(ctx, c)
	for id, cause := range map[string]error{"refused": call.ErrQueueFull, "left": call.ErrHungUp} {
		w, _ := r.Watch(id, 0)
		if got := all(t, w); !cmp.Equal(got, []string{"1 queued", "2 ended"}) {
			t.Errorf("%s: %q", id, got)
		}
		if _, err := w.End(); !errors.Is(err, cause) {
			t.Errorf("%s: ended with %v", id, err)
		}
	}
}

// sunk is a reply that takes everything.
type sunk struct{}

func (sunk) Head(call.Head) error                { return nil }
func (sunk) Write(context.Context, []byte) error { return nil }

// The body of a result is not kept, what it was is.
func TestResultIsKnown(t *testing.T) {
	r := New(t.Context(), Options{Emit: func(event.Event) {}, Door: door(func(ctx context.Context, c *call.Call) error {
		return errors.Join(c.Reply.Head(call.Head{ContentType: "text/x", Size: -1}), c.Reply.Write(ctx, []byte("abc")), c.Reply.Write(ctx, []byte("d")))
	})})
	c := newCall("a")
	c.Reply = sunk{}
	ctx, _ := r.Begin(c)
	r.Do(ctx, c)
	w, _ := r.Watch("a", 0)
	all(t, w)
	if result, err := w.End(); err != nil || result != (Result{"text/x", 4}) {
		t.Errorf("%+v, %v", result, err)
	}
}

// What is over a call's bound is a gap, and what is left is the newest.
func TestGap(t *testing.T) {
	for _, tt := range []struct{ n, size, left int }{
		{TrailEvents, 1, TrailEvents},
		{TrailEvents + 5, 1, TrailEvents},
		{40, 8 << 10, TrailBytes / (8<<10 + eventCost)},
		{3, TrailBytes, 0},
		{0, 0, 0},
	} {
		p := newPlay(t, 0)
		p.run("a", prints(tt.n, tt.size, nil))
		last := int64(3 + tt.n)
		for _, after := range []int64{0, 2, last - int64(tt.left) - 1, last - 1, last, last + 100} {
			w, _ := p.Watch("a", after)
			got := all(t, w)
			begin := max(last-int64(tt.left), after+1, 3) // the first that is neither queued, started nor missing
			missed := max(0, begin-1-max(after, 2))
			want := int(max(0, last-max(after, 2)-missed)) + int(max(0, 2-after))
			if missed > 0 {
				want++
				if gap := fmt.Sprintf("%d gap %d", begin-1, missed); !strings.Contains(strings.Join(got, "\n")+"\n", gap+"\n") {
					t.Errorf("%d of %d after %d: no %q in %.100q", tt.n, tt.size, after, gap, got)
				}
			}
			if len(got) != want {
				t.Errorf("%d of %d after %d: %d events, want %d: %.200q", tt.n, tt.size, after, len(got), want, got)
			}
		}
	}
}

// A watcher that does not read holds up nobody, and gets a gap.
func TestSlowWatcher(t *testing.T) {
	p := newPlay(t, 0)
	var slow *Watch
	p.run("a", func(c *call.Call) error {
		slow, _ = p.Watch("a", 0)
		slow.Next()
		return prints(3*TrailEvents, 1, nil)(c)
	})
	got := all(t, slow)
	if len(got) != TrailEvents+2 || got[0] != fmt.Sprintf("%d gap %d", 2+2*TrailEvents, 2*TrailEvents) || got[len(got)-1] != fmt.Sprintf("%d ended", 3+3*TrailEvents) {
		t.Errorf("%d events: %.100q", len(got), got)
	}
}

// The trails of calls that have ended make room first, the oldest before the
// newer; how a call ended is always known.
func TestTrailsAreBounded(t *testing.T) {
	p := newPlay(t, 0)
	p.most = 10 * (100 + eventCost)
	failure := &call.FailureError{Class: "E", Message: "m", Tail: "tail", Members: map[string]any{"a": "b"}}
	p.run("1", prints(5, 100, failure))
	p.run("2", prints(4, 100, nil))
	p.run("3", prints(4, 100, &call.DiedError{Signal: "SIGKILL", Tail: "tail"}))
	for id, want := range map[string]int{"1": 0, "2": 4, "3": 4} {
		w, _ := p.Watch(id, 0)
		if n := strings.Count(strings.Join(all(t, w), "\n"), "output"); n != want {
			t.Errorf("%s: %d outputs are left, want %d", id, n, want)
		}
	}
	w, _ := p.Watch("1", 0)
	if got := all(t, w); !cmp.Equal(got, []string{"1 queued", "2 started", "7 gap 5", "8 ended"}) {
		t.Errorf("what made room: %q", got)
	}
	if _, err := w.End(); err != call.ErrFailed {
		t.Errorf("its cause: %v", err)
	}
	p.run("4", prints(30, 100, nil))
	w, _ = p.Watch("4", 2)
	if got := all(t, w); len(got) != 12 {
		t.Errorf("a call alone: %d events, want a gap, 10 outputs and the end", len(got))
	}
	w, _ = p.Watch("3", 0)
	all(t, w)
	if _, err := w.End(); !cmp.Equal(err, error(&call.DiedError{Signal: "SIGKILL"})) {
		t.Errorf("its cause: %v", err)
	}
}

// The account of what the trails take is exact, whatever comes and goes.
func TestTrailsAccount(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		p := newPlay(t, 3)
		p.most = rapid.IntRange(0, 3*TrailBytes).Draw(rt, "most")
		for i := range rapid.IntRange(1, 10).Draw(rt, "calls") {
			var err error
			switch rapid.IntRange(0, 2).Draw(rt, "end") {
			case 1:
				err = &call.FailureError{Message: "m", Members: map[string]any{"a": strings.Repeat("x", 1000)}}
			case 2:
				err = call.ErrQueueTimeout
			}
			n := rapid.SampledFrom([]int{0, 1, 2, 5}).Draw(rt, "lines")
			size := rapid.SampledFrom([]int{0, 1, 8 << 10, TrailBytes, TrailBytes + 1}).Draw(rt, "size")
			p.run(fmt.Sprint(i), prints(n, size, err))
			took := 0
			for _, e := range p.known {
				took += weight(e.cause)
				for _, ev := range e.trail.kept {
					took += len(ev.Data) + eventCost
				}
			}
			if took != p.trails || took > p.most {
				rt.Fatalf("the trails take %d, the account says %d, the bound is %d", took, p.trails, p.most)
			}
		}
	})
}

// BenchmarkCall is a call that says nothing and that nobody watches: its events
// must cost it nothing.
func BenchmarkCall(b *testing.B) {
	r := New(b.Context(), Options{Emit: func(event.Event) {}, Door: door(func(context.Context, *call.Call) error { return nil })})
	b.ReportAllocs()
	for b.Loop() {
		c := newCall("a")
		ctx, _ := r.Begin(c)
		r.Do(ctx, c)
	}
}
