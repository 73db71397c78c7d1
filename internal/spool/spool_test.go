package spool

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
)

func open(t testing.TB, max int64) (s *Spool, dir string) {
	t.Helper()
	dir = t.TempDir()
	s, err := Open(dir, max)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, dir
}

// pattern is n bytes of which no two stretches are alike, so that bytes in the
// wrong place are seen.
func pattern(n int) []byte {
	p := make([]byte, n)
	x := uint32(n) + 1
	for i := range p {
		x = x*1664525 + 1013904223
		p[i] = byte(x >> 24)
	}
	return p
}

func TestWhatGoesInComesOut(t *testing.T) {
	readers := map[string]func(io.Reader) io.Reader{
		"as it is":          func(r io.Reader) io.Reader { return r },
		"halves":            iotest.HalfReader,
		"end with the data": iotest.DataErrReader,
	}
	for name, through := range readers {
		for _, size := range []int{0, 1, small - 1, small, small + 1, MemoryMax - 1, MemoryMax, MemoryMax + 1, 2 * MemoryMax, 2*MemoryMax + 1, 1<<20 + 7} {
			for _, hint := range []int64{-1, 0, int64(size), 1, 1 << 20} {
				s, dir := open(t, 1<<30)
				b := s.Body(2 << 20)
				b.Expect(hint)
				want := pattern(size)
				if err := b.Fill(through(bytes.NewReader(want))); err != nil {
					t.Fatalf("%s, %d bytes, hint %d: %v", name, size, hint, err)
				}
				if b.Size() != int64(size) {
					t.Errorf("%s, %d bytes, hint %d: size is %d", name, size, hint, b.Size())
				}
				for range 2 { // as often as one likes
					if got, err := io.ReadAll(b.Reader()); err != nil || !bytes.Equal(got, want) {
						t.Errorf("%s, %d bytes, hint %d: other bytes came out (%v)", name, size, hint, err)
					}
				}
				if _, ok := b.Reader().(io.WriterTo); !ok {
					t.Errorf("%d bytes: the reader cannot write itself", size)
				}
				p, inMemory := b.Bytes()
				if want := size <= MemoryMax; inMemory != want {
					t.Errorf("%d bytes: in memory %v, want %v", size, inMemory, want)
				}
				if inMemory && !bytes.Equal(p, want) {
					t.Errorf("%d bytes: other bytes in memory", size)
				}
				if want := int64(max(0, size-MemoryMax)); s.Used() != want {
					t.Errorf("%d bytes: %d in files, want %d", size, s.Used(), want)
				}
				if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 0 {
					t.Errorf("%d bytes: files have names: %v", size, left)
				}
				for range 2 {
					if err := b.Close(); err != nil {
						t.Error(err)
					}
				}
				if s.Used() != 0 {
					t.Errorf("%d bytes: %d still used after Close", size, s.Used())
				}
			}
		}
	}
}

func TestLimits(t *testing.T) {
	for _, test := range []struct {
		name             string
		size, limit, max int64
		hint             int64
		want             error
	}{
		{name: "empty, none allowed", size: 0, limit: 0},
		{name: "a byte, none allowed", size: 1, limit: 0, want: ErrTooLarge},
		{name: "in memory, at the limit", size: 1000, limit: 1000},
		{name: "in memory, over the limit", size: 1001, limit: 1000, want: ErrTooLarge},
		{name: "all of memory", size: MemoryMax, limit: MemoryMax},
		{name: "all of memory and a byte", size: MemoryMax + 1, limit: MemoryMax, max: 1 << 30, want: ErrTooLarge},
		{name: "in a file, at the limit", size: 300_000, limit: 300_000, max: 1 << 30},
		{name: "in a file, over the limit", size: 300_001, limit: 300_000, max: 1 << 30, want: ErrTooLarge},
		{name: "announced too large", size: 1, limit: 1000, hint: 1001, want: ErrTooLarge},
		{name: "spool just holds it", size: MemoryMax + 1000, limit: 1 << 20, max: 1000},
		{name: "spool is a byte short", size: MemoryMax + 1001, limit: 1 << 20, max: 1000, want: ErrFull},
		{name: "no spool, none needed", size: MemoryMax, limit: 1 << 20},
		{name: "no spool", size: MemoryMax + 1, limit: 1 << 20, want: ErrFull},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, _ := open(t, test.max)
			b := s.Body(test.limit)
			b.Expect(test.hint)
			if err := b.Fill(bytes.NewReader(pattern(int(test.size)))); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			if err := b.Close(); err != nil {
				t.Error(err)
			}
			if s.Used() != 0 {
				t.Errorf("%d still used", s.Used())
			}
		})
	}
}

