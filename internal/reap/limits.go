//go:build linux

package reap

import (
	"bytes"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// A guard keeps one tree within its limits. Where the tree is in a cgroup with the
// controller for it the kernel does that, and counts; the rest is left to a meter.
type guard struct {
	group  *group // nil: none
	kernel Limits // those that the cgroup enforces
	left   Limits // those that it does not
	before counts // when the tree was about to start
	host   int64  // processes killed for want of memory on the whole machine, when it had started
	over   chan string
	stop   chan struct{} // ends the meter; nil: none is under way
}

// newGuard writes the limits into the cgroup of a tree that is about to start; nil
// stands for none.
func newGuard(cgroup *group, l Limits) (*guard, error) {
	g := &guard{group: cgroup, left: l}
	if cgroup != nil {
		for _, c := range controls {
			limit := c.limit(&g.left)
			if *limit == 0 {
				continue
			}
			switch err := cgroup.write(c.file, c.text(*limit)); err {
			case nil:
				*c.limit(&g.kernel), *limit = *limit, 0
			case unix.ENOENT: // the group has not this controller
			default:
				return nil, err
			}
		}
		if g.kernel.Memory > 0 {
			cgroup.write("memory.swap.max", "0") // a kernel that does not account for swap has not this file
			if err := cgroup.write("memory.oom.group", "1"); err != nil {
				return nil, err
			}
		}
	}
	g.before = g.now()
	return g, nil
}

// controls are the files of a cgroup that hold limits.
var controls = []struct {
	file  string
	limit func(l *Limits) *int64
	text  func(n int64) string
}{
	{"memory.max", func(l *Limits) *int64 { return &l.Memory }, decimal},
	{"pids.max", func(l *Limits) *int64 { return &l.Pids }, decimal},
	{"cpu.max", func(l *Limits) *int64 { return &l.CPUs }, func(n int64) string {
		const period = 100_000 // µs, the kernel's default
		return decimal(n*period/1000) + " " + decimal(period)
	}},
}

func decimal(n int64) string { return strconv.FormatInt(n, 10) }

// watch looks after a tree that has started below root, if there is anything to look
// for. What the meter finds comes over g.over.
func (g *guard) watch(root int, u User) {
	g.host = hostKills()
	if g.left.Memory == 0 && g.left.Pids == 0 && g.kernel.Pids == 0 {
		return // memory that the kernel withholds ends the tree by itself
	}
	g.over, g.stop = make(chan string, 1), make(chan struct{})
	m := &meter{root: root, user: u, guard: g}
	go m.run(g.over, g.stop)
}

// end ends the meter.
func (g *guard) end() {
	if g.stop != nil {
		close(g.stop)
		g.over, g.stop = nil, nil
	}
}

// counts are how often the kernel has withheld something.
type counts struct {
	oom, kills int64 // in the cgroup: its limit of memory was hit; processes were killed for want of memory
	pids       int64 // in the cgroup: a fork failed
}

func (g *guard) now() (c counts) {
	if g.group != nil {
		memory := g.group.read("memory.events")
		c.oom, c.kills = counter(memory, "oom"), counter(memory, "oom_kill")
		c.pids = counter(g.group.read("pids.events"), "max")
	}
	return c
}

// exceeded returns the limit that the kernel had to enforce on the tree, or "".
func (g *guard) exceeded() string {
	now := g.now()
	switch {
	case g.kernel.Memory > 0 && now.oom > g.before.oom && now.kills > g.before.kills:
		return LimitMemory
	case g.kernel.Pids > 0 && now.pids > g.before.pids:
		return LimitPids
	}
	return ""
}

// starved tells whether the kernel has killed for want of memory since the tree was
// started: in its cgroup, or, which may have been others, on the machine.
func (g *guard) starved() bool {
	return g.now().kills > g.before.kills || hostKills() > g.host
}

func hostKills() int64 { return counter(read("/proc/vmstat"), "oom_kill") }

// counter finds a number in lines of names and numbers; 0 where there is none.
func counter(lines []byte, name string) int64 {
	for line := range bytes.Lines(lines) {
		if number, found := bytes.CutPrefix(line, []byte(name+" ")); found {
			n, _ := strconv.ParseInt(string(bytes.TrimSpace(number)), 10, 64)
			return n
		}
	}
	return 0
}

// bind has this thread, and whoever it forks, run on as many processors as the limit
// has, rounded up. Which those are goes round with first, so that the trees of a
// server do not all sit on the same. A process may leave them again.
func bind(l Limits) error {
	var may unix.CPUSet
	if err := unix.SchedGetaffinity(0, &may); err != nil {
		return err
	}
	want := int(l.CPUs+999) / 1000
	if l.CPUs == 0 || want >= may.Count() {
		return nil
	}
	var list []int
	for cpu := range 64 * len(may) {
		if may.IsSet(cpu) {
			list = append(list, cpu)
		}
	}
	var chosen unix.CPUSet
	for i := range want {
		chosen.Set(list[(l.First+i)%len(list)])
	}
	return unix.SchedSetaffinity(0, &chosen)
}

// limitProcess sets the limits of the main process, which has not been reaped, and so
// of all that it will start. ForkExec gives the child the limits that this process has,
// and these are its own to live by; so they come from outside, and a moment after
// the exec.
func limitProcess(pid int, m Start) error {
	err := limitOf(pid, m)
	if err != unix.EPERM || !m.User.Set {
		return err
	}
	// Root without CAP_SYS_RESOURCE, as in a container, may do it only as that user.
	// While the thread is that, others of the user might signal it; it is not for long.
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and thrown away
		const same = ^uintptr(0)
		unix.RawSyscall(unix.SYS_SETRESGID, uintptr(m.User.GID), same, same)
		unix.RawSyscall(unix.SYS_SETRESUID, uintptr(m.User.UID), same, same)
		done <- limitOf(pid, m)
	}()
	return <-done
}

func limitOf(pid int, m Start) error {
	// One that may not be limited here is privileged, and this would not bind it.
	lower(pid, unix.RLIMIT_NPROC, m.Limits.Nproc)
	err := lower(pid, unix.RLIMIT_NOFILE, m.Nofile)
	if err == unix.EPERM && m.NewPrivileges {
		return nil // it is somebody else already, as sudo is
	}
	return err
}

// lower sets a limit of pid, soft and hard, to most, or to its hard one if that is
// less. 0 leaves it.
func lower(pid, resource, most int) error {
	if most == 0 {
		return nil
	}
	var now unix.Rlimit
	if err := unix.Prlimit(pid, resource, nil, &now); err != nil {
		return err
	}
	limit := min(uint64(most), now.Max)
	return unix.Prlimit(pid, resource, &unix.Rlimit{Cur: limit, Max: limit}, nil)
}

// killed tells whether SIGKILL ended a process.
func killed(status syscall.WaitStatus) bool {
	return status.Signaled() && status.Signal() == unix.SIGKILL
}
