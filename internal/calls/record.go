package calls

import (
	"encoding/json"
	"slices"
	"strings"
	"time"

	"example.com/hangup/internal/call"
	"example.com/hangup/internal/event"
)

// Record is what is known of one call. It marshals to the JSON of GET /calls.
type Record struct {
	ID        string
	Workload  string
	Task      string
	State     string // queued, running or ended
	Outcome   event.Outcome
	Caller    string
	QueuedAt  time.Time
	StartedAt *time.Time // nil: no worker has taken it
	EndedAt   *time.Time // nil: it has not ended
	WorkerPid int
	OnHangup  string
	Cancel    *event.Cancel // nil: not cancelled, or no verdict yet
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

// MarshalJSON gives the members their fixed names.
func (r Record) MarshalJSON() ([]byte, error) {
	type step struct {
		Step string  `json:"step"`
		AtMs float64 `json:"at_ms"`
	}
	type survivor struct {
		Pid   int    `json:"pid"`
		State string `json:"state"`
		UID   int    `json:"uid"`
		Wait  string `json:"wait_channel,omitempty"`
	}
	type cancel struct {
		By        string     `json:"by"`
		NoticedAt time.Time  `json:"noticed_at"`
		Steps     []step     `json:"steps"`
		Killed    int        `json:"killed"`
		EmptyMs   float64    `json:"empty_ms"`
		Empty     bool       `json:"empty"`
		Proof     string     `json:"proof,omitempty"`
		Survivors []survivor `json:"survivors"`
	}
	var c *cancel
	if r.Cancel != nil {
		c = &cancel{
			By: r.Cancel.By, NoticedAt: r.Cancel.NoticedAt,
			Steps: []step{}, Killed: r.Cancel.Stop.Killed, EmptyMs: ms(r.Cancel.Stop.Took),
			Empty: r.Cancel.Stop.Empty, Proof: r.Cancel.Stop.Proof, Survivors: []survivor{},
		}
		for _, s := range r.Cancel.Stop.Steps {
			c.Steps = append(c.Steps, step{s.Name, ms(s.At)})
		}
		for _, s := range r.Cancel.Stop.Survivors {
			c.Survivors = append(c.Survivors, survivor(s))
		}
	}
	return json.Marshal(struct {
		ID        string        `json:"id"`
		Workload  string        `json:"workload"`
		Task      string        `json:"task"`
		State     string        `json:"state"`
		Outcome   event.Outcome `json:"outcome"`
		Caller    string        `json:"caller"`
		QueuedAt  time.Time     `json:"queued_at"`
		StartedAt *time.Time    `json:"started_at"`
		EndedAt   *time.Time    `json:"ended_at"`
		WorkerPid int           `json:"worker_pid"`
		OnHangup  string        `json:"on_hangup"`
		Cancel    *cancel       `json:"cancel"`
	}{
		r.ID, r.Workload, r.Task, r.State, r.Outcome, r.Caller, r.QueuedAt, r.StartedAt, r.EndedAt,
		r.WorkerPid, r.OnHangup, c,
	})
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
