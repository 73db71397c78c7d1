package worker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"example.com/hangup/internal/call"
	"example.com/hangup/internal/config"
	"example.com/hangup/internal/event"
	"example.com/hangup/internal/proc"
	"example.com/hangup/internal/proctest"
	"example.com/hangup/internal/scratch"
	"example.com/hangup/internal/wire"
)

func TestMain(m *testing.M) { proctest.Main(m) }

// input is a whole body, already received.
type input struct {
	data []byte
	bad  bool // it cannot be read back
}

func (in input) Receive(context.Context) error { return nil }
func (in input) ContentType() string           { return "text/plain" }
func (in input) Size() int64                   { return int64(len(in.data)) }
func (in input) Check() error {
	if json.Valid(in.data) {
		return nil
	}
	return call.ErrBadRequest
}

func (in input) Reader() io.Reader {
	if in.bad {
		return iotest.ErrReader(errors.New("input/output error"))
	}
	return bytes.NewReader(in.data)
}

// reply keeps what a worker replied.
type reply struct {
	head  call.Head
	heads int
	body  bytes.Buffer
	fail  error // of Write
	stall bool  // it is not read
}

func (r *reply) Head(h call.Head) error { r.head = h; r.heads++; return nil }

func (r *reply) Write(ctx context.Context, p []byte) error {
	if r.stall {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	r.body.Write(p)
	return r.fail
}

// events keeps what was emitted.
type events struct {
	mu   sync.Mutex
	list []event.Event
}

func (e *events) sink(ev event.Event) {
	if out, ok := ev.(event.Output); ok {
		out.Text = bytes.Clone(out.Text)
		ev = out
	}
	e.mu.Lock()
	e.list = append(e.list, ev)
	e.mu.Unlock()
}

func (e *events) output() (lines []event.Output) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, ev := range e.list {
		if out, ok := ev.(event.Output); ok {
			lines = append(lines, out)
		}
	}
	return lines
}

// bench is a worker under test.
type bench struct {
	*Worker
	events events
	exited chan struct{}
}

// options say how to start a program as a worker.
func options(t *testing.T, e *events, program string, args ...string) Options {
	t.Helper()
	shim := proctest.Shim(t)
	proctest.Check(t)
	base, err := scratch.Open(t.TempDir(), e.sink)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // when the host has ended every tree
		base.Close(false)
		if left, err := os.ReadDir(base.Path()); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("scratch directories are left: %v, %v", left, err)
		}
	})
	host, err := proc.Open(proc.Options{Shim: shim, Patience: proctest.Patience})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := host.Close(); err != nil {
			t.Error(err)
		}
	})
	argv, env := proctest.Command(program, args...)
	vars := map[string]string{}
	for _, entry := range env {
		name, value, _ := strings.Cut(entry, "=")
		vars[name] = value
	}
	return Options{Host: host, Scratch: base, Emit: e.sink, Workload: config.Workload{
		Name: "w", Command: argv, Env: vars,
		Stop:   config.Stop{Signal: syscall.SIGTERM, Grace: 100 * time.Millisecond},
		Limits: config.WorkLimits{Output: 64 << 20},
	}}
}

// up starts a program as a worker; the test's end stops it.
func up(t *testing.T, program string, args ...string) *bench {
	t.Helper()
	b := &bench{exited: make(chan struct{})}
	return b.up(t, options(t, &b.events, program, args...))
}

func (b *bench) up(t *testing.T, o Options) *bench {
	t.Helper()
	w, err := Start(t.Context(), o, func() { close(b.exited) })
	if err != nil {
		t.Fatal(err)
	}
	b.Worker = w
	t.Cleanup(func() { b.down(t) })
	return b
}

func (b *bench) down(t *testing.T) event.Stop {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), proctest.Patience)
	defer cancel()
	stop := b.Stop(ctx, time.Now())
	if !stop.Empty || stop.Proof != "ECHILD" {
		t.Errorf("the verdict: %+v", stop)
	}
	<-b.exited
	return stop
}

