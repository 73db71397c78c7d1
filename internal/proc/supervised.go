//go:build linux && !portable

package proc

import "example.com/hangup/internal/event"

// Supervised tells whether servers run below a supervisor, and workers below shims.
const Supervised = true

// Containment tells how the trees are held.
func (h *Host) Containment() event.Containment {
	return event.Containment{Level: event.Subreaper, Isolation: event.NoIsolation}
}

// top is the process that everything else of the tree is below.
func (t *Tree) top() int { return t.ShimPid() }
