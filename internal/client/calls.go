package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// Record is a call as GET /calls tells it. Document is all the server says.
type Record struct {
	ID        string     `json:"id"`
	Workload  string     `json:"workload"`
	Task      string     `json:"task"`
	State     string     `json:"state"`
	Outcome   string     `json:"outcome"`
	Caller    string     `json:"caller"`
	QueuedAt  time.Time  `json:"queued_at"`
	StartedAt *time.Time `json:"started_at"`
	EndedAt   *time.Time `json:"ended_at"`
	WorkerPid int        `json:"worker_pid"`
	Cancel    *struct {
		By string `json:"by"`
	} `json:"cancel"`

	Document json.RawMessage `json:"-"`
}

// Name is the workload, and the task where there is one.
func (r *Record) Name() string {
	if r.Task == "" {
		return r.Workload
	}
	return r.Workload + "/" + r.Task
}

// UnmarshalJSON keeps the document beside what is understood of it.
func (r *Record) UnmarshalJSON(b []byte) error {
	type plain Record
	if err := json.Unmarshal(b, (*plain)(r)); err != nil {
		return err
	}
	r.Document = append(json.RawMessage(nil), b...)
	return nil
}

// Calls lists the calls that the server knows, oldest first; those that have
// ended only if all is set.
func (c *Client) Calls(ctx context.Context, all bool) ([]Record, error) {
	var list struct{ Calls []Record }
	if _, err := c.ask(ctx, http.MethodGet, &list, "calls"); err != nil {
		return nil, err
	}
	kept := []Record{}
	for _, r := range list.Calls {
		if all || r.State != "ended" {
			kept = append(kept, r)
		}
	}
	return kept, nil
}

// shortID is how short an id may be, in bytes: what an unset variable of a script
// leaves must not be that of somebody's call.
const shortID = 4

// Cancel cancels a call and returns it as it was then. An id may be shortened to
// a beginning or an end of it that only one call has which has not ended.
func (c *Client) Cancel(ctx context.Context, id string) (Record, error) {
	var r Record
	if len(id) < shortID {
		return r, fmt.Errorf("cannot tell which call %q is: write its id, or at least %d characters of it", id, shortID)
	}
	_, err := c.ask(ctx, http.MethodDelete, &r, "calls", id)
	var p *Problem
	if err == nil || !errors.As(err, &p) || p.Slug() != "no-such-call" {
		return r, err
	}
	list, listErr := c.Calls(ctx, false) // which another token may not see
	if listErr != nil {
		return r, err
	}
	var found []string
	for _, one := range list {
		if strings.HasPrefix(one.ID, id) || strings.HasSuffix(one.ID, id) {
			found = append(found, one.ID)
		}
	}
	switch len(found) {
	case 0:
		return r, err
	case 1:
		_, err = c.ask(ctx, http.MethodDelete, &r, "calls", found[0])
		return r, err
	default:
		return r, fmt.Errorf("cannot tell which call %q is: %s; write more of its id", id, Plain(strings.Join(found, ", ")))
	}
}

// Workload is a workload as GET /workloads tells it.
type Workload struct {
	Name  string   `json:"name"`
	State string   `json:"state"`
	Tasks []string `json:"tasks"`
}

// Workloads lists the workloads of the server.
func (c *Client) Workloads(ctx context.Context) ([]Workload, error) {
	var list struct{ Workloads []Workload }
	_, err := c.ask(ctx, http.MethodGet, &list, "workloads")
	return list.Workloads, err
}
