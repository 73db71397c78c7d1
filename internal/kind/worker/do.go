package worker

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"time"

	"example.com/hangup/internal/call"
	"example.com/hangup/internal/config"
	"example.com/hangup/internal/event"
	"example.com/hangup/internal/proc"
	"example.com/hangup/internal/wire"
	"golang.org/x/sys/unix"
)

// small is the largest execute frame that is written in one go: a pipe takes
// that much without waiting for its reader.
const small = 64 << 10

// Do has one call done. It returns promptly when ctx ends, with its cause; the
// worker is then in doubt until Cancel or Stop.
func (w *Worker) Do(ctx context.Context, c *call.Call) error {
	w.talk.Lock()
	defer w.talk.Unlock()
	if ctx.Err() != nil { // Cancel or Stop may have been here already: nothing must be sent now
		return context.Cause(ctx)
	}
	dir, err := w.place.Begin(ctx, c.ID)
	switch {
	case ctx.Err() != nil:
		w.place.End()
		return context.Cause(ctx)
	case err != nil:
		return fmt.Errorf("%w: %v", call.ErrNoScratch, err)
	}
	w.seq++
	w.idle = false
	if w.o.Workload.Stop.Cooperative > 0 { // only then Cancel will ask
		w.began = proc.SinceBoot()
	}
	w.output.Begin(c.ID)
	release := w.interruptible(ctx)

	sent := w.send(ctx, c, dir)
	err = w.receive(ctx, c)
	if !call.Orderly(err) {
		// The worker will take nothing more.
		w.requests.SetWriteDeadline(past)
	}
	var input *inputError
	switch unsent := <-sent; {
	case errors.As(unsent, &input):
		err = input
	case unsent != nil && err == nil:
		err = fmt.Errorf("%w: it replied and did not take the rest of the input: %v", call.ErrBadWorker, unsent)
	}
	w.requests.SetWriteDeadline(time.Time{}) // where the caller had gone, the worker may yet be asked to stop
	release()
	w.idle = call.Orderly(err)
	if w.idle { // else what it writes while it is being stopped is still of this call
		w.output.End()
		w.place.End()
	}
	if ctx.Err() != nil && err != nil {
		return context.Cause(ctx)
	}
	return err
}

// inputError says that the input could not be read back.
type inputError struct{ err error }

func (e *inputError) Error() string { return "cannot read the input back: " + e.err.Error() }

// send writes the call to the worker. A call that fits into the pipe is written
// before send returns; a larger one by a goroutine of its own, since a worker
// may reply before it has taken in everything. The channel tells how it went.
// When it went wrong, the worker has exitWait to say or show why.
func (w *Worker) send(ctx context.Context, c *call.Call, dir string) <-chan error {
	done := make(chan error, 1)
	sent := func(err error) {
		if err != nil {
			w.readUntil(ctx, exitWait)
		}
		done <- err
	}
	task := c.Task
	if task == "" {
		task = w.tasks[0]
	}
	size := c.Input.Size()
	head, err := wire.AppendHead(nil,
		wire.KeyCall, c.ID, wire.KeyTask, task, wire.KeyContentType, c.Input.ContentType(),
		wire.KeySize, strconv.FormatInt(size, 10), wire.KeyTraceparent, c.Traceparent,
		wire.KeyScratch, dir)
	switch {
	case err != nil:
		sent(&inputError{err})
	case int64(wire.HeaderSize+len(head))+size <= small:
		sent(w.sendSmall(head, int(size), c.Input.Reader()))
	default:
		go func() { sent(w.sendLarge(head, c.Input.Reader())) }()
	}
	return done
}

// sendSmall writes the call in one frame.
func (w *Worker) sendSmall(head []byte, size int, in io.Reader) error {
	w.buf = append(wire.AppendHeader(w.buf[:0], wire.TypeExecute, wire.FlagEnd, w.seq, len(head)+size), head...)
	at := len(w.buf)
	w.buf = slices.Grow(w.buf, size)[:at+size]
	if _, err := io.ReadFull(in, w.buf[at:]); err != nil {
		return &inputError{err}
	}
	return w.write(w.buf)
}

// sendLarge writes the call in parts.
func (w *Worker) sendLarge(head []byte, in io.Reader) error {
	frame := wire.Append(nil, wire.Frame{Type: wire.TypeExecute, ID: w.seq, Payload: head})
	part := make([]byte, wire.HeaderSize+wire.Chunk)
	for {
		if err := w.write(frame); err != nil {
			return err
		}
		n, err := io.ReadFull(in, part[wire.HeaderSize:])
		var flags uint8
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			flags = wire.FlagEnd
		case err != nil:
			return &inputError{err}
		}
		wire.AppendHeader(part[:0], wire.TypeChunk, flags, w.seq, n)
		frame = part[:wire.HeaderSize+n]
		if flags == wire.FlagEnd {
			return w.write(frame)
		}
	}
}

// write writes whole frames, and notes when one went out in part only.
func (w *Worker) write(frames []byte) error {
	n, err := w.requests.Write(frames)
	if err != nil && n > 0 {
		w.cut = true
	}
	return err
}

