//go:build linux && !portable

// Package proc starts process trees and ends them whole. It is the server's side
// of reap: every tree hangs below a shim, a process that nothing in the tree can
// leave, and the server never waits for anyone but its own shims.
//
// Promises:
//   - Start gives the program its descriptors and nothing else of the server's.
//   - Done means that no process of the tree is left, and that this was proved:
//     by ECHILD in the shim, or by the supervisor when the shim was lost.
//   - When the main process ends, for whatever reason, the rest is killed at once.
//   - After Close no process, descriptor or goroutine of a Host is left; or Close
//     says what it had to leave behind.
//
// Each shim has one goroutine here. It reads what the shim reports, ends with the
// shim, and is the only one that reaps it. The package imports reap, cgroup and event.
package proc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"example.com/hangup/internal/cgroup"
	"example.com/hangup/internal/event"
	"example.com/hangup/internal/reap"
)

// Defaults of [Options].
const (
	DefaultStock    = 2
	defaultPatience = 250 * time.Millisecond
)

// restockAfter is how long after a start the stock is looked after. A shim whose
// tree is just being stopped is mostly back by then, and costs nothing.
const restockAfter = 100 * time.Millisecond

// helloTimeout bounds the wait for the first words of a shim or supervisor.
const helloTimeout = 10 * time.Second

// Host starts trees. Its methods may be called from any goroutine.
type Host struct {
	options    Options
	binary     *os.File // the shim's program, so that a new file on disk cannot mix builds
	self       *os.File // a pidfd of this process: a shim sees by it that the server has died
	null       *os.File
	supervisor *supervisor       // nil: none
	base       *cgroup.Base      // the cgroup of all trees; nil: none
	noCgroup   *cgroup.Missing   // why there is none
	noScope    error             // why signals are not kept in; nil: they are
	held       event.Containment // what it comes to

	readers   sync.WaitGroup // one for each shim, and one that looks after the stock
	starts    sync.WaitGroup // under way, using the files above
	trees     atomic.Int64   // started, and not being stopped
	bound     atomic.Int64   // processors given to trees that are bound to some: the next begin behind them
	processes int            // RLIMIT_NPROC of the processes of trees; 0: as the server's own

	controllers []string // those that the cgroup of a tree has

	taken  chan struct{} // a shim was taken or lost
	ending chan struct{} // closed by Close

	mu     sync.Mutex
	closed bool
	shims  map[*shim]struct{}
	idle   []*shim
	left   int // trees that Close had to leave behind
}

// Open opens the shim's program, starts a first shim and makes sure that it
// belongs to this build. From then on this process cannot be read or traced by
// others of its user, and every descriptor it has so far is closed on exec.
func Open(o Options) (*Host, error) {
	if o.Stock == 0 {
		o.Stock = DefaultStock
	}
	if o.Patience == 0 {
		o.Patience = defaultPatience
	}
	h := &Host{options: o, processes: Processes().Limit, shims: make(map[*shim]struct{}), taken: make(chan struct{}, 1), ending: make(chan struct{})}
	if err := h.open(); err != nil {
		h.Close()
		return nil, err
	}
	return h, nil
}

func (h *Host) open() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("cannot hide the server from its workers: %w", err)
	}
	if err := reap.CloseOnExec(); err != nil {
		return fmt.Errorf("cannot keep descriptors from workers: %w", err)
	}
	if h.options.Supervisor != nil {
		var err error
		if h.supervisor, err = newSupervisor(h.options.Supervisor); err != nil {
			return err
		}
		h.readers.Go(h.supervisor.follow)
	}
	var err error
	if h.binary, err = openHigh(h.options.Shim, unix.O_PATH); err != nil {
		return fmt.Errorf("cannot open %s: %w", h.options.Shim, err)
	}
	if h.null, err = openHigh(os.DevNull, unix.O_RDWR); err != nil {
		return fmt.Errorf("cannot open %s: %w", os.DevNull, err)
	}
	self, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return fmt.Errorf("cannot open a pidfd (Linux 5.3 or later is needed): %w", err)
	}
	h.self = os.NewFile(uintptr(self), "pidfd")
	if h.noScope = errScopeOff; !h.options.NoScope {
		h.noScope = reap.TrySignalScope()
	}
	if h.openCgroup(); h.base == nil {
		first, err := h.launch(h.scoped())
		if err != nil {
			return err
		}
		h.keep(first)
	}
	if h.base != nil {
		h.controllers, _ = h.base.Controllers()
	}
	h.held = h.layers()
	h.readers.Go(h.restock)
	return nil
}

