//go:build linux && !portable

package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"example.com/hangup/internal/cgroup"
)

// bare is the least that can be done by hand: a subreaper starts a tree, and when it
// is told to, kills and reaps it, by a cgroup of its own or one by one, and says how
// long that took. It knows what the tree is like, and is in nobody's way.
func bare(byGroup bool, n int) error {
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return err
	}
	attr := &syscall.ProcAttr{Env: os.Environ(), Sys: &syscall.SysProcAttr{Setsid: true}}
	var path string
	if byGroup {
		base, err := cgroup.Open()
		if err != nil {
			return err
		}
		defer base.Close()
		path = base.Path() + "/tree"
		if err := os.Mkdir(path, 0o755); err != nil {
			return err
		}
		defer os.Remove(path)
		dir, err := os.Open(path)
		if err != nil {
			return err
		}
		defer dir.Close()
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(dir.Fd())
	}
	argv := tree(n)
	if _, err := syscall.ForkExec(argv[0], argv, attr); err != nil {
		return err
	}
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	began := time.Now()
	if byGroup {
		if err := cgroup.Kill(path); err != nil {
			return err
		}
		for wait(0) {
		}
		for cgroup.Populated(path) {
		}
	} else {
		for wait(unix.WNOHANG) {
			for _, pid := range children() {
				if group, err := unix.Getpgid(pid); err == nil && group != unix.Getpgrp() {
					unix.Kill(-group, unix.SIGKILL)
				}
				unix.Kill(pid, unix.SIGKILL)
			}
			wait(0)
		}
	}
	fmt.Println(time.Since(began))
	return nil
}

// wait reaps one child, or with WNOHANG all that are dead, and reports whether any is left.
func wait(options int) bool {
	for {
		pid, err := unix.Wait4(-1, nil, options|unix.WALL, nil)
		if err == unix.ECHILD {
			return false
		}
		if err == nil && (pid == 0 || options == 0) {
			return true
		}
	}
}

// children lists the own children, which are of this thread alone.
func children() []int {
	list, _ := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/children", unix.Gettid()))
	var pids []int
	for _, field := range bytes.Fields(list) {
		if pid, err := strconv.Atoi(string(field)); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}
