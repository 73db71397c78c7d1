package calls

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"

	"example.com/hangup/internal/call"
)

// The bounds on the events that are kept for those who watch calls. What is over
// them is let go, the oldest first, and whoever has not seen it gets a gap. An
// event counts as eventCost more than its data.
const (
	TrailEvents = 1000      // of one call
	TrailBytes  = 256 << 10 // of one call
	TrailsBytes = 32 << 20  // of all calls; those that have ended make room first

	eventCost = 128
	// decoded is how many times its text JSON may take when it is decoded.
	decoded = 16
	// batch is how many events a Next returns at most.
	batch = 64
)

// Event is one event of a call as those who watch it see it.
type Event struct {
	ID     int64  // 1 for the first of a call, and one more for each after it
	Name   string // "queued", "started", "output", "progress", "gap"; the last is "ended"
	Stream string // of an output: "stdout" or "stderr"
	Data   []byte // of an output what was written, of a progress a JSON object
	Left   int64  // of an output the bytes left out before it, of a gap the events
}

// trail is the events of one call: those that are kept, and how many there have
// been. The first, the second and the last are told from the record, so that a
// call that says nothing keeps nothing.
type trail struct {
	kept  []Event // the newest outputs and progresses
	bytes int     // what they take
	last  int64   // the id of the newest event of all
	ended bool    // that one was the last
	news  chan struct{}
}

// told says that something has come, to all who wait for it.
func (t *trail) told() {
	if t.news != nil {
		close(t.news)
		t.news = nil
	}
}

// drop lets the oldest event go and returns what it took.
func (t *trail) drop() (bytes int) {
	bytes = len(t.kept[0].Data) + eventCost
	t.kept[0] = Event{}
	t.kept = t.kept[1:]
	t.bytes -= bytes
	return bytes
}

// since returns up to a batch of the events after one.
func (t *trail) since(after int64, started bool) (events []Event) {
	if after < 1 {
		events = append(events, Event{ID: 1, Name: "queued"})
		after = 1
	}
	if started && after < 2 {
		events = append(events, Event{ID: 2, Name: "started"})
		after = 2
	}
	newest := t.last
	if t.ended {
		newest--
	}
	first := newest - int64(len(t.kept)) + 1
	if after < first-1 {
		events = append(events, Event{ID: first - 1, Name: "gap", Left: first - 1 - after})
		after = first - 1
	}
	if after < newest {
		part := t.kept[after-first+1:]
		if len(part) > batch {
			return append(events, part[:batch]...)
		}
		events = append(events, part...)
	}
	if t.ended && after < t.last {
		events = append(events, Event{ID: t.last, Name: "ended"})
	}
	return events
}

// add puts an event of a running call on its trail. Its data is used again by
// whoever tells it.
func (r *Registry) add(id string, ev Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.live[id]
	if e == nil {
		return // it has ended; its worker may still be talking
	}
	t := &e.trail
	t.last++
	ev.ID = t.last
	took := len(ev.Data) + eventCost
	if took <= TrailBytes { // else it goes at once, and is not worth a copy
		ev.Data = bytes.Clone(ev.Data)
	}
	t.kept = append(t.kept, ev)
	t.bytes += took
	r.trails += took
	r.makeRoom()
	for len(t.kept) > 0 && (len(t.kept) > TrailEvents || t.bytes > TrailBytes || r.trails > r.most) {
		r.trails -= t.drop()
	}
	t.told()
}

// conclude puts the last event on a call's trail. heavy is the weight of the cause.
func (r *Registry) conclude(e *entry, cause error, heavy int) {
	t := &e.trail
	t.last++
	t.ended = true
	e.cause = cause
	e.reply = nil // it leads to the whole request
	t.bytes += heavy
	r.trails += heavy
	if t.bytes > 0 {
		e.past = r.kept.PushBack(e)
		r.makeRoom()
	}
	t.told()
}

// makeRoom lets go of what ended calls have said, until all trails are within
// their bound or there is no more of it.
func (r *Registry) makeRoom() {
	for r.trails > r.most && r.kept.Len() > 0 {
		r.letGo(r.kept.Front().Value.(*entry))
	}
}

// letGo keeps nothing of what an ended call has said but how it ended.
func (r *Registry) letGo(e *entry) {
	if e.past == nil {
		return
	}
	r.kept.Remove(e.past)
	r.trails -= e.trail.bytes
	e.past, e.trail.kept, e.trail.bytes = nil, nil, 0
	e.cause = bare(e.cause)
}

// weight is how many bytes a cause takes that has words of the work in it.
func weight(cause error) int {
	if cause == nil { // of most calls, which then cost nothing here
		return 0
	}
	var failure *call.FailureError
	var died *call.DiedError
	switch {
	case errors.As(cause, &failure):
		n := len(failure.Class) + len(failure.Message) + len(failure.Tail)
		if len(failure.Members) > 0 {
			members, _ := json.Marshal(failure.Members) // they came as JSON
			n += decoded * len(members)
		}
		return n
	case errors.As(cause, &died):
		return len(died.Tail)
	}
	return 0
}

// bare is a cause without the words of the work.
func bare(cause error) error {
	var failure *call.FailureError
	var died *call.DiedError
	switch {
	case errors.As(cause, &failure):
		return call.ErrFailed
	case errors.As(cause, &died):
		return &call.DiedError{Exit: died.Exit, Signal: died.Signal, OOM: died.OOM}
	}
	return cause
}

// Watch is somebody's view of the events of one call. It owns nothing: neither
// the call nor its end waits for it. It has one user.
type Watch struct {
	r     *Registry
	e     *entry
	after int64
}

// Watch watches a call from the event behind the one with the id after; 0 is
// before the first. It is false when the call is not known, or no longer.
func (r *Registry) Watch(id string, after int64) (*Watch, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.known[id]
	return &Watch{r, e, after}, e != nil
}

// Next returns what has come since the last Next, some events at a time. When
// there is nothing, news is closed as soon as there is, or is nil when the last
// event has been. The data of the events must not be changed.
func (w *Watch) Next() (events []Event, news <-chan struct{}) {
	w.r.mu.Lock()
	defer w.r.mu.Unlock()
	t := &w.e.trail
	events = t.since(w.after, w.e.record.StartedAt != nil)
	switch {
	case len(events) > 0:
		w.after = events[len(events)-1].ID
		return events, nil
	case t.ended:
		return nil, nil
	case t.news == nil:
		t.news = make(chan struct{})
	}
	return nil, t.news
}

// Over tells whether the last event has been returned, by Next or before this
// Watch began.
func (w *Watch) Over() bool {
	w.r.mu.Lock()
	defer w.r.mu.Unlock()
	return w.e.trail.ended && w.after >= w.e.trail.last
}

// Result is what is known of a call's result, which is not kept.
type Result struct {
	ContentType string
	Size        int64 // in bytes
}

// End tells how a call ended whose last event has come: with a result, or a cause.
func (w *Watch) End() (Result, error) {
	w.r.mu.Lock()
	defer w.r.mu.Unlock()
	return w.e.result, w.e.cause
}

// Record is the call's record as it stands.
func (w *Watch) Record() Record {
	w.r.mu.Lock()
	defer w.r.mu.Unlock()
	return w.e.record
}

// Head notes what kind of result comes, on its way to the owner.
func (e *entry) Head(h call.Head) error {
	e.result.ContentType = h.ContentType
	return e.reply.Head(h)
}

// Write counts the bytes of the result, on their way to the owner.
func (e *entry) Write(ctx context.Context, p []byte) error {
	e.result.Size += int64(len(p))
	return e.reply.Write(ctx, p)
}
