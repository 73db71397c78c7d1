//go:build linux

package reap

import (
	"errors"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// killRounds is how often a stop kills its own children and their process
// groups before it goes over to stopping the whole tree first, where they cannot all be
// killed in one step. Killing alone is faster, but does not come to an end where the tree forks faster than it dies;
// stopped processes keep their places and fork no more.
const killRounds = 3

// cgroupHead is how long the killing of a cgroup has, while it shows, before the
// same is done by hand.
const cgroupHead = 50 * time.Millisecond

// A reaper kills and reaps what is below this process. It never waits: its owner
// calls it again when a child has died, or after the pause it asks for.
type reaper struct {
	self    int
	session int
	spare   int                     // the one child that is to live; 0: none
	exited  func(pid int, e Exited) // told of every child that was reaped
	alive   func()                  // called often during long work
	list    func(self int) lister   // newLister, but for tests
	cgroup  *group                  // the cgroup of what is below, or of most of it; nil: none
	scoped  bool                    // this process can signal what is below, and nobody else
	doomed  map[int]bool            // sent SIGKILL, not reaped yet
	reaped  int                     // children reaped since the stop began
	seen    int                     // reaped, as the last step left it
	began   time.Time               // when the stop began
	struck  time.Time               // when all was last killed in one step
	rounds  int
	pause   time.Duration // until the next step, if nobody dies
}

// newReaper makes this process the subreaper of everything it will start.
func newReaper() (*reaper, error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, err
	}
	// A /proc of another PID namespace would give the children wrong numbers.
	pid := strconv.Itoa(os.Getpid())
	if seen, err := os.Readlink("/proc/self"); err != nil || seen != pid {
		return nil, errors.New("/proc is not that of this PID namespace")
	}
	session, err := unix.Getsid(0)
	if err != nil {
		return nil, err
	}
	return &reaper{self: os.Getpid(), session: session, alive: func() {}, list: newLister, doomed: make(map[int]bool)}, nil
}

// reap waits for every child that is dead. It reports whether there was no child
// left at all: the proof that the tree is empty.
func (r *reaper) reap() bool {
	for {
		var status unix.WaitStatus
		var usage unix.Rusage
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG|unix.WALL, &usage)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return err == unix.ECHILD
		}
		delete(r.doomed, pid)
		r.reaped++
		r.alive()
		r.exited(pid, Exited{
			Status: syscall.WaitStatus(status),
			CPU:    time.Duration(usage.Utime.Nano() + usage.Stime.Nano()),
			MaxRSS: usage.Maxrss << 10,
		})
	}
}

// begin begins a stop: what is reaped from now on counts. All is killed in one step
// where that can be done: by the cgroup, which asks the kernel to look at nobody else,
// or else by the signal scope. What comes after is for those who have left the cgroup.
func (r *reaper) begin() {
	now := time.Now()
	r.reaped, r.seen, r.rounds, r.pause, r.began, r.struck = 0, 0, 0, minPause, now, now
	clear(r.doomed)
	switch {
	case r.cgroup != nil:
		r.cgroup.kill()
	case r.scoped:
		killScope()
	}
}

// step takes a stop one step on and reports whether nothing is left.
func (r *reaper) step() bool {
	if r.reap() || r.spared() {
		return true
	}
	if r.scoped {
		if now := time.Now(); now.Sub(r.struck) >= r.pause {
			killScope()
			r.struck, r.pause = now, min(2*r.pause, maxPause)
		}
		return r.reap()
	}
	if r.cgroup != nil && time.Since(r.began) < cgroupHead && r.cgroup.populated() {
		r.seen, r.pause = r.reaped, minPause
		return false
	}
	fresh := r.fresh()
	switch progress := r.reaped > r.seen; {
	case len(fresh) > 0 && r.rounds < killRounds:
		r.rounds++
		r.pause = minPause
		r.kill(fresh)
	case len(fresh) == 0 && progress:
		r.pause = minPause // the doomed are dying
	default:
		r.pause = min(2*r.pause, maxPause)
		r.freeze()
	}
	r.seen = r.reaped
	return r.reap() || r.spared()
}

// spared tells whether the spare child is the only one. While it lives, the list of
// children is the proof, in place of ECHILD: a child leaves it only by being reaped
// here, and when a process is reaped its children have risen. A list that could not
// be read does not have the spare one either, and proves nothing.
func (r *reaper) spared() bool {
	if r.spare == 0 {
		return false
	}
	children := r.list(r.self)(r.self)
	return len(children) == 1 && children[0] == r.spare
}

