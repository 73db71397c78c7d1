package scratch

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"regexp"
	"time"

	"golang.org/x/sys/unix"
)

// prefix is how the names of bases begin.
const prefix = "hangup-scratch-"

// A base is locked as long as its server lives: the kernel lets go of the lock with the
// process, however that ends. The lock is on the directory itself, which also has
// systemd-tmpfiles leave alone what is in it.
//
// A server that starts takes every base without a lock for one that was left behind, and
// so perhaps one that another server has made a moment ago and not yet locked. Who
// removes one holds its lock meanwhile. So who has made one, and locked it, only has to
// look whether it is still there, and makes another if not.

// named is the name of a base, as create makes it: what a person has named alike is no
// base. (rand.Text has 26 of these letters and digits.)
var named = regexp.MustCompile("^" + prefix + "[A-Z2-7]{26}$")

// tries is how many bases are made, at most, for one to stay.
const tries = 100

// create makes a base in parent and locks it.
func create(parent *os.File) (*place, error) {
	in := int(parent.Fd())
	for range tries {
		name := prefix + rand.Text()
		if err := unix.Mkdirat(in, name, 0o700); err != nil {
			return nil, err
		}
		fd, err := unix.Openat(in, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err == unix.ENOENT {
			continue
		}
		if err == nil {
			err = lock(fd)
			if err == nil && same(in, name, fd) {
				file := os.NewFile(uintptr(fd), name)
				raw, err := file.SyscallConn()
				return &place{name, file, raw}, err
			}
			unix.Close(fd)
		}
		if err != nil && err != errLocked {
			unix.Unlinkat(in, name, unix.AT_REMOVEDIR)
			return nil, err
		}
	}
	return nil, errors.New("others remove it each time")
}

var errLocked = errors.New("it is locked")

// lock locks a directory, or fails with errLocked.
func lock(fd int) error {
	switch err := uninterrupted(func() error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) }); err {
	case nil:
		return nil
	case unix.EWOULDBLOCK:
		return errLocked
	default:
		return fmt.Errorf("cannot lock it: %w; name a directory on a local disk with spool.dir", err)
	}
}

// same tells whether name is still the directory that is open as fd.
func same(parent int, name string, fd int) bool {
	var there, open unix.Stat_t
	return unix.Fstatat(parent, name, &there, unix.AT_SYMLINK_NOFOLLOW) == nil && unix.Fstat(fd, &open) == nil &&
		there.Ino == open.Ino && there.Dev == open.Dev
}

// Sweep removes, in the background, the bases that servers of this user have left
// behind: those in the same directory whose lock is free.
func (b *Base) Sweep() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.closed {
		b.going.Go(b.sweep)
	}
}

func (b *Base) sweep() {
	in := int(b.parent.Fd())
	err := each(in, func(name string) error {
		if named.MatchString(name) && name != b.now().name {
			b.sweepOne(in, name)
		}
		return b.ctx.Err()
	})
	if err != nil && b.ctx.Err() == nil {
		b.trouble("cannot look for scratch directories that were left behind", err)
	}
}

// The processes of a server that was killed are gone within a second. As long as one of
// them still writes, its directory does not stay empty.
const (
	sweepTries = 10
	sweepPause = 500 * time.Millisecond
)

// sweepOne removes a base if it was left behind.
func (b *Base) sweepOne(in int, name string) {
	top, err := enter(in, name, os.Geteuid())
	if err != nil {
		return // a symlink, a file, another user's; or it is gone
	}
	defer unix.Close(top)
	if lock(top) != nil || !same(in, name, top) {
		return
	}
	for try := 1; ; {
		err = empty(b.ctx, top, time.Now().Add(slice))
		if err == nil {
			err = unix.Unlinkat(in, name, unix.AT_REMOVEDIR)
		}
		switch {
		case err == nil, err == unix.ENOENT, b.ctx.Err() != nil:
			return
		case errors.Is(err, errSlice):
			continue
		case !passing(err), try == sweepTries:
			b.trouble("a scratch directory that was left behind cannot be removed",
				fmt.Errorf("%s: %w", b.parent.Name()+"/"+name, err))
			return
		}
		try++
		wait, done := context.WithTimeout(b.ctx, sweepPause)
		<-wait.Done()
		done()
	}
}
