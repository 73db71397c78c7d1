package calls

import (
	"slices"
	"strings"
	"time"

	"example.com/hangup/internal/call"
	"example.com/hangup/internal/event"
)

// Record is what is known of one call. Its JSON is the call of GET /calls.
type Record struct {
	ID        string        `json:"id"`
	Workload  string        `json:"workload"`
	Task      string        `json:"task"`
	State     string        `json:"state"` // queued, running or ended
	Outcome   event.Outcome `json:"outcome"`
	Caller    string        `json:"caller"`
	QueuedAt  time.Time     `json:"queued_at"`
	StartedAt *time.Time    `json:"started_at"` // nil: no worker has taken it
	EndedAt   *time.Time    `json:"ended_at"`   // nil: it has not ended
	WorkerPid int           `json:"worker_pid"`
	OnHangup  string        `json:"on_hangup"`
	Cancel    *event.Cancel `json:"cancel"` // nil: not cancelled, or no verdict yet
}

func newRecord(c *call.Call) Record {
	return Record{
		ID: c.ID, Workload: c.Workload, Task: c.Task, State: "queued", Caller: c.Caller,
		QueuedAt: c.At, OnHangup: c.OnHangup,
	}
}

// durations splits a call that ended at end into its waiting and its running.
func (r *Record) durations(end time.Time) (waited, ran time.Duration) {
	if r.StartedAt == nil {
		return end.Sub(r.QueuedAt), 0
	}
	return r.StartedAt.Sub(r.QueuedAt), end.Sub(*r.StartedAt)
}

func sortByArrival(list []Record) {
	slices.SortFunc(list, func(a, b Record) int {
		if c := a.QueuedAt.Compare(b.QueuedAt); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
}
