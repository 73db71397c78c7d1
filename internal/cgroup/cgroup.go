//go:build linux

// Package cgroup finds out where cgroups can be made, and makes the directory in
// which the shims of a server make theirs: hangup.RANDOM, the base, in the server's
// own cgroup of the v2 hierarchy.
//
// Promises:
//   - A base belongs to one server for as long as that lives: by a lock on it, which
//     the kernel lets go of with the server, however that ends.
//   - Bases whose servers are dead are removed with all that is in them.
//   - After Close nothing is left of what Open has made, and the processes are where
//     they were.
//   - Where there are no cgroups to be had, Open says why, and what would change it.
//
// A Base is used by one goroutine at a time, except for Remove. The package imports
// nothing of this module.
package cgroup

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// A base is named by the prefix and eight hexadecimal digits, which nobody else uses: a
// unit of systemd may begin with the prefix, too.
const (
	prefix  = "hangup."
	pattern = prefix + "[0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f]"
)

// Missing says why something is not to be had, and what would change that.
type Missing struct{ Reason, Remedy string }

func (m *Missing) Error() string { return m.Reason }

// Base is the directory of a server's cgroups.
type Base struct {
	own  string // the directory of the server's own cgroup, before any move
	path string
	lock *os.File // the directory itself, locked

	controllers []string // enabled for the cgroups in the base
	without     *Missing // why it is not all of those that are wanted; nil: it is
	enabled     []string // those of own that were not, before
	leaf        string   // where the processes were moved to; "": they were not
	moved       []int
}

// Open makes a base, and has it give memory, pids and cpu to the cgroups in it where
// that can be done. For that a cgroup must hold no process itself, unless it is the
// real root: the given processes are moved to a leaf beside the base, if nobody else
// is in their cgroup. The error is a [*Missing].
func Open(pids ...int) (*Base, error) {
	own, err := find()
	if err != nil {
		return nil, err
	}
	b := &Base{own: own}
	sweep(own)
	if err := b.make(); err != nil {
		return nil, refused(own, err)
	}
	if _, err := os.Stat(filepath.Join(b.path, "cgroup.kill")); err != nil {
		b.Close()
		return nil, &Missing{"the kernel has no cgroup.kill", "Linux 5.14 or later"}
	}
	b.control(pids)
	return b, nil
}

// refused turns the error of a mkdir into words.
func refused(own string, err error) *Missing {
	switch {
	case errors.Is(err, unix.EROFS):
		return &Missing{own + " is mounted read-only", "mount cgroup v2 writable; in a container, have the container manager do so"}
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return &Missing{
			fmt.Sprintf("uid %d may not make a cgroup in %s", os.Geteuid(), own),
			"Delegate=yes in the systemd unit; or else, as root, give that directory, and cgroup.procs, cgroup.threads and cgroup.subtree_control in it, to this user",
		}
	case errors.Is(err, unix.EAGAIN):
		return &Missing{"no more cgroups may be made in " + own, "raise cgroup.max.descendants and cgroup.max.depth of it and those above"}
	}
	return &Missing{"cannot make a cgroup: " + err.Error(), ""}
}

// make makes a base with a name that is not taken, and locks it. A server that
// sweeps at this instant may take it for one of a dead server, so it is looked at
// again after the lock.
func (b *Base) make() error {
	for range 10 {
		var random [4]byte
		rand.Read(random[:]) // never fails
		path := filepath.Join(b.own, prefix+hex.EncodeToString(random[:]))
		if err := unix.Mkdir(path, 0o755); err != nil {
			if err == unix.EEXIST {
				continue
			}
			return &os.PathError{Op: "mkdir", Path: path, Err: err}
		}
		if lock := claim(path); lock != nil {
			b.path, b.lock = path, lock
			return nil
		}
	}
	return errors.New("each one is swept at once")
}

// claim opens and locks a base. It returns nil when that is another's, or gone.
func claim(path string) *os.File {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	file := os.NewFile(uintptr(fd), path)
	if unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) == nil {
		var held, there unix.Stat_t
		if unix.Fstat(fd, &held) == nil && unix.Lstat(path, &there) == nil && held.Ino == there.Ino {
			return file
		}
	}
	file.Close()
	return nil
}

// sweep removes the bases whose servers are dead.
func sweep(own string) {
	paths, _ := filepath.Glob(filepath.Join(own, pattern))
	for _, path := range paths {
		if lock := claim(path); lock != nil {
			removeAll(path)
			lock.Close()
		}
	}
}

// lastWait bounds how long what was killed in a cgroup has to be gone.
const lastWait = 500 * time.Millisecond

// removeAll kills what is in a cgroup and removes it with all below it. What cannot
// be removed within lastWait is left: a process that does not die.
func removeAll(path string) error {
	pause := time.Millisecond
	for deadline := time.Now().Add(lastWait); ; pause *= 2 {
		err := unix.Rmdir(path)
		if err == nil || err == unix.ENOENT {
			return nil
		}
		Kill(path)
		below(path)
		if err = unix.Rmdir(path); err == nil || err == unix.ENOENT {
			return nil
		}
		if err != unix.EBUSY || time.Now().After(deadline) {
			return &os.PathError{Op: "rmdir", Path: path, Err: err}
		}
		time.Sleep(pause)
	}
}

// below removes the cgroups in a cgroup, the deepest first.
func below(path string) {
	list, _ := os.ReadDir(path)
	for _, entry := range list {
		if entry.IsDir() {
			inner := filepath.Join(path, entry.Name())
			below(inner)
			unix.Rmdir(inner)
		}
	}
}

// Path is the directory.
func (b *Base) Path() string { return b.path }

// Controllers are those that the cgroups in the base have, of memory, pids and cpu.
// When it is not all of them, the second result says why.
func (b *Base) Controllers() ([]string, *Missing) { return b.controllers, b.without }

// Of returns the cgroup in the base that pid is in, or "".
func (b *Base) Of(pid int) string {
	paths, _ := filepath.Glob(filepath.Join(b.path, "*"))
	for _, path := range paths {
		if slices.Contains(lines(path, "cgroup.procs"), strconv.Itoa(pid)) {
			return path
		}
	}
	return ""
}

// Kill has the kernel kill all that is in a cgroup.
func Kill(path string) error { return write(path, "cgroup.kill", "1") }

// Populated says whether a living process is in a cgroup, or below it.
func Populated(path string) bool { return slices.Contains(lines(path, "cgroup.events"), "populated 1") }

// Remove removes what a shim has left that is no more. It may be called from any
// goroutine.
func (b *Base) Remove(shim int) {
	paths, _ := filepath.Glob(filepath.Join(b.path, strconv.Itoa(shim)+".*"))
	for _, path := range paths {
		removeAll(path)
	}
}

// Close removes the base with all that is in it, and undoes what Open did to the
// cgroup that it is in.
func (b *Base) Close() error {
	err := removeAll(b.path)
	b.lock.Close()
	b.restore()
	if err != nil {
		return fmt.Errorf("cannot remove the cgroup of all workers: %w", err)
	}
	return nil
}
