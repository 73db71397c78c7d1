//go:build linux

package cgroup

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// find returns the directory of this process's cgroup in the v2 hierarchy.
func find() (string, error) {
	membership, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", &Missing{"cannot tell the own cgroup: " + err.Error(), "mount -t proc proc /proc"}
	}
	own, ok := ownPath(string(membership))
	if !ok {
		return "", &Missing{"the kernel has no cgroup v2", "Linux 5.14 or later, built with cgroups"}
	}
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", &Missing{"cannot tell where cgroups are mounted: " + err.Error(), "mount -t proc proc /proc"}
	}
	mounts := mountsOf(string(info))
	if len(mounts) == 0 {
		return "", &Missing{"cgroup v2 is not mounted", "mount -t cgroup2 none /sys/fs/cgroup; in a container, have the container manager do so"}
	}
	threaded := false
	for _, m := range mounts {
		dir, ok := m.dir(own)
		if !ok {
			continue
		}
		// What is mounted over the directory may be another one of the name.
		if slices.Contains(lines(dir, "cgroup.procs"), strconv.Itoa(os.Getpid())) {
			return dir, nil
		}
		threaded = threaded || slices.Contains(lines(dir, "cgroup.type"), "threaded")
	}
	if threaded {
		return "", &Missing{"the own cgroup " + own + " is a threaded one", "start hangup in a cgroup of type domain"}
	}
	return "", &Missing{
		"the own cgroup " + own + " is not in what is mounted at " + mounts[0].point,
		"a cgroup namespace of its own for the container (docker: --cgroupns=private), or the whole hierarchy mounted",
	}
}

// ownPath takes the path in the v2 hierarchy out of /proc/PID/cgroup.
func ownPath(membership string) (string, bool) {
	for line := range strings.Lines(membership) {
		if path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok {
			return path, true
		}
	}
	return "", false
}

// A mount shows the cgroup root, and those below it, at point.
type mount struct{ root, point string }

// mountsOf lists the mounts of the v2 hierarchy in a mountinfo.
func mountsOf(info string) (list []mount) {
	for line := range strings.Lines(info) {
		// id parent device root point options … - type source options
		before, after, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
		fields := strings.Fields(before)
		if ok && strings.HasPrefix(after, "cgroup2 ") && len(fields) >= 5 {
			list = append(list, mount{unescape.Replace(fields[3]), unescape.Replace(fields[4])})
		}
	}
	return list
}

// unescape undoes what mountinfo does to characters that would split its lines.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// dir returns where the mount shows a cgroup. Both paths are as this process's
// cgroup namespace has them; what is above its root begins with /.. there, and has
// no name.
func (m mount) dir(path string) (string, bool) {
	relative, err := filepath.Rel(m.root, path)
	if err != nil || relative == ".." || strings.HasPrefix(relative, "../") || strings.HasPrefix(m.root, "/..") || strings.HasPrefix(path, "/..") {
		return "", false
	}
	return filepath.Join(m.point, relative), true
}
