package event

import "slices"

// Levels of containment: how surely a tree is held.
const (
	ProcessGroup = "process-group"
	Subreaper    = "subreaper"
	Cgroup       = "cgroup"
)

// Isolations, the weakest first: what keeps a worker from the rest.
const (
	NoIsolation = "none"    // nothing
	Signals     = "signals" // it can signal nobody outside its tree
	UID         = "uid"     // it is a user of its own
)

// WeakestOf returns the isolation of the weakest of some pools; where there are none,
// NoIsolation.
func WeakestOf(pools []Pool) string {
	for _, one := range []string{NoIsolation, Signals, UID} {
		if slices.ContainsFunc(pools, func(p Pool) bool { return p.Isolation == one }) {
			return one
		}
	}
	return NoIsolation
}

// Containment is how the trees of this server are held, and why not better.
type Containment struct {
	Level     string // process-group, subreaper or cgroup
	Isolation string // none, signals or uid
	Layers    []Layer
}

// Layer is one of the means by which trees are held, on or missing.
type Layer struct {
	Name   string
	On     bool
	Detail string
	Remedy string // "" where there is none, or nothing to remedy
}

// Meets tells whether trees are held at least as surely as at level minimum.
func (c Containment) Meets(minimum string) bool {
	levels := []string{ProcessGroup, Subreaper, Cgroup}
	return slices.Index(levels, c.Level) >= slices.Index(levels, minimum)
}