// receive passes the worker's reply on. It returns when the call has ended.
func (w *Worker) receive(ctx context.Context, c *call.Call) error {
	begun, total, size := false, int64(0), int64(-1)
	for {
		frame, err := w.frames.Next()
		if err != nil {
			return w.lost(err)
		}
		if frame.ID != w.seq {
			return fmt.Errorf("%w: a %s frame for call %d while %d runs", call.ErrBadWorker, frame.Type, frame.ID, w.seq)
		}
		body := frame.Payload
		switch {
		case frame.Type == wire.TypeProgress:
			if !json.Valid(body) || bytes.TrimLeft(body, " \t\r\n")[0] != '{' {
				return fmt.Errorf("%w: a progress that is no JSON object", call.ErrBadWorker)
			}
			c.Emit(event.CallProgress{Call: c.ID, Workload: c.Workload, JSON: body, At: time.Now()})
			continue
		case frame.Type == wire.TypeFailure:
			return w.failure(c, body)
		case frame.Type == wire.TypeResult && !begun:
			begun = true
			if body, size, err = w.beginReply(c, frame); err != nil {
				return err
			}
		case frame.Type == wire.TypeChunk && begun:
		default:
			return fmt.Errorf("%w: a %s frame is not due", call.ErrBadWorker, frame.Type)
		}
		total += int64(len(body))
		if limit := w.o.Workload.Limits.Output; limit > 0 && total > limit {
			return w.overLimit()
		}
		if size >= 0 && (total > size || frame.End() && total < size) {
			return fmt.Errorf("%w: a result of %d bytes or more that was to have %d", call.ErrBadWorker, total, size)
		}
		if len(body) > 0 {
			if err := c.Reply.Write(ctx, body); err != nil {
				return err
			}
		}
		if frame.End() {
			return nil
		}
	}
}

// beginReply sends the head of a result. It returns the first part of its body
// and the size of the whole, which is -1 when the worker does not say it.
func (w *Worker) beginReply(c *call.Call, frame wire.Frame) (body []byte, size int64, err error) {
	head, body, err := wire.SplitHead(frame.Payload)
	if err != nil {
		return nil, 0, fmt.Errorf("%w: %v", call.ErrBadWorker, err)
	}
	size = -1
	if said := head.Get(wire.KeySize); said != "" {
		n, err := strconv.ParseUint(said, 10, 63)
		if err != nil {
			return nil, 0, fmt.Errorf("%w: a result of the size %q", call.ErrBadWorker, said)
		}
		size = int64(n)
	} else if frame.End() {
		size = int64(len(body))
	}
	if limit := w.o.Workload.Limits.Output; limit > 0 && size > limit {
		return nil, 0, w.overLimit()
	}
	contentType := cmp.Or(head.Get(wire.KeyContentType), "application/octet-stream")
	return body, size, c.Reply.Head(call.Head{ContentType: contentType, Size: size})
}

func (w *Worker) overLimit() error {
	return fmt.Errorf("%w: limits.output: the result is larger than %s", call.ErrLimit, config.Size(w.o.Workload.Limits.Output))
}

// failure is what the work says of its own failing. Its detail, such as a
// traceback, is for the log; the caller gets the end of stderr.
func (w *Worker) failure(c *call.Call, payload []byte) error {
	var info wire.FailureInfo
	if err := json.Unmarshal(payload, &info); err != nil {
		return fmt.Errorf("%w: a failure that is no JSON: %v", call.ErrBadWorker, err)
	}
	if info.Malformed {
		if err := c.Input.Check(); err != nil {
			return err
		}
	}
	if info.Detail != "" {
		c.Emit(event.Output{
			Call: c.ID, Workload: c.Workload, Pid: w.tree.Pid(), Stream: "failure", Text: []byte(info.Detail), At: time.Now(),
		})
	}
	return &call.FailureError{Class: info.Error, Message: info.Message, Tail: w.output.Tail(), Members: info.Members}
}

// lost says why nothing more can be read from the worker.
func (w *Worker) lost(err error) error {
	var format *wire.FormatError
	if errors.As(err, &format) {
		return fmt.Errorf("%w: %v", call.ErrBadWorker, err)
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) { // else its time is over
		exit := time.NewTimer(deathWait)
		defer exit.Stop()
		select {
		case <-w.tree.Exited():
		case <-exit.C:
		}
	}
	select {
	case <-w.tree.Exited():
		return w.died()
	default:
		return fmt.Errorf("%w: it closed its end and runs on", call.ErrBadWorker)
	}
}

// died says how the main process ended.
func (w *Worker) died() error {
	status := w.tree.Status()
	if status.Limit != "" {
		return overTree(status.Limit, w.o.Workload.Limits)
	}
	died := &call.DiedError{Exit: status.Exit, OOM: status.OOM, Tail: w.output.Tail()}
	if status.Exit < 0 {
		died.Signal = unix.SignalName(status.Signal)
	}
	return died
}

// overTree names the limit for which a tree was ended.
func overTree(limit string, l config.WorkLimits) error {
	switch limit {
	case "memory":
		return fmt.Errorf("%w: limits.memory: the worker's process tree took more than %s of memory", call.ErrLimit, config.Size(l.Memory))
	case "pids":
		return fmt.Errorf("%w: limits.pids: the worker's process tree had, or wanted, more than %d processes and threads", call.ErrLimit, l.Pids)
	default:
		return fmt.Errorf("%w: limits.%s", call.ErrLimit, limit)
	}
}
