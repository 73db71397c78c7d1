//go:build linux

package reap

import (
	"bytes"
	"strconv"

	"golang.org/x/sys/unix"
)

// A group is a cgroup v2 by its descriptor. Everything in it is reached relative to
// that, so that no path can lead elsewhere; a cgroup file system has no links.
type group struct{ dir int }

// openGroup opens the cgroup name in the directory up; unix.AT_FDCWD stands for
// none, where name is a path.
func openGroup(up int, name string) (*group, error) {
	dir, err := unix.Openat(up, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return &group{dir}, nil
}

func (g *group) close() { unix.Close(g.dir) }

// write writes a value to a file of the group.
func (g *group) write(file, value string) error {
	fd, err := unix.Openat(g.dir, file, unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for {
		_, err := unix.Write(fd, []byte(value))
		if err != unix.EINTR {
			return err
		}
	}
}

// read returns what a file of the group holds, or nothing.
func (g *group) read(file string) []byte {
	fd, err := unix.Openat(g.dir, file, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	return readAll(fd)
}

// kill has the kernel kill all that is in the group or below it, frozen or not: one
// step, that no fork can outrun. It returns before they are gone.
func (g *group) kill() error { return g.write("cgroup.kill", "1") }

// populated says whether a living process is in the group or below it. Zombies are
// none, so this is no proof of anything.
func (g *group) populated() bool {
	return bytes.Contains(g.read("cgroup.events"), []byte("populated 1"))
}

// depth bounds how far empty goes down; the kernel gives way to more than anyone
// needs, and each level holds a descriptor.
const depth = 64

// empty removes the groups below this one, which its processes may have made.
func (g *group) empty(levels int) {
	for _, name := range entries(g.dir) {
		if unix.Unlinkat(g.dir, name, unix.AT_REMOVEDIR) != unix.EBUSY || levels == 0 {
			continue // gone, a file, or too deep
		}
		if below, err := openGroup(g.dir, name); err == nil {
			below.empty(levels - 1)
			below.close()
			unix.Unlinkat(g.dir, name, unix.AT_REMOVEDIR)
		}
	}
}

// remove removes the group name in up, with all that is in it. It fails while a
// process is there that does not die.
func remove(up int, name string) error {
	err := unix.Unlinkat(up, name, unix.AT_REMOVEDIR)
	if err != unix.EBUSY {
		return err
	}
	g, err := openGroup(up, name)
	if err != nil {
		return err
	}
	defer g.close()
	g.kill()
	g.empty(depth)
	return unix.Unlinkat(up, name, unix.AT_REMOVEDIR)
}

// groups are the cgroups of a shim: each tree gets one of its own, made while the
// shim is idle. What a tree did to its group (froze it, limited it, divided it) is
// gone with it, and so is what the kernel counted.
type groups struct {
	base string // the directory they are in
	up   int    // its descriptor
	made int    // so far; it is in the name
	left []string
	*group
}

// openGroups opens the base directory, which the server has made, and makes a first
// group in it.
func openGroups(base string) (*groups, error) {
	g := &groups{base: base}
	up, err := openGroup(unix.AT_FDCWD, base)
	if err != nil {
		return g, err
	}
	g.up = up.dir
	return g, g.next()
}

// next makes a group for the next tree, in place of the last one. One that cannot be
// removed yet is remembered: somebody else's process may have moved there.
func (g *groups) next() error {
	if g.group != nil {
		g.left = append(g.left, g.name())
		g.close()
		g.group = nil
	}
	g.sweep()
	g.made++
	if err := unix.Mkdirat(g.up, g.name(), 0o755); err != nil {
		return err
	}
	var err error
	g.group, err = openGroup(g.up, g.name())
	return err
}

// gone says whether the group is not there any more.
func (g *groups) gone() bool {
	return g.group == nil || unix.Faccessat(g.dir, "cgroup.kill", unix.F_OK, 0) != nil
}

// sweep removes what is left of earlier groups.
func (g *groups) sweep() {
	left := g.left[:0]
	for _, name := range g.left {
		if err := remove(g.up, name); err != nil && err != unix.ENOENT {
			left = append(left, name)
		}
	}
	g.left = left
}

// leave removes the groups, and the base if this shim was the last one in it: only
// a shim whose server is gone leaves by itself.
func (g *groups) leave() {
	if g.group != nil {
		g.left = append(g.left, g.name())
		g.close()
		g.group = nil
	}
	g.sweep()
	unix.Rmdir(g.base)
}

// name is the name of the present group. It begins with the shim's pid, by which the
// server finds what a lost shim has left.
func (g *groups) name() string {
	return strconv.Itoa(unix.Getpid()) + "." + strconv.Itoa(g.made)
}
