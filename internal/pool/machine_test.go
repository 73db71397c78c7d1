package pool

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/hangup/internal/event"
	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "write docs/states.md instead of comparing it")

// TestStatesDoc holds docs/states.md against the table it is generated from.
func TestStatesDoc(t *testing.T) {
	var b strings.Builder
	b.WriteString("# The states of a worker\n\n" +
		"Generated from the table in `internal/pool/machine.go` by `go test ./internal/pool -run StatesDoc -update`.\n" +
		"What is not listed cannot happen; if it does, the pool reports an `Illegal` event and changes nothing.\n\n" +
		"| in state | when | goes to | and the pool |\n|---|---|---|---|\n")
	for _, row := range transitions {
		name := func(s event.WorkerState) string {
			if s == gone {
				return "(gone)"
			}
			return string(s)
		}
		do := string(row.do)
		if row.do == nothing {
			do = "–"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", name(row.from), row.on, name(row.to), do)
	}
	b.WriteString(`
## Trees that do not die

A worker leaves its pool only when its process tree is proved empty. A replacement does not wait for that: a pool that
keeps ` + "`n = workers + spares`" + ` workers has up to n dying ones beside them. Where there are more, new calls wait.

Now and then the kernel does not let a process die: it waits for a disk, or a file server that is gone. Two seconds after
the kill, and every two seconds from then on, the verdict on such a tree is *not empty*, and names who is left. The tree is
then **in quarantine**: killed again and again, counted in ` + "`hangup_trees_not_empty`" + `, and no longer one of the n dying ones,
so that its place goes to a replacement. With 2n trees in quarantine no more workers start. The pool goes on with those
it has; when it has none, its calls are refused as ` + "`workload-down`" + `, which says why. When a tree dies at last, it leaves
the pool and every count, and workers start again.
`)
	const file = "../../docs/states.md"
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(have) != b.String() {
		t.Errorf("%s is not what the table says; run this test with -update", file)
	}
}

// TestTableIsSound checks what the table as a whole must be.
func TestTableIsSound(t *testing.T) {
	seen := map[string]bool{}
	leaves := map[event.WorkerState]bool{}
	for _, row := range transitions {
		key := fmt.Sprint(row.from, " ", row.on)
		if seen[key] {
			t.Errorf("two rows for %s", key)
		}
		seen[key] = true
		if row.to != row.from {
			leaves[row.from] = true
		}
		if row.to == gone && row.from != event.Dying && row.on != unborn && row.from != gone {
			t.Errorf("%s leaves the count without a verdict on its tree", row.from)
		}
		if row.to == event.Dying && row.from != event.Dying && row.do != stop {
			t.Errorf("%s becomes dying and nobody stops it", key)
		}
	}
	for _, s := range event.WorkerStates {
		if !leaves[s] {
			t.Errorf("no way out of %s", s)
		}
	}
}

func TestIllegalInputsChangeNothing(t *testing.T) {
	now := time.Now()
	m := newMachine(Options{Limit: 1, QueueLength: 1, QueueWait: time.Second})
	if _, err := m.step(input{what: retryNow, now: now}); err != nil {
		t.Fatal(err)
	}
	w := m.workers[0]
	for _, in := range []input{
		{what: workerAsked, worker: w, ok: true},
		{what: workerStopped, worker: w, ok: true},
		{what: bodyIn, call: &ticket{}},
		{what: cancelled, call: &ticket{}},
		{what: returned, call: &ticket{}, ok: true},
		{what: "nonsense", call: &ticket{}},
	} {
		in.now = now
		if effects, err := m.step(in); err == nil || len(effects) != 0 {
			t.Errorf("%s: effects %v, error %v; want none, and an error", in.what, effects, err)
		}
		if w.state != event.Starting || m.seats != 0 {
			t.Errorf("%s: changed something", in.what)
		}
	}
}

// TestStartedInVain: a worker that becomes ready just as its pool is retired and its start
// given up is not kept, because nobody will need it.
func TestStartedInVain(t *testing.T) {
	now := time.Now()
	m := newMachine(Options{Limit: 1, QueueWait: time.Second})
	var w *worker
	for _, row := range []struct {
		what what
		want action
	}{
		{retryNow, launch},
		{retire, abort},
		{workerStarted, stop},
		{workerStopped, ""},
	} {
		effects, err := m.step(input{what: row.what, worker: w, ok: true, now: now})
		if err != nil {
			t.Fatalf("%s: %v", row.what, err)
		}
		var did action
		for _, e := range effects {
			if e.do != change {
				did += e.do
			}
		}
		if did != row.want {
			t.Errorf("%s: the pool does %q, want %q", row.what, did, row.want)
		}
		if w == nil {
			w = m.workers[0]
		}
	}
	if !m.ended() {
		t.Error("the pool goes on")
	}
}

// world drives a machine as the loop does, with everything that may happen
// happening in any order, and keeps a count of its own.
type world struct {
	m   *machine
	now time.Time

	calls    []*ticket          // that have been asked a place and not seen their end
	admitted map[*ticket]bool   // was given a place
	ended    map[*ticket]string // how it ended, once
	launches []*worker
	asks     []*worker
	stops    []*worker
	alive    []*worker // started, main process there
	owners   map[*worker]*ticket
}

func (w *world) step(t *rapid.T, in input) {
	in.now = w.now
	effects, err := w.m.step(in)
	if err != nil {
		t.Fatalf("%s: %v", in.what, err)
	}
	for _, e := range effects {
		switch e.do {
		case admit:
			if w.admitted[e.call] {
				t.Fatal("admitted twice")
			}
			w.admitted[e.call] = true
		case refuse:
			w.end(t, e.call, "refused")
		case release:
			w.end(t, e.call, "left")
		case handOver:
			if e.call.worker != e.worker || w.owners[e.worker] != nil {
				t.Fatalf("worker %d has two owners", e.worker.id)
			}
			w.owners[e.worker] = e.call
		case launch:
			w.launches = append(w.launches, e.worker)
		case ask:
			w.asks = append(w.asks, e.worker)
		case stop:
			w.stops = append(w.stops, e.worker)
		}
	}
	w.check(t)
}

func (w *world) end(t *rapid.T, c *ticket, how string) {
	if was, ok := w.ended[c]; ok {
		t.Fatalf("a call ended twice: %s and %s", was, how)
	}
	w.ended[c] = how
	w.calls = drop(w.calls, c)
}

// drop returns list without x, in a new slice.
func drop[T comparable](list []T, x T) []T {
	return slices.DeleteFunc(slices.Clone(list), func(other T) bool { return other == x })
}

// check holds the counts of the machine against a recount.
func (w *world) check(t *rapid.T) {
	m := w.m
	count := map[event.WorkerState]int{}
	for _, wk := range m.workers {
		count[wk.state]++
		if (wk.call != nil) != (wk.state == event.Busy) {
			t.Fatalf("worker %d is %s and its call is %v", wk.id, wk.state, wk.call)
		}
		if wk.call != nil && (wk.call.worker != wk || wk.call.seat != running) {
			t.Fatalf("worker %d and its call do not agree", wk.id)
		}
	}
	for _, s := range event.WorkerStates {
		if count[s] != m.count[s] {
			t.Fatalf("%d workers are %s, the machine counts %d", count[s], s, m.count[s])
		}
	}
	if count[event.Idle] != len(m.idle) {
		t.Fatalf("%d idle, %d on the stack", count[event.Idle], len(m.idle))
	}
	if count[event.Busy] > m.limit {
		t.Fatalf("%d calls run, the limit is %d", count[event.Busy], m.limit)
	}
	if m.alive() > m.full() || len(m.workers)-m.stuck > m.full()+m.maxDying() || len(m.workers) > m.full()+m.maxDying()+m.maxStuck() {
		t.Fatalf("too many workers: %d alive, %d stuck, %d in all", m.alive(), m.stuck, len(m.workers))
	}
	stuck := 0
	for _, wk := range m.workers {
		if wk.stuck {
			stuck++
		}
	}
	if stuck != m.stuck {
		t.Fatalf("%d trees do not die, the machine counts %d", stuck, m.stuck)
	}
	if m.stuck >= m.maxStuck() && m.alive() == 0 && m.queue.Len() > 0 {
		t.Fatal("a call waits for what may never come")
	}
	seats := 0
	for _, c := range w.calls {
		if w.admitted[c] {
			seats++
		}
	}
	if m.seats != seats || seats > m.limit+m.queueLength {
		t.Fatalf("%d calls are in, the machine counts %d of %d", seats, m.seats, m.limit+m.queueLength)
	}
	takesCalls := m.phase == open || m.phase == retiring
	if takesCalls && m.queue.Len() > 0 && len(m.idle) > 0 && count[event.Busy] < m.limit {
		t.Fatal("a call waits while a worker idles")
	}
	if m.phase == retiring && len(m.idle) > 0 && m.alive() > m.want() {
		t.Fatal("a worker idles that nobody will need")
	}
	if takesCalls && m.retryAt.IsZero() && m.stuck < m.maxStuck() && m.alive() < m.want() && len(m.workers)-m.stuck < m.want()+m.maxDying() {
		t.Fatal("a worker is missing and nobody starts it")
	}
}

// TestAnyOrder lets everything happen in every order: each call ends once, no
// worker has two owners, the counts add up, and at the end nothing is left.
func TestAnyOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &world{
			m: newMachine(Options{
				Limit:       rapid.IntRange(1, 4).Draw(t, "limit"),
				Spares:      rapid.IntRange(0, 2).Draw(t, "spares"),
				QueueLength: rapid.IntRange(0, 3).Draw(t, "queue"),
				QueueWait:   time.Second,
				Cooperative: time.Duration(rapid.IntRange(0, 1).Draw(t, "cooperative")),
			}),
			now: time.Now(), admitted: map[*ticket]bool{}, ended: map[*ticket]string{}, owners: map[*worker]*ticket{},
		}
		w.step(t, input{what: retryNow})
		t.Repeat(map[string]func(*rapid.T){
			"call": func(t *rapid.T) {
				c := &ticket{}
				w.calls = append(w.calls, c)
				w.step(t, input{what: placeAsked, call: c})
			},
			"of a call": func(t *rapid.T) {
				if len(w.calls) == 0 {
					t.Skip()
				}
				c := rapid.SampledFrom(w.calls).Draw(t, "call")
				w.ofCall(t, c, rapid.SampledFrom([]what{bodyIn, left, waitOver, cancelled, returned, givenBack, declined}).Draw(t, "what"))
			},
			"of a worker": func(t *rapid.T) { w.ofWorker(t, rapid.Bool().Draw(t, "ok")) },
			"time": func(t *rapid.T) {
				w.now = w.now.Add(time.Duration(rapid.IntRange(1, 90).Draw(t, "seconds")) * time.Second)
				w.step(t, input{what: retryNow})
			},
			"retire": func(t *rapid.T) {
				if rapid.IntRange(0, 9).Draw(t, "seldom") > 0 {
					t.Skip()
				}
				w.step(t, input{what: retire})
			},
			"late timer": func(t *rapid.T) {
				for c := range w.ended {
					w.step(t, input{what: waitOver, call: c})
					return
				}
			},
		})

		// The end: every call goes, every worker is let go of.
		for len(w.calls) > 0 {
			c := w.calls[0]
			w.ofCall(t, c, left)
			w.ofCall(t, c, cancelled)
		}
		w.step(t, input{what: rapid.SampledFrom([]what{retire, shut}).Draw(t, "end")})
		for !w.m.ended() {
			w.ofWorker(t, true)
		}
		if w.m.seats != 0 || w.m.queue.Len() != 0 {
			t.Fatalf("%d seats, %d waiting, nobody there", w.m.seats, w.m.queue.Len())
		}
	})
}

