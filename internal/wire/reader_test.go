package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"testing"
	"testing/iotest"
)

// script is a stream that answers each Read with its next step.
type script struct {
	steps []any // []byte or error
	reads int
}

func (s *script) Read(p []byte) (int, error) {
	s.reads++
	if len(s.steps) == 0 {
		return 0, io.EOF
	}
	switch step := s.steps[0].(type) {
	case []byte:
		n := copy(p, step)
		if s.steps[0] = step[n:]; n == len(step) {
			s.steps = s.steps[1:]
		}
		return n, nil
	default:
		s.steps = s.steps[1:]
		return 0, step.(error)
	}
}

func TestReaderTakesASmallFrameInOneRead(t *testing.T) {
	one := Append(nil, Frame{Type: TypeChunk, Flags: FlagEnd, ID: 7, Payload: make([]byte, Chunk)})
	stream := &script{steps: []any{one}}
	if f, err := NewReader(stream).Next(); err != nil || len(f.Payload) != Chunk || stream.reads != 1 {
		t.Errorf("%d bytes after %d reads, error %v; want %d after 1", len(f.Payload), stream.reads, err, Chunk)
	}

	three := bytes.Repeat(Append(nil, Frame{Type: TypeCancel, ID: 7}), 3)
	stream = &script{steps: []any{three}}
	r := NewReader(stream)
	for range 3 {
		if _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
	}
	if stream.reads != 1 {
		t.Errorf("three frames that came together took %d reads", stream.reads)
	}
}

// A deadline may end a read anywhere; nothing of the frame is lost.
func TestReaderGoesOnAfterADeadline(t *testing.T) {
	var frames []byte
	for _, f := range sample() {
		frames = Append(frames, f)
	}
	var steps []any
	for _, b := range frames {
		steps = append(steps, []byte{b}, os.ErrDeadlineExceeded)
	}
	r := NewReader(&script{steps: steps})
	for _, want := range sample() {
		got, err := r.Next()
		for ; errors.Is(err, os.ErrDeadlineExceeded); got, err = r.Next() {
		}
		if err != nil || !same(got, want) {
			t.Fatalf("got %v, %v, want %v", got, err, want)
		}
	}
	_, err := r.Next() // the deadline behind the last byte
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("got %v, want the deadline", err)
	}
	if _, err := r.Next(); err != io.EOF {
		t.Errorf("got %v, want io.EOF", err)
	}
}

func TestReaderCutAtEveryByte(t *testing.T) {
	frame := Append(nil, sample()[0])
	for cut := range len(frame) {
		_, err := NewReader(bytes.NewReader(frame[:cut])).Next()
		want := io.ErrUnexpectedEOF
		if cut == 0 {
			want = io.EOF
		}
		if err != want {
			t.Errorf("cut after %d bytes: %v, want %v", cut, err, want)
		}
	}
}

// Frames of all sizes, wherever the buffer's end falls in them.
func TestReaderOfManyFrames(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var stream []byte
	var want []Frame
	for i := range 300 {
		payload := make([]byte, []int{0, 100, bufferSize / 3, Chunk, 2 * Chunk}[rng.IntN(5)]+rng.IntN(100))
		for j := range payload {
			payload[j] = byte(rng.Uint32())
		}
		f := Frame{Type: TypeChunk, ID: uint64(i + 1), Payload: payload}
		want = append(want, f)
		stream = Append(stream, f)
	}
	for name, in := range map[string]io.Reader{
		"as it comes": bytes.NewReader(stream),
		"in halves":   iotest.HalfReader(bytes.NewReader(stream)),
		"with EOF":    iotest.DataErrReader(bytes.NewReader(stream)),
	} {
		r := NewReader(in)
		for _, w := range want {
			if got, err := r.Next(); err != nil || !same(got, w) {
				t.Fatalf("%s: frame %d: error %v", name, w.ID, err)
			}
			if cap(r.buf) > 3*Chunk {
				t.Fatalf("%s: a buffer of %d bytes", name, cap(r.buf))
			}
		}
		if _, err := r.Next(); err != io.EOF {
			t.Errorf("%s: %v, want io.EOF", name, err)
		}
	}
}