// openHigh opens a file on a descriptor that is out of the way of those a child
// is given, where the limit allows.
func openHigh(path string, flags int) (*os.File, error) {
	const high = 100
	low, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	fd, err := unix.FcntlInt(uintptr(low), unix.F_DUPFD_CLOEXEC, high)
	if err != nil {
		return os.NewFile(uintptr(low), path), nil
	}
	unix.Close(low)
	return os.NewFile(uintptr(fd), path), nil
}

// Start starts a tree, under a shim from the stock if there is one. When ctx ends
// before the program runs, Start returns its cause and what was begun is undone;
// afterwards ctx has no meaning.
func (h *Host) Start(ctx context.Context, spec Spec) (*Tree, error) {
	if len(spec.Argv) == 0 {
		return nil, errors.New("cannot start a program: no name given")
	}
	name := spec.Argv[0]
	if err := context.Cause(ctx); err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", name, err)
	}
	if spec.User != nil && os.Geteuid() != 0 {
		return nil, fmt.Errorf("cannot start %s as user %s: only root can: run hangup as root, or leave user out", name, spec.User)
	}
	path, err := lookPath(spec)
	if err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", name, err)
	}
	if !h.enter() {
		return nil, fmt.Errorf("cannot start %s: %w", name, errClosed)
	}
	defer h.starts.Done()
	s, err := h.take(h.scoped() && !spec.NewPrivileges)
	if err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", name, err)
	}
	t := newTree(s)
	undo := context.AfterFunc(ctx, t.Kill)
	err = s.start(t, path, spec)
	if !undo() {
		err = context.Cause(ctx)
	}
	if err != nil {
		t.forget()
		return nil, fmt.Errorf("cannot start %s: %w", name, err)
	}
	return t, nil
}

// enter has Close wait for a Start: a descriptor that was closed and given away
// again would be handed to a stranger. It returns false after Close.
func (h *Host) enter() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return false
	}
	h.starts.Add(1)
	return true
}

// restock is a goroutine that ends with Close. It keeps Stock shims idle at rest,
// beside those that are about to come back from a tree that dies.
func (h *Host) restock() {
	for {
		select {
		case <-h.taken:
		case <-h.ending:
			return
		}
		select {
		case <-time.After(restockAfter):
		case <-h.ending:
			return
		}
		for h.short() {
			s, err := h.launch(h.scoped())
			if err != nil {
				break // the next start will say so
			}
			if !h.keep(s) {
				s.abandon()
			}
		}
	}
}

func (h *Host) short() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !h.closed && len(h.idle) < h.options.Stock && len(h.shims) < int(h.trees.Load())+h.options.Stock
}

// look has the stock looked after.
func (h *Host) look() {
	select {
	case h.taken <- struct{}{}:
	default:
	}
}

// scoped says whether shims are in signal scopes of their own. Those above trees with
// new privileges are not, and hold but one.
func (h *Host) scoped() bool { return h.noScope == nil }

// take returns an idle shim, which is the caller's until its tree is empty.
func (h *Host) take(scoped bool) (*shim, error) {
	h.look()
	h.mu.Lock()
	if n := len(h.idle); n > 0 && !h.closed && scoped == h.scoped() {
		s := h.idle[n-1]
		h.idle = h.idle[:n-1]
		h.mu.Unlock()
		return s, nil
	}
	h.mu.Unlock()
	return h.launch(scoped)
}

