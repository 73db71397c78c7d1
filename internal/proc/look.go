//go:build linux

package proc

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"example.com/hangup/internal/reap"
)

// tick is the unit of a process's start time in /proc/PID/stat: USER_HZ, which
// is 100 on every architecture Go runs on.
const tick = 10 * time.Millisecond

// Process is one process as the kernel shows it.
type Process struct {
	Pid, Parent, Session int
	State                string // the letter of /proc/PID/stat
	Started              int64  // ticks of 10 ms since boot; with Pid, it names the process for good
	Command              string // the command line, or the name where there is none
}

// Look shows root and every process below it, each after its parent, as they are
// now. It is a look, not a proof: the tree may change while it is read. A root
// that is not there makes an empty list.
func Look(root int) []Process {
	var list []Process
	for _, pid := range append([]int{root}, reap.Descendants(root)...) {
		if p, ok := look(pid); ok {
			list = append(list, p)
		}
	}
	return list
}

// There tells whether p, and not another process with its number, is still
// there, be it as a zombie.
func (p Process) There() bool {
	now, ok := glance(p.Pid)
	return ok && now.Started == p.Started
}

func look(pid int) (Process, bool) {
	p, ok := glance(pid)
	if line, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline"); ok && err == nil && len(line) > 0 {
		p.Command = string(bytes.TrimSpace(bytes.ReplaceAll(line, []byte{0}, []byte{' '})))
	}
	return p, ok
}

// glance looks at what the kernel knows by itself. The command line is in the memory
// of the process, and who reads there may have to wait for as long as that likes.
func glance(pid int) (Process, bool) {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return Process{}, false
	}
	// pid (name) state ppid pgrp session …: the name may hold anything. Counted
	// behind it, the start time is field 19.
	open, shut := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if open < 0 || shut < open {
		return Process{}, false
	}
	fields := bytes.Fields(stat[shut+1:])
	const state, ppid, session, started = 0, 1, 3, 19
	if len(fields) <= started {
		return Process{}, false
	}
	number := func(i int) int64 {
		n, _ := strconv.ParseInt(string(fields[i]), 10, 64)
		return n
	}
	p := Process{
		Pid: pid, Parent: int(number(ppid)), Session: int(number(session)),
		State: string(fields[state]), Started: number(started), Command: string(stat[open+1 : shut]),
	}
	return p, true
}

// SinceBoot returns the time since boot, suspended or not. It is the clock by
// which the kernel notes when a process was started.
func SinceBoot() time.Duration {
	var now unix.Timespec
	unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) // cannot fail: every Linux that has pidfds has it
	return time.Duration(now.Nano())
}

// StartedSince counts the processes of the tree that may have started at boot, a
// time by [SinceBoot], or after it. The kernel tells start times in ticks, so one
// that started just before may count, too; none that started after it is missed
// while it lives. It fails when the main process cannot be seen: it has ended, or
// nothing can be said of the others either.
func (t *Tree) StartedSince(boot time.Duration) (int, error) {
	since := int64(boot / tick)
	n, seen := 0, false
	for _, pid := range append([]int{t.top()}, reap.Descendants(t.top())...) {
		p, ok := glance(pid)
		if !ok {
			continue
		}
		seen = seen || p.Pid == t.Pid()
		if p.Pid != t.ShimPid() && p.Started >= since {
			n++
		}
	}
	if !seen {
		return 0, fmt.Errorf("cannot see process %d of the tree", t.Pid())
	}
	return n, nil
}