func (b *bench) do(ctx context.Context, in string) (*reply, error) {
	r := &reply{}
	err := b.Do(ctx, b.call(in, r))
	return r, err
}

func (b *bench) call(in string, r *reply) *call.Call {
	return &call.Call{ID: "call-" + in[:min(len(in), 20)], Input: input{data: []byte(in)}, Reply: r, Emit: b.events.sink}
}

// peer is a worker by hand, that does to its first call what it was told to.
type peer struct {
	file   *os.File
	in     *wire.Reader
	out    *os.File
	id     uint64
	input  []byte
	behave string
}

func init() { proctest.Program("peer", servePeer) }

func servePeer(args []string) {
	p := &peer{file: os.NewFile(3, "in"), out: os.NewFile(4, "out"), behave: args[0]}
	p.in = wire.NewReader(p.file)
	switch p.behave {
	case "never ready":
		select {}
	case "dies at the start":
		fmt.Fprintln(os.Stderr, "first line\nno module named torch")
		os.Exit(3)
	case "speaks version 2":
		p.send(wire.TypeReady, 0, `{"protocol":2,"sdk":"test/2","tasks":["work"]}`)
		select {}
	case "is not ready":
		p.id = 1
		p.send(wire.TypeProgress, 0, `{}`)
		select {}
	case "serves nothing":
		p.send(wire.TypeReady, 0, `{"protocol":1,"sdk":"test","tasks":[]}`)
		select {}
	case "serves a task twice":
		p.send(wire.TypeReady, 0, `{"protocol":1,"sdk":"test","tasks":["a","b","a"]}`)
		select {}
	case "greets with noise":
		p.out.WriteString("SyntaxError: invalid syntax, on a line longer than a header\n")
		select {}
	}
	p.send(wire.TypeReady, 0, `{"protocol":1,"sdk":"test","tasks":["work"]}`)
	if p.behave == "never reads" {
		p.file.Close()
		select {}
	}
	for p.next() {
		p.answer()
	}
}

func (p *peer) send(t wire.Type, flags uint8, payload string) {
	p.out.Write(wire.Append(nil, wire.Frame{Type: t, Flags: flags, ID: p.id, Payload: []byte(payload)}))
}

// next takes a whole call in, but for a peer that does not want to.
func (p *peer) next() bool {
	p.input = nil
	for {
		f, err := p.in.Next()
		if err != nil || f.Type == wire.TypeShutdown {
			return false
		}
		body := f.Payload
		switch f.Type {
		case wire.TypeCancel:
			p.id = f.ID
			fmt.Println("told to stop")
			p.send(wire.TypeCancelled, 0, "")
			continue
		case wire.TypeExecute:
			p.id = f.ID
			if _, body, err = wire.SplitHead(f.Payload); err != nil {
				panic(err)
			}
		}
		p.input = append(p.input, body...)
		if p.behave == "replies before it reads" && len(p.input) > 0 || f.End() {
			return true
		}
	}
}

func head(pairs ...string) string {
	h, err := wire.AppendHead(nil, pairs...)
	if err != nil {
		panic(err)
	}
	return string(h)
}

