//go:build linux

package reap

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"example.com/hangup/internal/proctest"
)

// plainGroup is a directory with plain files in place of a cgroup: what it shows is
// what is written and how it is read, and nothing of what a kernel makes of it.
func plainGroup(t *testing.T, files map[string]string) *group {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	g, err := openGroup(unix.AT_FDCWD, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.close)
	return g
}

// What a cgroup has a file for is written there, and the rest is left to the shim.
func TestGuardWrites(t *testing.T) {
	all := Limits{Memory: 512 << 20, Pids: 100, CPUs: 1500, Nproc: 5}
	for _, test := range []struct {
		name  string
		files []string
		given Limits
		want  map[string]string // by the end
		left  Limits
	}{
		{
			"every controller",
			[]string{"memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.max"},
			all,
			map[string]string{"memory.max": "536870912", "memory.swap.max": "0", "memory.oom.group": "1", "pids.max": "100", "cpu.max": "150000 100000"},
			Limits{Nproc: 5},
		},
		{"no swap", []string{"memory.max", "memory.oom.group"}, Limits{Memory: 1}, map[string]string{"memory.max": "1", "memory.oom.group": "1"}, Limits{}},
		{"pids alone", []string{"pids.max"}, all, map[string]string{"pids.max": "100"}, Limits{Memory: 512 << 20, CPUs: 1500, Nproc: 5}},
		{"none", nil, all, nil, all},
		{"nothing given", []string{"memory.max", "pids.max", "cpu.max"}, Limits{}, map[string]string{"memory.max": "", "pids.max": "", "cpu.max": ""}, Limits{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			files := map[string]string{}
			for _, name := range test.files {
				files[name] = ""
			}
			group := plainGroup(t, files)
			g, err := newGuard(group, test.given)
			if err != nil {
				t.Fatal(err)
			}
			for name, want := range test.want {
				if got := string(group.read(name)); got != want {
					t.Errorf("%s holds %q, want %q", name, got, want)
				}
			}
			if g.left != test.left {
				t.Errorf("left to the shim: %+v, want %+v", g.left, test.left)
			}
		})
	}
	if g, err := newGuard(nil, all); err != nil || g.left != all {
		t.Errorf("without a cgroup: %+v, %v", g, err)
	}
}

func TestGuardReads(t *testing.T) {
	const memory, pids = "low 0\nhigh 0\nmax 7\noom %d\noom_kill %d\noom_group_kill 0\n", "max %d\n"
	for _, test := range []struct {
		name             string
		limits           Limits
		oom, kills, pids int
		exceeded         string
		starved          bool
	}{
		{"nothing happened", Limits{Memory: 1, Pids: 1}, 3, 2, 5, "", false},
		{"killed at its limit", Limits{Memory: 1, Pids: 1}, 4, 3, 5, LimitMemory, true},
		{"at its limit, and nobody killed", Limits{Memory: 1}, 4, 2, 5, "", false},
		{"killed at the limit of a cgroup above", Limits{Memory: 1}, 3, 3, 5, "", true},
		{"killed without a limit", Limits{}, 3, 3, 5, "", true},
		{"a fork failed", Limits{Memory: 1, Pids: 1}, 3, 2, 6, LimitPids, false},
		{"a fork failed at the limit of a cgroup above", Limits{}, 3, 2, 6, "", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			group := plainGroup(t, map[string]string{
				"memory.max": "", "memory.oom.group": "", "pids.max": "",
				"memory.events": fmt.Sprintf(memory, 3, 2), "pids.events": fmt.Sprintf(pids, 5),
			})
			g, err := newGuard(group, test.limits)
			if err != nil {
				t.Fatal(err)
			}
			g.host = hostKills()
			group.write("memory.events", fmt.Sprintf(memory, test.oom, test.kills))
			group.write("pids.events", fmt.Sprintf(pids, test.pids))
			if got := g.exceeded(); got != test.exceeded {
				t.Errorf("exceeded %q, want %q", got, test.exceeded)
			}
			if got := g.starved(); got != test.starved {
				t.Errorf("starved: %v, want %v", got, test.starved)
			}
		})
	}
}

// A fork that fails in the program's own cgroup ends its tree as looking at it does.
func TestMeterReadsCounters(t *testing.T) {
	group := plainGroup(t, map[string]string{"pids.max": "", "pids.events": "max 0\n"})
	g, err := newGuard(group, Limits{Pids: 10})
	if err != nil {
		t.Fatal(err)
	}
	g.watch(os.Getpid(), User{})
	defer g.end()
	group.write("pids.events", "max 1\n")
	if limit := <-g.over; limit != LimitPids {
		t.Errorf("over %q", limit)
	}
}

