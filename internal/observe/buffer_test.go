package observe

import (
	"bytes"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// page is a bytes.Buffer that a timer may write to.
type page struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (p *page) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.buf.Write(b)
}

func (p *page) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.buf.String()
}

func TestBufferFlushes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out page
		b := NewBuffer(&out)
		log := NewLogger(b, "text", "info")

		expect := func(when string, records int) {
			t.Helper()
			synctest.Wait()
			if got := out.String(); strings.Count(got, "\n") != records {
				t.Errorf("%s: written %q, want %d records", when, got, records)
			}
		}
		time.Sleep(10 * FlushAfter)
		log.Info("one")
		time.Sleep(FlushAfter - time.Nanosecond)
		expect("just before", 0)
		time.Sleep(time.Nanosecond)
		expect("when the time is over", 1)

		log.Info("two")
		expect("at once", 1)
		log.Warn("three")
		expect("after a warning", 3)

		log.Info("four")
		log.Info("five")
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		expect("closed", 5)
		log.Info("six")
		expect("after the close", 6)
	})
}

func TestBufferIsBounded(t *testing.T) {
	var out bytes.Buffer
	b := NewBuffer(&out)
	defer b.Close()
	record := bytes.Repeat([]byte("x"), 1000)
	for range 2 * bufferSize / len(record) {
		if _, err := b.Write(record); err != nil {
			t.Fatal(err)
		}
	}
	if out.Len() < bufferSize || out.Len()%len(record) != 0 {
		t.Errorf("%d bytes written: want whole records, and more than the buffer holds", out.Len())
	}
	if _, err := b.Write(make([]byte, 2*bufferSize)); err != nil || out.Len() < 3*bufferSize {
		t.Errorf("a huge record: %v, %d bytes written", err, out.Len())
	}
}

type failing struct{ err error }

func (f *failing) Write(p []byte) (int, error) {
	if f.err != nil {
		return 0, f.err
	}
	return len(p), nil
}

func TestBufferOutlivesAFailedWrite(t *testing.T) {
	w := &failing{err: errors.New("no space left")}
	b := NewBuffer(w)
	defer b.Close()
	if _, err := b.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := b.Flush(); !errors.Is(err, w.err) {
		t.Errorf("Flush: %v", err)
	}
	w.err = nil
	if _, err := b.Write([]byte("x")); err != nil {
		t.Errorf("Write once there is space: %v", err)
	}
	if err := b.Flush(); err != nil {
		t.Errorf("Flush once there is space: %v", err)
	}
}
