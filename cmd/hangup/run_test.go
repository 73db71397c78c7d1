package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// server answers each call with what a test wants.
func server(t *testing.T, answer http.HandlerFunc) (url string) {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Hangup-Call", "id-1")
		answer(w, r)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// hangup runs the program in this process.
func hangup(t *testing.T, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	code = run(args, strings.NewReader(stdin), &out, &err)
	return code, out.String(), err.String()
}

// streams answers with events.
func streams(events string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Accept") != "text/event-stream" {
			http.Error(w, "no stream asked for", 400)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, events)
	}
}

const begins = ": hello\n\nid: 1\nevent: queued\ndata: {\"call\":\"id-1\"}\n\nid: 2\nevent: started\ndata: {\"call\":\"id-1\",\"worker_pid\":7}\n\n" +
	"id: 3\nevent: output\ndata: {\"call\":\"id-1\",\"stream\":\"stdout\",\"text\":\"to out\"}\n\n" +
	"id: 4\nevent: output\ndata: {\"call\":\"id-1\",\"stream\":\"stderr\",\"base64\":\"/w==\",\"left_out\":12}\n\n" +
	"id: 5\nevent: progress\ndata: {\"call\":\"id-1\",\"done\":1}\n\n:\n\n" +
	"id: 6\nevent: progress\ndata: {\"call\":\"id-1\",\"done\":1}\n\nid: 7\nevent: progress\ndata: {\"call\":\"id-1\",\"done\":2}\n\n"

func TestStream(t *testing.T) {
	url := server(t, streams(begins+"event: result\ndata: {\"call\":\"id-1\",\"content_type\":\"application/json\",\"json\":{\"a\": 1}}\n\n"))
	code, out, said := hangup(t, "", "run", "x", "--stream", "--url", url)
	if code != 0 || out != "{\"a\": 1}" { // whole in a file
		t.Errorf("exit %d, stdout %q", code, out)
	}
	for _, want := range []string{"x  id-1: queued after", "started after", "to out\n", "\xff\n", "12 bytes of output left out", "x  id-1: done=1 after", "x  id-1: done=2 after"} {
		if !strings.Contains(said, want) {
			t.Errorf("stderr %q lacks %q", said, want)
		}
	}
	if n := strings.Count(said, "done="); n != 2 {
		t.Errorf("the progress changed twice, and was told %d times: %q", n, said)
	}
	if strings.Contains(said, "\x1b") {
		t.Errorf("stderr is no terminal, and got %q", said)
	}

	code, out, said = hangup(t, "", "run", "x", "--stream", "--json", "--url", url)
	lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	if code != 0 || len(lines) != 8 || said != "" {
		t.Fatalf("exit %d, %q, %q", code, lines, said)
	}
	var names []string
	for _, line := range lines {
		var e struct {
			Event string
			Data  struct{ Call string }
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil || e.Data.Call != "id-1" {
			t.Errorf("%s: %v", line, err)
		}
		names = append(names, e.Event)
	}
	if got := strings.Join(names, " "); got != "queued started output output progress progress progress result" {
		t.Errorf("events: %s", got)
	}
}

func TestStreamOfOtherResults(t *testing.T) {
	for _, tt := range []struct {
		last, out, says string
		code            int
	}{
		{"event: result\ndata: {\"content_type\":\"text/plain\",\"text\":\"hé\"}\n\n", "hé", "", 0},
		{"event: result\ndata: {\"content_type\":\"image/x\",\"base64\":\"AAEC\"}\n\n", "\x00\x01\x02", "", 0},
		{"event: problem\ndata: {\"type\":\"/problems/work-failed\",\"status\":500,\"detail\":\"no cat\",\"call\":\"id-1\"}\n\n", "", "no cat (500, call id-1)", 1},
		{"", "", "broke off", 1},
		{"event: result\ndata: {\"text\":\"half", "", "broke off", 1},
		{"event: result\ndata: nonsense\n\n", "", `cannot read the event "result"`, 1},
		{"event: news\ndata: {}\n\nevent: result\ndata: {\"text\":\"x\"}\n\n", "x", "", 0},
	} {
		code, out, said := hangup(t, "", "run", "x", "--stream", "--url", server(t, streams(begins+tt.last)))
		if code != tt.code || out != tt.out || !strings.Contains(said, tt.says) {
			t.Errorf("%q: exit %d, stdout %q, stderr %q", tt.last, code, out, said)
		}
	}
}

// interrupts is a stdout that nobody reads, whose writer presses Ctrl-C meanwhile.
type interrupts struct{ over <-chan struct{} }

func (w interrupts) Write([]byte) (int, error) {
	syscall.Kill(os.Getpid(), syscall.SIGINT)
	<-w.over
	return 0, io.ErrClosedPipe
}

// Ctrl-C after a call has ended does not claim that it was ended by that.
func TestInterruptedTooLate(t *testing.T) {
	result := func(w http.ResponseWriter, r *http.Request) {
		streams(begins+"event: result\ndata: {\"call\":\"id-1\",\"content_type\":\"application/json\",\"json\":1}\n\n")(w, r)
	}
	plain := func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "1") }
	endless := func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "1")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}
	for _, tt := range []struct {
		name   string
		answer http.HandlerFunc
		flag   string
		says   string
	}{
		{"whole in memory", plain, "--json", "the call had ended already"},
		{"whole", plain, "--json=false", "the call had ended already"},
		{"the last event", result, "--stream", "the call had ended already"},
		{"in the middle", endless, "--json=false", "the server ends the call"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var said strings.Builder
			over := make(chan struct{})
			defer close(over)
			code := run([]string{"run", "x", tt.flag, "--url", server(t, tt.answer)}, strings.NewReader(""), interrupts{over}, &said)
			if code != 130 || !strings.Contains(said.String(), tt.says) {
				t.Errorf("exit %d, %q; want 130 and %q", code, said.String(), tt.says)
			}
		})
	}
}

