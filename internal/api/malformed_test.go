package api

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"unicode/utf8"

	"example.com/hangup/internal/call"
)

// fault marks, in the documents below, where the fault is. It is not a part of them.
const fault = "⚑"

// malformed are documents with one fault each. The first list is of values that are
// put where the input belongs, the second of whole documents.
var malformedInputs = []string{
	// Nothing, or too much.
	`⚑,`, `1 ⚑2`, `1⚑;`, `"a" ⚑"b"`, `{} ⚑{}`, `[] ⚑[]`, `1⚑:2`, `⚑]`, `1⚑]`, `[]⚑]`,
	// Words.
	`t⚑}`, `tru⚑ `, `nul⚑x`, `fals⚑a`, `true⚑e`, `⚑True`, `⚑NULL`, `⚑undefined`, `⚑NaN`, `⚑Infinity`, `-⚑Infinity`, `-⚑NaN`, `n⚑an`,
	// Numbers.
	`⚑+1`, `⚑.5`, `-⚑.5`, `1.⚑`, `1.⚑e5`, `1e⚑`, `1e+⚑`, `1E-⚑ `, `1.0e⚑.`, `0⚑1`, `-0⚑1`, `0⚑x10`, `0⚑b1`, `1⚑_000`, `-⚑-1`, `-⚑ 1`,
	`1.2⚑.3`, `1e5⚑.5`, `1e5⚑e5`, `-⚑`, `1⚑n`, `1⚑f`, `⚑１`, "1⚑\u00a02", `[1⚑+2]`, `0⚑0`, `1e⚑x`,
	// Strings.
	`⚑'a'`, "⚑`a`", `⚑“a”`, `⚑a`, `"a"⚑a`, "\"⚑\n\"", "\"⚑\t\"", "\"a⚑\x00\"", "\"⚑\x1f\"", `"\⚑a"`, `"\⚑'"`, `"\⚑0"`, `"\⚑x41"`, `"\⚑U0041"`, `"\⚑` + "\n" + `"`,
	`"\⚑é"`, `"\u⚑"`, `"\u1⚑"`, `"\u12⚑"`, `"\u123⚑"`, `"\u123⚑g"`, `"\u⚑{41}"`, `"\u⚑+041"`, `"\u⚑ 041"`, `"\uD83D\u⚑x"`, `"\⚑` + "\xff" + `"`,
	// Bytes that are no UTF-8: stray, cut, overlong, surrogates, beyond the last character.
	"\"⚑\xff\"", "\"⚑\x80\"", "\"é⚑\xc3\"", "\"⚑\xc3(\"", "\"⚑\xe2\x82\"", "\"⚑\xf0\x9f\x98\"", "\"⚑\xc0\xaf\"", "\"⚑\xe0\x80\xaf\"", "\"⚑\xf0\x80\x80\xaf\"",
	"\"⚑\xed\xa0\x80\"", "\"⚑\xed\xb0\x80\"", "\"⚑\xf4\x90\x80\x80\"", "\"⚑\xf8\x88\x80\x80\x80\"", "\"⚑\xfe\"", "⚑\xff", "[⚑\xc3\xa9]", "{\"a⚑\xff\":1}",
	// Arrays.
	`[⚑,]`, `[⚑,1]`, `[1,⚑]`, `[1,⚑,2]`, `[1 ⚑2]`, `[1⚑;2]`, `[1⚑:2]`, `["a"⚑:1]`, `[1⚑}`, `[⚑}`, `[[]⚑}`, `[1,` + "\n\n" + `⚑]`, `[⚑` + "\x00" + `]`, `[1⚑"a"]`,
	// Objects.
	`{⚑,}`, `{⚑1:2}`, `{⚑a:1}`, `{⚑'a':1}`, `{⚑null:1}`, `{⚑[]:1}`, `{"a"⚑}`, `{"a"⚑,"b":1}`, `{"a":⚑}`, `{"a":⚑,}`, `{"a":1,⚑}`, `{"a":1⚑;}`, `{"a":1 ⚑"b":2}`, `{"a"⚑=1}`,
	`{"a":⚑:1}`, `{"a":1⚑]`, `{⚑]`, `{"a" ⚑1}`, `{"a":1,⚑,}`, `{"a"⚑"b"}`, `{"a":1⚑:2}`, `{"a":[1⚑}]`, `{⚑{}:1}`, `{"\⚑q":1}`,
	// What is JSON elsewhere.
	`⚑/* no */ 1`, `1 ⚑// no`, `⚑# no`, `[1,⚑/**/2]`, "⚑\u00a01", "⚑\u20281", "⚑\v1", "⚑\f1", "1⚑\x00", "⚑\ufeff1", "⚑\x1b[31m", `⚑<a/>`, `⚑...`, `⚑\u0031`,
}

