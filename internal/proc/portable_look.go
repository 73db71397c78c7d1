//go:build !linux

package proc

import (
	"errors"
	"time"
)

// Process is one process as the kernel shows it.
type Process struct {
	Pid, Parent, Session int
	State                string // Z for a zombie, else R
	Started              int64  // by the clock of SinceBoot, in microseconds; with Pid, it names the process for good
	Command              string
}

// Look shows root and every process below it, each after its parent, as they are
// now, where the system shows its processes (see table). It is a look, not a proof.
func Look(root int) []Process {
	all := table()
	var list []Process
	for _, p := range all {
		if p.Pid == root {
			list = append(list, p)
		}
	}
	for i := 0; i < len(list); i++ {
		for _, p := range all {
			if p.Parent == list[i].Pid && len(list) < len(all) { // a number given away meanwhile could make a ring
				list = append(list, p)
			}
		}
	}
	return list
}

// There tells whether p, and not another process with its number, is still
// there, be it as a zombie.
func (p Process) There() bool {
	for _, now := range table() {
		if now.Pid == p.Pid {
			return now.Started == p.Started
		}
	}
	return false
}

// SinceBoot is the clock by which processes are noted as started: here that of the
// day.
func SinceBoot() time.Duration { return time.Duration(time.Now().UnixNano()) }

// StartedSince counts the processes of the tree that started at boot, a time by
// [SinceBoot], or after it. It fails where the main process cannot be seen.
func (t *Tree) StartedSince(boot time.Duration) (int, error) {
	n, seen := 0, false
	for _, p := range Look(t.Pid()) {
		seen = seen || p.Pid == t.Pid()
		if p.Started >= boot.Microseconds() {
			n++
		}
	}
	if !seen {
		return 0, errors.New("cannot see the processes of the tree")
	}
	return n, nil
}
