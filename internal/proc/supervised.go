//go:build linux && !portable

package proc

// Supervised tells whether servers run below a supervisor, and workers below shims.
const Supervised = true

// top is the process that everything else of the tree is below.
func (t *Tree) top() int { return t.ShimPid() }
