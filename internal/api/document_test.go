package api

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"example.com/hangup/internal/call"
)

func TestDocuments(t *testing.T) {
	deep := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	for _, tt := range []struct {
		doc  string
		want string // the input, or what the fault begins with
	}{
		{`{"workload":"w","input":1}`, `1`},
		{` { "input" : [ 1 , {"a":{}} , [] ] , "workload" : "w" } ` + "\n", `[ 1 , {"a":{}} , [] ]`},
		{`{"workload":"w","input":-0.5e+10}`, `-0.5e+10`},
		{`{"workload":"w","input":"\ud800\u0000é"}`, `"\ud800\u0000é"`},
		{`{"workload":"w","input":{"a":1,"a":2}}`, `{"a":1,"a":2}`},
		{`{"workload":"w","input":` + deep(maxDepth) + `}`, deep(maxDepth)},
		{`{"workload":"w"}`, ``},

		{``, `line 1, column 1 (offset 0): the document ends`},
		{`{`, `line 1, column 2 (offset 1): the document ends`},
		{`[]`, `line 1, column 1 (offset 0): '[' where an object belongs`},
		{"\ufeff{}", `line 1, column 1 (offset 0): '\ufeff' where an object belongs`},
		{`{}`, `line 1, column 2 (offset 1): "workload" is missing`},
		{`{"workload":""}`, `line 1, column 15 (offset 14): "workload" is missing`},
		{`{"workload":"w",}`, `line 1, column 17 (offset 16): '}' where a string belongs`},
		{`{"workload":"w"} x`, `line 1, column 18 (offset 17): something follows`},
		{`{"workload":"w"}{}`, `line 1, column 17 (offset 16): something follows`},
		{`{"workload":7}`, `line 1, column 13 (offset 12): '7' where a string belongs`},
		{`{"workload":"w","task":null}`, `line 1, column 24 (offset 23): 'n' where a string belongs`},
		{`{"workload":"w","workload":"v"}`, `line 1, column 17 (offset 16): "workload" comes twice`},
		{`{"workload":"w","inputs":1}`, `line 1, column 17 (offset 16): "inputs" is none of workload, task, input`},
		{`{"workload":"w" "input":1}`, `line 1, column 17 (offset 16): '"' where "," or "}" belongs`},
		{`{"workload" "w"}`, `line 1, column 13 (offset 12): '"' where ":" belongs`},
		{`{"` + strings.Repeat("x", 2000) + `":1}`, `line 1, column 2 (offset 1): this string is longer`},
		{"{\n  \"workload\": \"w\",\n  \"input\": [1,\n    2,]\n}", `line 4, column 7 (offset 42): ']' where a value belongs`},
		{`{"input":"éé" x`, `line 1, column 15 (offset 16): 'x' where "," or "}" belongs`},
		{`{"input":[1}}`, `line 1, column 12 (offset 11): '}' where "," or "]" belongs`},
		{`{"input":{1:2}}`, `line 1, column 11 (offset 10): '1' where a string belongs`},
		{`{"input":{"a"}}`, `line 1, column 14 (offset 13): '}' where ":" belongs`},
		{`{"input":01}`, `line 1, column 11 (offset 10): '1' where "," or "}" belongs`},
		{`{"input":1.}`, `line 1, column 12 (offset 11): '}' where a digit belongs`},
		{`{"input":-}`, `line 1, column 11 (offset 10): '}' where a digit belongs`},
		{`{"input":1e}`, `line 1, column 12 (offset 11): '}' where a digit belongs`},
		{`{"input":+1}`, `line 1, column 10 (offset 9): '+' where a value belongs`},
		{`{"input":NaN}`, `line 1, column 10 (offset 9): 'N' where a value belongs`},
		{`{"input":'a'}`, `line 1, column 10 (offset 9): '\'' where a value belongs`},
		{`{"input":nul}`, `line 1, column 13 (offset 12): '}' where null belongs`},
		{`{"input":"\x"}`, `line 1, column 12 (offset 11): 'x' where one of "\/bfnrtu belongs`},
		{`{"input":"\u12G4"}`, `line 1, column 15 (offset 14): 'G' where a hexadecimal digit belongs`},
		{"{\"input\":\"a\nb\"}", `line 1, column 12 (offset 11): the control character '\n' must be escaped`},
		{"{\"input\":\"a\xff\"}", `line 1, column 12 (offset 11): the byte 0xff is not UTF-8`},
		{`{"input":"abc`, `line 1, column 14 (offset 13): the document ends`},
		{`{"workload":"w","input":` + deep(maxDepth+1) + `}`, `line 1, column 10025 (offset 10024): more than 10000 brackets`},
		{`{"workload":"w","input":` + strings.Repeat(`{"a":`, 100_000), `line 1, column 50025 (offset 50024): more than 10000 brackets`},
	} {
		d, err := parseDocument(strings.NewReader(tt.doc))
		if err == nil {
			if d.workload != "w" || tt.doc[d.from:d.to] != tt.want {
				t.Errorf("%.60q: workload %q, input %.60q", tt.doc, d.workload, tt.doc[d.from:d.to])
			}
			continue
		}
		if !strings.HasPrefix(tt.want, "line") || !strings.HasPrefix(err.Error(), tt.want) || !errors.Is(err, call.ErrBadRequest) {
			t.Errorf("%.60q:\n%s, want\n%s", tt.doc, err, tt.want)
		}
	}
}

