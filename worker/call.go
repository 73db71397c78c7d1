package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"

	"example.com/hangup/internal/wire"
)

// mostText is how many bytes of a message or a stack a failure carries. Twice
// that fits a frame even when JSON writes six bytes for each.
const mostText = 64 << 10

// Call is one call of a task. Body, Input and Decode share one input and are
// for one goroutine at a time; everything else may be used by several. When the
// call has ended all methods fail with [ErrEnded].
type Call struct {
	ID          string // the call's id, as its caller knows it
	Task        string // the name of the task
	ContentType string // the media type of the input; may be ""
	Traceparent string // the W3C trace context; "" when there is none
	Scratch     string // the path of a directory that is the call's alone and is removed when it has ended; "" when there is none

	// Body is the input, as it arrives. A task need not read all of it.
	Body io.Reader

	session *session
	number  uint64 // on this worker
	input   *input
	ctx     context.Context
	cancel  context.CancelCauseFunc

	// Guarded by session.mu.
	head  []byte // of the result, once it is known
	begun bool   // the head was sent
}

// Input reads the rest of the input.
func (c *Call) Input() ([]byte, error) {
	data, err := io.ReadAll(c.Body)
	if err != nil {
		return nil, fmt.Errorf("cannot read the input: %w", err)
	}
	return data, nil
}

// Decode decodes the rest of the input as JSON into v, whatever its type says.
func (c *Call) Decode(v any) error {
	data, err := c.Input()
	if err != nil {
		return err
	}
	if !utf8.Valid(data) { // which encoding/json would mend
		return &malformedError{errors.New("cannot decode the input: it is not UTF-8")}
	}
	if err := json.Unmarshal(data, v); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			return &malformedError{fmt.Errorf("cannot decode the input: %w (byte %d)", err, syntax.Offset)}
		}
		return fmt.Errorf("cannot decode the input: %w", err)
	}
	return nil
}

// malformedError says that the input is no JSON. A task that returns it has done
// nothing with the input, and its caller is told where the fault is.
type malformedError struct{ error }

func (e *malformedError) Unwrap() error { return e.error }

// Progress tells whoever watches the call how far it is. In JSON v must be an
// object of at most 1 MiB.
func (c *Call) Progress(v any) error {
	payload, err := json.Marshal(v)
	switch {
	case err != nil:
		return fmt.Errorf("cannot tell the progress: %w", err)
	case payload[0] != '{':
		return fmt.Errorf("cannot tell the progress: %T is not a JSON object", v)
	case len(payload) > wire.MaxPayload:
		return fmt.Errorf("cannot tell the progress: %d bytes, the most is %d", len(payload), wire.MaxPayload)
	}
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	return c.send(wire.TypeProgress, 0, payload)
}

// Stream returns a writer that sends the result while the task runs, each Write
// at once. The task then returns nil; if it fails, the reply is cut off. The
// content type goes out with the first Write.
func (c *Call) Stream(contentType string) io.Writer {
	return stream{c, c.begin(contentType, -1)}
}

type stream struct {
	call *Call
	err  error // of a content type that is none
}

