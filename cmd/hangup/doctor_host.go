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
	"example.com/hangup/internal/proc"
)

// examineHost looks at this host.
func examineHost(ctx context.Context, c config.Config) []finding {
	list := []finding{kernel(), pidfds()}
	list = append(list, trees(ctx)...)
	return append(list, cgroups(), landlock(), user(), procfs(), descriptors(c.Limits.Connections), first(), spoolDir(c.Spool.Dir))
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
func trees(ctx context.Context) []finding {
	const together = "install hangup and hangup-shim of one build in one directory; make build does"
	path, err := proc.FindShim()
	if err != nil {
		return []finding{{"shim", missing, err.Error(), together}}
	}
	host, err := proc.Open(proc.Options{Shim: path})
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
	grown := eventually(func() bool { return len(proc.Look(tree.ShimPid())) == 1+treeSize }) == nil
	list = append(list, privileges(tree.Pid()))
	tree.Kill()
	v := tree.Wait(ctx)
	switch {
	case !v.Empty:
		return append(list, finding{
			"containment", missing, fmt.Sprintf("a tree was not ended: %d processes are left (%s)", len(v.Survivors), v.Reason),
			"run hangup as an ordinary user, without new_privileges",
		})
	case !grown:
		return append(list, finding{
			"containment", weaker, fmt.Sprintf("subreaper: a tree was ended in %s (%s), and its processes could not be seen", ms(v.Took), v.Proof),
			"mount /proc without hidepid",
		})
	}
	return append(list, finding{
		Check: "containment", Verdict: sound,
		Detail: fmt.Sprintf("subreaper: a tree of %d processes in %d sessions was ended and reaped in %s (%s)", v.Reaped, treeSize, ms(v.Took), v.Proof),
	})
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

func cgroups() finding {
	detail := "not used by this version, whatever the host has"
	if data, err := os.ReadFile("/proc/self/mountinfo"); err == nil && strings.Contains(string(data), " - cgroup2 ") {
		detail = "v2 is mounted here, and not used by this version"
	}
	return finding{"cgroup", weaker, detail + ": no bound on a workload's memory, and a fork bomb takes longer to end", ""}
}

func landlock() finding {
	const signals = 6 // the ABI that keeps signals in
	const version = 1 // LANDLOCK_CREATE_RULESET_VERSION: tell the ABI, make nothing
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, version)
	f := finding{Check: "landlock", Verdict: weaker, Remedy: "do not share the server's user with work that you do not trust"}
	switch {
	case errno != 0:
		f.Detail = "the kernel has none (" + errno.Error() + ")"
	case abi < signals:
		f.Detail = fmt.Sprintf("ABI %d, %d or more would keep signals in", abi, signals)
	default:
		f.Detail = fmt.Sprintf("ABI %d is there, and not used by this version", abi)
	}
	f.Detail += ": a worker can signal other processes of its user"
	return f
}

func user() finding {
	if uid := os.Geteuid(); uid != 0 {
		return finding{Check: "user", Verdict: sound, Detail: fmt.Sprintf("uid %d", uid)}
	}
	return finding{"user", weaker, "root: the workers would be root, too, and nothing keeps them from the rest of the machine", "run hangup as an ordinary user"}
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
