package client

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

// all reads events to the end of a stream.
func all(r io.Reader) (list []Event, err error) {
	events := NewEvents(r)
	for {
		e, err := events.Next()
		if err != nil {
			return list, err
		}
		list = append(list, e)
	}
}

func event(id, name, data string) Event { return Event{id, name, []byte(data)} }

func TestEvents(t *testing.T) {
	for _, tt := range []struct {
		stream string
		want   []Event
	}{
		{"", nil},
		{"event: queued\ndata: {}\n\n", []Event{event("", "queued", "{}")}},
		{"data:a\n\ndata:  b\n\n", []Event{event("", "message", "a"), event("", "message", " b")}},
		{"data: 1\ndata: 2\ndata\ndata:\n\n", []Event{event("", "message", "1\n2\n\n")}},
		{": a comment\n\n:\n\nevent: x\n: another\ndata: y\n\n", []Event{event("", "x", "y")}},
		{"event: no data\n\ndata: z\n\n", []Event{event("", "message", "z")}},
		{"id: 7\ndata: a\n\ndata: b\n\nid\ndata: c\n\n", []Event{event("7", "message", "a"), event("7", "message", "b"), event("", "message", "c")}},
		{"id: 1\nid: 2\x00\ndata: a\n\n", []Event{event("1", "message", "a")}},
		{"retry: 10\nretry: x\nunknown: y\nDATA: z\ndata: a: b\n\n", []Event{event("", "message", "a: b")}},
		{"data: a\r\ndata: b\r\n\r\ndata: c\r\rdata: d\n\r\n", []Event{event("", "message", "a\nb"), event("", "message", "c"), event("", "message", "d")}},
		{"\ufeffdata: a\n\n\ufeffdata: b\n\n", []Event{event("", "message", "a")}},
		{"data: whole\n\ndata: not", []Event{event("", "message", "whole")}},
		{"data: whole\n\ndata: not\n", []Event{event("", "message", "whole")}},
		{"data:\n\n", []Event{event("", "message", "")}},
	} {
		got, err := all(iotest.OneByteReader(strings.NewReader(tt.stream)))
		if err != io.EOF {
			t.Errorf("%q: %v", tt.stream, err)
		}
		if diff := cmp.Diff(tt.want, got, cmp.Transformer("text", func(b []byte) string { return string(b) })); diff != "" {
			t.Errorf("%q (-want +got):\n%s", tt.stream, diff)
		}
	}
}

// An event is there as soon as its last line is, not when more follows.
func TestEventComesAtOnce(t *testing.T) {
	for _, end := range []string{"\n", "\r", "\r\n"} {
		r, w := io.Pipe()
		go io.WriteString(w, "data: a"+end+end) // returns when all of it is read, or r is closed
		if e, err := NewEvents(r).Next(); err != nil || string(e.Data) != "a" {
			t.Errorf("%q: %v, %v", end, e, err)
		}
		r.Close()
	}
}

func TestEventsEndWithTheirReader(t *testing.T) {
	broken := errors.New("broken")
	_, err := all(io.MultiReader(strings.NewReader("data: a\n"), iotest.ErrReader(broken)))
	if !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
	endless := NewEvents(io.MultiReader(strings.NewReader("data: "), forever{}))
	endless.most = 1000
	if _, err := endless.Next(); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("an endless event: %v", err)
	}
}

// forever is a line without an end.
type forever struct{}

func (forever) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

// Whatever comes, the reader ends, and what it has read can be written again.
func FuzzEvents(f *testing.F) {
	f.Add([]byte("id: 1\nevent: a\ndata: b\ndata: c\n\n: x\r\rdata\r\n\r\n"), 3)
	f.Add([]byte("\ufeff\ufeff:\n\r\n\rretry: 5\n\n"), 1)
	f.Fuzz(func(t *testing.T, stream []byte, cut int) {
		list, err := all(strings.NewReader(string(stream)))
		if err != io.EOF {
			t.Fatal(err)
		}
		var again strings.Builder
		for _, e := range list {
			if strings.Contains(e.Name+e.ID+string(e.Data), "\r") || strings.Contains(e.ID, "\x00") {
				t.Fatalf("%q", e)
			}
			fmt.Fprintf(&again, "id: %s\nevent: %s\n", e.ID, e.Name)
			for line := range strings.SplitSeq(string(e.Data), "\n") {
				fmt.Fprintf(&again, "data: %s\n", line)
			}
			again.WriteByte('\n')
		}
		twice, err := all(iotest.HalfReader(strings.NewReader(again.String())))
		if err != io.EOF || !cmp.Equal(list, twice) {
			t.Fatalf("%v: %q, again %q", err, list, twice)
		}
		// However it is cut, the same comes out.
		at := min(max(cut, 0), len(stream))
		pieces, _ := all(io.MultiReader(strings.NewReader(string(stream[:at])), strings.NewReader(string(stream[at:]))))
		if !cmp.Equal(list, pieces) {
			t.Fatalf("in one %q, in two %q", list, pieces)
		}
	})
}