func (s stream) Write(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	if err := s.call.write(p, false); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Reply is a result with a content type, sent while Body is read. Body is
// closed when it is an [io.Closer].
type Reply struct {
	Body        io.Reader
	ContentType string
}

// Failure returns an error for a task to fail with: the caller gets the message,
// and the members in the problem document beside it.
func Failure(message string, members map[string]any) error {
	return &failure{wire.FailureInfo{Message: message, Members: members}}
}

type failure struct{ wire.FailureInfo }

func (f *failure) Error() string { return f.Message }

// fail sends a FAILURE. When it cannot be sent, because the call was cancelled
// or the server is gone, nobody misses it.
func (c *Call) fail(payload []byte) {
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	c.send(wire.TypeFailure, 0, payload)
}

// reply sends the result. An error is the task's.
func (c *Call) reply(value any) error {
	if c.streams() {
		if value != nil {
			return fmt.Errorf("cannot send the result: a task that streams it returns nil, not %T", value)
		}
		return c.write(nil, true)
	}
	switch v := value.(type) {
	case []byte:
		return c.whole("application/octet-stream", v)
	case Reply:
		return c.copyFrom(v)
	default:
		data, err := json.Marshal(v)
		if err != nil {
			return fmt.Errorf("cannot write the result as JSON: %w", err)
		}
		return c.whole("application/json", data)
	}
}

// whole sends a result that is in memory.
func (c *Call) whole(contentType string, data []byte) error {
	if err := c.begin(contentType, len(data)); err != nil {
		return err
	}
	return c.write(data, true)
}

// copyFrom sends a Reply, each part as it is read.
func (c *Call) copyFrom(r Reply) error {
	if closer, ok := r.Body.(io.Closer); ok {
		defer closer.Close()
	}
	if r.Body == nil {
		return c.whole(r.ContentType, nil)
	}
	if _, ok := r.Body.(interface{ Len() int }); ok { // a bytes.Reader and its like
		data, err := io.ReadAll(r.Body)
		if err != nil {
			return fmt.Errorf("cannot read the result: %w", err)
		}
		return c.whole(r.ContentType, data)
	}
	if err := c.begin(r.ContentType, -1); err != nil {
		return err
	}
	buf := make([]byte, wire.Chunk)
	for {
		n, err := r.Body.Read(buf)
		if err == io.EOF {
			return c.write(buf[:n], true)
		}
		if n > 0 {
			if err := c.write(buf[:n], false); err != nil {
				return err
			}
		}
		if err != nil {
			return fmt.Errorf("cannot read the result: %w", err)
		}
	}
}

func (c *Call) streams() bool {
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	return c.head != nil
}

// begin says what the result is; the head goes out with its first part. A size
// of -1 is unknown.
func (c *Call) begin(contentType string, size int) error {
	pairs := []string{wire.KeyContentType, contentType}
	if size > wire.Chunk { // else the one frame tells it
		pairs = append(pairs, wire.KeySize, strconv.Itoa(size))
	}
	head, err := wire.AppendHead(nil, pairs...)
	if err != nil {
		return fmt.Errorf("cannot send the result: %w", err)
	}
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	if c.head == nil { // else the first Stream counts
		c.head = head
	}
	return nil
}

// write sends a part of the result, cut in frames.
func (c *Call) write(p []byte, end bool) error {
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	for {
		n := min(len(p), wire.Chunk)
		var flags uint8
		if end && n == len(p) {
			flags = wire.FlagEnd
		}
		var err error
		if c.begun {
			err = c.send(wire.TypeChunk, flags, p[:n])
		} else {
			err = c.send(wire.TypeResult, flags, c.head, p[:n])
			c.begun = true
		}
		if p = p[n:]; err != nil || len(p) == 0 {
			return err
		}
	}
}

// send writes one frame of the call, unless nothing more of it may be sent: the
// call's context tells that. The caller holds session.mu.
func (c *Call) send(t wire.Type, flags uint8, parts ...[]byte) error {
	if c.ctx.Err() != nil {
		return context.Cause(c.ctx)
	}
	if t == wire.TypeFailure || flags&wire.FlagEnd != 0 {
		defer c.cancel(ErrEnded)
	}
	n := 0
	for _, part := range parts {
		n += len(part)
	}
	s := c.session
	s.frame = wire.AppendHeader(s.frame[:0], t, flags, c.number, n)
	for _, part := range parts {
		s.frame = append(s.frame, part...)
	}
	if _, err := s.out.Write(s.frame); err != nil {
		s.broken = fmt.Errorf("cannot write to the server: %w", err)
	}
	return s.broken
}

// class is the type of an error, or "" where that tells nothing.
func class(err error) string {
	name := strings.TrimPrefix(fmt.Sprintf("%T", err), "*")
	if strings.HasPrefix(name, "fmt.") || strings.HasPrefix(name, "errors.") {
		return ""
	}
	return name
}

// failurePayload tells err in a form that fits a frame.
func failurePayload(err error) []byte {
	info := wire.FailureInfo{Error: class(err), Message: err.Error()}
	if f := (*failure)(nil); errors.As(err, &f) {
		info.Error, info.Detail, info.Members = f.FailureInfo.Error, f.Detail, f.Members
	}
	if m := (*malformedError)(nil); errors.As(err, &m) {
		info.Error, info.Malformed = class(m.error), true
	}
	info.Message, info.Detail = cut(info.Message), cut(info.Detail)
	payload, err := json.Marshal(info)
	if err == nil && len(payload) > wire.MaxPayload {
		err = fmt.Errorf("they take %d bytes", len(payload))
	}
	if err != nil {
		info.Members = nil
		info.Detail = cut("the members of the failure were left out: " + err.Error())
		payload, _ = json.Marshal(info) // strings only
	}
	return payload
}

func cut(s string) string { return s[:min(len(s), mostText)] }