func (p *peer) answer() {
	whole := head("content-type", "text/x-test") + string(p.input)
	switch p.behave {
	case "echoes":
		p.send(wire.TypeResult, wire.FlagEnd, whole)
	case "echoes in parts":
		p.send(wire.TypeResult, 0, head("content-type", "text/x-test"))
		for part := range slices.Chunk(p.input, 100_000) {
			p.send(wire.TypeChunk, 0, string(part))
		}
		p.send(wire.TypeChunk, wire.FlagEnd, "")
	case "sends noise":
		p.out.WriteString(strings.Repeat("\xff", 64))
	case "announces 4 GiB":
		p.out.Write([]byte{0xff, 0xff, 0xff, 0xff, byte(wire.TypeResult), 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1})
	case "breaks off":
		frame := wire.Append(nil, wire.Frame{Type: wire.TypeResult, Flags: wire.FlagEnd, ID: p.id, Payload: []byte(whole)})
		p.out.Write(frame[:len(frame)*2/3])
		os.Exit(0)
	case "answers another call":
		p.id++
		p.send(wire.TypeResult, wire.FlagEnd, whole)
	case "says a wrong size":
		p.send(wire.TypeResult, wire.FlagEnd, head("size", "99")+"abc")
	case "replies twice":
		p.send(wire.TypeResult, wire.FlagEnd, whole)
		p.send(wire.TypeResult, wire.FlagEnd, whole)
	case "closes afterwards":
		p.send(wire.TypeResult, wire.FlagEnd, whole)
		p.out.Close()
		select {}
	case "closes its input afterwards":
		p.send(wire.TypeResult, wire.FlagEnd, whole)
		p.file.Close()
		select {}
	case "sends a part first":
		p.send(wire.TypeChunk, wire.FlagEnd, "x")
	case "is ready again":
		p.id = 0
		p.send(wire.TypeReady, 0, `{"protocol":1,"sdk":"test","tasks":["work"]}`)
	case "tells no JSON":
		p.send(wire.TypeProgress, 0, `{"done":`)
	case "tells no object":
		p.send(wire.TypeProgress, 0, ` [1]`)
	case "calls it malformed":
		p.send(wire.TypeFailure, 0, `{"error":"E","message":"m","malformed":true}`)
	case "fails without JSON":
		p.send(wire.TypeFailure, 0, `oops`)
	case "closes its end":
		p.out.Close()
		select {}
	case "exits":
		fmt.Fprint(os.Stderr, "last words")
		os.Exit(7)
	case "is killed":
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	case "lets a fled child hold its pipe":
		sleep(p.out)
		os.Exit(7)
	case "replies before it reads":
		p.send(wire.TypeResult, wire.FlagEnd, head())
		for {
			if f, err := p.in.Next(); err != nil || f.End() {
				break
			}
		}
	case "replies and reads no more":
		p.send(wire.TypeResult, wire.FlagEnd, head())
		select {}
	case "streams for ever":
		p.send(wire.TypeResult, 0, head())
		for {
			p.send(wire.TypeChunk, 0, strings.Repeat("x", 1<<10))
		}
	case "acknowledges":
		if string(p.input) == "quick" {
			p.send(wire.TypeResult, wire.FlagEnd, whole)
			return
		}
		p.send(wire.TypeProgress, 0, `{"running":true}`)
	case "begins a reply and acknowledges":
		p.send(wire.TypeResult, 0, whole)
	case "starts a child and acknowledges":
		sleep(nil)
		p.send(wire.TypeProgress, 0, `{"running":true}`)
	case "prints":
		fmt.Printf("out of %s\n", p.input)
		fmt.Fprintf(os.Stderr, "err of %s", p.input)
		p.send(wire.TypeResult, wire.FlagEnd, whole)
	case "floods":
		for range 64 {
			os.Stdout.WriteString(strings.Repeat("y", 64<<10))
		}
		p.send(wire.TypeResult, wire.FlagEnd, whole)
	default:
		panic("no such behaviour: " + p.behave)
	}
}

// sleep starts a child that flees into a session of its own and holds a file.
func sleep(held *os.File) {
	path, err := exec.LookPath("sleep")
	if err == nil {
		_, err = os.StartProcess(path, []string{"sleep", "1000"}, &os.ProcAttr{
			Env: os.Environ(), Files: []*os.File{nil, nil, nil, held}, Sys: &syscall.SysProcAttr{Setsid: true},
		})
	}
	if err != nil {
		panic(err)
	}
}

func TestEcho(t *testing.T) {
	for _, behave := range []string{"echoes", "echoes in parts"} {
		t.Run(behave, func(t *testing.T) {
			b := up(t, "peer", behave)
			for _, size := range []int{0, 1, 1000, small - 200, small, wire.Chunk, 3*wire.Chunk - 1, 5 << 20} {
				if behave == "echoes" && size > wire.MaxPayload-100 {
					continue
				}
				in := strings.Repeat("0123456789abcdef", size/16+1)[:size]
				r, err := b.do(t.Context(), "x"+in)
				if err != nil {
					t.Fatalf("%d bytes: %v", size, err)
				}
				if r.body.String() != "x"+in || r.head.ContentType != "text/x-test" || r.heads != 1 {
					t.Errorf("%d bytes: got %d back, head %+v, %d heads", size, r.body.Len(), r.head, r.heads)
				}
				if behave == "echoes" && r.head.Size != int64(size)+1 {
					t.Errorf("%d bytes: the head says %d", size, r.head.Size)
				}
			}
		})
	}
}

