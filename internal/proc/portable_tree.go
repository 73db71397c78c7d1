//go:build !linux || portable

package proc

import (
	"context"
	"errors"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	"example.com/hangup/internal/event"
)

// Tree is a program that was started, with whatever it starts.
type Tree struct {
	host    *Host
	process *os.Process
	main    Process // as it was seen first: its number may be given away when it has ended
	exited  chan struct{}
	killed  chan struct{} // closed by the first Kill
	done    chan struct{}
	interim chan Verdict // the latest verdict that was not empty; buffered

	mu      sync.Mutex
	began   time.Time       // when the stop began
	seen    map[int]Process // below the main process, by pid
	gone    int             // of those, and of the main process
	status  Status          // read freely once exited is closed
	verdict Verdict         // once done is
}

func newTree(h *Host, process *os.Process) *Tree {
	t := &Tree{
		host: h, process: process, seen: make(map[int]Process),
		exited: make(chan struct{}), killed: make(chan struct{}), done: make(chan struct{}),
		interim: make(chan Verdict, 1),
	}
	if list := Look(process.Pid); len(list) > 0 {
		t.main = list[0]
	}
	return t
}

// Pid returns the pid of the main process.
func (t *Tree) Pid() int { return t.process.Pid }

// ShimPid returns 0: there is no shim above the tree.
func (t *Tree) ShimPid() int { return 0 }

// top is the process that everything else of the tree is below.
func (t *Tree) top() int { return t.process.Pid }

// Exited returns a channel that is closed when the main process has ended.
func (t *Tree) Exited() <-chan struct{} { return t.exited }

// Status returns how the main process ended. It waits for that.
func (t *Tree) Status() Status {
	<-t.exited
	return t.status
}

// Done returns a channel that is closed when the tree is empty.
func (t *Tree) Done() <-chan struct{} { return t.done }

// Signal sends sig to the main process, and to nobody else. It returns ErrExited
// when that is known to have ended.
func (t *Tree) Signal(sig syscall.Signal) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.look(t.main) // it may end by this, and who is below it is not found afterwards
	err := t.process.Signal(sig)
	if errors.Is(err, os.ErrProcessDone) {
		return ErrExited
	}
	return err
}

// Kill begins the end of the whole tree and returns at once. Only the first call
// has an effect.
func (t *Tree) Kill() {
	t.mu.Lock()
	defer t.mu.Unlock()
	select {
	case <-t.killed:
		return
	default:
	}
	t.stop()
	close(t.killed)
}

// Wait returns when the tree is empty, or verdictAfter into its stop with those
// who are left. It may then be called again: the next verdict comes after as much
// time, or when the tree is empty. When ctx ends first, the verdict is not empty
// and says so. Only one goroutine may wait; others use Done.
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

// wait waits for the main process.
func (t *Tree) wait() {
	state, err := t.process.Wait()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stop()
	t.status = Status{Exit: -1}
	if err == nil {
		t.status.Exit = state.ExitCode()
		t.status.CPU = state.UserTime() + state.SystemTime()
		if status := state.Sys().(syscall.WaitStatus); status.Signaled() {
			t.status.Signal = status.Signal()
		}
		t.status.MaxRSS = int64(state.SysUsage().(*syscall.Rusage).Maxrss)
		if runtime.GOOS != "darwin" { // which counts bytes, the others KiB
			t.status.MaxRSS <<= 10
		}
	}
	close(t.exited)
}

// run ends what is left of the tree, once its stop has begun.
func (t *Tree) run() {
	select {
	case <-t.killed:
	case <-t.exited:
	}
	next, pause := t.began.Add(verdictAfter), minPause
	for !t.round() {
		if time.Now().After(next) {
			next = next.Add(verdictAfter)
			t.report()
			if t.host.closing() {
				t.host.forget(t, true)
				return
			}
		}
		time.Sleep(pause)
		pause = min(2*pause, maxPause)
	}
	t.mu.Lock()
	t.verdict = Verdict{Empty: true, Proof: ProofGroup, Reaped: t.gone, Took: time.Since(t.began)}
	t.mu.Unlock()
	close(t.done)
	t.host.forget(t, false)
}

// round kills the group and everyone who was seen, and reports whether all are
// gone. Until the main process has been reaped its number is its own. The group
// keeps it until the last member has been reaped, and is asked for again at once:
// the number would have to come round within a pause to be a stranger's.
func (t *Tree) round() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	exited := false
	select {
	case <-t.exited:
		exited = true
	default:
		t.look(t.main)
	}
	group := syscall.Kill(-t.Pid(), syscall.SIGKILL)
	for pid, p := range t.seen {
		if !p.alive() {
			delete(t.seen, pid)
			t.gone++
			continue
		}
		t.look(p)
		syscall.Kill(pid, syscall.SIGKILL)
	}
	if !exited || group != syscall.ESRCH || len(t.seen) > 0 {
		return false
	}
	t.gone++ // the main process
	return true
}

// look notes who is below a process, by number and time of start.
func (t *Tree) look(top Process) {
	list := Look(top.Pid)
	if len(list) == 0 || list[0].Started != top.Started {
		return // gone, or somebody else's number by now
	}
	for _, p := range list[1:] {
		if p.State != "Z" {
			t.seen[p.Pid] = p
		}
	}
}

// alive tells whether p is there and not a zombie, which its parent alone can end.
func (p Process) alive() bool {
	list := Look(p.Pid)
	return len(list) > 0 && list[0].Started == p.Started && list[0].State != "Z"
}

// stop notes when the stop began. The caller holds mu.
func (t *Tree) stop() {
	if t.began.IsZero() {
		t.began = time.Now()
	}
}

// report hands a verdict that is not the last to the next Wait.
func (t *Tree) report() {
	t.mu.Lock()
	v := Verdict{Reaped: t.gone, Reason: "its processes do not die", Took: time.Since(t.began)}
	for _, p := range t.seen {
		v.Survivors = append(v.Survivors, event.Survivor{Pid: p.Pid, State: p.State, UID: -1})
	}
	t.mu.Unlock()
	select {
	case <-t.interim:
	default:
	}
	t.interim <- v
}

// RSS returns 0: it cannot be told here.
func RSS(int) int64 { return 0 }
