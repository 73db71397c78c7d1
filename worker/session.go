package worker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strconv"
	"sync"

	"example.com/hangup/internal/wire"
)

// readAhead is how many frames the listener keeps while the task does not read
// its input: a mebibyte of full parts. A cancel behind more than that is not
// heard before the task reads on, and the stop sequence takes its next step.
const readAhead = 16

// session is the worker's half of the conversation with the server. Everything
// but what mu guards belongs to the goroutine of serve.
type session struct {
	tasks Tasks
	next  func() (wire.Frame, error) // the server's frames, in their order

	last         uint64 // the number of the last call
	acknowledged bool   // that call was cancelled, and this has been said

	mu      sync.Mutex
	out     *os.File
	frame   []byte // the frame being written
	broken  error  // what writing failed with: the server is gone
	current *Call  // the call that runs, or nil
	stopped uint64 // the last call whose CANCEL the listener has heard
}

// serve is the worker's life: it ends with SHUTDOWN or the end of the input.
func (s *session) serve() error {
	for {
		f, err := s.next()
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return fmt.Errorf("cannot read from the server: %w", err)
		case f.Type == wire.TypeShutdown:
			return nil
		case f.Type == wire.TypeExecute && f.ID > s.last:
			s.last, s.acknowledged = f.ID, false
			err = s.execute(f)
		case f.Type == wire.TypeCancel && f.ID == s.last:
			if !s.acknowledged { // else it was repeated
				err = s.acknowledge()
			}
		default:
			err = unexpected(f)
		}
		if err != nil {
			return fmt.Errorf("cannot go on: %w", err)
		}
	}
}

// execute does one call: from its first frame until it is answered and its
// input has been read to the end.
func (s *session) execute(f wire.Frame) error {
	call, err := s.newCall(f)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.current = call
	if s.stopped == f.ID {
		call.cancel(ErrCancelled)
	}
	s.mu.Unlock()

	if call.ctx.Err() == nil {
		if failed := call.perform(); failed != nil {
			call.fail(failed)
		}
	}

	s.mu.Lock() // what the task has left behind has written its frame, or never will: its context has ended
	s.current = nil
	s.mu.Unlock()
	if s.broken != nil {
		return s.broken
	}
	cancelled, err := call.input.close()
	if err != nil {
		return err
	}
	if cancelled {
		return s.acknowledge()
	}
	return nil
}

func (s *session) newCall(f wire.Frame) (*Call, error) {
	head, part, err := wire.SplitHead(f.Payload)
	if err != nil {
		return nil, err
	}
	size, err := strconv.ParseUint(head.Get(wire.KeySize), 10, 63)
	if err != nil {
		return nil, &wire.FormatError{Reason: fmt.Sprintf("EXECUTE with the size %q", head.Get(wire.KeySize))}
	}
	c := &Call{
		ID:          head.Get(wire.KeyCall),
		Task:        head.Get(wire.KeyTask),
		ContentType: head.Get(wire.KeyContentType),
		Traceparent: head.Get(wire.KeyTraceparent),
		Scratch:     head.Get(wire.KeyScratch),
		session:     s,
		number:      f.ID,
	}
	if c.ID == "" {
		return nil, &wire.FormatError{Reason: "EXECUTE without the id of its call"}
	}
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	c.input = &input{call: c, left: int64(size)}
	c.Body = c.input
	return c, c.input.take(part, f.End())
}

// perform runs the task and sends its result. When that fails it returns what
// FAILURE says of it. A panic, of the task or of what it returned, is the
// call's failure and not the worker's end.
func (c *Call) perform() (failed []byte) {
	defer func() {
		if v := recover(); v != nil {
			failed = failurePayload(&failure{wire.FailureInfo{
				Error: "panic", Message: fmt.Sprint(v), Detail: string(debug.Stack()),
			}})
		}
	}()
	task, err := c.lookup()
	if err == nil {
		var value any
		if value, err = task(c.ctx, c); err == nil {
			err = c.reply(value)
		}
	}
	if err != nil {
		return failurePayload(err)
	}
	return nil
}

