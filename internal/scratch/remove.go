package scratch

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"example.com/hangup/internal/event"
)

// The bounds of removals. They are far from any good use: most calls leave nothing.
const (
	removers = 2    // goroutines that remove directories at once
	backlog  = 1000 // directories that wait for one before calls to come have to wait, too
	// slice is how long a directory is removed before another has its turn.
	slice = time.Second
	// closeWait is how long the end of a server waits for removals.
	closeWait = 250 * time.Millisecond
	// What does not stay empty is looked at again after a while, which doubles.
	firstPause, lastPause = 100 * time.Millisecond, 30 * time.Second
)

// strays stands, among the jobs, for a look at what is in the base and nobody's: made
// anew by processes that a call has left running, or filled again and again by them.
const strays = ""

// queue has a directory removed, which stays in use until then.
func (b *Base) queue(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed || name == strays && b.looking {
		return
	}
	b.looking = b.looking || name == strays
	b.jobs = append(b.jobs, name)
	if len(b.jobs) >= backlog && b.room == nil {
		b.room = make(chan struct{})
	}
	if b.running < removers {
		b.running++
		b.going.Go(b.remove)
	}
}

// next takes the next job. ok is false when there is none, or the time is over: the
// remover then ends.
func (b *Base) next() (name string, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.jobs) == 0 || b.ctx.Err() != nil {
		b.running--
		return "", false
	}
	name, b.jobs = b.jobs[0], b.jobs[1:]
	if name == strays {
		b.looking = false
	}
	if len(b.jobs) < backlog && b.room != nil {
		close(b.room)
		b.room = nil
	}
	return name, true
}

// remove is a remover.
func (b *Base) remove() {
	for {
		name, ok := b.next()
		switch {
		case !ok:
			return
		case name == strays:
			b.removeStrays()
		default:
			b.removed(name, removeAll(b.ctx, b.now().fd(), name))
		}
	}
}

// removed says how a removal went.
func (b *Base) removed(name string, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if errors.Is(err, errSlice) { // the others have their turn
		b.jobs = append(b.jobs, name)
		return
	}
	delete(b.live, name) // what is left of it is a stray
	switch {
	case err == nil, b.ctx.Err() != nil:
	case passing(err):
		b.lookAgain(name, err)
	default:
		b.stuck[name] = struct{}{}
		b.trouble("a scratch directory cannot be removed", fmt.Errorf("%s/%s: %w", b.path(b.here), name, err))
	}
}

// fd is the descriptor of a place, for those who end before Close.
func (p *place) fd() int { return int(p.file.Fd()) }

// passing tells of an error of a removal whether it may go better later. As long as
// processes of the call are left they may forbid, time and again, what was just allowed.
func passing(err error) bool {
	for _, one := range []error{errRefilled, unix.ENOTEMPTY, unix.EACCES, unix.EMFILE, unix.ENFILE, unix.ENOMEM} {
		if errors.Is(err, one) {
			return true
		}
	}
	return false
}

// lookAgain has strays looked for after a while, because of one that could not be
// removed. The caller holds mu.
func (b *Base) lookAgain(name string, err error) {
	if b.again != nil || b.closed {
		return
	}
	if b.pause == lastPause && !b.told {
		b.told = true
		b.trouble("a scratch directory is still not removed", fmt.Errorf("%s/%s: %w", b.path(b.here), name, err))
	}
	b.pause = min(max(2*b.pause, firstPause), lastPause)
	b.again = time.AfterFunc(b.pause, func() {
		b.mu.Lock()
		b.again = nil
		b.mu.Unlock()
		b.queue(strays)
	})
}

// removeStrays removes what is in the base and nobody's.
func (b *Base) removeStrays() {
	dir := b.now().fd()
	left := false
	err := each(dir, func(name string) error {
		if !b.adopt(name) {
			return b.ctx.Err()
		}
		err := removeAll(b.ctx, dir, name)
		left = left || err != nil
		b.removed(name, err)
		return b.ctx.Err()
	})
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.ctx.Err() != nil:
	case err != nil:
		b.lookAgain(strays, err)
	case !left:
		b.pause = 0
	}
}

// adopt puts a stray into use, to be removed. It returns false for what is none.
func (b *Base) adopt(name string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, live := b.live[name]
	_, stuck := b.stuck[name]
	if live || stuck || name == strays {
		return false
	}
	b.live[name] = struct{}{}
	return true
}

// trouble tells that something is left.
func (b *Base) trouble(what string, err error) {
	b.emit(event.Trouble{
		What: what, Err: err, At: time.Now(),
		Remedy: "see what holds it (a mount, chattr +i, a process of another user); the next start of the server tries again",
	})
}

// Close removes what it can in a short time, and lets go of the base. Where all is set
// no process of a call is left, and everything goes; else what is in use stays, and
// with it the base, for the next start to sweep. No Begin succeeds after it.
func (b *Base) Close(all bool) {
	b.mu.Lock()
	b.closed = true
	if b.again != nil {
		b.again.Stop()
	}
	if b.room != nil {
		close(b.room)
		b.room = nil
	}
	b.mu.Unlock()

	over := time.AfterFunc(closeWait, b.stop)
	b.going.Wait()
	var err error
	if all {
		err = empty(b.ctx, b.here.fd(), time.Now().Add(closeWait))
	}
	over.Stop()
	b.stop()
	if gone := unix.Unlinkat(int(b.parent.Fd()), b.here.name, unix.AT_REMOVEDIR); gone != nil && gone != unix.ENOENT {
		if err == nil {
			err = gone
		}
		b.trouble("scratch directories are left behind", fmt.Errorf("%s: %w", b.path(b.here), err))
	}
	for _, p := range append(b.gone, b.here) {
		p.file.Close()
	}
	b.parent.Close()
}
