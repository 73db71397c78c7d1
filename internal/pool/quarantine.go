package pool

import (
	"fmt"
	"time"
)

// What becomes of workers whose trees do not die, of the machine. The policy is told
// in docs/states.md.

// quarantine takes a worker out of the bound of dying trees, because its tree was
// found not to die. What the kernel does not let go of may stay for days, and its
// place is not kept for it. It is a worker of the pool until its tree is empty.
func (m *machine) quarantine(w *worker, now time.Time) error {
	err := m.move(w, survived, now)
	if err == nil && !w.stuck {
		w.stuck = true
		m.stuck++
	}
	return err
}

// buried forgets a worker whose tree is empty, at last or at once.
func (m *machine) buried(w *worker, now time.Time) error {
	err := m.move(w, emptied, now)
	if err == nil && w.stuck {
		w.stuck = false
		m.stuck--
	}
	return err
}

// maxStuck bounds the quarantine. While it is full no replacement starts: whatever
// holds those trees would mostly hold the next one, too. The pool goes on with the
// workers it has, and is down when it has none.
func (m *machine) maxStuck() int { return 2 * m.full() }

// stuckRetry is when callers may ask again of a pool that is down for its quarantine.
// No timer goes with it: the end of a tree comes by itself.
const stuckRetry = 5 * time.Second

// errStuck is why no replacement starts.
func (m *machine) errStuck() error {
	return fmt.Errorf("%d process trees were killed and do not die; no worker starts beside so many", m.stuck)
}
