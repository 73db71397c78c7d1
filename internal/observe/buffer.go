package observe

import (
	"io"
	"sync"
	"time"
)

// FlushAfter is the longest that a record waits in a [Buffer].
const FlushAfter = 50 * time.Millisecond

// bufferSize, in bytes, holds some hundred records.
const bufferSize = 64 << 10

// Buffer collects log records, so that a busy server makes one write for many.
// What it was given is written when FlushAfter is over, when the buffer is full,
// or by [Buffer.Flush] or [Buffer.Close]; no Write is torn in two. Only a crash
// of the program within FlushAfter loses records.
//
// Its methods may be called from any goroutine. It has a timer while records wait.
type Buffer struct {
	w io.Writer

	mu     sync.Mutex
	held   []byte
	timer  *time.Timer // runs while anything is held
	closed bool
}

// NewBuffer returns a Buffer in front of w.
func NewBuffer(w io.Writer) *Buffer {
	b := &Buffer{w: w, held: make([]byte, 0, bufferSize)}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.timer = time.AfterFunc(FlushAfter, func() { _ = b.Flush() })
	return b
}

// Write takes p in. After [Buffer.Close] it writes through.
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.held)+len(p) > bufferSize {
		if err := b.flush(); err != nil {
			return 0, err
		}
	}
	if b.closed || len(p) > bufferSize {
		return b.w.Write(p)
	}
	if len(b.held) == 0 {
		b.timer.Reset(FlushAfter)
	}
	b.held = append(b.held, p...)
	return len(p), nil
}

// Flush writes what is held. What cannot be written is lost.
func (b *Buffer) Flush() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.flush()
}

func (b *Buffer) flush() error {
	b.timer.Stop()
	if len(b.held) == 0 {
		return nil
	}
	_, err := b.w.Write(b.held)
	b.held = b.held[:0]
	return err
}

// Close flushes. What comes later is written through.
func (b *Buffer) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	return b.flush()
}