// strangers lists the own children that are not to live.
func (r *reaper) strangers() []int {
	var pids []int
	for _, pid := range r.list(r.self)(r.self) {
		if pid != r.spare {
			pids = append(pids, pid)
		}
	}
	return pids
}

// fresh lists the strangers that were not killed yet.
func (r *reaper) fresh() []int {
	var pids []int
	for _, pid := range r.strangers() {
		if !r.doomed[pid] {
			pids = append(pids, pid)
		}
	}
	return pids
}

// kill kills own children, each with its process group. Beside a living server, what
// has risen may be of a group with strangers who are no business of ours, such as the
// shell that somebody has opened in this PID namespace: there, each goes alone.
func (r *reaper) kill(pids []int) {
	done := 0
	for _, pid := range pids {
		if group := r.group(pid); r.spare == 0 && group != 0 && group != done {
			unix.Kill(-group, unix.SIGKILL)
			done = group
		}
		r.doom(pid)
	}
}

func (r *reaper) doom(pid int) {
	if unix.Kill(pid, unix.SIGKILL) == nil {
		r.doomed[pid] = true
	}
	r.alive()
}

// group returns the process group of an own child, or 0 if that group may hold
// others than the child's tree. A group lies within one session, and the only
// session here that no tree began is the own one. (A process from outside the
// PID namespace has session 0.)
func (r *reaper) group(pid int) int {
	session, err := unix.Getsid(pid)
	if err != nil || session <= 1 || session == r.session {
		return 0
	}
	group, err := unix.Getpgid(pid)
	if err != nil || group <= 1 {
		return 0
	}
	return group
}

// freeze stops every descendant, again and again until nobody new is found, and
// then kills them all.
func (r *reaper) freeze() {
	handles := make(map[int]int) // pid → pidfd; own children need none
	defer func() {
		for _, handle := range handles {
			if handle != ownChild {
				unix.Close(handle)
			}
		}
	}()
	for found := -1; found < len(handles); {
		found = len(handles)
		r.walk(handles)
	}
	for pid, handle := range handles {
		if handle == ownChild {
			r.doom(pid)
		} else if unix.PidfdSendSignal(handle, unix.SIGKILL, nil, 0) == nil {
			r.doomed[pid] = true // so that it is no news when it rises
		}
		r.alive()
	}
}

const ownChild = -1 // in place of a pidfd

// walk goes down the tree once and stops everyone who is not in handles yet.
func (r *reaper) walk(handles map[int]int) {
	children := r.list(r.self)
	queue := r.strangers()
	for _, pid := range queue {
		if _, known := handles[pid]; !known {
			unix.Kill(pid, unix.SIGSTOP)
			handles[pid] = ownChild
		}
	}
	visited := make(map[int]bool) // a number given away meanwhile could make a ring
	for ; len(queue) > 0; queue = queue[1:] {
		up := queue[0]
		if visited[up] {
			continue
		}
		visited[up] = true
		for _, pid := range children(up) {
			if _, known := handles[pid]; !known {
				handle, ok := r.hold(pid, up, handles[up])
				if !ok {
					continue // gone, or risen: the next walk will tell
				}
				unix.PidfdSendSignal(handle, unix.SIGSTOP, nil, 0)
				handles[pid] = handle
			}
			queue = append(queue, pid)
		}
		r.alive()
	}
}

// hold opens a pidfd of pid and makes sure that it is a child of up, which is
// held by handle. The number may have been given to somebody else meanwhile, and
// so may up's: if up's holder lives on after pid was seen to be its child, then
// it was up all the time.
func (r *reaper) hold(pid, up, handle int) (int, bool) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return 0, false
	}
	if parent(pid) == up && (handle == ownChild || unix.PidfdSendSignal(handle, 0, nil, 0) == nil) {
		return fd, true
	}
	unix.Close(fd)
	return 0, false
}

// survivors describes who is left, nearest first.
func (r *reaper) survivors() []Survivor {
	children := r.list(r.self)
	var found []Survivor
	for queue := r.strangers(); len(queue) > 0 && len(found) < maxSurvivors; queue = queue[1:] {
		found = append(found, survivor(queue[0]))
		queue = append(queue, children(queue[0])...)
	}
	return found
}
