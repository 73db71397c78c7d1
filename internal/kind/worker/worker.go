// Package worker is the kind `worker`: a long-lived program that takes one call
// after the other over two inherited pipes, in the protocol of docs/protocol.md.
//
// A [Worker] is driven by one goroutine at a time: the call's own while it runs,
// the pool's when it is to be cancelled or stopped. It imports call, config,
// event, kind, proc, scratch and wire.
package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"example.com/hangup/internal/call"
	"example.com/hangup/internal/config"
	"example.com/hangup/internal/event"
	"example.com/hangup/internal/kind"
	"example.com/hangup/internal/proc"
	"example.com/hangup/internal/scratch"
	"example.com/hangup/internal/wire"
	"golang.org/x/sys/unix"
)

// exitWait is how long a worker that takes no more of a call has to say why, and how
// long its pipe is read after its whole tree is gone.
const exitWait = 100 * time.Millisecond

// deathWait is how long a worker that closed its end of the protocol has to exit before
// it counts as one that runs on without it. Its end is told by its shim, which has to
// get a turn on a busy machine.
const deathWait = time.Second

// cancelAgain is after which time a cancel is said again. An interpreter may miss
// the signal that tells of it, just before a system call that waits: CPython does
// once in some thousand times.
const cancelAgain = 100 * time.Millisecond

// Options say how to start workers.
type Options struct {
	Host     *proc.Host
	Scratch  *scratch.Base
	Owner    *scratch.Owner // of scratch directories: the user the worker runs as; nil: the server's
	Workload config.Workload
	Emit     event.Sink
}

// Worker is one running worker.
type Worker struct {
	o        Options
	tree     *proc.Tree
	requests *os.File // to the worker
	replies  *os.File // from it
	frames   *wire.Reader
	output   *kind.Output
	tasks    []string

	talk   sync.Mutex    // held by whoever uses the pipes; guards the rest
	seq    uint64        // the number of the newest call
	began  time.Duration // when it was sent, by proc.SinceBoot
	idle   bool          // it is ready, and its last call has ended in full
	cut    bool          // a frame was written in part: nothing more can be said
	closed bool          // the pipes are
	buf    []byte
	place  *scratch.Holder // of the scratch directory of the call
	polled []unix.PollFd   // the pipes, for Sound

	stopped bool // the stop sequence has run; Stop's own
}

// Start starts a worker and returns when it has said that it is ready. It calls
// exited once when the main process is gone. A worker that was started and does
// not become ready before ctx ends is returned with the error: it is to be
// stopped.
func Start(ctx context.Context, o Options, exited func()) (*Worker, error) {
	w := &Worker{o: o, place: o.Scratch.Holder(o.Owner)}
	if err := w.spawn(ctx); err != nil {
		return nil, err
	}
	go w.watch(exited)
	err := w.handshake(ctx)
	w.talk.Lock()
	w.idle = err == nil
	w.talk.Unlock()
	if err == nil { // else it is what the start failed with
		go w.tellLimit()
	}
	return w, err
}

// tellLimit says for which limit the worker was ended, also where no call was running
// that would. It ends with the main process.
func (w *Worker) tellLimit() {
	<-w.tree.Exited()
	if limit := w.tree.Status().Limit; limit != "" {
		w.o.Emit(event.Trouble{
			What: "a worker of " + w.o.Workload.Name + " was ended", Err: overTree(limit, w.o.Workload.Limits),
			Remedy: "raise the limit, or find out what takes so much", At: time.Now(),
		})
	}
}

// watch ends with the worker's tree.
func (w *Worker) watch(exited func()) {
	<-w.tree.Exited()
	exited()
	<-w.tree.Done()
	// Nobody of the tree holds the pipe now. Whoever else was given it does not
	// keep a call waiting.
	w.replies.SetReadDeadline(time.Now().Add(exitWait))
}