// TestBreaches: a worker that breaks the protocol or dies is found out at once,
// and named for what it is.
func TestBreaches(t *testing.T) {
	for _, test := range []struct {
		behave string
		want   error
		says   string
	}{
		{"sends noise", call.ErrBadWorker, "protocol"},
		{"announces 4 GiB", call.ErrBadWorker, "4294967295"},
		{"breaks off", call.ErrDied, "code 0"},
		{"answers another call", call.ErrBadWorker, "call 2"},
		{"says a wrong size", call.ErrBadWorker, "99"},
		{"sends a part first", call.ErrBadWorker, "CHUNK"},
		{"is ready again", call.ErrBadWorker, "READY"},
		{"tells no JSON", call.ErrBadWorker, "progress"},
		{"tells no object", call.ErrBadWorker, "progress"},
		{"fails without JSON", call.ErrBadWorker, "failure"},
		{"closes its end", call.ErrBadWorker, "closed"},
		{"exits", call.ErrDied, "code 7"},
		{"is killed", call.ErrDied, "SIGKILL"},
		{"lets a fled child hold its pipe", call.ErrDied, "code 7"},
	} {
		t.Run(test.behave, func(t *testing.T) {
			b := up(t, "peer", test.behave)
			_, err := b.do(t.Context(), "hello")
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("ended with %v, want %v that says %q", err, test.want, test.says)
			}
			var died *call.DiedError
			if test.behave == "exits" && (!errors.As(err, &died) || died.Tail != "last words") {
				t.Errorf("%#v does not carry the tail of stderr", err)
			}
		})
	}
}

// TestMalformedInput: the worker says that its input is malformed, and the server
// believes what it sees.
func TestMalformedInput(t *testing.T) {
	b := up(t, "peer", "calls it malformed")
	for range 2 {
		if _, err := b.do(t.Context(), `{"a":`); !errors.Is(err, call.ErrBadRequest) {
			t.Errorf("malformed: %v", err)
		}
		if _, err := b.do(t.Context(), `{"a":1}`); !errors.Is(err, call.ErrFailed) {
			t.Errorf("not malformed: %v", err)
		}
		if !b.Sound() {
			t.Fatal("the worker is not what it was")
		}
	}
}

func TestStartFailures(t *testing.T) {
	for _, test := range []struct{ behave, says string }{
		{"dies at the start", "exited with code 3 before it was ready; the last line of its stderr: no module named torch"},
		{"speaks version 2", `"test/2" speaks worker protocol 2, this server 1`},
		{"is not ready", "PROGRESS"},
		{"serves nothing", "no task"},
		{"serves a task twice", "twice"},
		{"greets with noise", "protocol"},
	} {
		t.Run(test.behave, func(t *testing.T) {
			b := &bench{exited: make(chan struct{})}
			w, err := Start(t.Context(), options(t, &b.events, "peer", test.behave), func() { close(b.exited) })
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("%v does not say %q", err, test.says)
			}
			b.Worker = w
			b.down(t)
		})
	}
	t.Run("never ready", func(t *testing.T) {
		b := &bench{exited: make(chan struct{})}
		o := options(t, &b.events, "peer", "never ready")
		ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errors.New("start_timeout"))
		defer cancel()
		w, err := Start(ctx, o, func() { close(b.exited) })
		if err == nil || !strings.Contains(err.Error(), "start_timeout") {
			t.Errorf("%v does not say why", err)
		}
		if b.Worker = w; w != nil { // nil: it had not even been forked
			b.down(t)
		}
	})
	t.Run("no such program", func(t *testing.T) {
		var e events
		o := options(t, &e, "peer", "echoes")
		o.Workload.Command = []string{"pyhton3", "x.py"}
		if w, err := Start(t.Context(), o, func() {}); w != nil || err == nil || !strings.Contains(err.Error(), "pyhton3") {
			t.Errorf("%v, %v", w, err)
		}
	})
}

