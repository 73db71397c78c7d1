// Package scratch gives each call a directory of its own and takes it away when
// the call has ended.
//
// Promises:
//   - A directory is made for one call, is its user's alone (0700), and is removed
//     with all that is in it. After a kill that comes when the tree is proved
//     empty, so that nobody is left who could write into it again.
//   - No symlink is ever followed: everything is done relative to open
//     directories, whatever is swapped below them meanwhile (clear.go).
//   - What a server leaves behind that was killed, the next one sweeps away: it
//     knows by a lock that its owner is gone, not by age (base.go).
//   - Nobody waits for a large tree to be removed: not the reply, nor the worker,
//     nor the end of the server (remove.go).
//
// All directories of a server lie in one, the [Base]. Each worker has a [Holder],
// driven by one goroutine at a time, with the directory of the call it is doing. At
// most [removers] goroutines remove what is not empty; they end when nothing is left
// to do, at the latest with Close. The package imports event.
package scratch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"example.com/hangup/internal/event"
)

// errClosed is what Begin fails with when the server is at its end.
var errClosed = errors.New("the server is at its end")

// Base is the directory in which those of all calls lie. It is safe for concurrent
// use.
type Base struct {
	parent *os.File // the directory it lies in
	dir    string   // the absolute path of that
	emit   event.Sink

	ctx   context.Context // of removals
	stop  context.CancelFunc
	going sync.WaitGroup // the removers and the sweep

	mu      sync.Mutex
	closed  bool
	here    *place              // replaced when somebody has removed it
	gone    []*place            // those that were
	live    map[string]struct{} // the names of directories that are in use, or being removed
	stuck   map[string]struct{} // those that could not be removed; it was told
	jobs    []string            // the names of those to remove, see queue
	looking bool                // a look for strays is among the jobs
	running int                 // removers
	room    chan struct{}       // closed when there is room for more jobs; nil: there is
	again   *time.Timer         // for the next look at what was refilled; nil: none
	pause   time.Duration       // before it
	told    bool                // that something is refilled on and on
}

// place is the directory of a base itself.
type place struct {
	name string          // in the parent
	file *os.File        // locked
	raw  syscall.RawConn // of file: for those who may come after Close
}

// Open makes a base in dir, "" for the system's temporary directory, and locks it.
// emit is told what cannot be removed.
func Open(dir string, emit event.Sink) (*Base, error) {
	if dir == "" {
		dir = os.TempDir()
	}
	dir, err := filepath.Abs(dir) // the workers have directories of their own
	if err != nil {
		return nil, fmt.Errorf("cannot make a directory for scratch: %w", err)
	}
	if !utf8.ValidString(dir) {
		return nil, fmt.Errorf("cannot make a directory for scratch in %q: workers are told names in UTF-8", dir)
	}
	parent, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot make a directory for scratch: %w", err)
	}
	here, err := create(parent)
	if err != nil {
		parent.Close()
		return nil, fmt.Errorf("cannot make a directory for scratch in %s: %w", dir, err)
	}
	b := &Base{
		parent: parent, dir: dir, emit: emit, here: here,
		live: map[string]struct{}{}, stuck: map[string]struct{}{},
	}
	b.ctx, b.stop = context.WithCancel(context.Background())
	return b, nil
}

// Path is where the directories lie.
func (b *Base) Path() string { return b.path(b.now()) }

func (b *Base) path(p *place) string { return filepath.Join(b.dir, p.name) }

// now is the place where directories are made now.
func (b *Base) now() *place {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.here
}

// Owner is the user that a directory is for.
type Owner struct{ UID, GID int }

// Holder has the scratch directory of the call that one worker is doing.
type Holder struct {
	base  *Base
	owner *Owner
	name  string // of the directory; "": there is none
}

// Holder returns the holder of one worker. owner is the user the worker runs as, nil
// when that is the server's own.
func (b *Base) Holder(owner *Owner) *Holder { return &Holder{base: b, owner: owner} }