// grow is a program that has x MiB, and does what it is told by lines of its stdin:
// it says "done" each time.
const grow = `import os, sys, signal
x = bytearray(b'x') * (%d << 20)
print("done", flush=True)
for line in sys.stdin:
 words = line.split()
 if words[0] == "fork":
  for i in range(int(words[1])):
   if os.fork() == 0: signal.pause()
 if words[0] == "vfork":
  if os.fork() == 0: # posix_spawn, in a process of its own, waits for a writer
   os.posix_spawn("/bin/true", ["true"], {}, file_actions=[(os.POSIX_SPAWN_OPEN, 0, words[1], os.O_RDONLY, 0)])
   os._exit(0)
 if words[0] == "write":
  x = bytearray(b'y') * len(x) * 3
 print("done", flush=True)
`

// A grown program is below this process; root is its parent.
type grown struct {
	t     *testing.T
	stdin io.Writer
	said  *bufio.Scanner
	meter *meter
}

func startGrown(t *testing.T, mib int, l Limits) *grown {
	t.Helper()
	python := proctest.Need(t, "python3", "python3")
	proctest.Check(t)
	cmd := exec.Command(python, "-c", fmt.Sprintf(grow, mib))
	cmd.Env, cmd.Stderr = proctest.Env(), os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		cmd.Wait()
	})
	g := &grown{t: t, stdin: stdin, said: bufio.NewScanner(stdout), meter: &meter{root: os.Getpid(), guard: &guard{left: l}}}
	g.hear()
	return g
}

func (g *grown) hear() {
	g.t.Helper()
	if !g.said.Scan() || g.said.Text() != "done" {
		g.t.Fatalf("the program says %q", g.said.Text())
	}
}

func (g *grown) tell(what string) {
	g.t.Helper()
	fmt.Fprintln(g.stdin, what)
	g.hear()
}

// Memory that forked children have in common counts once, however many they are.
func TestMeterCountsSharedOnce(t *testing.T) {
	g := startGrown(t, 60, Limits{Memory: 150 << 20})
	g.tell("fork 5")
	for range 3 {
		if limit := g.meter.look(); limit != "" {
			t.Fatalf("over %q while all of it is shared", limit)
		}
	}
	resident := int64(0)
	for _, u := range g.meter.count() {
		resident += u.resident
	}
	if resident < 6*60<<20 {
		t.Errorf("%d bytes in memory, and it was to be asked more exactly", resident)
	}
	g.tell("write")
	if limit := g.meter.look(); limit != LimitMemory {
		t.Errorf("over %q, want %q", limit, LimitMemory)
	}
}

// A child that is still in the memory of its parent, just before its exec, does not
// count as another one.
func TestMeterPassesOverVfork(t *testing.T) {
	g := startGrown(t, 60, Limits{Memory: 150 << 20})
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	g.tell("fork 0")
	g.meter.look()
	g.tell("vfork " + fifo)
	spawning := func() bool { // two below the program: the one that spawns, and the spawned
		return len(proctest.Descendants(os.Getpid())) == 3
	}
	if !proctest.Eventually(spawning) {
		t.Fatal("no child of vfork")
	}
	tree := g.meter.count()
	if deepest := tree[len(tree)-1]; !deepest.shares {
		t.Errorf("%+v is not taken for a child of vfork", deepest)
	}
	tree = g.meter.count()
	if deepest := tree[len(tree)-1]; deepest.shares {
		t.Errorf("%+v is taken for one for good", deepest)
	}
}

func TestMeterCountsTasks(t *testing.T) {
	g := startGrown(t, 1, Limits{Pids: 5})
	g.tell("fork 4")
	if limit := g.meter.look(); limit != "" {
		t.Errorf("over %q with as many as it may have", limit)
	}
	g.tell("fork 1")
	if limit := g.meter.look(); limit != LimitPids {
		t.Errorf("over %q, want %q", limit, LimitPids)
	}
}

func TestCounter(t *testing.T) {
	const lines = "max 3\noom 1\noom_kill 2\n"
	for name, want := range map[string]int64{"max": 3, "oom": 1, "oom_kill": 2, "o": 0, "kill": 0} {
		if got := counter([]byte(lines), name); got != want {
			t.Errorf("%s: %d, want %d", name, got, want)
		}
	}
	if !strings.Contains(string(read("/proc/vmstat")), "\noom_kill ") {
		t.Log("this kernel does not count whom it kills for want of memory")
	}
}