var malformedDocuments = []string{
	``, `⚑`, ` ⚑`, "\r\n\t ⚑", `⚑null`, `⚑1`, `⚑"workload"`, `⚑[]`, `⚑true`, `⚑}`, `⚑x`, "⚑\x00", "⚑\xff", `{⚑`, `{"⚑`, `{"workload⚑`, `{"workload"⚑`, `{⚑,}`,
	"⚑\ufeff{\"workload\":\"echo\"}", "⚑\xff\xfe{\x00}\x00", "⚑\xfe\xff\x00{\x00}", "⚑\xef\xbb", "⚑\x1f\x8b\x08\x00", "⚑--x\r\n",
	`{⚑}`, `{"task":"up"⚑}`, `{"workload":""⚑}`, `{"workload":⚑null}`, `{"workload":⚑1}`, `{"workload":⚑["echo"]}`, `{"workload":⚑{}}`, `{"workload":⚑true}`,
	`{"workload":"echo","task":⚑1}`, `{"workload":"echo","task":⚑null}`, `{"workload":"echo",⚑"workload":"echo"}`, `{"workload":"echo",⚑"workl\u006fad":"resize"}`,
	`{"input":1,"workload":"echo",⚑"input":2}`, `{"task":"a","workload":"echo",⚑"task":"a"}`, `{"workload":"echo",⚑"Input":1}`, `{"workload":"echo",⚑"":1}`,
	`{"workload":"echo",⚑"inp\u0000ut":1}`, `{"workload":"echo",⚑"__proto__":{}}`, `{"workload":"echo"}⚑}`, `{"workload":"echo"}⚑,`, `{"workload":"echo"} ⚑null`,
	"{\"workload\":\"echo\"}\n⚑{\"workload\":\"echo\"}\n", "{\"workload\":\"echo\"}⚑\x00", "{\"workload\":\"echo\"}\n\n ⚑\ufeff", `{"workload":"echo"⚑`, `{"workload":"echo",⚑`,
	`{"workload":"echo"⚑]`, `{"workload":"echo"⚑;}`, `{⚑workload:"echo"}`, `{⚑'workload':"echo"}`, `{"workload"⚑="echo"}`, `{"workload":⚑echo}`, `{"workload":⚑"` + strings.Repeat("x", 2000) + `"}`,
	`{"workload":"echo","task":⚑"` + strings.Repeat("é", 1000) + `"}`, `{"workload":"echo","input":⚑}`, "{\r\n\"workload\":\"echo\",\r\n\t⚑\"é漢😀\":1}",
	"{\"workload\":\"echo\",\r\n \"input\":\"é漢😀\"⚑!}",
	`{"workload":"echo","input":` + strings.Repeat("[", maxDepth) + `⚑` + strings.Repeat("[", 100_000-maxDepth) + strings.Repeat("]", 100_000) + `}`,
	`{"workload":"echo","input":` + strings.Repeat("[", maxDepth) + `⚑[`, `{"workload":"echo","input":` + strings.Repeat(`{"":`, maxDepth) + `⚑{}`,
	`{"workload":"echo","input":` + strings.Repeat("[", 100) + strings.Repeat("]", 99) + `⚑}`,
	`{"workload":"echo","input":` + strings.Repeat(" ", 70_000) + `⚑x}`, `{"workload":"echo","input":"` + strings.Repeat("é", 70_000) + `⚑` + "\x01" + `"}`,
	`{"workload":"echo","input":` + strings.Repeat("1", 70_000) + `⚑x}`, `{"workload":"echo","input":` + strings.Repeat("\n", 5000) + `  ⚑}`,
}

// post sends a document over a connection that is kept.
func post(t *testing.T, c *raw, doc string) answer {
	t.Helper()
	c.send("POST /execute HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s", len(doc), doc)
	return c.receive()
}

// at is where doc has its end, computed the simple way.
func at(before string) position {
	line := before[strings.LastIndexByte(before, '\n')+1:]
	return position{strings.Count(before, "\n") + 1, utf8.RuneCountInString(line) + 1, int64(len(before))}
}

// refuses checks that doc is refused for a fault at the given place.
func refuses(t *testing.T, g *rig, c *raw, doc string, where position) {
	t.Helper()
	a := post(t, c, doc)
	if a.StatusCode != 400 {
		t.Errorf("%.80q: %s: %.200s", doc, a.Status, a.body)
	} else if p := a.is(t, 400, "bad-request"); p["line"] != float64(where.line) || p["column"] != float64(where.column) || p["offset"] != float64(where.offset) {
		t.Errorf("%.80q: %v, want %+v", doc, p["detail"], where)
	}
	if strings.ContainsAny(string(a.body), "\x00\x1b") || !utf8.Valid(a.body) || len(a.body) > 1000 {
		t.Errorf("%.80q: the reply shows it as it is: %.200q", doc, a.body)
	}
	if end := g.end(); end.Outcome != "rejected" {
		t.Errorf("%.80q: %s", doc, end.Outcome)
	}
}