// TestHangUpIsPrompt: Do returns while a worker computes, streams, or does not
// read its input; the worker can then be stopped.
func TestHangUpIsPrompt(t *testing.T) {
	for _, test := range []struct {
		behave string
		size   int
	}{{"acknowledges", 10}, {"streams for ever", 10}, {"replies and reads no more", 1 << 20}} {
		t.Run(test.behave, func(t *testing.T) {
			b := up(t, "peer", test.behave)
			ctx, cancel := context.WithCancelCause(t.Context())
			go func() {
				proctest.Eventually(func() bool { return b.events.started() })
				cancel(call.ErrHungUp)
			}()
			if test.behave != "acknowledges" {
				b.events.sink(event.CallProgress{}) // it tells nothing by itself
			}
			_, err := b.do(ctx, strings.Repeat("x", test.size))
			if !errors.Is(err, call.ErrHungUp) {
				t.Errorf("ended with %v", err)
			}
		})
	}
}

// trouble is what the first trouble is about.
func (e *events) trouble() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, ev := range e.list {
		if t, ok := ev.(event.Trouble); ok {
			return t.Err
		}
	}
	return nil
}

func (e *events) started() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.ContainsFunc(e.list, func(ev event.Event) bool { _, ok := ev.(event.CallProgress); return ok })
}

// TestGoneCaller: a reply that cannot be written ends the call as hung up.
func TestGoneCaller(t *testing.T) {
	b := up(t, "peer", "streams for ever")
	r := &reply{fail: call.ErrHungUp}
	if err := b.Do(t.Context(), b.call("x", r)); !errors.Is(err, call.ErrHungUp) {
		t.Errorf("ended with %v", err)
	}
}

