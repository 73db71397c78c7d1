package scratch

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Trees are removed without recursion, so that neither their depth nor a limit of
// descriptors or path lengths matters: a directory that is not empty has the
// directories in it moved up, to the top of the tree, where each has its turn. Two
// directories are open at a time, the top and the one in work.
//
// What is swapped meanwhile does no harm. Names are never resolved further than one
// entry of an open directory; unlinkat does not follow a symlink, and a directory is
// opened with O_NOFOLLOW. A mount point says EBUSY when it is to be removed, and is
// never gone into: that is why removing comes before opening.

var (
	// errSlice says that there is more to remove than there was time for.
	errSlice = errors.New("it is large")
	// errRefilled says that somebody makes new files in a directory that is removed.
	errRefilled = errors.New("somebody goes on writing into it")
)

const (
	// refills is how many times a directory is emptied in a row. One more than the first
	// is owed to file systems that pass over entries while others are removed.
	refills = 3
	// swaps is how many times in a row an entry may be found to be another than it was.
	swaps = 100
	// remembered is how many directories that were moved up have their turn right away.
	// The next look at the top finds the others.
	remembered = 1000
	// often is after how many steps the clock is looked at.
	often = 64
)

// removeAll removes the directory name of dir, or whatever else is there by now.
func removeAll(ctx context.Context, dir int, name string) error {
	err := unlink(dir, name)
	if notEmpty(err) {
		var top int
		if top, err = enter(dir, name, anybody); err == nil {
			err = empty(ctx, top, time.Now().Add(slice))
			unix.Close(top)
		}
		if err == nil || err == unix.ENOTDIR {
			err = unlink(dir, name)
		}
	}
	if err == unix.ENOENT {
		return nil
	}
	return err
}

// empty removes everything in the directory that is open as top. It fails with errSlice
// when that takes longer than until, with the cause of ctx, with errRefilled, or with
// the first error it met when all else is removed.
func empty(ctx context.Context, top int, until time.Time) error {
	c := &clearing{ctx: ctx, until: until, top: top, name: rand.Text() + "-"}
	for filled := 0; ; {
		c.removed, c.more, c.err = false, false, nil
		found := false
		err := each(top, func(name string) error {
			found = true
			return c.one(name)
		})
		switch {
		case err != nil:
			return err
		case !found:
			return nil
		case !c.removed && c.err != nil:
			return c.err
		}
		if !c.more {
			filled++
		}
		if filled > refills {
			return errRefilled
		}
	}
}

// clearing is one go at emptying a directory.
type clearing struct {
	ctx   context.Context
	until time.Time
	top   int
	name  string // what the names of moved directories begin with
	moves int
	steps int

	// Of one look at the top.
	moved   []string // directories that were moved up, by their new names
	more    bool     // others were, too
	removed bool     // anything was, or was moved
	err     error    // the first that stays
}

// one removes an entry of the top, and all that this has moved there.
func (c *clearing) one(name string) error {
	for {
		if err := c.drop(name); err != nil {
			return err
		}
		n := len(c.moved)
		if n == 0 {
			return nil
		}
		name, c.moved = c.moved[n-1], c.moved[:n-1]
	}
}

// drop removes an entry of the top, after it has emptied it. It fails when the time is
// over, or a directory cannot be read, and notes what else goes wrong.
func (c *clearing) drop(name string) error {
	err := unlink(c.top, name)
	if !notEmpty(err) {
		return c.note(err)
	}
	sub, err := enter(c.top, name, anybody)
	if err != nil {
		return c.note(err)
	}
	err = each(sub, func(child string) error {
		err := unlink(sub, child)
		if notEmpty(err) {
			err = c.lift(sub, child)
		}
		return c.note(err)
	})
	unix.Close(sub)
	if err != nil {
		return err
	}
	return c.note(unlink(c.top, name))
}

// lift moves a directory up to the top.
func (c *clearing) lift(dir int, child string) error {
	c.moves++
	to := c.name + strconv.Itoa(c.moves)
	err := unix.Renameat(dir, child, c.top, to)
	if err == unix.EACCES { // its entry .. changes, too
		var sub int
		if sub, err = enter(dir, child, anybody); err == nil {
			unix.Close(sub)
			err = unix.Renameat(dir, child, c.top, to)
		}
	}
	if err != nil {
		return err
	}
	if len(c.moved) < remembered {
		c.moved = append(c.moved, to)
	} else {
		c.more = true
	}
	return nil
}

// note notes how a step went, and fails when the time is over. What somebody else has
// removed, swapped or filled meanwhile is no error: the next look shows what it is.
func (c *clearing) note(err error) error {
	switch err {
	case nil:
		c.removed = true
	case unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.ENOTEMPTY, unix.EEXIST:
	default:
		if c.err == nil {
			c.err = err
		}
	}
	if c.steps++; c.steps%often != 0 {
		return nil
	}
	if err := c.ctx.Err(); err != nil {
		return err
	}
	if time.Now().After(c.until) {
		return errSlice
	}
	return nil
}

// unlink removes an entry that is a file, an empty directory, or anything else but a
// directory that is not empty.
func unlink(dir int, name string) error {
	for range swaps {
		err := uninterrupted(func() error { return unix.Unlinkat(dir, name, 0) })
		if err != unix.EISDIR && err != unix.EPERM { // a directory, by Linux; by POSIX
			return err
		}
		rmdir := uninterrupted(func() error { return unix.Unlinkat(dir, name, unix.AT_REMOVEDIR) })
		if rmdir != unix.ENOTDIR {
			return rmdir
		}
		if err == unix.EPERM {
			return err
		}
		// It was a directory, and is none now: somebody swaps it.
	}
	return errRefilled
}

func notEmpty(err error) bool { return err == unix.ENOTEMPTY || err == unix.EEXIST }

// each calls do for the names in a directory, until it fails.
func each(dir int, do func(name string) error) error {
	fd, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	list := os.NewFile(uintptr(fd), ".")
	defer list.Close()
	for {
		names, err := list.Readdirnames(256)
		for _, name := range names {
			if err := do(name); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return errors.Unwrap(err) // the path is only "."
		}
	}
}