// keep puts an idle shim into the stock and reports whether there was room.
func (h *Host) keep(s *shim) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || s.scoped != h.scoped() || len(h.idle) >= h.options.Stock {
		return false
	}
	h.idle = append(h.idle, s)
	return true
}

// add makes a new shim known, unless the host is closed.
func (h *Host) add(s *shim) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return false
	}
	h.shims[s] = struct{}{}
	h.readers.Go(s.read)
	return true
}

// remove forgets a shim that has ended.
func (h *Host) remove(s *shim) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.shims, s)
	h.look()
	for i, idle := range h.idle {
		if idle == s {
			h.idle = append(h.idle[:i], h.idle[i+1:]...)
			return
		}
	}
}

// closing says whether Close was called.
func (h *Host) closing() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.closed
}

// Close kills every tree that is still there, ends every shim and waits until all
// are reaped. A tree that is not empty by the time of its verdict is left to the
// supervisor, and is an error.
func (h *Host) Close() error {
	h.mu.Lock()
	if !h.closed {
		h.closed = true
		close(h.ending)
	}
	h.idle = nil
	shims := make([]*shim, 0, len(h.shims))
	for s := range h.shims {
		shims = append(shims, s)
	}
	h.mu.Unlock()

	for _, s := range shims {
		s.close()
	}
	h.starts.Wait()
	if h.supervisor != nil {
		h.supervisor.process.Close()
	}
	h.readers.Wait()
	for _, file := range []*os.File{h.binary, h.self, h.null} {
		if file != nil {
			file.Close()
		}
	}
	if h.supervisor != nil {
		h.supervisor.conn.Close()
	}
	h.mu.Lock()
	left, base := h.left, h.base
	h.left, h.base = 0, nil // is said once
	h.mu.Unlock()
	var err error
	if base != nil {
		err = base.Close()
	}
	if left > 0 {
		err = fmt.Errorf("cannot end %d process trees", left)
	}
	return err
}

// errScopeOff is why there are no signal scopes where Options say so.
var errScopeOff = errors.New("off")

// errClosed is what Start fails with after Close.
var errClosed = errors.New("the host is closed")

// startError puts a failed system call in the words of what was tried.
func startError(m reap.StartFailed, path string, spec Spec) error {
	dir := spec.Dir
	switch {
	case m.Stage == reap.StageDir && spec.User != nil && m.Errno == syscall.EACCES:
		return fmt.Errorf("its directory %s: %w: user %s may not enter it, or one above it", dir, m.Errno, spec.User)
	case m.Stage == reap.StageDir:
		return fmt.Errorf("its directory %s: %w", dir, m.Errno)
	case m.Stage == reap.StageLimits:
		return fmt.Errorf("cannot set the limits of its tree: %w", m.Errno)
	case m.Stage == reap.StagePrivileges:
		return fmt.Errorf("cannot set no_new_privs: %w", m.Errno)
	case m.Stage == reap.StageFiles:
		return fmt.Errorf("cannot set its limit of open files: %w", m.Errno)
	case m.Stage == reap.StageScope:
		return fmt.Errorf("cannot keep its signals in: %w", m.Errno)
	case m.Stage == reap.StageGroup:
		return fmt.Errorf("cannot make its cgroup: %w", m.Errno)
	case m.Stage == reap.StageOrder:
		return errors.New("its shim still holds another tree")
	case m.Errno == syscall.ENOENT && exists(path, dir):
		return fmt.Errorf("%w: %s is there, but the interpreter it asks for is not", m.Errno, path)
	case m.Errno == syscall.ENOEXEC:
		return fmt.Errorf("%w: %s is no program of this machine, nor a script with a #! line", m.Errno, path)
	case spec.User != nil && m.Errno == syscall.EACCES:
		return fmt.Errorf("%w: user %s may not run %s, or not reach it", m.Errno, spec.User, path)
	case spec.User != nil:
		return fmt.Errorf("as user %s: %w", spec.User, m.Errno)
	default:
		return m.Errno
	}
}
