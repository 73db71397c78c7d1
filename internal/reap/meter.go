//go:build linux

package reap

import (
	"bytes"
	"os"
	"runtime"
	"strconv"
	"time"
)

// Where the kernel has no controller for a limit, the tree is looked at now and
// then while it runs. That is approximate: what happens between two looks is not
// seen, and a tree has as long to go over its limit.
const (
	meterEvery = 100 * time.Millisecond // between two looks
	meterShare = 10                     // a look takes at most this part of the time: a large tree is looked at less often
)

// A meter looks, now and then, whether a tree is within its limits. It only reads, in a goroutine
// of its own, so that a large tree does not keep its shim from a kill.
type meter struct {
	root  int // the shim, which is not of the tree
	user  User
	guard *guard
	known map[int]bool // who was there at the last look
}

// run ends when the tree is over a limit, which it tells, or when stop is closed.
func (m *meter) run(over chan<- string, stop <-chan struct{}) {
	timer := time.NewTimer(meterEvery)
	defer timer.Stop()
	for {
		select {
		case <-stop:
			return
		case <-timer.C:
		}
		begun := time.Now()
		if limit := m.look(); limit != "" {
			over <- limit
			return
		}
		timer.Reset(max(meterEvery, (meterShare-1)*time.Since(begun)))
	}
}

// look returns the limit over which the tree is, or "".
func (m *meter) look() string {
	if limit := m.guard.exceeded(); limit != "" {
		return limit
	}
	limits := m.guard.left
	if limits.Memory == 0 && limits.Pids == 0 {
		return ""
	}
	tree := m.count()
	tasks, resident := int64(0), int64(0)
	for _, u := range tree {
		tasks += u.threads
		if !u.shares {
			resident += u.resident
		}
	}
	switch {
	case limits.Pids > 0 && tasks > limits.Pids:
		return LimitPids
	case limits.Memory > 0 && resident > limits.Memory && m.accurate(tree) > limits.Memory:
		return LimitMemory
	}
	return ""
}

// usage is what one process has.
type usage struct {
	pid, parent int
	threads     int64
	size        uint64 // bytes of its address space
	resident    int64  // bytes of it that are in memory, whoever else has them
	shares      bool   // it may be in the memory of its parent, see count
}

// count looks at every process of the tree.
//
// A child of vfork is in its parent's memory, until its exec. One that is new and
// has an address space as large as its parent's is taken for that until the next
// look; it would be over by then.
func (m *meter) count() []usage {
	var tree []usage
	size := make(map[int]uint64)
	known := make(map[int]bool)
	for _, pid := range Descendants(m.root) { // parents come first
		u, ok := look(pid)
		if !ok {
			continue
		}
		u.shares = !m.known[pid] && u.size == size[u.parent]
		known[pid], size[pid] = true, u.size
		tree = append(tree, u)
	}
	m.known = known
	return tree
}

// look reads what pid has.
func look(pid int) (usage, bool) {
	// Counted behind the name, which may hold anything.
	const ppid, threads, size, resident = 1, 17, 20, 21
	fields := stat(pid)
	if len(fields) <= resident {
		return usage{}, false
	}
	number := func(i int) int64 {
		n, _ := strconv.ParseInt(string(fields[i]), 10, 64)
		return n
	}
	return usage{
		pid: pid, parent: int(number(ppid)), threads: number(threads),
		size: uint64(number(size)), resident: number(resident) * int64(os.Getpagesize()),
	}, true
}

// accurate is the memory of a tree in which what several processes have in common
// counts once: each has its part of it. It is costly, so it is asked only when the
// sum that knows nothing of sharing is too much. A process that does not let itself
// be looked into counts in full.
func (m *meter) accurate(tree []usage) int64 {
	sum := make(chan int64)
	go func() {
		if m.user.Set {
			// In a container it takes more than root to look into others. The thread
			// is thrown away with the goroutine.
			runtime.LockOSThread()
			actAs(m.user) // then they count in full
		}
		total := int64(0)
		for _, u := range tree {
			if u.shares {
				continue
			}
			part, ok := proportional(u.pid)
			if !ok {
				part = u.resident
			}
			total += part
		}
		sum <- total
	}()
	return <-sum
}

// proportional reads the proportional set size of pid in bytes.
func proportional(pid int) (int64, bool) {
	for line := range bytes.Lines(read(procPath(pid, "smaps_rollup"))) {
		if kib, found := bytes.CutPrefix(line, []byte("Pss:")); found {
			n, err := strconv.ParseInt(string(bytes.TrimSpace(bytes.TrimSuffix(bytes.TrimSpace(kib), []byte("kB")))), 10, 64)
			return n << 10, err == nil
		}
	}
	return 0, false
}
