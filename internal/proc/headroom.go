//go:build linux && !portable

package proc

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"example.com/hangup/internal/reap"
)

// HeadRoom is how many processes and threads are kept for the server and its shims
// where their number is bounded: Go crashes when it cannot have another thread, so
// a fork bomb must not take the last one.
const HeadRoom = 64

// Room is how many processes and threads there can be.
type Room struct {
	Most  int    // of the server and all trees together; 0: no bound is known
	Bound string // what bounds them
	Limit int    // how far the processes of trees may go, by their RLIMIT_NPROC; 0: they may take all
}

// Processes tells what bounds this process in the number of processes, and what is
// kept for the server. RLIMIT_NPROC counts those of a user wherever they are, in other
// containers, too. So it keeps something free of its own kind alone: derived from the
// bound of a cgroup it would have workers pay for what others do elsewhere. To root it
// is nothing.
func Processes() Room {
	room := Room{Most: math.MaxInt}
	var own unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NPROC, &own) == nil && os.Geteuid() != 0 && own.Cur < math.MaxInt32 {
		room.Most, room.Bound = int(own.Cur), "RLIMIT_NPROC"
		room.Limit = max(room.Most-HeadRoom, room.Most/2, 1)
	}
	cgroup, _ := os.ReadFile("/proc/self/cgroup")
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for _, dir := range pidsGroups(string(cgroup), string(mounts)) {
		text, err := os.ReadFile(filepath.Join(dir, "pids.max"))
		if err != nil {
			continue
		}
		if most, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && most < room.Most { // "max" is no number
			room.Most, room.Bound = most, "pids.max of "+dir
		}
	}
	if room.Most == math.MaxInt {
		return Room{}
	}
	return room
}

// pidsGroups lists the cgroups of a process, and those above them, that may bound the
// number of processes, as directories.
func pidsGroups(cgroup, mounts string) (dirs []string) {
	for line := range strings.Lines(cgroup) { // number:controllers:path
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) < 3 || fields[0] != "0" && !slices.Contains(strings.Split(fields[1], ","), "pids") {
			continue
		}
		for mount := range strings.Lines(mounts) {
			// … … … root point … - type device options
			front, back, found := strings.Cut(mount, " - ")
			where, what := strings.Fields(front), strings.Fields(back)
			if !found || len(where) < 5 || len(what) < 3 {
				continue
			}
			unified := fields[0] == "0" && what[0] == "cgroup2"
			legacy := fields[0] != "0" && what[0] == "cgroup" && slices.Contains(strings.Split(what[2], ","), "pids")
			if !unified && !legacy {
				continue
			}
			root, point := where[3], where[4]
			// In a container the path may lie outside of what is mounted; then the
			// mount itself is the nearest group that can be seen.
			inside, err := filepath.Rel(root, fields[2])
			if err != nil || inside == ".." || strings.HasPrefix(inside, "../") {
				inside = "."
			}
			for dir := filepath.Join(point, inside); len(dir) >= len(point); dir = filepath.Dir(dir) {
				dirs = append(dirs, dir)
			}
			break
		}
	}
	return dirs
}

// limits are those of a tree, for its shim.
func (h *Host) limits(l Limits) reap.Limits {
	order := reap.Limits{Memory: l.Memory, Pids: int64(l.Pids), CPUs: int64(math.Ceil(1000 * l.CPUs)), Nproc: h.processes}
	if l.CPUs > 0 {
		wide := int64(math.Ceil(l.CPUs))
		order.First = int(h.bound.Add(wide) - wide)
	}
	return order
}

// How a limit is enforced.
const (
	ByCgroup   = "cgroup"   // by the kernel, exactly
	BySampling = "sampled"  // by looking now and then
	ByAffinity = "affinity" // by binding to processors, in whole ones; a program can undo it
)

// Enforcement tells how each of the limits that are given is enforced, by its name
// in the config.
func (h *Host) Enforcement(l Limits) map[string]string {
	how := map[string]string{}
	for _, limit := range []struct {
		given               bool
		name                string
		controller, without string
	}{
		{l.Memory > 0, reap.LimitMemory, "memory", BySampling},
		{l.Pids > 0, reap.LimitPids, "pids", BySampling},
		{l.CPUs > 0, "cpus", "cpu", ByAffinity},
	} {
		switch {
		case !limit.given:
		case slices.Contains(h.controllers, limit.controller):
			how[limit.name] = ByCgroup
		default:
			how[limit.name] = limit.without
		}
	}
	return how
}