// ofCall lets one thing happen to a call that it can do in its seat.
func (w *world) ofCall(t *rapid.T, c *ticket, what what) {
	switch {
	case c.seat == receiving && (what == bodyIn || what == left),
		c.seat == waiting && (what == left || what == waitOver):
		w.step(t, input{what: what, call: c})
	case c.seat == running && what == declined:
		delete(w.owners, c.worker)
		w.step(t, input{what: what, call: c})
	case c.seat == running && (what == cancelled || what == returned || what == givenBack):
		ok := rapid.Bool().Draw(t, "sound")
		delete(w.owners, c.worker)
		w.end(t, c, string(what))
		w.step(t, input{what: what, call: c, ok: ok})
	}
}

// ofWorker lets one thing happen that is under way for a worker.
func (w *world) ofWorker(t *rapid.T, ok bool) {
	type thing struct {
		in   input
		list *[]*worker
	}
	var things []thing
	for _, wk := range w.launches {
		if ok {
			things = append(things, thing{input{what: workerStarted, worker: wk}, &w.launches})
		} else {
			born := wk.id%2 == 0
			things = append(things, thing{input{what: workerFailed, worker: wk, ok: !born, err: errors.New("no such program")}, &w.launches})
		}
	}
	for _, wk := range w.asks {
		things = append(things, thing{input{what: workerAsked, worker: wk, ok: ok}, &w.asks})
	}
	for _, wk := range w.stops {
		things = append(things, thing{input{what: workerStopped, worker: wk, ok: ok}, &w.stops})
	}
	for _, wk := range w.alive {
		things = append(things, thing{input{what: workerExited, worker: wk}, &w.alive})
	}
	if len(things) == 0 {
		return
	}
	th := things[rapid.IntRange(0, len(things)-1).Draw(t, "thing")]
	wk := th.in.worker
	if th.in.what != workerStopped || ok {
		*th.list = drop(*th.list, wk)
	}
	if th.in.what == workerStarted {
		w.alive = append(w.alive, wk)
	}
	w.step(t, th.in)
}