// What a header announces costs nothing before the check, and a length that
// passes the check costs only what really comes.
func TestReaderAllocatesOnlyWhatArrives(t *testing.T) {
	tooLong := AppendHeader(nil, TypeChunk, 0, 1, 0)
	binary.BigEndian.PutUint32(tooLong, 1<<32-1)
	stream := bytes.NewReader(nil)
	r := NewReader(stream)
	allocs := testing.AllocsPerRun(100, func() {
		stream.Reset(tooLong[:HeaderSize])
		r.start, r.end, r.bad = 0, 0, nil
		if _, err := r.Next(); err == nil {
			t.Fatal("4 GiB were taken")
		}
	})
	if cap(r.buf) != bufferSize || allocs > 4 { // the error, its text and its two numbers
		t.Errorf("a length of 4 GiB: buffer %d, %v allocations", cap(r.buf), allocs)
	}

	header := AppendHeader(nil, TypeChunk, 0, 1, MaxPayload)
	for _, arrived := range []int{0, 1, bufferSize, 3 * bufferSize, MaxPayload - 1} {
		r := NewReader(bytes.NewReader(append(header[:HeaderSize:HeaderSize], make([]byte, arrived)...)))
		if _, err := r.Next(); err != io.ErrUnexpectedEOF {
			t.Fatal(err)
		}
		if most := max(bufferSize, 2*(HeaderSize+arrived)); cap(r.buf) > most {
			t.Errorf("1 MiB announced, %d bytes arrived: a buffer of %d", arrived, cap(r.buf))
		}
	}
}

func TestReaderShrinksAfterALongFrame(t *testing.T) {
	long := Append(nil, Frame{Type: TypeChunk, ID: 1, Payload: make([]byte, MaxPayload)})
	r := NewReader(bytes.NewReader(append(long, Append(nil, Frame{Type: TypeCancel, ID: 1})...)))
	for range 2 {
		if _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.Next(); err != io.EOF || cap(r.buf) != bufferSize {
		t.Errorf("buffer of %d bytes after the frames, want %d; error %v", cap(r.buf), bufferSize, err)
	}
}

func TestReaderGivesUpOnAStreamThatBringsNothing(t *testing.T) {
	idle := readFunc(func([]byte) (int, error) { return 0, nil })
	if _, err := NewReader(idle).Next(); err != io.ErrNoProgress {
		t.Errorf("got %v, want io.ErrNoProgress", err)
	}
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

func sample() []Frame {
	head, err := AppendHead(nil, KeyCall, "c", KeyTask, "t", KeySize, "4")
	if err != nil {
		panic(err)
	}
	return []Frame{
		{Type: TypeExecute, ID: 1, Payload: append(head, "in"...)},
		{Type: TypeChunk, Flags: FlagEnd, ID: 1, Payload: []byte("it")},
		{Type: TypeCancel, ID: 1},
		{Type: TypeShutdown},
	}
}

func same(a, b Frame) bool {
	return a.Type == b.Type && a.Flags == b.Flags && a.ID == b.ID && bytes.Equal(a.Payload, b.Payload)
}

// Whatever comes: no panic, no buffer beyond the protocol's most, the same
// frames however the stream is cut, and what was read writes the same bytes.
func FuzzReader(f *testing.F) {
	g := readGolden(f)
	var all []byte
	for _, frame := range g.Frames {
		raw := unhex(f, frame.Hex)
		f.Add(raw)
		all = append(all, raw...)
		for cut := range raw {
			f.Add(raw[:cut])
		}
	}
	f.Add(all)
	for _, frame := range g.Breaches {
		f.Add(unhex(f, frame.Hex))
	}
	f.Add(bytes.Repeat([]byte{0xff}, 64))
	f.Fuzz(func(t *testing.T, data []byte) {
		whole, wholeErr := readAll(t, NewReader(bytes.NewReader(data)))
		again, againErr := readAll(t, NewReader(iotest.OneByteReader(bytes.NewReader(data))))
		if !bytes.Equal(whole, again) || wholeErr.Error() != againErr.Error() {
			t.Errorf("read at once: %x, %v\nbyte by byte: %x, %v", whole, wholeErr, again, againErr)
		}
		if !bytes.HasPrefix(data, whole) {
			t.Errorf("read %x, which writes %x", data, whole)
		}
		if wholeErr == io.EOF && len(whole) != len(data) {
			t.Errorf("io.EOF after %d of %d bytes", len(whole), len(data))
		}
	})
}

// readAll writes what r has to say again, up to the error that ends it.
func readAll(t *testing.T, r *Reader) (frames []byte, end error) {
	for {
		f, err := r.Next()
		if err != nil {
			if cap(r.buf) > HeaderSize+MaxPayload {
				t.Errorf("a buffer of %d bytes", cap(r.buf))
			}
			return frames, err
		}
		frames = Append(frames, f)
		if head, body, err := SplitHead(f.Payload); err == nil {
			if len(head)+len(body)+2 != len(f.Payload) {
				t.Errorf("head %d and body %d of a payload of %d", len(head), len(body), len(f.Payload))
			}
			head.Get(KeyTask)
		}
	}
}