// Whatever becomes of a call, --json prints one document.
func TestRunJSON(t *testing.T) {
	reply := func(kind, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", kind)
			w.Header().Set("Server-Timing", "queue;dur=1.5, run;dur=2.5")
			io.WriteString(w, body)
		}
	}
	for _, tt := range []struct {
		answer http.HandlerFunc
		want   string
		code   int
	}{
		{
			reply("application/json", `{"n": 12345678901234567890}`),
			`{"call":"id-1","outcome":"done","status":200,"content_type":"application/json","result":{"n":12345678901234567890},"queue_ms":1.5,"run_ms":2.5}`, 0,
		},
		{reply("application/json", `{"n":`), `{"call":"id-1","outcome":"done","status":200,"content_type":"application/json","text":"{\"n\":","queue_ms":1.5,"run_ms":2.5}`, 0},
		{reply("text/plain", "<a>"), `{"call":"id-1","outcome":"done","status":200,"content_type":"text/plain","text":"<a>","queue_ms":1.5,"run_ms":2.5}`, 0},
		{reply("text/plain", ""), `{"call":"id-1","outcome":"done","status":200,"content_type":"text/plain","text":"","queue_ms":1.5,"run_ms":2.5}`, 0},
		{reply("image/x", "\xff\x00"), `{"call":"id-1","outcome":"done","status":200,"content_type":"image/x","base64":"/wA=","queue_ms":1.5,"run_ms":2.5}`, 0},
		{
			func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/problem+json")
				w.WriteHeader(504)
				io.WriteString(w, `{"type":"/problems/timed-out","call":"id-1","outcome":"timed-out","status":504}`)
			},
			`{"call":"id-1","outcome":"timed-out","status":504,"content_type":"application/problem+json","problem":{"type":"/problems/timed-out","call":"id-1","outcome":"timed-out","status":504}}`, 1,
		},
	} {
		code, out, _ := hangup(t, "", "run", "x", "--json", "--url", server(t, tt.answer))
		if code != tt.code || out != tt.want+"\n" {
			t.Errorf("exit %d\n got %swant %s", code, out, tt.want)
		}
	}
	code, out, _ := hangup(t, "", "run", "x", "--json", "--url", server(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Write(bytes.Repeat([]byte("x"), 1000))
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}))
	var d map[string]any
	if err := json.Unmarshal([]byte(out), &d); err != nil || code != 1 || d["outcome"] != nil || d["text"] != nil || !strings.Contains(d["error"].(string), "broke off") {
		t.Errorf("exit %d, %v, %s", code, err, out)
	}
}

// The input goes as it is given, with the media type that fits it.
func TestInput(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"a.json": "[1]", "a.bin": "\x00\x01"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	url := server(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		io.WriteString(w, r.Header.Get("Content-Type")+"|"+string(body))
	})
	for _, tt := range []struct {
		args []string
		want string
	}{
		{nil, "|"},
		{[]string{"--input", `{"a": 1}`}, `application/json|{"a": 1}`},
		{[]string{"--input", "-"}, "application/json|from stdin"},
		{[]string{"--input", "@" + filepath.Join(dir, "a.json")}, "application/json|[1]"},
		{[]string{"--input", "@" + filepath.Join(dir, "a.bin")}, "application/octet-stream|\x00\x01"},
		{[]string{"--input", "plain", "--content-type", "text/plain"}, "text/plain|plain"},
	} {
		code, out, said := hangup(t, "from stdin", append([]string{"run", "x", "--url", url}, tt.args...)...)
		if code != 0 || out != tt.want {
			t.Errorf("%q: exit %d, %q, %s", tt.args, code, out, said)
		}
	}
}

func TestProgressText(t *testing.T) {
	for in, want := range map[string]string{
		`{"call":"id","total":3,"done":1}`:    "done=1 total=3",
		`{"call":"id","progress":{"done":1}}`: "done=1",
		`{"call":"id"}`:                       "",
		`{"at":"a\nb"}`:                       `at="a\nb"`,
		`x`:                                   "",
	} {
		if got := progressText([]byte(in)); got != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
}
