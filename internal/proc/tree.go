//go:build linux && !portable

package proc

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strconv"
	"syscall"
	"time"

	"example.com/hangup/internal/event"
	"example.com/hangup/internal/reap"
)

// The proofs on which an empty [Verdict] rests.
const (
	ProofECHILD     = "ECHILD"     // the shim had no child left to wait for
	ProofSupervisor = "supervisor" // the shim was lost, and the supervisor had none but the server
)

// Tree is a program that was started, with whatever it starts.
type Tree struct {
	shim    *shim
	pid     int               // 0 until the program runs
	started chan reap.Message // the answer to its Start, or nil; buffered
	exited  chan struct{}
	done    chan struct{}
	interim chan Verdict // the latest verdict that was not empty; buffered

	// Guarded by shim.mu, but read freely once the channel named is closed.
	began   time.Time // when the stop began
	killed  bool      // Kill was called; when there is no pid yet, it is on its way
	status  Status    // exited
	verdict Verdict   // done
}

func newTree(s *shim) *Tree {
	s.host.trees.Add(1)
	return &Tree{
		shim:    s,
		started: make(chan reap.Message, 1),
		exited:  make(chan struct{}),
		done:    make(chan struct{}),
		interim: make(chan Verdict, 1),
	}
}

// Pid returns the pid of the main process.
func (t *Tree) Pid() int { return t.pid }

// ShimPid returns the pid of the shim above the tree.
func (t *Tree) ShimPid() int { return t.shim.process.Pid }

// Exited returns a channel that is closed when the main process has ended.
func (t *Tree) Exited() <-chan struct{} { return t.exited }

// Status returns how the main process ended. It waits for that.
func (t *Tree) Status() Status {
	<-t.exited
	return t.status
}

// Done returns a channel that is closed when the tree is proved empty.
func (t *Tree) Done() <-chan struct{} { return t.done }

// Signal sends sig to the main process, and to nobody else. It returns ErrExited
// when that is known to have ended.
func (t *Tree) Signal(sig syscall.Signal) error {
	t.shim.mu.Lock()
	defer t.shim.mu.Unlock()
	select {
	case <-t.exited:
		return ErrExited
	default:
	}
	if t.shim.tree != t {
		return ErrExited
	}
	if !t.shim.conn.Offer(reap.Signal{Signal: sig}) {
		return errors.New("cannot signal the process: its shim does not listen")
	}
	return nil
}

// Kill begins the end of the whole tree and returns at once. Only the first call
// has an effect.
func (t *Tree) Kill() {
	s := t.shim
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.killed {
		return
	}
	t.killed = true
	if s.tree == t {
		t.stop()
		s.await() // before the message: a shim that does not read is given up, and that ends the sending
		if t.pid != 0 {
			s.kill()
		}
	}
}

// Wait returns when the tree is empty, or [reap.VerdictAfter] into its stop with
// those who are left. It may then be called again: the next verdict comes after
// as much time, or when the tree is empty. When ctx ends first, the verdict is
// not empty and says so. Only one goroutine may wait; others use Done.
func (t *Tree) Wait(ctx context.Context) Verdict {
	select {
	case <-t.done:
		return t.verdict
	default:
	}
	select {
	case <-t.done:
		return t.verdict
	case v := <-t.interim:
		return v
	case <-ctx.Done():
		return Verdict{Reason: context.Cause(ctx).Error()}
	}
}

// stop notes when the stop began.
func (t *Tree) stop() {
	if t.began.IsZero() {
		t.began = time.Now()
		t.shim.host.trees.Add(-1)
	}
}

// forget takes a tree out of the count that did not start.
func (t *Tree) forget() {
	t.shim.mu.Lock()
	defer t.shim.mu.Unlock()
	t.stop()
}

func (t *Tree) exit(status Status) {
	t.status = status
	close(t.exited)
}

// report hands a verdict that is not the last to the next Wait.
func (t *Tree) report(v Verdict) {
	v.Took = time.Since(t.began)
	select {
	case <-t.interim:
	default:
	}
	t.interim <- v
}

func (t *Tree) finish(v Verdict) {
	v.Took = time.Since(t.began)
	t.verdict = v
	close(t.done)
}

func statusOf(m reap.Exited) Status {
	status := Status{Exit: m.Status.ExitStatus(), CPU: m.CPU, MaxRSS: m.MaxRSS, Limit: m.Limit, OOM: m.OOM}
	if m.Status.Signaled() {
		status.Signal = m.Status.Signal()
	}
	return status
}

func survivors(list []reap.Survivor) []event.Survivor {
	var found []event.Survivor
	for _, s := range list {
		found = append(found, event.Survivor{Pid: s.Pid, State: string(rune(s.State)), UID: s.UID, Wait: s.Wait})
	}
	return found
}

// RSS returns the bytes of pid that are in memory, or 0 where that cannot be told.
func RSS(pid int) int64 {
	statm, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/statm")
	if err != nil {
		return 0
	}
	fields := bytes.Fields(statm)
	if len(fields) < 2 {
		return 0
	}
	pages, _ := strconv.ParseInt(string(fields[1]), 10, 64)
	return pages * int64(os.Getpagesize())
}
