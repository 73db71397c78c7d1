package observe

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"
)

// The bounds of a [Buffer].
const (
	// BufferSize, in bytes, is the most that a Buffer holds: half of it waits
	// while the other half is being written.
	BufferSize = 1 << 20
	// FlushAfter is the longest that a record waits for the writer.
	FlushAfter = 50 * time.Millisecond
	// FlushWait is the longest that a Flush takes.
	FlushWait = 10 * time.Millisecond
	// CloseWait is the longest that a Close takes.
	CloseWait = 250 * time.Millisecond

	// batchSize, in bytes, is worth a write before FlushAfter is over.
	batchSize = 64 << 10
)

// errStalled is what a Flush or a Close fails with whose time is over.
var errStalled = errors.New("cannot write the log: its reader has stalled")

// Buffer collects log records, so that a busy server makes one write for many
// and that nobody who logs ever waits for the reader of the log. Each Write is
// one record. What there is no room for is lost, in whole records, and a record
// tells how many (see [NewLogger]) as soon as there is room again.
//
// Its methods may be called from any goroutine. It has one goroutine, which
// writes; that ends with [Buffer.Close], or, where a write is stuck for good,
// with the program.
type Buffer struct {
	w    io.Writer
	due  *time.Timer     // when what waits is to be written
	asks chan chan error // a Flush, to be answered when what waits is written
	end  chan struct{}   // closed at the end of Close

	mu      sync.Mutex
	waiting []byte
	lost    int64     // records that nobody has been told of
	began   time.Time // of the write under way; zero: there is none
	closed  bool
	tell    slog.Handler // writes to w that records were lost; may be nil
}

// NewBuffer returns a Buffer in front of w.
func NewBuffer(w io.Writer) *Buffer {
	b := &Buffer{w: w, due: time.NewTimer(FlushAfter), asks: make(chan chan error), end: make(chan struct{})}
	go b.run()
	return b
}

// Write takes the record p in, or counts it as lost: that is no error. It never
// waits. After [Buffer.Close] it fails with [os.ErrClosed].
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return 0, os.ErrClosed
	}
	before := len(b.waiting)
	if before == 0 {
		b.due.Reset(FlushAfter)
	}
	if before+len(p) > BufferSize/2 {
		b.lost++
		return len(p), nil
	}
	b.waiting = append(b.waiting, p...)
	if before < batchSize && len(b.waiting) >= batchSize {
		b.due.Reset(0)
	}
	return len(p), nil
}

// Flush has what waits written now, and waits for that up to FlushWait. The time
// counts from the start of a write already under way, so that a reader who has
// stalled holds nobody up a second time.
func (b *Buffer) Flush() error {
	b.mu.Lock()
	wait := FlushWait
	if !b.began.IsZero() {
		wait -= time.Since(b.began)
	}
	b.mu.Unlock()
	return b.flush(wait)
}

// Close flushes, for up to CloseWait, and ends the Buffer.
func (b *Buffer) Close() error {
	b.mu.Lock()
	again := b.closed
	b.closed = true
	b.mu.Unlock()
	if again {
		return nil
	}
	defer close(b.end)
	return b.flush(CloseWait)
}

func (b *Buffer) flush(wait time.Duration) error {
	written := make(chan error, 1)
	over := time.NewTimer(wait)
	defer over.Stop()
	select {
	case b.asks <- written:
	case <-b.end:
		return nil
	case <-over.C:
		return errStalled
	}
	select {
	case err := <-written:
		return err
	case <-over.C:
		return errStalled
	}
}

// run is the goroutine that writes.
func (b *Buffer) run() {
	var free []byte // the half that does not wait
	for {
		var written chan error
		select {
		case <-b.due.C:
		case written = <-b.asks:
		case <-b.end:
			return
		}
		b.mu.Lock()
		batch, lost, tell := b.waiting, b.lost, b.tell
		b.waiting, b.lost = free, 0
		b.began = time.Now()
		b.mu.Unlock()

		lost, err := b.put(batch, lost, tell)
		free = batch[:0]

		b.mu.Lock()
		b.lost += lost
		b.began = time.Time{}
		b.mu.Unlock()
		if written != nil {
			written <- err
		}
	}
}

// put writes a batch and then, where records were lost, how many. It returns how
// many are still to be told of: those that could not be written among them.
func (b *Buffer) put(batch []byte, lost int64, tell slog.Handler) (int64, error) {
	var err error
	if len(batch) > 0 {
		var n int
		if n, err = b.w.Write(batch); err != nil {
			lost += int64(bytes.Count(batch[n:], []byte("\n")))
		}
	}
	if lost == 0 || tell == nil {
		return lost, err
	}
	r := slog.NewRecord(time.Now(), slog.LevelWarn, "log records lost", 0)
	r.AddAttrs(slog.Int64("n", lost))
	if tell.Handle(context.Background(), r) == nil {
		lost = 0
	}
	return lost, err
}

// tellWith sets what writes the record about lost ones.
func (b *Buffer) tellWith(h slog.Handler) {
	b.mu.Lock()
	b.tell = h
	b.mu.Unlock()
}
