package proctest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Patience is how long the oracle, and tests, wait for what must come true.
const Patience = 30 * time.Second

// Check makes sure that the test leaves nothing behind: no process or zombie below
// this process or below roots, no process that was started with [Env] and fled, no
// cgroup, no descriptor, no goroutine. It is called first, so that it looks last.
func Check(t testing.TB, roots ...int) {
	t.Helper()
	descriptors := openDescriptors()
	goroutines := runtime.NumGoroutine()
	t.Cleanup(func() {
		t.Helper()
		if left := until(func() []string { return leftProcesses(roots) }); len(left) > 0 {
			t.Errorf("%d processes left:\n\t%s", len(left), strings.Join(left, "\n\t"))
		}
		if left := until(leftGroups); len(left) > 0 {
			t.Errorf("%d cgroups left:\n\t%s", len(left), strings.Join(left, "\n\t"))
		}
		if left := until(func() []string { return added(openDescriptors(), descriptors) }); len(left) > 0 {
			t.Errorf("%d descriptors left:\n\t%s", len(left), strings.Join(left, "\n\t"))
		}
		if left := until(func() []string { return extraGoroutines(goroutines) }); len(left) > 0 {
			var stacks bytes.Buffer
			pprof.Lookup("goroutine").WriteTo(&stacks, 1)
			t.Errorf("%s:\n%s", left[0], &stacks)
		}
	})
}

// warmUp has the runtime open the descriptors it keeps for itself.
func warmUp() {
	if r, w, err := os.Pipe(); err == nil {
		r.Close()
		w.Close()
	}
}

// until asks again until nothing is left, or Patience is over.
func until(left func() []string) []string {
	var found []string
	Eventually(func() bool {
		found = left()
		return len(found) == 0
	})
	return found
}

// Eventually asks again and again whether something has come true, for as long as
// Patience lasts. It is for states of the kernel, which tells nobody. It asks less
// and less often: who asks is in the way of what is to come.
func Eventually(came func() bool) bool {
	pause := time.Millisecond
	for deadline := time.Now().Add(Patience); ; {
		if came() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
		time.Sleep(pause)
		pause = min(2*pause, 16*time.Millisecond)
	}
}

// A process as /proc shows it.
type process struct {
	pid, ppid int
	name      string
	state     string
}

func (p process) String() string {
	command, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.pid))
	return fmt.Sprintf("pid %d, parent %d, state %s: %s %q", p.pid, p.ppid, p.state, p.name, bytes.ReplaceAll(command, []byte{0}, []byte{' '}))
}

// processes reads every process there is.
func processes() map[int]process {
	all := make(map[int]process)
	paths, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range paths {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		// pid (name) state ppid …, and the name may hold anything.
		begin, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
		fields := strings.Fields(string(stat[end+1:]))
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		ppid, _ := strconv.Atoi(fields[1])
		all[pid] = process{pid, ppid, string(stat[begin+1 : end]), fields[0]}
	}
	return all
}

// Descendants returns the pids of all that is below pid, zombies too.
func Descendants(pid int) []int {
	var pids []int
	for _, p := range below(processes(), pid) {
		pids = append(pids, p.pid)
	}
	return pids
}

func below(all map[int]process, root int) []process {
	children := make(map[int][]process)
	for _, p := range all {
		children[p.ppid] = append(children[p.ppid], p)
	}
	found := slices.Clone(children[root])
	delete(children, root) // each only once: where pids are reused, the picture may hold a ring
	for i := 0; i < len(found); i++ {
		found = append(found, children[found[i].pid]...)
		delete(children, found[i].pid)
	}
	slices.SortFunc(found, func(a, b process) int { return a.pid - b.pid })
	return found
}

func leftProcesses(roots []int) []string {
	all := processes()
	left := make(map[int]process)
	for _, root := range append(roots, os.Getpid()) {
		for _, p := range below(all, root) {
			left[p.pid] = p
		}
	}
	for _, p := range all {
		if p.pid != os.Getpid() && Marked(p.pid) {
			left[p.pid] = p
		}
	}
	var lines []string
	for _, p := range left {
		lines = append(lines, p.String())
	}
	slices.Sort(lines)
	return lines
}

// Marked says whether pid was started by this run with [Env].
func Marked(pid int) bool {
	env, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	return bytes.Contains(append([]byte{0}, env...), []byte("\x00"+runEnv+"="+os.Getenv(runEnv)+"\x00"))
}

// openDescriptors lists this process's descriptors with what they lead to.
func openDescriptors() []string {
	var list []string
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	for _, name := range names {
		if name == strconv.Itoa(int(dir.Fd())) {
			continue
		}
		if target, err := os.Readlink("/proc/self/fd/" + name); err == nil {
			list = append(list, name+" → "+target)
		}
	}
	slices.Sort(list)
	return list
}

func added(now, before []string) []string {
	return slices.DeleteFunc(now, func(line string) bool { return slices.Contains(before, line) })
}

func extraGoroutines(before int) []string {
	if now := runtime.NumGoroutine(); now > before {
		return []string{fmt.Sprintf("%d goroutines more than the %d at the beginning", now-before, before)}
	}
	return nil
}