// spawn makes the pipes and the process.
func (w *Worker) spawn(ctx context.Context) error {
	output, stdout, stderr, err := kind.NewOutput(w.o.Workload.Name, w.o.Emit)
	if err != nil {
		return err
	}
	theirs := []*os.File{nil, stdout, stderr, nil, nil}
	defer func() {
		for _, f := range theirs {
			if f != nil {
				f.Close()
			}
		}
	}()
	fail := func(err error) error {
		output.Close()
		w.closePipes()
		return err
	}
	if w.requests, theirs[3], err = kind.Pipe(true); err != nil {
		return fail(err)
	}
	if w.replies, theirs[4], err = kind.Pipe(false); err != nil {
		return fail(err)
	}
	extra := []string{"HANGUP_IN=3", "HANGUP_OUT=4", fmt.Sprint("HANGUP_PROTOCOL=", wire.Version)}
	if w.o.Workload.Stop.Cooperative > 0 {
		extra = append(extra, "HANGUP_COOPERATIVE=1")
	}
	if u := w.o.Workload.User; u != nil {
		for _, f := range theirs {
			if f != nil { // whoever may not be given it may not start the worker either, which is told then
				_ = f.Chown(u.UID, u.GID) // else it could not open /dev/stderr
			}
		}
	}
	spec := kind.Spec(w.o.Workload)
	spec.Env, spec.Files = kind.Environ(w.o.Workload, extra...), theirs
	if w.tree, err = w.o.Host.Start(ctx, spec); err != nil {
		return fail(err)
	}
	w.output = output
	w.output.Start(w.tree.Pid())
	w.frames = wire.NewReader(w.replies)
	w.polled = []unix.PollFd{{Fd: number(w.requests)}, {Fd: number(w.replies), Events: unix.POLLIN}}
	return nil
}

// number is a file's descriptor, good as long as the file is open.
func number(f *os.File) int32 {
	fd := int32(-1) // which poll passes over
	if raw, err := f.SyscallConn(); err == nil {
		raw.Control(func(n uintptr) { fd = int32(n) })
	}
	return fd
}

// handshake waits for the worker's first frame and checks what it says.
func (w *Worker) handshake(ctx context.Context) error {
	release := w.interruptible(ctx)
	frame, err := w.frames.Next()
	release()
	switch {
	case ctx.Err() != nil:
		return w.notReady(context.Cause(ctx).Error())
	case err != nil:
		var died *call.DiedError
		switch cause := w.lost(err); {
		case errors.As(cause, &died):
			return w.notReady(died.Error() + " before it was ready")
		case errors.Is(cause, call.ErrLimit):
			return w.notReady(cause.Error() + " before it was ready")
		}
		return w.notReady("it broke the protocol before it was ready: " + err.Error())
	case frame.Type != wire.TypeReady:
		return w.notReady(fmt.Sprintf("its first frame is %s, not a ready", frame.Type))
	}
	var ready wire.ReadyInfo
	if err := json.Unmarshal(frame.Payload, &ready); err != nil {
		return w.notReady("its ready frame is no JSON: " + err.Error())
	}
	if ready.Protocol != wire.Version {
		return w.notReady(fmt.Sprintf("its SDK %q speaks worker protocol %d, this server %d: install the SDK that came with the server",
			ready.SDK, ready.Protocol, wire.Version))
	}
	if len(ready.Tasks) == 0 || slices.Contains(ready.Tasks, "") {
		return w.notReady("it serves no task, or one without a name")
	}
	slices.Sort(ready.Tasks)
	if len(slices.Compact(slices.Clone(ready.Tasks))) != len(ready.Tasks) {
		return w.notReady("it serves a task twice")
	}
	w.tasks = ready.Tasks
	return nil
}

// notReady is why a start failed, with what the worker itself said last.
func (w *Worker) notReady(why string) error {
	lines := strings.Split(w.output.Tail(), "\n")
	return &call.StartError{Why: why, Last: lines[len(lines)-1]}
}

// Pid is the worker's main process.
func (w *Worker) Pid() int { return w.tree.Pid() }

// ShimPid is the shim above it.
func (w *Worker) ShimPid() int { return w.tree.ShimPid() }

// Tasks are the names of the tasks the worker serves; there is at least one.
func (w *Worker) Tasks() []string { return w.tasks }

// RSS is the resident memory of the main process in bytes.
func (w *Worker) RSS() int64 { return proc.RSS(w.tree.Pid()) }

// Sound tells whether an idle worker can take a call: it has said nothing since
// the last one, and has not closed its end of either pipe.
func (w *Worker) Sound() bool {
	w.talk.Lock()
	defer w.talk.Unlock()
	if w.closed || w.frames.Buffered() > 0 {
		return false
	}
	for {
		n, err := unix.Poll(w.polled, 0)
		if err == unix.EINTR { // a signal of Go's scheduler, even where nothing is waited for
			continue
		}
		return n == 0 && err == nil
	}
}