// TestRepliesBeforeItReads: the whole input is taken before the next call.
func TestRepliesBeforeItReads(t *testing.T) {
	b := up(t, "peer", "replies before it reads")
	for range 3 {
		if _, err := b.do(t.Context(), strings.Repeat("x", 3<<20)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSound: what a worker does wrong behind its last call is found out before the
// next one is sent.
func TestSound(t *testing.T) {
	for _, behave := range []string{"replies twice", "closes afterwards", "closes its input afterwards"} {
		t.Run(behave, func(t *testing.T) {
			b := up(t, "peer", behave)
			if !b.Sound() {
				t.Error("not sound from the start")
			}
			if _, err := b.do(t.Context(), "x"); err != nil {
				t.Fatal(err)
			}
			if !proctest.Eventually(func() bool { return !b.Sound() }) {
				t.Error("it is still taken for sound")
			}
		})
	}
	b := up(t, "peer", "echoes")
	for range 100 {
		if _, err := b.do(t.Context(), "x"); err != nil || !b.Sound() {
			t.Fatalf("not sound after a call that ended well (%v)", err)
		}
	}
}

// TestCannotSend: a call that cannot be sent ends at once, and as what it is.
func TestCannotSend(t *testing.T) {
	for _, size := range []int{10, 1 << 20} {
		t.Run(fmt.Sprint("the worker closed its input, ", size), func(t *testing.T) {
			b := up(t, "peer", "never reads")
			if !proctest.Eventually(func() bool { return !b.Sound() }) {
				t.Fatal("its input is open")
			}
			if _, err := b.do(t.Context(), strings.Repeat("x", size)); !errors.Is(err, call.ErrBadWorker) {
				t.Errorf("ended with %v", err)
			}
		})
		t.Run(fmt.Sprint("the input cannot be read, ", size), func(t *testing.T) {
			b := up(t, "peer", "echoes")
			c := b.call("x", &reply{})
			c.Input = input{data: make([]byte, size), bad: true}
			err := b.Do(t.Context(), c)
			if err == nil || !strings.Contains(err.Error(), "input/output error") || call.Outcome(err) != event.Failed {
				t.Errorf("ended with %v", err)
			}
		})
	}
}

// TestTimeLimitOfAReply: a caller who does not read does not keep a worker longer
// than the call's own context, nor its end from being told.
func TestTimeLimitOfAReply(t *testing.T) {
	b := up(t, "peer", "streams for ever")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, call.ErrTimedOut)
	defer cancel()
	if err := b.Do(ctx, b.call("x", &reply{stall: true})); !errors.Is(err, call.ErrTimedOut) {
		t.Errorf("ended with %v", err)
	}
}

// TestCancelledBeforeItWasSent: a cancel may come to the worker before the call
// does. Then the call is not sent, the worker is idle, and takes the next one.
func TestCancelledBeforeItWasSent(t *testing.T) {
	b := up(t, "peer", "echoes")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(call.ErrHungUp)
	for range 3 {
		if err := b.Cancel(t.Context()); err != nil {
			t.Errorf("an idle worker did not take the cancel: %v", err)
		}
		if _, err := b.do(ctx, "never"); !errors.Is(err, call.ErrHungUp) {
			t.Errorf("ended with %v", err)
		}
		if r, err := b.do(t.Context(), "next"); err != nil || r.body.String() != "next" || !b.Sound() {
			t.Errorf("the next call: %v, %q", err, r.body.String())
		}
	}
}

// TestShutdown: an idle worker is told to exit and does, by itself.
func TestShutdown(t *testing.T) {
	b := up(t, "peer", "echoes")
	if _, err := b.do(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	stop := b.down(t)
	if len(stop.Steps) != 2 || stop.Steps[0].Name != "shutdown" || b.tree.Status().Exit != 0 {
		t.Errorf("steps %v, exit code %d", stop.Steps, b.tree.Status().Exit)
	}
}

func TestOutputLimit(t *testing.T) {
	b := &bench{exited: make(chan struct{})}
	o := options(t, &b.events, "peer", "streams for ever")
	o.Workload.Limits.Output = 1 << 20
	r, err := b.up(t, o).do(t.Context(), "x")
	if !errors.Is(err, call.ErrLimit) || !strings.Contains(err.Error(), "limits.output") {
		t.Errorf("ended with %v, want one that names limits.output", err)
	}
	if r.body.Len() > 1<<20 {
		t.Errorf("%d bytes got through", r.body.Len())
	}
}

// TestOverItsLimitWhileIdle: a worker that goes over a limit of its tree is ended
// whenever that is, and told of, with or without a call.
func TestOverItsLimitWhileIdle(t *testing.T) {
	b := &bench{exited: make(chan struct{})}
	o := options(t, &b.events, "peer", "echoes")
	o.Workload.Limits.Pids = 1 // it has more threads than that
	w, err := Start(t.Context(), o, func() { close(b.exited) })
	if w == nil {
		t.Fatal(err)
	}
	b.Worker = w
	<-b.exited
	b.down(t)
	if err == nil { // on a busy machine the start itself may be too late, and fails with it
		proctest.Eventually(func() bool { return b.events.trouble() != nil })
		err = b.events.trouble()
	}
	if err == nil || !strings.Contains(err.Error(), "limits.pids: ") || !strings.Contains(err.Error(), "more than 1 ") {
		t.Errorf("it is told as %v", err)
	}
}

// TestOverItsLimitBeforeItIsReady: that is what the start fails with, and told once.
func TestOverItsLimitBeforeItIsReady(t *testing.T) {
	b := &bench{exited: make(chan struct{})}
	o := options(t, &b.events, "peer", "never ready")
	o.Workload.Limits.Memory = 1 << 20 // it takes more than that
	w, err := Start(t.Context(), o, func() { close(b.exited) })
	if w == nil {
		t.Fatal(err)
	}
	b.Worker = w
	<-b.exited
	b.down(t)
	if err == nil || !strings.Contains(err.Error(), "limits.memory: ") || !strings.Contains(err.Error(), "more than 1MiB of memory") {
		t.Errorf("the start fails with %v", err)
	}
	if trouble := b.events.trouble(); trouble != nil {
		t.Errorf("it is told again: %v", trouble)
	}
}

// TestCooperativeCancel: an acknowledged worker takes the next call; one whose call
// started a process does not.
func TestCooperativeCancel(t *testing.T) {
	cancelled := func(t *testing.T, behave string) (*bench, error) {
		b := &bench{exited: make(chan struct{})}
		o := options(t, &b.events, "peer", behave)
		o.Workload.Stop.Cooperative = proctest.Patience
		b.up(t, o)
		time.Sleep(2 * tick) // so that the peer itself started before the call, by the kernel's clock
		ctx, cancel := context.WithCancelCause(t.Context())
		go func() {
			proctest.Eventually(func() bool { return b.events.started() })
			cancel(call.ErrHungUp)
		}()
		if _, err := b.do(ctx, "long"); !errors.Is(err, call.ErrHungUp) {
			t.Errorf("ended with %v", err)
		}
		ask, stop := context.WithTimeout(t.Context(), proctest.Patience)
		defer stop()
		return b, b.Cancel(ask)
	}
	t.Run("acknowledges", func(t *testing.T) {
		b, err := cancelled(t, "acknowledges")
		if err != nil {
			t.Fatal(err)
		}
		if r, err := b.do(t.Context(), "quick"); err != nil || r.body.String() != "quick" {
			t.Errorf("the next call: %v, %q", err, r.body.String())
		}
		if lines := b.events.output(); len(lines) != 1 || string(lines[0].Text) != "told to stop" || lines[0].Call != "call-long" {
			t.Errorf("what it wrote on being cancelled: %+v", lines)
		}
	})
	t.Run("acknowledges in the middle of its reply", func(t *testing.T) {
		b := &bench{exited: make(chan struct{})}
		o := options(t, &b.events, "peer", "begins a reply and acknowledges")
		o.Workload.Stop.Cooperative = proctest.Patience
		b.up(t, o)
		time.Sleep(2 * tick)
		if err := b.Do(t.Context(), b.call("x", &reply{fail: call.ErrHungUp})); !errors.Is(err, call.ErrHungUp) {
			t.Errorf("ended with %v", err)
		}
		ask, stop := context.WithTimeout(t.Context(), proctest.Patience)
		defer stop()
		if err := b.Cancel(ask); err != nil {
			t.Errorf("not kept: %v", err)
		}
	})
	t.Run("starts a child", func(t *testing.T) {
		if _, err := cancelled(t, "starts a child and acknowledges"); err == nil || !strings.Contains(err.Error(), "1 processes were started") {
			t.Errorf("kept although it has a new child: %v", err)
		}
	})
}

// tick is the step of the kernel's start times.
const tick = 10 * time.Millisecond

// TestOutputBelongsToItsCall: no line of one call is told of another, with or
// without a newline at its end.
func TestOutputBelongsToItsCall(t *testing.T) {
	b := up(t, "peer", "prints")
	for i := range 50 {
		if _, err := b.do(t.Context(), fmt.Sprint("number-", i)); err != nil {
			t.Fatal(err)
		}
	}
	lines := b.events.output()
	for _, line := range lines {
		name, _ := strings.CutPrefix(line.Call, "call-")
		if string(line.Text) != line.Stream[3:]+" of "+name && string(line.Text) != "out of "+name && string(line.Text) != "err of "+name {
			t.Errorf("%s: %q", line.Call, line.Text)
		}
		if line.Pid != b.Pid() || line.Workload != "w" {
			t.Errorf("%+v", line)
		}
	}
	if len(lines) != 100 {
		t.Errorf("%d lines, want 100", len(lines))
	}
}

// TestFloodIsBounded: what is over the bound is counted, not kept.
func TestFloodIsBounded(t *testing.T) {
	b := up(t, "peer", "floods")
	if _, err := b.do(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.do(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	kept := 0
	for _, line := range b.events.output() {
		kept += len(line.Text)
	}
	if kept == 0 || kept > 256<<10 {
		t.Errorf("%d bytes of 8 MiB were kept, want about 64 KiB", kept)
	}
}