func (c *Call) lookup() (Task, error) {
	tasks := c.session.tasks
	if c.Task == "" && len(tasks) == 1 {
		for c.Task = range tasks {
		}
	}
	task, ok := tasks[c.Task]
	if !ok {
		return nil, &failure{wire.FailureInfo{Error: "NoSuchTask", Message: fmt.Sprintf("there is no task %q", c.Task)}}
	}
	return task, nil
}

// acknowledge says that the last call is over and that nothing of it follows.
func (s *session) acknowledge() error {
	s.acknowledged = true
	_, err := s.out.Write(wire.AppendHeader(nil, wire.TypeCancelled, 0, s.last, 0))
	return err
}

func unexpected(f wire.Frame) error {
	return &wire.FormatError{Reason: fmt.Sprintf("an unexpected %v with the id %d", f.Type, f.ID)}
}

// listen lets a goroutine read the frames, so that a CANCEL is heard while a
// task runs. It passes on all of them, CANCEL too, for serve to answer in its
// turn. The goroutine ends at SHUTDOWN, at the end of the input or at an error;
// after a breach that serve has found, with the process.
func (s *session) listen(r *wire.Reader) {
	frames := make(chan wire.Frame, readAhead)
	var end error
	s.next = func() (wire.Frame, error) {
		f, ok := <-frames
		if !ok {
			return f, end
		}
		return f, nil
	}
	go func() {
		defer close(frames)
		for {
			f, err := r.Next()
			if err != nil {
				end = err
				return
			}
			if f.Type == wire.TypeCancel {
				s.stop(f.ID)
			}
			f.Payload = bytes.Clone(f.Payload)
			frames <- f
			if f.Type == wire.TypeShutdown {
				return
			}
		}
	}()
}

// stop cancels the context of call id, now or when it comes to run.
func (s *session) stop(id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = id
	if s.current != nil && s.current.number == id {
		s.current.cancel(ErrCancelled)
	}
}

// input is the body of a call, read as it arrives.
type input struct {
	call *Call

	mu        sync.Mutex // a goroutine the task left behind may still be reading
	part      []byte     // what has arrived and was not read; good until the next frame
	left      int64      // how much is still to arrive
	done      bool       // all has arrived
	cancelled bool       // the rest will not come
	err       error      // what reads fail with when part is empty
}

func (in *input) Read(p []byte) (int, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for len(in.part) == 0 {
		if err := in.receive(); err != nil {
			return 0, err
		}
	}
	n := copy(p, in.part)
	in.part = in.part[n:]
	return n, nil
}

// receive waits for the next part. It fails with io.EOF at the end.
func (in *input) receive() error {
	switch {
	case in.err != nil:
		return in.err
	case in.done:
		return io.EOF
	}
	f, err := in.call.session.next()
	switch {
	case err == io.EOF:
		in.err = io.ErrUnexpectedEOF
	case err != nil:
		in.err = err
	case f.Type == wire.TypeChunk && f.ID == in.call.number:
		in.err = in.take(f.Payload, f.End())
	case f.Type == wire.TypeCancel && f.ID == in.call.number:
		in.cancelled, in.err = true, ErrCancelled
		in.call.cancel(ErrCancelled)
	default:
		in.err = unexpected(f)
	}
	return in.err
}

// take counts a part that has arrived.
func (in *input) take(part []byte, end bool) error {
	in.part, in.done = part, end
	in.left -= int64(len(part))
	if in.left < 0 || end && in.left > 0 {
		return &wire.FormatError{Reason: "an input that is not of its size"}
	}
	return nil
}

// close passes over what the task has not read, up to the END or to a CANCEL.
func (in *input) close() (cancelled bool, err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for err == nil {
		in.part = nil
		err = in.receive()
	}
	in.err = ErrEnded
	if err == io.EOF || errors.Is(err, ErrCancelled) {
		return in.cancelled, nil
	}
	return false, err
}