// past is a deadline that ends any read or write at once.
var past = time.Unix(1, 0)

// interruptible makes reads and writes return when ctx ends. The returned
// release undoes that; after it the pipes can be used again.
func (w *Worker) interruptible(ctx context.Context) (release func()) {
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		w.replies.SetReadDeadline(past)
		w.requests.SetWriteDeadline(past)
		close(done)
	})
	return func() {
		if stop() {
			return
		}
		<-done
		w.replies.SetReadDeadline(time.Time{})
		w.requests.SetWriteDeadline(time.Time{})
	}
}

// Cancel tells the worker to stop its call and waits for the acknowledgement.
// It is nil when the worker has acknowledged that call and has no descendant
// that was not there before it.
func (w *Worker) Cancel(ctx context.Context) error {
	w.talk.Lock()
	defer w.talk.Unlock()
	if w.idle {
		return nil // the call was given up before it was sent
	}
	if w.cut {
		return errors.New("cannot ask the worker: the call was still being sent to it")
	}
	defer w.interruptible(ctx)()
	for {
		if err := w.write(wire.Append(w.buf[:0], wire.Frame{Type: wire.TypeCancel, ID: w.seq})); err != nil {
			return err
		}
		w.readUntil(ctx, cancelAgain)
		err := w.acknowledgement()
		if err == nil {
			w.replies.SetReadDeadline(time.Time{})
			w.output.End()
			err = w.unchanged()
			if w.idle = err == nil; w.idle {
				w.place.End()
			}
			return err
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) || ctx.Err() != nil {
			return err
		}
	}
}

// readUntil bounds the time of what is read next. The end of ctx still comes
// first, whenever it comes.
func (w *Worker) readUntil(ctx context.Context, d time.Duration) {
	w.replies.SetReadDeadline(time.Now().Add(d))
	if ctx.Err() != nil {
		w.replies.SetReadDeadline(past)
	}
}

// acknowledgement passes over what is left of the call.
func (w *Worker) acknowledgement() error {
	for {
		frame, err := w.frames.Next()
		if err != nil {
			return err
		}
		if frame.ID != w.seq {
			return fmt.Errorf("%w: a %s frame for call %d while %d is cancelled", call.ErrBadWorker, frame.Type, frame.ID, w.seq)
		}
		if frame.Type == wire.TypeCancelled {
			return nil
		}
	}
}

// unchanged checks that the worker's tree is as it was before its call.
func (w *Worker) unchanged() error {
	n, err := w.tree.StartedSince(w.began)
	if err != nil {
		return err
	}
	if n > 0 {
		return fmt.Errorf("%d processes were started by the call", n)
	}
	return nil
}

// Stop runs the stop sequence, or waits on if it has run, and returns the
// verdict on the tree. A worker that is idle is told to exit, by the protocol;
// one that is not gets the signal.
func (w *Worker) Stop(ctx context.Context, decided time.Time) event.Stop {
	var steps []event.Step
	if !w.stopped {
		w.stopped = true
		stop := w.o.Workload.Stop
		name, ask := "signal", func() error { return w.tree.Signal(stop.Signal) }
		if w.shutdown() {
			name, ask = "shutdown", func() error { return nil }
		}
		steps = kind.Sequence(w.tree, name, ask, stop.Grace, decided)
	}
	verdict := kind.Verdict(w.tree.Wait(ctx), steps, decided)
	if verdict.Empty {
		w.close()
	}
	return verdict
}

// shutdown tells an idle worker to exit.
func (w *Worker) shutdown() bool {
	if !w.talk.TryLock() {
		return false // a call is just being left
	}
	defer w.talk.Unlock()
	return w.idle && w.write(wire.Append(w.buf[:0], wire.Frame{Type: wire.TypeShutdown})) == nil
}

// close lets go of what the tree leaves behind: nobody can write into the scratch
// directory now. A Do that is returning is waited for.
func (w *Worker) close() {
	w.talk.Lock()
	w.closePipes()
	w.place.Close()
	w.talk.Unlock()
	w.output.Close()
}

func (w *Worker) closePipes() {
	w.closed = true
	for _, f := range []*os.File{w.requests, w.replies} {
		if f != nil {
			f.Close()
		}
	}
}
