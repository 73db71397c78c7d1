package observe

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

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
		if _, err := b.Write([]byte("seven\n")); !errors.Is(err, os.ErrClosed) {
			t.Errorf("Write after the close: %v", err)
		}
		if err := errors.Join(b.Flush(), b.Close()); err != nil {
			t.Errorf("after the close: %v", err)
		}
		expect("after the close", 5)
	})
}

// A busy server does not wait for FlushAfter, and no record is torn in two.
func TestBufferWritesFullBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out page
		b := NewBuffer(&out)
		defer b.Close()
		record := []byte(strings.Repeat("x", 999) + "\n")
		for range batchSize/len(record) + 1 {
			if _, err := b.Write(record); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if got := len(out.String()); got < batchSize || got%len(record) != 0 {
			t.Errorf("%d bytes written", got)
		}
	})
}

// stalledPipe is a pipe that nobody reads yet. Its end to write to blocks its
// thread, as the stderr that a program is started with does.
func stalledPipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	w.Fd()
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

// Whoever logs goes on while nobody reads the log. When somebody does, each
// record is there or counted in one that tells of the lost ones.
func TestStalledReader(t *testing.T) {
	const records = 20_000
	text := strings.Repeat("x", 200)
	for format, told := range map[string]*regexp.Regexp{
		"json": regexp.MustCompile(`^{"time":"[^"]+","level":"WARN","msg":"log records lost","n":(\d+)}$`),
		"text": regexp.MustCompile(`^time=\S+ level=WARN msg="log records lost" n=(\d+)$`),
	} {
		t.Run(format, func(t *testing.T) {
			r, w := stalledPipe(t)
			b := NewBuffer(w)
			log := NewLogger(b, format, "info")
			for i := range records {
				log.Info("record", "i", i, "text", text)
			}
			if err := b.Flush(); !errors.Is(err, errStalled) {
				t.Errorf("Flush while nobody reads: %v", err)
			}

			var read, lost int
			var last string
			lines := bufio.NewScanner(r)
			next := func() bool {
				if !lines.Scan() {
					return false
				}
				last = lines.Text()
				if m := told.FindStringSubmatch(last); m != nil {
					n, _ := strconv.Atoi(m[1])
					lost += n
					return true
				}
				read++
				if !strings.Contains(last, "record") || format == "json" && !json.Valid([]byte(last)) {
					t.Fatalf("not a record: %q", last)
				}
				return true
			}
			r.SetReadDeadline(time.Now().Add(20 * time.Second)) // else a lost record means a hang
			for read+lost < records && next() {
			}
			if read+lost != records || lost == 0 {
				t.Errorf("%d read, %d told of as lost, %d logged", read, lost, records)
			}
			if held := read * (len(text) + 50); held > BufferSize+batchSize {
				t.Errorf("%d records were held: more than BufferSize", read)
			}

			log.Info("record", "i", "after")
			if err := b.Close(); err != nil {
				t.Errorf("Close once somebody reads: %v", err)
			}
			w.Close()
			for next() {
			}
			if read+lost != records+1 || !strings.Contains(last, "after") {
				t.Errorf("%d read, %d told of as lost, the last is %q", read, lost, last)
			}
		})
	}
}

func TestCloseOfAStuckBuffer(t *testing.T) {
	r, w := stalledPipe(t)
	b := NewBuffer(w)
	if _, err := b.Write(make([]byte, BufferSize/2)); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := b.Close(); !errors.Is(err, errStalled) {
		t.Errorf("Close while nobody reads: %v", err)
	}
	if took := time.Since(begin); took > CloseWait+time.Second {
		t.Errorf("Close took %v", took)
	}
	r.Close() // the write fails, and its goroutine ends
}

// gate is a writer that a test holds up: a Write goes on when it has sent.
type gate chan error

func (g gate) Write(p []byte) (int, error) {
	if err := <-g; err != nil {
		return 0, err
	}
	return len(p), nil
}

// Warnings are waited for, but a reader who has stalled holds nobody up twice.
func TestStalledReaderCostsOneFlush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := make(gate)
		b := NewBuffer(g)
		log := NewLogger(b, "json", "info")
		begin := time.Now()
		for range 100 {
			log.Warn("w")
		}
		if took := time.Since(begin); took != FlushWait {
			t.Errorf("100 warnings took %v, want %v", took, FlushWait)
		}
		if err := b.Close(); !errors.Is(err, errStalled) {
			t.Errorf("Close: %v", err)
		}
		if took := time.Since(begin); took != FlushWait+CloseWait {
			t.Errorf("with Close %v, want %v", took, FlushWait+CloseWait)
		}
		close(g) // it reads at last
	})
}

// What could not be written is told of when writing works again, and so is a
// record larger than any room there is.
func TestFailedWritesAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out page
		full := errors.New("no space left")
		w := &failing{page: &out, err: full}
		b := NewBuffer(w)
		log := NewLogger(b, "text", "info")
		fmt.Fprintln(b, "one")
		fmt.Fprintln(b, "two")
		if err := b.Flush(); !errors.Is(err, full) {
			t.Errorf("Flush: %v", err)
		}
		w.set(nil)
		if _, err := b.Write(bytes.Repeat([]byte("x"), BufferSize)); err != nil {
			t.Errorf("Write of a huge record: %v", err)
		}
		log.Info("three")
		if err := b.Close(); err != nil {
			t.Errorf("Close once there is space: %v", err)
		}
		if got := out.String(); strings.Contains(got, "one") || strings.Count(got, "three") != 1 || !strings.Contains(got, `msg="log records lost" n=3`) {
			t.Errorf("written: %q", got)
		}
	})
}

// failing writes to page while it has no err.
type failing struct {
	*page
	err error
}

func (f *failing) set(err error) {
	f.mu.Lock()
	f.err = err
	f.mu.Unlock()
}

func (f *failing) Write(p []byte) (int, error) {
	f.mu.Lock()
	err := f.err
	f.mu.Unlock()
	if err != nil {
		return 0, err
	}
	return f.page.Write(p)
}
