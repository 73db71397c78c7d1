//go:build linux && !portable

// Command kill measures from the decision to kill a tree to the proof that nothing is
// left of it, for trees of 1 to 1,000 processes, half of which are orphans in sessions
// of their own: by hangup's host, with cgroups, with a signal scope alone and with neither, beside the least that can
// be done by hand. It measures what a shim costs, too. All is interleaved in one run;
// ratios of the medians are what to look at.
//
// It needs bin/hangup-shim (make build).
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"example.com/hangup/internal/proc"
)

var (
	shim   = flag.String("shim", "bin/hangup-shim", "the shim to measure")
	rounds = flag.Int("rounds", 15, "rounds of each")
	most   = flag.Int("most", 1000, "processes of the largest tree")
	role   = flag.String("role", "", "internal: be a bare killer")
	size   = flag.Int("size", 1, "internal: processes of its tree")
)

func main() {
	flag.Parse()
	var err error
	switch *role {
	case "":
		err = measure()
	default:
		err = bare(*role == bareGroup, *size)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "kill:", err)
		os.Exit(1)
	}
}

// The subjects, and the floor beside which each stands.
const (
	bareGroup = "bare cgroup.kill"
	bareLoop  = "bare kill loop"
	withGroup = "hangup, cgroup"
	withScope = "hangup, signal scope"
	without   = "hangup, neither"
)

var (
	subjects = []string{bareGroup, bareLoop, withGroup, withScope, without}
	floors   = map[string]string{withGroup: bareGroup, withScope: bareLoop, without: bareLoop}
	sizes    = []int{1, 10, 100, 1000}
)

// tree is a script of n processes: the main one, and children of which every other is
// an orphan in a session of its own.
func tree(n int) []string {
	return []string{"/bin/sh", "-c", `i=1; while [ $i -lt $0 ]; do i=$((i+1))
		if [ $((i%2)) = 0 ]; then sleep 1000 & else (setsid sleep 1000 &) ; fi
	done; exec sleep 1000`, strconv.Itoa(n)}
}

// grown waits until all n processes are what they are to be.
func grown(top, n int) error {
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		ready := 0
		for _, p := range proc.Look(top)[1:] {
			if strings.HasPrefix(p.Command, "sleep") && p.State == "S" {
				ready++
			}
		}
		if ready == n {
			return nil
		}
	}
	return fmt.Errorf("a tree of %d processes does not grow", n)
}

func measure() error {
	hosts := make(map[string]*proc.Host)
	for name, o := range map[string]proc.Options{
		withGroup: {Cgroup: proc.CgroupAuto},
		withScope: {Cgroup: proc.CgroupNever},
		without:   {Cgroup: proc.CgroupNever, NoScope: true},
	} {
		o.Shim, o.Patience = *shim, time.Minute // no supervisor here could end the tree of a shim that was given up
		host, err := proc.Open(o)
		if err != nil {
			return err
		}
		defer host.Close()
		hosts[name] = host
	}
	took := make(map[string]map[int][]time.Duration)
	for _, name := range subjects {
		took[name] = make(map[int][]time.Duration)
	}
	for range *rounds {
		for _, n := range sizes {
			if n > *most {
				continue
			}
			for _, name := range subjects {
				one, err := once(name, n, hosts[name])
				if err != nil {
					return fmt.Errorf("%s, %d processes: %w", name, n, err)
				}
				took[name][n] = append(took[name][n], one)
			}
		}
	}
	fmt.Printf("decision to empty, ms: median (worst) of %d rounds, and the ratio to the floor\n\n%-20s", *rounds, "processes")
	for _, name := range subjects {
		fmt.Printf(" %28s", name)
	}
	fmt.Println()
	for _, n := range sizes {
		if n > *most {
			continue
		}
		fmt.Printf("%-20d", n)
		for _, name := range subjects {
			cell := fmt.Sprintf("%.2f (%.2f)", ms(median(took[name][n])), ms(slices.Max(took[name][n])))
			if floor, ok := floors[name]; ok {
				cell += fmt.Sprintf(" %.2fx", ms(median(took[name][n]))/ms(median(took[floor][n])))
			}
			fmt.Printf(" %28s", cell)
		}
		fmt.Println()
	}
	return cost(hosts)
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func median(list []time.Duration) time.Duration {
	return slices.Sorted(slices.Values(list))[len(list)/2]
}

// once measures one kill by one subject; host is nil for those by hand.
func once(name string, n int, host *proc.Host) (time.Duration, error) {
	if host == nil {
		return byHand(name, n)
	}
	t, err := host.Start(context.Background(), proc.Spec{Argv: tree(n), Env: os.Environ(), Files: make([]*os.File, 3)})
	if err != nil {
		return 0, err
	}
	if err := grown(t.ShimPid(), n); err != nil {
		return 0, err
	}
	began := time.Now()
	t.Kill()
	<-t.Done()
	return time.Since(began), nil
}

// byHand has a process of its own start a tree and kill it, and say how long it took.
func byHand(name string, n int) (time.Duration, error) {
	cmd := exec.Command("/proc/self/exe", "-role", name, "-size", strconv.Itoa(n))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return 0, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	if err := grown(cmd.Process.Pid, n); err != nil {
		return 0, err
	}
	fmt.Fprintln(in, "go")
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return 0, err
	}
	took, err := time.ParseDuration(strings.TrimSpace(line))
	if err != nil {
		return 0, err
	}
	return took, cmd.Wait()
}

// cost measures what a shim costs beside the worker it holds.
func cost(hosts map[string]*proc.Host) error {
	const trees = 8
	var starts []time.Duration
	for range max(*rounds, 5) {
		began := time.Now()
		host, err := proc.Open(proc.Options{Shim: *shim, Cgroup: proc.CgroupNever})
		if err != nil {
			return err
		}
		starts = append(starts, time.Since(began))
		if err := host.Close(); err != nil {
			return err
		}
	}
	fmt.Printf("\na shim: started and greeted in %.2f ms (median)\n", ms(median(starts)))
	for _, name := range []string{withGroup, withScope, without} {
		before := descriptors("self")
		var held []*proc.Tree
		memory, theirs := 0.0, 0
		for range trees {
			t, err := hosts[name].Start(context.Background(), proc.Spec{Argv: tree(1), Env: os.Environ(), Files: make([]*os.File, 3)})
			if err != nil {
				return err
			}
			held = append(held, t)
		}
		for _, t := range held {
			pid := strconv.Itoa(t.ShimPid())
			memory += resident(pid)
			theirs += descriptors(pid)
		}
		fmt.Printf("%s: %.2f MB and %.0f descriptors of its own, %.1f of the server's, for each of %d workers\n",
			name, memory/trees, float64(theirs)/trees, float64(descriptors("self")-before)/trees, trees)
		for _, t := range held {
			t.Kill()
			<-t.Done()
		}
	}
	return nil
}

func descriptors(pid string) int {
	entries, _ := os.ReadDir(filepath.Join("/proc", pid, "fd"))
	return len(entries)
}

// resident returns the proportional share of memory in MB where it may be read, which
// is by root, and else all that is resident.
func resident(pid string) float64 {
	if rollup, err := os.Open(filepath.Join("/proc", pid, "smaps_rollup")); err == nil {
		defer rollup.Close()
		if text, err := io.ReadAll(rollup); err == nil {
			for line := range strings.Lines(string(text)) {
				if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "Pss:" {
					kib, _ := strconv.ParseFloat(fields[1], 64)
					return kib / 1024
				}
			}
		}
	}
	number, _ := strconv.Atoi(pid)
	return float64(proc.RSS(number)) / (1 << 20)
}