// Begin makes the directory of a call, named by the call's id, and returns its path. It
// waits, at most until ctx ends, while too much is still to be removed.
func (h *Holder) Begin(ctx context.Context, id string) (path string, err error) {
	b := h.base
	if id == "" || id == "." || id == ".." || strings.ContainsAny(id, "/\x00") {
		return "", fmt.Errorf("cannot name a scratch directory %q", id)
	}
	p, err := b.claim(ctx, id)
	if err != nil {
		return "", fmt.Errorf("cannot make a scratch directory: %w", err)
	}
	err = p.make(id, h.owner)
	if err == unix.ENOENT { // somebody tidies up; the calls to come are not to suffer
		if p, err = b.renew(p); err == nil {
			err = p.make(id, h.owner)
		}
	}
	if err != nil {
		b.forget(id)
		return "", fmt.Errorf("cannot make a scratch directory in %s: %w", b.dir, err)
	}
	h.name = id
	return b.path(p) + "/" + id, nil
}

// End removes the directory of a call that has ended in order: at once when it is
// empty, in the background when it is not. Processes of the worker that the call left
// running may go on writing; what they make is removed with the worker at the latest.
func (h *Holder) End() {
	b, name := h.base, h.name
	if name == "" {
		return
	}
	h.name = ""
	if b.now().at(func(dir int) error { return unix.Unlinkat(dir, name, unix.AT_REMOVEDIR) }) == nil {
		b.forget(name)
		return
	}
	b.queue(name)
}

// Close removes what there is in the background. It is called when the worker's tree is
// proved empty.
func (h *Holder) Close() {
	if h.name != "" {
		h.base.queue(h.name)
		h.name = ""
	}
	h.base.queue(strays) // a helper may have made a directory anew that had been removed
}

// claim waits for room, notes that a name is in use, and returns the place to make it in.
func (b *Base) claim(ctx context.Context, name string) (*place, error) {
	for {
		room, p, err := b.tryClaim(name)
		if room == nil {
			return p, err
		}
		select {
		case <-room:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// tryClaim is claim where nobody waits: room is then not nil, and will be closed.
func (b *Base) tryClaim(name string) (room <-chan struct{}, p *place, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch _, used := b.live[name]; {
	case b.closed:
		return nil, nil, errClosed
	case used:
		return nil, nil, unix.EEXIST
	case b.room != nil:
		return b.room, nil, nil
	}
	b.live[name] = struct{}{}
	return nil, b.here, nil
}

// forget notes that a name is no longer in use.
func (b *Base) forget(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.live, name)
}

// renew returns the place to use instead of one that is gone.
func (b *Base) renew(old *place) (*place, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, errClosed
	}
	if b.here == old { // else another call has noticed before
		p, err := create(b.parent)
		if err != nil {
			return nil, err
		}
		b.gone = append(b.gone, old)
		b.here = p
	}
	return b.here, nil
}

// make makes one directory.
func (p *place) make(name string, owner *Owner) error {
	return p.at(func(dir int) error {
		if owner == nil {
			return unix.Mkdirat(dir, name, 0o700)
		}
		// Others may pass through to theirs, and cannot list what there is.
		if err := unix.Fchmod(dir, 0o711); err != nil {
			return err
		}
		if err := unix.Mkdirat(dir, name, 0o700); err != nil {
			return err
		}
		err := unix.Fchownat(dir, name, owner.UID, owner.GID, unix.AT_SYMLINK_NOFOLLOW)
		if err != nil {
			unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
		}
		return err
	})
}

// at has something done with the descriptor of a place, which stays open meanwhile. It
// fails after Close.
func (p *place) at(do func(dir int) error) error {
	var err error
	closed := p.raw.Control(func(fd uintptr) {
		err = uninterrupted(func() error { return do(int(fd)) })
	})
	if closed != nil {
		return errClosed
	}
	return err
}

// uninterrupted does a system call again that a signal has interrupted.
func uninterrupted(do func() error) error {
	for {
		if err := do(); err != unix.EINTR {
			return err
		}
	}
}