// The position is in the problem, for programs.
func TestDocumentFault(t *testing.T) {
	g := serve(t, echo)
	p := g.do("/execute", "{\n  \"workload\": \"echo\",,\n}").is(t, 400, "bad-request")
	if p["line"] != 2. || p["column"] != 22. || p["offset"] != 23. {
		t.Errorf("%v", p)
	}
}

type broken struct{ err error }

func (b broken) Read([]byte) (int, error) { return 0, b.err }

// What cannot be read is not the caller's fault.
func TestDocumentThatCannotBeRead(t *testing.T) {
	disk := errors.New("input/output error")
	if _, err := parseDocument(broken{disk}); !errors.Is(err, disk) || errors.Is(err, call.ErrBadRequest) {
		t.Error(err)
	}
}

// The scanner takes what encoding/json takes, but for depth and broken UTF-8, and
// finds exactly the bytes of the input.
func FuzzDocument(f *testing.F) {
	for _, seed := range []string{
		`1`, `-0.0e-0`, `"\ud83d\ude00"`, `[{"a":[]},null,true,false]`, ` { } `, `[1,]`, `{"a":1,}`, `01`, `"\`, "\"\u2028\"", `[[[[`, "\xef\xbb\xbf1",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, input string) {
		doc := `{"workload":"w","input":` + input + `}`
		d, err := parseDocument(strings.NewReader(doc))
		if !utf8.ValidString(doc) {
			if err == nil {
				t.Errorf("%q is not UTF-8", doc)
			}
			return
		}
		var want struct {
			Workload string
			Input    json.RawMessage
		}
		strict := json.NewDecoder(strings.NewReader(doc))
		strict.DisallowUnknownFields()
		wantErr := strict.Decode(&want)
		if strict.More() || !json.Valid([]byte(doc)) {
			wantErr = errors.New("more")
		}
		if wantErr != nil && err == nil {
			t.Errorf("%q: taken, but: %v", doc, wantErr)
		}
		if err != nil && wantErr == nil && json.Valid([]byte(input)) && !strings.Contains(err.Error(), "brackets are open") {
			t.Errorf("%q: %v", doc, err)
		}
		if err == nil && json.Valid([]byte(input)) && doc[d.from:d.to] != strings.Trim(input, " \t\r\n") {
			t.Errorf("%q: the input is %q", doc, doc[d.from:d.to])
		}
	})
}
