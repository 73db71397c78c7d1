package wire

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// golden is testdata/golden.json: a conversation, frame by frame, and what
// nobody may say. The tests of both SDKs read it too.
type golden struct {
	Frames []struct {
		Name, To, Hex, Type, Body string
		End                       bool
		ID                        uint64
		Head                      []string
		JSON                      json.RawMessage
	}
	Breaches []struct{ Name, To, Hex, Error string }
}

func readGolden(t testing.TB) (g golden) {
	t.Helper()
	raw, err := os.ReadFile("testdata/golden.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &g); err != nil {
		t.Fatal(err)
	}
	if len(g.Frames) == 0 || len(g.Breaches) == 0 {
		t.Fatal("testdata/golden.json is empty")
	}
	return g
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	raw, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestGoldenFrames(t *testing.T) {
	types := map[string]Type{}
	for ty := TypeReady; ty <= TypeShutdown; ty++ {
		types[ty.String()] = ty
	}
	seen := map[Type]bool{}
	for _, g := range readGolden(t).Frames {
		t.Run(g.Name, func(t *testing.T) {
			raw := unhex(t, g.Hex)
			payload := []byte(g.Body)
			if g.Head != nil {
				var err error
				if payload, err = AppendHead(nil, g.Head...); err != nil {
					t.Fatal(err)
				}
				payload = append(payload, g.Body...)
			}
			if g.JSON != nil {
				var compact bytes.Buffer
				if err := json.Compact(&compact, g.JSON); err != nil {
					t.Fatal(err)
				}
				payload = compact.Bytes()
			}
			want := Frame{Type: types[g.Type], ID: g.ID, Payload: payload}
			if g.End {
				want.Flags = FlagEnd
			}
			seen[want.Type] = true

			if diff := cmp.Diff(raw, Append(nil, want)); diff != "" {
				t.Errorf("Append (-golden +got):\n%s", diff)
			}
			r := NewReader(bytes.NewReader(raw))
			got, err := r.Next()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(fmt.Sprint(want), fmt.Sprint(got)); diff != "" {
				t.Errorf("Next (-golden +got):\n%s", diff)
			}
			if _, err := r.Next(); err != io.EOF {
				t.Errorf("after the frame: %v, want io.EOF", err)
			}
			if g.Head == nil {
				return
			}
			head, body, err := SplitHead(got.Payload)
			if err != nil {
				t.Fatal(err)
			}
			if string(body) != g.Body {
				t.Errorf("body %q, want %q", body, g.Body)
			}
			for i := 0; i < len(g.Head); i += 2 {
				if got := head.Get(g.Head[i]); got != g.Head[i+1] {
					t.Errorf("head %s = %q, want %q", g.Head[i], got, g.Head[i+1])
				}
			}
		})
	}
	for name, ty := range types {
		if !seen[ty] {
			t.Errorf("no golden frame of type %s", name)
		}
	}
}

func TestBreaches(t *testing.T) {
	for _, g := range readGolden(t).Breaches {
		if g.To != "both" {
			continue // well formed; what is wrong is that it comes there
		}
		t.Run(g.Name, func(t *testing.T) {
			r := NewReader(bytes.NewReader(unhex(t, g.Hex)))
			f, err := r.Next()
			if err == nil {
				_, _, err = SplitHead(f.Payload)
			} else if _, again := r.Next(); again != err {
				t.Errorf("Next after a breach: %v, want the breach again", again)
			}
			var breach *FormatError
			if !errors.As(err, &breach) || !strings.Contains(err.Error(), g.Error) {
				t.Fatalf("error %v, want a FormatError with %q", err, g.Error)
			}
		})
	}
}

// The dumps in docs/protocol.md are the golden frames.
func TestDocumentedDumps(t *testing.T) {
	doc, err := os.ReadFile("../../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range readGolden(t).Frames {
		dump := fmt.Sprintf("%s → %s\n%s", g.Name, g.To, hex.Dump(unhex(t, g.Hex)))
		if !bytes.Contains(doc, []byte(dump)) {
			t.Errorf("docs/protocol.md lacks this dump:\n%s", dump)
		}
	}
}

func TestHeadGet(t *testing.T) {
	payload, err := AppendHead([]byte("before"), "a", "1", "b", "", "a", "2", "ab", "3")
	if err != nil {
		t.Fatal(err)
	}
	head, body, err := SplitHead(payload[len("before"):])
	if err != nil || len(body) != 0 {
		t.Fatalf("body %q, error %v", body, err)
	}
	for key, want := range map[string]string{"a": "2", "b": "", "ab": "3", "1": "", "": ""} {
		if got := head.Get(key); got != want {
			t.Errorf("Get(%q) = %q, want %q", key, got, want)
		}
	}
	if n := testing.AllocsPerRun(100, func() { head.Get("ab") }); n != 0 {
		t.Errorf("Get allocates %v times", n)
	}
}

func TestAppendHeadRefuses(t *testing.T) {
	long := strings.Repeat("x", 65_532) // with key and two NULs: 65,535
	for _, c := range []struct {
		name  string
		pairs []string
		want  string
	}{
		{"the longest", []string{"k", long}, ""},
		{"one byte longer", []string{"k", long + "x"}, "65536 bytes"},
		{"NUL in a value", []string{"k", "a\x00b"}, "NUL"},
		{"NUL in a key", []string{"k\x00", "a"}, "NUL"},
		{"not UTF-8", []string{"k", "\xff"}, "UTF-8"},
		{"no value", []string{"k"}, "without a value"},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, err := AppendHead([]byte("before"), c.pairs...)
			if c.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
			if string(out) != "before" {
				t.Errorf("dst was changed to %q", out)
			}
		})
	}
}

func TestAppendHeaderRefusesLongPayloads(t *testing.T) {
	for _, n := range []int{-1, MaxPayload + 1} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("AppendHeader took a payload of %d bytes", n)
				}
			}()
			AppendHeader(nil, TypeChunk, 0, 1, n)
		}()
	}
}
