//go:build linux

package cgroup

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Wanted are the controllers by which the limits of a workload are kept.
var Wanted = []string{"memory", "pids", "cpu"}

// leafName is the cgroup for the server and its supervisor where their own must be
// empty. It is always the same, so that one that was left behind is used again.
const leafName = "hangup-server"

// control enables the wanted controllers for the base, and by the base for those
// in it.
func (b *Base) control(pids []int) {
	there := words(b.own, "cgroup.controllers")
	given := words(b.own, "cgroup.subtree_control")
	for _, name := range Wanted {
		if slices.Contains(given, name) || !slices.Contains(there, name) {
			continue
		}
		if err := b.vacate(pids); err != nil {
			b.without = err
			break
		}
		if err := write(b.own, "cgroup.subtree_control", "+"+name); err != nil {
			b.without = b.mayNot(err)
			break
		}
		b.enabled = append(b.enabled, name)
	}
	var lacks []string
	for _, name := range Wanted {
		if slices.Contains(words(b.path, "cgroup.controllers"), name) && write(b.path, "cgroup.subtree_control", "+"+name) == nil {
			b.controllers = append(b.controllers, name)
		} else {
			lacks = append(lacks, name)
		}
	}
	if len(lacks) > 0 && b.without == nil {
		b.without = &Missing{
			"the cgroup " + b.own + " does not have " + strings.Join(lacks, ", "),
			"Delegate=yes in the systemd unit; on a host that still uses cgroup v1, move it to v2 (boot with systemd.unified_cgroup_hierarchy=1)",
		}
	}
}

func (b *Base) mayNot(err error) *Missing {
	return &Missing{"cannot enable them in " + b.own + ": " + err.Error(), "Delegate=yes in the systemd unit"}
}

// vacate moves the processes to the leaf. The kernel gives controllers to the
// cgroups below one that holds processes only where that is the real root, which
// has no type.
func (b *Base) vacate(pids []int) *Missing {
	if b.leaf != "" {
		return nil
	}
	if _, err := os.Stat(filepath.Join(b.own, "cgroup.type")); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, field := range words(b.own, "cgroup.procs") {
		if pid, _ := strconv.Atoi(field); !slices.Contains(pids, pid) {
			return &Missing{"process " + field + " is in " + b.own + ", too", "run hangup in a cgroup of its own: a systemd unit with Delegate=yes, systemd-run --scope -p Delegate=yes"}
		}
	}
	leaf := filepath.Join(b.own, leafName)
	if err := unix.Mkdir(leaf, 0o755); err != nil && err != unix.EEXIST {
		return b.mayNot(&os.PathError{Op: "mkdir", Path: leaf, Err: err})
	}
	b.leaf = leaf
	for _, pid := range pids {
		if err := write(leaf, "cgroup.procs", strconv.Itoa(pid)); err != nil {
			b.restore()
			return b.mayNot(err)
		}
		b.moved = append(b.moved, pid)
	}
	return nil
}

// restore undoes what control has done to the cgroup that the base is in, as far as
// nobody else needs it.
func (b *Base) restore() {
	for _, name := range b.enabled {
		write(b.own, "cgroup.subtree_control", "-"+name)
	}
	for _, pid := range b.moved {
		write(b.own, "cgroup.procs", strconv.Itoa(pid))
	}
	if b.leaf != "" {
		unix.Rmdir(b.leaf)
	}
	b.enabled, b.moved, b.leaf = nil, nil, ""
}

// words returns the words in a file of a cgroup, and lines its lines.
func words(dir, file string) []string { return strings.Fields(read(dir, file)) }
func lines(dir, file string) []string { return strings.Split(read(dir, file), "\n") }

func read(dir, file string) string {
	data, _ := os.ReadFile(filepath.Join(dir, file))
	return string(data)
}

// write writes a value to a file that is there.
func write(dir, file, value string) error {
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(value)
	return err
}
