package proctest

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// Group returns the cgroup (version 2) that this process is in, or "" where none is
// to be seen. Main gives each lane one of its own, in which it may make others.
func Group() string {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(own)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok && groupMount() != "" {
			return filepath.Join(groupMount(), path)
		}
	}
	return ""
}

// groupMount finds where cgroups of version 2 are mounted.
func groupMount() string {
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range bytes.Lines(mounts) {
		// id parent device root mountpoint options … - type source options
		place, kind, _ := bytes.Cut(line, []byte(" - "))
		if fields := bytes.Fields(place); bytes.HasPrefix(kind, []byte("cgroup2 ")) && len(fields) > 4 {
			return string(fields[4])
		}
	}
	return ""
}

// leftGroups lists the cgroups below this lane's own.
func leftGroups() []string {
	if !ownGroup() {
		return nil // others make some there, too
	}
	var left []string
	entries, _ := os.ReadDir(Group())
	for _, entry := range entries {
		if entry.IsDir() {
			left = append(left, filepath.Join(Group(), entry.Name()))
		}
	}
	return left
}

// OldGroup makes a cgroup of version 1 that has the controller, and removes it with the
// test. Such are of hybrid hosts alone, and there only root's.
func OldGroup(t testing.TB, controller string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root may make a cgroup of version 1")
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		place, kind, _ := strings.Cut(strings.TrimSpace(line), " - ")
		options := strings.FieldsFunc(kind, func(r rune) bool { return r == ' ' || r == ',' })
		if fields := strings.Fields(place); options[0] != "cgroup" || !slices.Contains(options, controller) || len(fields) < 5 {
			continue
		} else if dir := filepath.Join(fields[4], groupPrefix+strconv.Itoa(os.Getpid())); os.Mkdir(dir, 0o755) == nil {
			t.Cleanup(func() {
				var err error
				if !Eventually(func() bool { err = os.Remove(dir); return err == nil }) {
					t.Error(err)
				}
			})
			return dir
		}
	}
	Host(t, "no cgroup of version 1 with %s can be made: mount -t cgroup -o %s none /sys/fs/cgroup/%[1]s", controller, controller)
	return ""
}

const groupPrefix = "proctest-"

func ownGroup() bool { return strings.HasPrefix(filepath.Base(Group()), groupPrefix) }

// enterGroup moves this process into a cgroup of its own and returns how to leave
// it. Without the power, or without such cgroups, the process stays where it is.
func enterGroup() (leave func()) {
	outside := Group()
	if outside == "" {
		return func() {}
	}
	sweepGroups(outside)
	inside, err := makeGroup(outside, os.Getuid())
	if err != nil {
		return func() {}
	}
	if err := moveTo(inside); err != nil {
		os.Remove(inside)
		return func() {}
	}
	return func() {
		if moveTo(outside) == nil {
			os.Remove(inside)
		}
	}
}

// sweepGroups removes the groups of runs that were killed.
func sweepGroups(outside string) {
	groups, _ := filepath.Glob(filepath.Join(outside, groupPrefix+"*"))
	for _, group := range groups {
		pid, err := strconv.Atoi(group[strings.LastIndexByte(group, '-')+1:])
		if err == nil && syscall.Kill(pid, 0) == syscall.ESRCH {
			removeGroup(group)
		}
	}
}

// RemoveGroup removes the group of that name below the lane's own.
func RemoveGroup(name string) { removeGroup(filepath.Join(Group(), name)) }

// removeGroup removes a group and those below it, as far as no process is in them.
func removeGroup(group string) {
	entries, _ := os.ReadDir(group)
	for _, entry := range entries {
		if entry.IsDir() {
			removeGroup(filepath.Join(group, entry.Name()))
		}
	}
	os.Remove(group)
}

func moveTo(group string) error {
	return os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
}

// makeGroup makes a cgroup that belongs to uid, as a service manager delegates one.
func makeGroup(outside string, uid int) (string, error) {
	group := filepath.Join(outside, groupPrefix+strconv.Itoa(uid)+"-"+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(group, 0o755); err != nil {
		return "", err
	}
	for _, name := range []string{"", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"} {
		if err := os.Chown(filepath.Join(group, name), uid, uid); err != nil {
			os.Remove(group)
			return "", err
		}
	}
	return group, nil
}

// startIn has attr start a process in a cgroup that belongs to its user, below the
// own one, and returns what removes that; where there can be none, in the own one.
func startIn(attr *syscall.SysProcAttr, uid int) (remove func()) {
	if !ownGroup() {
		return func() {}
	}
	group, err := makeGroup(Group(), uid)
	if err != nil {
		return func() {}
	}
	dir, err := os.Open(group)
	if err != nil {
		os.Remove(group)
		return func() {}
	}
	inGroup(attr, int(dir.Fd()))
	return func() {
		dir.Close()
		os.Remove(group)
	}
}