// A sender that breaks off must never pass for one that came to the end;
// net/http reports it as io.ErrUnexpectedEOF.
func TestBrokenOffIsNotTheEnd(t *testing.T) {
	s, _ := open(t, 1<<30)
	for _, cause := range []error{io.ErrUnexpectedEOF, errors.New("timeout")} {
		for _, size := range []int{0, 10, small, MemoryMax, MemoryMax + 10, 2 * MemoryMax} {
			b := s.Body(1 << 20)
			err := b.Fill(io.MultiReader(bytes.NewReader(pattern(size)), iotest.ErrReader(cause)))
			if !errors.Is(err, cause) {
				t.Errorf("after %d bytes: got %v, want %v", size, err, cause)
			}
			b.Close()
		}
	}
	if s.Used() != 0 {
		t.Errorf("%d still used", s.Used())
	}
}

func TestNoMoreIsReadThanTheLimit(t *testing.T) {
	s, _ := open(t, 1<<30)
	source := bytes.NewReader(pattern(1 << 20))
	b := s.Body(100_000)
	defer b.Close()
	b.Fill(source)
	if read := source.Size() - int64(source.Len()); read != 100_001 {
		t.Errorf("%d bytes were read, want the limit and one", read)
	}
}

func TestBodiesShareTheSpool(t *testing.T) {
	const bodies, each = 8, 50_000
	s, _ := open(t, 4*each) // room for half of them at a time
	before := openFiles(t)
	var filling sync.WaitGroup
	for range bodies {
		filling.Go(func() {
			for range 50 {
				b := s.Body(1 << 20)
				err := b.Fill(bytes.NewReader(pattern(MemoryMax + each)))
				if err != nil && !errors.Is(err, ErrFull) {
					t.Error(err)
				}
				if used := s.Used(); used > 4*each {
					t.Errorf("%d bytes used, more than the bound", used)
				}
				if err := b.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	filling.Wait()
	if s.Used() != 0 {
		t.Errorf("%d still used", s.Used())
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d files open, %d before", after, before)
	}

	var held []*Body
	for range 4 { // and the room is all there again
		b := s.Body(1 << 20)
		if err := b.Fill(bytes.NewReader(pattern(MemoryMax + each))); err != nil {
			t.Error(err)
		}
		held = append(held, b)
	}
	if s.Used() != 4*each {
		t.Errorf("%d used, want %d", s.Used(), 4*each)
	}
	for _, b := range held {
		b.Close()
	}
}

func openFiles(t *testing.T) int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Log("cannot count open files here: ", err)
	}
	return len(entries)
}

func TestOpenTriesTheDirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{file, file + "-missing", "/proc"} {
		s, err := Open(dir, 1)
		if err == nil {
			s.Close()
			t.Errorf("%s was taken for a spool directory", dir)
		} else if !strings.Contains(err.Error(), dir) {
			t.Errorf("%s is not named in: %v", dir, err)
		}
	}
	s, err := Open("", 1)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
}

func BenchmarkBody(b *testing.B) {
	s, _ := open(b, 1<<30)
	for _, test := range []struct {
		name string
		size int
	}{{"64B", 64}, {"16KiB", 16 << 10}, {"1MiB", 1 << 20}} {
		b.Run(test.name, func(b *testing.B) {
			p := pattern(test.size)
			source := bytes.NewReader(p)
			b.SetBytes(int64(test.size))
			b.ReportAllocs()
			for b.Loop() {
				source.Reset(p)
				body := s.Body(16 << 20)
				body.Expect(int64(test.size))
				if err := body.Fill(source); err != nil {
					b.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, body.Reader()); err != nil {
					b.Fatal(err)
				}
				body.Close()
			}
		})
	}
}

// TestBecome: bodies to come go into the new directory, those that are there keep
// what they have, and one bound holds for all.
func TestBecome(t *testing.T) {
	s, before := open(t, 4*MemoryMax)
	old := s.Body(1 << 20)
	want := pattern(3 * MemoryMax)
	if err := old.Fill(bytes.NewReader(want)); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	next, err := Open(dir, 3*MemoryMax)
	if err != nil {
		t.Fatal(err)
	}
	s.Become(next)
	if err := os.Remove(before); err != nil { // nothing can be made there now
		t.Fatal(err)
	}
	if got, err := io.ReadAll(old.Reader()); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the body that was there is not what it was (%v)", err)
	}
	more := s.Body(1 << 20)
	if err := more.Fill(bytes.NewReader(pattern(3 * MemoryMax))); !errors.Is(err, ErrFull) {
		t.Errorf("beyond the new bound: %v", err)
	}
	more.Close()
	old.Close()
	again := s.Body(1 << 20)
	if err := again.Fill(bytes.NewReader(want)); err != nil {
		t.Errorf("into the new directory: %v", err)
	}
	again.Close()
	if s.Used() != 0 {
		t.Errorf("%d bytes are still counted", s.Used())
	}
}
