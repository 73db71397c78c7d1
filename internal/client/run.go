package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Call is a call to make.
type Call struct {
	Workload, Task string
	Input          io.Reader // nil: none
	Size           int64     // of the input; -1: unknown
	ContentType    string
	Timeout        time.Duration // 0: the workload's
	Stream         bool          // ask for events
}

// Reply is how a call's reply begins. Body must be closed.
type Reply struct {
	Call           string // the id
	Status         int
	ContentType    string
	QueueMs, RunMs *float64 // milliseconds, where the server tells
	Events         bool     // Body is a stream of events
	Body           io.ReadCloser
}

// Run makes a call and returns when its reply begins, with a [Problem] as error
// when it ended without a result. The end of ctx hangs up.
func (c *Client) Run(ctx context.Context, call Call) (*Reply, error) {
	header := http.Header{}
	set := func(name, value string) {
		if value != "" {
			header.Set(name, value)
		}
	}
	set("Content-Type", call.ContentType)
	if call.Timeout > 0 {
		set("Call-Timeout", call.Timeout.String())
	}
	if call.Stream {
		set("Accept", "text/event-stream")
	}
	path := []string{"execute", call.Workload}
	if call.Task != "" {
		path = append(path, strings.Split(call.Task, "/")...)
	}
	body := call.Input
	if body == nil {
		body, call.Size = http.NoBody, 0
	}
	reply, err := c.send(ctx, http.MethodPost, path, "", header, body, call.Size)
	if err != nil {
		return nil, err
	}
	if reply.StatusCode/100 != 2 {
		defer reply.Body.Close()
		return nil, c.problem(reply)
	}
	if reply.Header.Get("Hangup-Call") == "" {
		reply.Body.Close()
		return nil, fmt.Errorf("cannot use the answer of %s: it is no reply to a call: does another program listen there?", c.shown)
	}
	r := &Reply{
		Call: reply.Header.Get("Hangup-Call"), Status: reply.StatusCode, ContentType: reply.Header.Get("Content-Type"),
		Events: call.Stream && isEvents(reply.Header.Get("Content-Type")),
	}
	r.QueueMs, r.RunMs = timings(reply.Header.Get("Server-Timing"))
	r.Body = &result{ReadCloser: reply.Body, c: c, ctx: ctx, call: r.Call}
	return r, nil
}

// timings reads a Server-Timing header as the server writes it.
func timings(header string) (queue, run *float64) {
	for metric := range strings.SplitSeq(header, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(metric), ";dur=")
		ms, err := strconv.ParseFloat(value, 64)
		switch {
		case err != nil:
		case name == "queue":
			queue = &ms
		case name == "run":
			run = &ms
		}
	}
	return queue, run
}

// result is the body of a reply, which tells why it broke off.
type result struct {
	io.ReadCloser
	c    *Client
	ctx  context.Context
	call string
	size int64
}

func (r *result) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	r.size += int64(n)
	if err == nil || err == io.EOF {
		return n, err
	}
	if r.ctx.Err() != nil {
		return n, context.Cause(r.ctx)
	}
	return n, r.c.BrokeOff(r.ctx, r.call, r.size)
}

// BrokeOff is the error of a reply that ended too early, after so many bytes. It
// asks the server how the call ended.
func (c *Client) BrokeOff(ctx context.Context, call string, size int64) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	var record Record
	why := "the call, the server or something in between ended in the middle of it"
	if _, err := c.ask(ctx, http.MethodGet, &record, "calls", call); err == nil && record.State == "ended" {
		why = "the call ended as " + Plain(record.Outcome)
		if record.Cancel != nil {
			why += " by " + Plain(cmp.Or(record.Cancel.By, "someone"))
		}
	}
	return fmt.Errorf("%w after %d bytes: %s; what came so far is not the whole result (call %s)", ErrBrokeOff, size, why, Plain(call))
}

// ErrBrokeOff is wrapped by the error of a reply that is not whole.
var ErrBrokeOff = errors.New("the reply broke off")
