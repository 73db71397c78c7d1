package event

import "slices"

// Levels of containment: how surely a tree is held.
const (
	ProcessGroup = "process-group"
	Subreaper    = "subreaper"
	Cgroup       = "cgroup"
)

// NoIsolation says that nothing keeps a worker from others of its user.
const NoIsolation = "none"

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