// Whatever is wrong with a document, it is refused for that, at its place; nothing
// is started, and the connection is good for the next.
func TestMalformedDocuments(t *testing.T) {
	g := serve(t, func(_ context.Context, c *call.Call) error {
		t.Error("a malformed document has become a call")
		return nil
	})
	c := g.dial()
	docs := malformedDocuments
	for _, input := range malformedInputs {
		docs = append(docs, `{"workload":"echo","input":`+input+`}`, "{\n\"workload\":\"écho\",\n \"input\" : "+input+"\n}\n")
	}
	for _, marked := range docs {
		before, after, _ := strings.Cut(marked, fault)
		refuses(t, g, c, before+after, at(before))
	}
}

// A document that was cut anywhere says where.
func TestCutDocuments(t *testing.T) {
	g := serve(t, echo)
	c := g.dial()
	const doc = "{ \"workload\": \"echo\",\r\n\t\"task\":\"\\u0075p\\n\",\n\"input\": [ -12.5e+3, 0.1E-2, true , false, null, {}, [],\n {\"é漢😀\": \"\\ud83d\\ude00\\\\\\\"/\", \"\": {\"a\":[[1]]}} ]  \n}"
	if !json.Valid([]byte(doc)) {
		t.Fatal("it is no document in the first place")
	}
	for n := range len(doc) {
		cut := doc[:n]
		end := cut
		for !utf8.ValidString(end) { // the fault is the character that is cut
			end = end[:len(end)-1]
		}
		refuses(t, g, c, cut, at(end))
	}
}

// What is odd and valid arrives as it was sent, to the byte.
func TestOddDocuments(t *testing.T) {
	g := serve(t, echo)
	c := g.dial()
	deep := strings.Repeat("[", maxDepth) + strings.Repeat("]", maxDepth)
	for _, input := range []string{
		`0`, `-0`, `-0.0`, `0e0`, `0E+00`, `1e999999999`, `-1E-999999999`, `0.` + strings.Repeat("0", 50_000) + `1`, strings.Repeat("9", 100_000), `1.0`, `1.10`, `9007199254740993`,
		`""`, `"\u0000"`, `"\ud800"`, `"\udc00\ud800"`, `"\uD83D\uDE00"`, `"\uFFFF"`, `"\ufeff"`, `"` + "\ufeff" + `"`, `"` + "\u2028\u2029" + `"`, `"` + "\x7f" + `"`, `"\/\b\f\n\r\t\\\""`,
		`"😀"`, `"` + "\U0010ffff" + `"`, `"` + "\ufffd" + `"`, `"/* no comment */"`, `"` + strings.Repeat("é", 100_000) + `"`, "\"\u0085\u009b\u202e\"",
		`[]`, `{}`, `[ ]`, "{\r\n}", `[[],{},[{}]]`, `{"":""}`, `{"a":1,"a":2,"a":1}`, `{"workload":"resize","task":7,"input":null}`, `{"__proto__":{"constructor":1}}`, `{"a":{"a":{"a":[]}}}`,
		`{"` + strings.Repeat("k", 100_000) + `":1}`, "[1 ,\t2\r\n,\n3 ]", deep, strings.Repeat(`{"":`, maxDepth-1) + "{}" + strings.Repeat("}", maxDepth-1),
		`true`, `false`, `null`, `"` + strings.Repeat(`\\`, 10_000) + `"`, "[" + strings.Repeat("1,", 100_000) + "1]",
	} {
		for _, around := range [][2]string{{`{"workload":"echo","input":`, `}`}, {"\n\t {\r\n\"input\" : ", "  ,\n \"workl\\u006fad\":\t\"\\u0065cho\" , \"task\":\"\"}\n \r\n"}} {
			a := post(t, c, around[0]+input+around[1])
			if a.StatusCode != http.StatusOK || string(a.body) != input || a.Header.Get("Content-Type") != "application/json" {
				t.Errorf("%.80q: %s: %.200q", input, a.Status, a.body)
			}
		}
	}
}

// The scanner keeps its place however its input comes.
func TestDocumentsInPieces(t *testing.T) {
	const before = "{\n\"workload\":\"echo\",\"input\":[\"é漢😀\", 1.5e3,\n"
	for _, r := range []io.Reader{
		strings.NewReader(before + "?]}"), oneByte{strings.NewReader(before + "?]}")}, io.MultiReader(strings.NewReader(before), bytes.NewReader([]byte("?]}"))),
	} {
		_, err := parseDocument(r)
		if f, ok := err.(*positionError); !ok || f.at != at(before) {
			t.Errorf("%v", err)
		}
	}
}

// oneByte reads one byte at a time.
type oneByte struct{ io.Reader }

func (r oneByte) Read(p []byte) (int, error) { return r.Reader.Read(p[:min(1, len(p))]) }
