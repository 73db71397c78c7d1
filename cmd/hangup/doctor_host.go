//go:build linux && !portable

package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"example.com/hangup/internal/config"
	"example.com/hangup/internal/event"
	"example.com/hangup/internal/proc"
)

// examineHost looks at this host.
func examineHost(ctx context.Context, c config.Config) []finding {
	list := []finding{kernel(), pidfds()}
	list = append(list, trees(ctx, c)...)
	list = append(list, users(c.Workloads)...)
	return append(list, procfs(), descriptors(c.Limits.Connections), headRoom(c.Workloads), first(), spoolDir(c.Spool.Dir), scratchDir(ctx, c.Spool.Dir))
}

func kernel() finding {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return finding{"kernel", missing, "cannot ask for its version: " + err.Error(), ""}
	}
	return finding{Check: "kernel", Verdict: sound, Detail: "Linux " + unix.ByteSliceToString(name.Release[:])}
}

func pidfds() finding {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return finding{
			"pidfd", missing, "the kernel gives none (" + err.Error() + "): a shim could not see that the server has died",
			"Linux 5.3 or later; in a container, a seccomp profile that allows pidfd_open",
		}
	}
	unix.Close(fd)
	return finding{Check: "pidfd", Verdict: sound, Detail: "shims see when the server dies"}
}

// treeSize is how many processes the tree has that doctor ends, each but the
// first in a session of its own.
const treeSize = 3

// trees starts a tree as the server would, ends it, and looks at what it was.
func trees(ctx context.Context, c config.Config) []finding {
	const together = "install hangup and hangup-shim of one build in one directory; make build does"
	path, err := proc.FindShim()
	if err != nil {
		return []finding{{"shim", missing, err.Error(), together}}
	}
	host, err := proc.Open(proc.Options{Shim: path, Cgroup: c.Containment.Cgroup})
	if err != nil {
		return []finding{{"shim", missing, err.Error(), together}}
	}
	defer host.Close()
	list := []finding{{Check: "shim", Verdict: sound, Detail: path + ", of this build"}}

	self, err := os.Executable()
	if err != nil {
		return append(list, finding{"containment", missing, "cannot find this program: " + err.Error(), ""})
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	tree, err := host.Start(ctx, proc.Spec{
		Argv: []string{self, "doctor", "--tree", fmt.Sprint(treeSize)}, Env: os.Environ(), Files: []*os.File{nil, nil, nil},
	})
	if err != nil {
		return append(list, finding{"containment", missing, err.Error(), "the log of the system may say who forbids it"})
	}
	grown := eventually(func() bool { // leaders of sessions: Go starts a passing process or two by itself
		leaders := 0
		for _, p := range proc.Look(tree.ShimPid()) {
			if p.Session == p.Pid && p.Pid != tree.ShimPid() {
				leaders++
			}
		}
		return leaders == treeSize
	}) == nil
	list = append(list, privileges(tree.Pid()))
	tree.Kill()
	v, held := tree.Wait(ctx), host.Containment()
	held.Isolation = isolation(held, c.Workloads)
	list = append(list, ended(v, held, c.Containment.Minimum, grown))
	return append(list, layers(held)...)
}

// ended says how the tree was held whose end is v; grown is whether all of it was seen.
func ended(v proc.Verdict, held event.Containment, minimum string, grown bool) finding {
	switch {
	case !v.Empty:
		return finding{
			"containment", missing, fmt.Sprintf("a tree was not ended: %d processes are left (%s)", len(v.Survivors), v.Reason),
			"run hangup as an ordinary user, without new_privileges",
		}
	case !held.Meets(minimum):
		return finding{
			"containment", missing, fmt.Sprintf("%s, isolation %s, and the config demands %s: serve would not start", held.Level, held.Isolation, minimum),
			"see below, or write a lower containment.minimum",
		}
	case !grown:
		return finding{
			"containment", weaker, fmt.Sprintf("%s, isolation %s: a tree was ended in %s (%s), and its processes could not be seen", held.Level, held.Isolation, ms(v.Took), v.Proof),
			"mount /proc without hidepid",
		}
	}
	return finding{
		Check: "containment", Verdict: sound,
		Detail: fmt.Sprintf("%s, isolation %s: a tree of %d processes in %d sessions was ended and reaped in %s (%s)", held.Level, held.Isolation, v.Reaped, treeSize, ms(v.Took), v.Proof),
	}
}

// privileges looks at a process of the tree.
func privileges(pid int) finding {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	switch {
	case err != nil:
		return finding{"no_new_privs", weaker, "cannot be seen: " + err.Error(), "mount /proc without hidepid"}
	case !strings.Contains(string(status), "NoNewPrivs:\t1\n"):
		return finding{
			"no_new_privs", missing, "is not set on workers: a set-user-ID program could become somebody whom the shim may not kill",
			"Linux 4.10 or later, and no sandbox that forbids prctl",
		}
	}
	return finding{Check: "no_new_privs", Verdict: sound, Detail: "set on workers, unless new_privileges is on: sudo and su give them nothing"}
}

// layers says of each layer what the host has found out. Two are left out: doctor has
// no supervisor above it, and looks at a process for no_new_privs.
func layers(held event.Containment) (list []finding) {
	for _, layer := range held.Layers {
		f := finding{Check: layer.Name, Verdict: sound, Detail: layer.Detail, Remedy: layer.Remedy}
		if !layer.On {
			f.Verdict = weaker
		}
		if layer.Name != "supervisor" && layer.Name != "no_new_privs" {
			list = append(list, f)
		}
	}
	return list
}

func procfs() finding {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return finding{"/proc", missing, "cannot be read: " + err.Error(), "mount -t proc proc /proc"}
	}
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 5 || fields[4] != "/proc" {
			continue
		}
		for option := range strings.SplitSeq(fields[len(fields)-1], ",") {
			if value, found := strings.CutPrefix(option, "hidepid="); found && value != "0" && value != "off" {
				return finding{
					"/proc", weaker, "hidepid=" + value + ": the server may not see its own shims, and so neither survivors nor what a call has started",
					"mount /proc without hidepid for the server, or with gid= a group of its user",
				}
			}
		}
	}
	return finding{Check: "/proc", Verdict: sound, Detail: "shows processes (no hidepid)"}
}

func first() finding {
	if os.Getpid() == 1 {
		return finding{Check: "PID 1", Verdict: sound, Detail: "this is PID 1: the supervisor reaps what nobody waits for, and needs no --init"}
	}
	return finding{Check: "PID 1", Verdict: sound, Detail: "another program is; hangup needs not be, and may be in a container"}
}
