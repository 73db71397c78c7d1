package worker

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/hangup/internal/wire"
	"github.com/google/go-cmp/cmp"
)

// TestMain makes the test binary its own worker: a child started with
// HANGUP_IN serves the tasks below over real pipes.
func TestMain(m *testing.M) {
	if _, ok := os.LookupEnv("HANGUP_IN"); !ok {
		os.Exit(m.Run())
	}
	if err := Serve(tasks); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// earlier is what the last call of the task "keep" has left behind.
var earlier *Call

var tasks = Tasks{
	"echo": func(_ context.Context, call *Call) (any, error) {
		if call.ContentType == "application/json" {
			var v any
			err := call.Decode(&v)
			return v, err
		}
		return call.Input()
	},
	"steps": func(_ context.Context, call *Call) (any, error) {
		if err := call.Progress(map[string]int{"done": 1, "total": 2}); err != nil {
			return nil, err
		}
		out := call.Stream("application/octet-stream")
		io.WriteString(out, "one")
		io.WriteString(out, "two")
		return nil, nil
	},
	"fail": func(context.Context, *Call) (any, error) {
		return nil, Failure("no such picture", map[string]any{"picture": "a.png"})
	},
	"pipe": func(_ context.Context, call *Call) (any, error) {
		_, err := io.Copy(call.Stream(call.ContentType), call.Body)
		return nil, err
	},
	"first": func(_ context.Context, call *Call) (any, error) {
		first := make([]byte, 4)
		_, err := io.ReadFull(call.Body, first)
		return first, err
	},
	"who": func(_ context.Context, call *Call) (any, error) {
		return []string{call.ID, call.Task, call.ContentType, call.Traceparent, call.Scratch}, nil
	},
	"wait": func(ctx context.Context, call *Call) (any, error) {
		if err := call.Progress(struct{}{}); err != nil {
			return nil, err
		}
		<-ctx.Done()
		fmt.Println("wait:", context.Cause(ctx))
		return nil, context.Cause(ctx)
	},
	"flood": func(_ context.Context, call *Call) (any, error) {
		for part := make([]byte, 3*wire.Chunk); ; {
			if err := call.Progress(struct{}{}); err != nil {
				return nil, err
			}
			if _, err := call.Stream("").Write(part); err != nil {
				fmt.Println("flood:", err)
				return nil, err
			}
		}
	},
	"spin": func(ctx context.Context, call *Call) (any, error) {
		var in int
		if err := call.Decode(&in); err != nil {
			return nil, err
		}
		for end := time.Now().Add(time.Duration(in) * time.Microsecond); time.Now().Before(end) && ctx.Err() == nil; {
		}
		return in, ctx.Err()
	},
	"keep": func(_ context.Context, call *Call) (any, error) {
		earlier = call
		return nil, nil
	},
	"late": func(context.Context, *Call) (any, error) {
		_, read := earlier.Body.Read(make([]byte, 1))
		_, write := earlier.Stream("text/plain").Write([]byte("x"))
		return []string{
			fmt.Sprint(context.Cause(earlier.ctx)), fmt.Sprint(earlier.Progress(struct{}{})), fmt.Sprint(read), fmt.Sprint(write),
		}, nil
	},
	"child": func(context.Context, *Call) (any, error) {
		out, err := exec.Command("sh", "-c", `ls -l /proc/self/fd; env | grep ^HANGUP_ || true`).Output()
		return out, err
	},
	"held": func(context.Context, *Call) (any, error) {
		fds, err := os.ReadDir("/proc/self/fd")
		var held []string
		for _, fd := range fds {
			if target, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil {
				held = append(held, target)
			}
		}
		return held, err
	},
	"result": func(_ context.Context, call *Call) (any, error) {
		var which string
		if err := call.Decode(&which); err != nil {
			return nil, err
		}
		return results[which](call)
	},
}

// results are what the task "result" may do.
var results = map[string]func(*Call) (any, error){
	"nil":         func(*Call) (any, error) { return nil, nil },
	"struct":      func(*Call) (any, error) { return struct{ A int }{1}, nil },
	"reply":       func(*Call) (any, error) { return Reply{strings.NewReader("<p>"), "text/html"}, nil },
	"empty reply": func(*Call) (any, error) { return Reply{ContentType: "text/html"}, nil },
	"piped reply": func(*Call) (any, error) {
		return Reply{io.MultiReader(strings.NewReader("a"), strings.NewReader("b")), "text/plain"}, nil
	},
	"late closer":   func(c *Call) (any, error) { return Reply{lateCloser{c, strings.NewReader("x")}, "text/plain"}, nil },
	"silent stream": func(c *Call) (any, error) { c.Stream("text/plain"); return nil, nil },
	"error":         func(*Call) (any, error) { return nil, &os.PathError{Op: "open", Path: "a", Err: os.ErrNotExist} },
	"wrapped":       func(*Call) (any, error) { return nil, fmt.Errorf("two: %w", Failure("one", map[string]any{"n": 1})) },
	"panic":         func(*Call) (any, error) { panic("oh") },
	"nil error":     func(*Call) (any, error) { return nil, (*os.PathError)(nil) },
	"nil reader":    func(*Call) (any, error) { return Reply{Body: (*bytes.Reader)(nil)}, nil },
	"no JSON":       func(*Call) (any, error) { return math.NaN(), nil },
	"no members":    func(*Call) (any, error) { return nil, Failure("m", map[string]any{"a": math.NaN()}) },
	"big members": func(*Call) (any, error) {
		return nil, Failure("m", map[string]any{"a": strings.Repeat("x", wire.MaxPayload)})
	},
	"big message":      func(*Call) (any, error) { return nil, errors.New(strings.Repeat("\x01", wire.MaxPayload)) },
	"bad type":         func(*Call) (any, error) { return Reply{strings.NewReader(""), "a\x00b"}, nil },
	"bad stream":       func(c *Call) (any, error) { _, err := c.Stream("a\x00b").Write(nil); return nil, err },
	"stream and value": func(c *Call) (any, error) { c.Stream("text/plain").Write([]byte("x")); return 1, nil },
	"torn reply": func(*Call) (any, error) {
		return Reply{io.MultiReader(strings.NewReader("x"), errReader{}), "text/plain"}, nil
	},
	"no object":    func(c *Call) (any, error) { return nil, c.Progress(1) },
	"long message": func(c *Call) (any, error) { return nil, c.Progress(map[string]string{"a": strings.Repeat("x", 1<<20)}) },
}

// lateCloser makes a progress when its END has been sent.
type lateCloser struct {
	call *Call
	io.Reader
}

func (l lateCloser) Close() error {
	fmt.Println("late:", l.call.Progress(struct{}{}))
	return nil
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errors.New("torn") }

// peer is this test as the server of one worker.
type peer struct {
	t              *testing.T
	cmd            *exec.Cmd
	to, from       *os.File
	frames         *wire.Reader
	stdout, stderr bytes.Buffer
	last           uint64
	exited         chan struct{}
}

func start(t *testing.T, env ...string) *peer {
	t.Helper()
	in, to, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	from, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{t: t, to: to, from: from, frames: wire.NewReader(from), exited: make(chan struct{})}
	p.cmd = exec.Command(os.Args[0])
	p.cmd.ExtraFiles = []*os.File{in, out}
	p.cmd.Env = append(os.Environ(), "HANGUP_IN=3", "HANGUP_OUT=4", "HANGUP_PROTOCOL=1",
		"GORACE=atexit_sleep_ms=0") // else each exit takes a second
	p.cmd.Env = append(p.cmd.Env, env...)
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, &p.stderr
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	in.Close()
	out.Close()
	from.SetReadDeadline(time.Now().Add(20 * time.Second))
	go func() { // ends when the child has
		p.cmd.Wait()
		close(p.exited)
	}()
	t.Cleanup(func() {
		p.cmd.Process.Kill()
		<-p.exited
		to.Close()
		from.Close()
	})
	if f := p.next(); f.Type != wire.TypeReady {
		t.Fatalf("the first frame is %v", f.Type)
	}
	return p
}

var cooperative = "HANGUP_COOPERATIVE=1"

func (p *peer) next() wire.Frame {
	p.t.Helper()
	f, err := p.frames.Next()
	if err != nil {
		p.cmd.Process.Kill()
		<-p.exited
		p.t.Fatalf("reading from the worker: %v\nits stderr: %s", err, &p.stderr)
	}
	return f
}

func (p *peer) write(raw []byte) {
	p.t.Helper()
	if _, err := p.to.Write(raw); err != nil {
		p.t.Fatalf("writing to the worker: %v", err)
	}
}

// exit waits for the worker to exit.
func (p *peer) exit() (code int, stderr string) {
	p.t.Helper()
	select {
	case <-p.exited:
	case <-time.After(20 * time.Second):
		p.t.Fatal("the worker did not exit")
	}
	return p.cmd.ProcessState.ExitCode(), p.stderr.String()
}

// request is the frames of the next call, its body cut in parts.
func (p *peer) request(task, contentType string, parts ...string) []byte {
	p.last++
	payload, err := wire.AppendHead(nil, wire.KeyCall, fmt.Sprint("call-", p.last), wire.KeyTask, task,
		wire.KeyContentType, contentType, wire.KeySize, strconv.Itoa(len(strings.Join(parts, ""))),
		wire.KeyTraceparent, "00-1", wire.KeyScratch, "/scratch")
	if err != nil {
		p.t.Fatal(err)
	}
	var raw []byte
	for i, part := range parts {
		f := wire.Frame{Type: wire.TypeChunk, ID: p.last, Payload: []byte(part)}
		if i == 0 {
			f.Type, f.Payload = wire.TypeExecute, append(payload, part...)
		}
		if i == len(parts)-1 {
			f.Flags = wire.FlagEnd
		}
		raw = wire.Append(raw, f)
	}
	return raw
}

func (p *peer) cancel() { p.write(wire.AppendHeader(nil, wire.TypeCancel, 0, p.last, 0)) }

// answer is what the worker sent for a call, up to its end.
type answer struct {
	types       string
	contentType string
	size        string
	body        []byte
	failure     wire.FailureInfo
}

func (p *peer) answer() (a answer) {
	p.t.Helper()
	for {
		f := p.next()
		if f.ID != p.last {
			p.t.Fatalf("a %v frame of call %d for call %d", f.Type, f.ID, p.last)
		}
		a.types = strings.TrimSpace(a.types + " " + f.Type.String())
		switch f.Type {
		case wire.TypeResult:
			head, part, err := wire.SplitHead(f.Payload)
			if err != nil {
				p.t.Fatal(err)
			}
			a.contentType, a.size = head.Get(wire.KeyContentType), head.Get(wire.KeySize)
			a.body = append(a.body, part...)
		case wire.TypeChunk:
			a.body = append(a.body, f.Payload...)
		case wire.TypeFailure:
			if err := json.Unmarshal(f.Payload, &a.failure); err != nil {
				p.t.Fatal(err)
			}
			return a
		case wire.TypeCancelled:
			return a
		}
		if f.End() {
			return a
		}
	}
}

// cancelled reads up to CANCELLED and says what came before it.
func (p *peer) cancelled() (before []wire.Type) {
	p.t.Helper()
	for {
		f := p.next()
		if f.ID != p.last {
			p.t.Fatalf("a %v frame of call %d for call %d", f.Type, f.ID, p.last)
		}
		if f.Type == wire.TypeCancelled {
			return before
		}
		before = append(before, f.Type)
	}
}

func (p *peer) call(task, contentType string, parts ...string) answer {
	p.t.Helper()
	p.write(p.request(task, contentType, parts...))
	return p.answer()
}

func (p *peer) stillWorks() {
	p.t.Helper()
	if a := p.call("echo", "text/plain", "next"); a.types != "RESULT" || string(a.body) != "next" {
		p.t.Fatalf("the next call got %+v", a)
	}
}

// both runs a test with a worker that listens and with one that does not.
func both(t *testing.T, test func(t *testing.T, p *peer)) {
	t.Run("plain", func(t *testing.T) { test(t, start(t)) })
	t.Run("cooperative", func(t *testing.T) { test(t, start(t, cooperative)) })
}

type golden struct {
	Frames   []struct{ Name, To, Hex string }
	Breaches []struct{ Name, To, Hex string }
}

func readGolden(t *testing.T) (g golden) {
	raw, err := os.ReadFile("../internal/wire/testdata/golden.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &g); err != nil {
		t.Fatal(err)
	}
	return g
}

func unhex(t *testing.T, s string) []byte {
	raw, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestGoldenConversation(t *testing.T) {
	both(t, func(t *testing.T, p *peer) {
		for _, g := range readGolden(t).Frames[1:] { // the first is READY, which names the SDK
			if g.To == "worker" {
				p.write(unhex(t, g.Hex))
				continue
			}
			if diff := cmp.Diff(g.Hex, hex.EncodeToString(wire.Append(nil, p.next()))); diff != "" {
				t.Fatalf("%s (-golden +got):\n%s", g.Name, diff)
			}
		}
		if code, stderr := p.exit(); code != 0 {
			t.Errorf("exit code %d after SHUTDOWN: %s", code, stderr)
		}
	})
}

func TestBreachesEndTheWorker(t *testing.T) {
	for i, g := range readGolden(t).Breaches {
		t.Run(g.Name, func(t *testing.T) {
			t.Parallel()
			var env []string
			if i%2 == 1 {
				env = []string{cooperative}
			}
			p := start(t, env...)
			p.write(unhex(t, g.Hex))
			code, stderr := p.exit()
			if code != 1 || !strings.Contains(stderr, "protocol breach") {
				t.Errorf("exit code %d, stderr %q", code, stderr)
			}
		})
	}
}

func TestEndOfTheInput(t *testing.T) {
	both(t, func(t *testing.T, p *peer) {
		p.stillWorks()
		p.to.Close()
		if code, stderr := p.exit(); code != 0 {
			t.Errorf("exit code %d: %s", code, stderr)
		}
	})
	both(t, func(t *testing.T, p *peer) {
		raw := p.request("echo", "", "part", "part")
		p.write(raw[:len(raw)-1])
		p.to.Close()
		if code, stderr := p.exit(); code != 1 || !strings.Contains(stderr, "unexpected EOF") {
			t.Errorf("exit code %d: %s", code, stderr)
		}
	})
}

func TestServeRefuses(t *testing.T) {
	// HANGUP_IN must be there for the binary to be a worker.
	for _, c := range []struct {
		name  string
		tasks Tasks
		env   map[string]string
		want  string
	}{
		{"no tasks", nil, nil, "there are no tasks"},
		{"no name", Tasks{"": nil}, nil, "without a name"},
		{"not started by hangup", tasks, nil, "hangup serve"},
		{"no number", tasks, map[string]string{"HANGUP_IN": "x"}, `HANGUP_IN="x"`},
		{"no descriptor", tasks, map[string]string{"HANGUP_IN": "999999"}, "descriptor 999999"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for k, v := range c.env {
				t.Setenv(k, v)
			}
			if err := Serve(c.tasks); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

func TestAnotherVersion(t *testing.T) {
	p := start(t, "HANGUP_PROTOCOL=2") // and READY came, for the server to see
	if code, stderr := p.exit(); code != 1 || !strings.Contains(stderr, `version "2"`) {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

func TestResults(t *testing.T) {
	p := start(t)
	for which, want := range map[string]answer{
		"nil":           {types: "RESULT", contentType: "application/json", body: []byte("null")},
		"struct":        {types: "RESULT", contentType: "application/json", body: []byte(`{"A":1}`)},
		"reply":         {types: "RESULT", contentType: "text/html", body: []byte("<p>")},
		"empty reply":   {types: "RESULT", contentType: "text/html"},
		"piped reply":   {types: "RESULT CHUNK CHUNK", contentType: "text/plain", body: []byte("ab")},
		"late closer":   {types: "RESULT CHUNK", contentType: "text/plain", body: []byte("x")},
		"silent stream": {types: "RESULT", contentType: "text/plain"},
		"error": {types: "FAILURE", failure: wire.FailureInfo{
			Error: "fs.PathError", Message: "open a: file does not exist",
		}},
		"wrapped": {types: "FAILURE", failure: wire.FailureInfo{
			Message: "two: one", Members: map[string]any{"n": 1.0},
		}},
		"no JSON": {types: "FAILURE", failure: wire.FailureInfo{
			Message: "cannot write the result as JSON: json: unsupported value: NaN",
		}},
		"no members": {types: "FAILURE", failure: wire.FailureInfo{
			Message: "m", Detail: "the members of the failure were left out: json: unsupported value: NaN",
		}},
		"big members": {types: "FAILURE", failure: wire.FailureInfo{
			Message: "m", Detail: "the members of the failure were left out: they take 1048621 bytes",
		}},
		"big message": {types: "FAILURE", failure: wire.FailureInfo{
			Message: strings.Repeat("\x01", mostText),
		}},
		"bad type": {types: "FAILURE", failure: wire.FailureInfo{
			Message: `cannot send the result: cannot write a head: "a\x00b" has a NUL or is not UTF-8`,
		}},
		"bad stream": {types: "FAILURE", failure: wire.FailureInfo{
			Message: `cannot send the result: cannot write a head: "a\x00b" has a NUL or is not UTF-8`,
		}},
		"stream and value": {
			types: "RESULT FAILURE", contentType: "text/plain", body: []byte("x"),
			failure: wire.FailureInfo{
				Message: "cannot send the result: a task that streams it returns nil, not int",
			},
		},
		"torn reply": {
			types: "RESULT FAILURE", contentType: "text/plain", body: []byte("x"),
			failure: wire.FailureInfo{Message: "cannot read the result: torn"},
		},
		"no object": {types: "FAILURE", failure: wire.FailureInfo{
			Message: "cannot tell the progress: int is not a JSON object",
		}},
		"long message": {types: "FAILURE", failure: wire.FailureInfo{
			Message: "cannot tell the progress: 1048584 bytes, the most is 1048576",
		}},
	} {
		t.Run(which, func(t *testing.T) {
			got := p.call("result", "application/json", strconv.Quote(which))
			if diff := cmp.Diff(want, got, cmp.AllowUnexported(answer{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestNothingFollowsTheEnd(t *testing.T) {
	p := start(t)
	p.call("result", "application/json", `"late closer"`)
	p.stillWorks()
	p.to.Close()
	if p.exit(); p.stdout.String() != "late: the call has ended\n" {
		t.Errorf("the task saw %q", p.stdout.String())
	}
}

func TestPanicsAreFailures(t *testing.T) {
	p := start(t)
	for which, message := range map[string]string{"panic": "oh", "nil error": "nil pointer", "nil reader": "nil pointer"} {
		a := p.call("result", "application/json", strconv.Quote(which))
		if a.failure.Error != "panic" || !strings.Contains(a.failure.Message, message) ||
			!strings.Contains(a.failure.Detail, "goroutine") {
			t.Errorf("%s: %+v", which, a)
		}
	}
	p.stillWorks()
}

func TestInput(t *testing.T) {
	p := start(t)
	a := p.call("who", "text/plain", "")
	want := `["call-1","who","text/plain","00-1","/scratch"]`
	if string(a.body) != want {
		t.Errorf("got %s, want %s", a.body, want)
	}
	a = p.call("echo", "application/json", `{"a": }`)
	if !strings.Contains(a.failure.Message, "cannot decode the input") || !strings.Contains(a.failure.Message, "(byte 7)") {
		t.Errorf("%+v", a)
	}
	for _, name := range []string{"", "nothing"} {
		if a := p.call(name, "", ""); a.failure.Error != "NoSuchTask" {
			t.Errorf("task %q: %+v", name, a)
		}
	}
}

// A result may begin while the input is still on its way, and go as fast.
func TestBodiesBothWaysAtOnce(t *testing.T) {
	both(t, func(t *testing.T, p *peer) {
		rng := rand.NewChaCha8([32]byte{1})
		var parts []string
		for _, size := range []int{0, 1, wire.MaxPayload, wire.Chunk, 100 << 10, 3 << 20 / 2} {
			for ; size >= 0; size -= wire.MaxPayload {
				part := make([]byte, min(size, wire.MaxPayload))
				rng.Read(part)
				parts = append(parts, string(part))
			}
		}
		parts[0] = "" // the EXECUTE frame has a head beside it
		body := strings.Join(parts, "")
		raw := p.request("pipe", "image/png", parts...)
		var writer sync.WaitGroup
		writer.Go(func() { p.to.Write(raw) })
		a := p.answer()
		writer.Wait()
		if a.contentType != "image/png" || string(a.body) != body {
			t.Errorf("%d bytes of %s came back of %d", len(a.body), a.contentType, len(body))
		}
		p.stillWorks()
	})
}

func TestUnreadInputIsPassedOver(t *testing.T) {
	both(t, func(t *testing.T, p *peer) {
		part := strings.Repeat("x", wire.Chunk)
		parts := []string{"firs", "t"}
		for range 64 { // more than pipe and listener hold
			parts = append(parts, part)
		}
		raw := p.request("first", "", parts...)
		var writer sync.WaitGroup
		writer.Go(func() { p.to.Write(raw) })
		if a := p.answer(); string(a.body) != "firs" {
			t.Errorf("%+v", a)
		}
		writer.Wait()
		p.stillWorks()
	})
}

// What a call has left behind can say nothing in the next one.
func TestCallsAreOver(t *testing.T) {
	both(t, func(t *testing.T, p *peer) {
		p.call("keep", "", "unread")
		a := p.call("late", "", "")
		var got []string
		if err := json.Unmarshal(a.body, &got); err != nil {
			t.Fatal(err)
		}
		for _, said := range got {
			if said != ErrEnded.Error() {
				t.Errorf("%q, want %q", got, ErrEnded)
			}
		}
	})
}

func TestChildrenInheritNothing(t *testing.T) {
	p := start(t)
	var pipes []string
	for _, f := range []*os.File{p.to, p.from} {
		raw, err := f.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		raw.Control(func(fd uintptr) {
			link, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
			if err != nil {
				t.Error(err)
			}
			pipes = append(pipes, link)
		})
	}
	worker, child := p.call("held", "", "").body, p.call("child", "", "").body
	for _, pipe := range pipes {
		if !bytes.Contains(worker, []byte(pipe)) {
			t.Errorf("the worker has no %s: %s", pipe, worker)
		}
		if bytes.Contains(child, []byte(pipe)) {
			t.Errorf("a child has %s: %s", pipe, child)
		}
	}
	if bytes.Contains(child, []byte("HANGUP_IN")) || bytes.Contains(child, []byte("HANGUP_OUT")) || bytes.Contains(child, []byte("HANGUP_PROTOCOL")) {
		t.Errorf("a child is told where the pipes are: %s", child)
	}
}

func TestCancel(t *testing.T) {
	none := []wire.Type(nil)
	t.Run("while it waits", func(t *testing.T) {
		p := start(t, cooperative)
		p.write(p.request("wait", "", ""))
		p.next() // its progress: it runs
		p.cancel()
		if diff := cmp.Diff(none, p.cancelled()); diff != "" {
			t.Error(diff)
		}
		p.stillWorks()
		p.to.Close()
		if p.exit(); p.stdout.String() != "wait: the call was cancelled\n" {
			t.Errorf("the task saw %q", p.stdout.String())
		}
	})
	t.Run("while it floods", func(t *testing.T) {
		p := start(t, cooperative)
		p.write(p.request("flood", "", ""))
		p.next()
		p.cancel()
		p.cancelled()
		p.stillWorks()
		p.to.Close()
		if p.exit(); p.stdout.String() != "flood: the call was cancelled\n" && p.stdout.String() != "" {
			t.Errorf("the task saw %q", p.stdout.String())
		}
	})
	t.Run("before it starts", func(t *testing.T) {
		both(t, func(t *testing.T, p *peer) {
			raw := p.request("echo", "", "part", "")
			raw = raw[:len(raw)-wire.HeaderSize] // no END: the cancel comes in its place
			p.write(wire.Append(raw, wire.Frame{Type: wire.TypeCancel, ID: p.last}))
			if diff := cmp.Diff(none, p.cancelled()); diff != "" {
				t.Error(diff)
			}
			p.stillWorks()
		})
	})
	t.Run("heard before it starts", func(t *testing.T) {
		p := start(t, cooperative)
		for range 50 {
			raw := p.request("wait", "", "")
			p.write(wire.Append(raw, wire.Frame{Type: wire.TypeCancel, ID: p.last}))
			p.cancelled()
		}
		p.stillWorks()
	})
	t.Run("inside an input nobody reads", func(t *testing.T) {
		p := start(t, cooperative)
		raw := p.request("wait", "", "part", "part", "")
		p.write(raw[:len(raw)-wire.HeaderSize])
		p.next()
		p.cancel()
		if diff := cmp.Diff(none, p.cancelled()); diff != "" {
			t.Error(diff)
		}
		p.stillWorks()
	})
	t.Run("after the result", func(t *testing.T) {
		both(t, func(t *testing.T, p *peer) {
			p.stillWorks()
			p.cancel()
			p.cancel()
			if diff := cmp.Diff(none, p.cancelled()); diff != "" {
				t.Error(diff)
			}
			p.cancel()
			p.stillWorks()
		})
	})
	t.Run("of a worker that does not listen", func(t *testing.T) {
		p := start(t)
		p.write(p.request("spin", "application/json", "50000"))
		p.cancel()
		if diff := cmp.Diff([]wire.Type{wire.TypeResult}, p.cancelled()); diff != "" {
			t.Error(diff)
		}
		p.stillWorks()
	})
}

// Just as the work ends: one CANCELLED for each, and nothing of it later.
func TestCancelRacesTheEnd(t *testing.T) {
	p := start(t, cooperative)
	before, behind := 0, 0
	for turn := range 500 {
		p.write(p.request("spin", "application/json", strconv.Itoa(turn%50*4)))
		for end := time.Now().Add(time.Duration(turn%20) * 10 * time.Microsecond); time.Now().Before(end); {
		}
		p.cancel()
		if len(p.cancelled()) == 0 {
			before++
		} else {
			behind++
		}
	}
	if before == 0 || behind == 0 {
		t.Errorf("%d cancels came before the end and %d behind it: no race", before, behind)
	}
	p.stillWorks()
}
