// Package spool takes request bodies in: the first 64 KiB of each into memory,
// the rest into a file, with one bound for the files of all bodies together.
//
// Its promise: what a body costs grows with what has arrived of it, never with
// what was announced, and all of it is given back by [Body.Close]. Files have no
// name from the moment they are made, so a crash leaves nothing behind.
//
// The package has no goroutine and imports nothing of this module.
package spool

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
)

// MemoryMax is how many bytes of a body are kept in memory; the bytes behind
// them go into a file.
const MemoryMax = 64 << 10

var (
	// ErrTooLarge says that a body is longer than its own limit.
	ErrTooLarge = errors.New("the body is too large")
	// ErrFull says that the bodies of all calls together reach the spool's
	// bound, or that its file system has no room left.
	ErrFull = errors.New("the spool is full")
)

// Spool is where bodies go that are too long for memory. It is safe for
// concurrent use.
type Spool struct {
	max  atomic.Int64
	used atomic.Int64

	mu  sync.RWMutex // held while a file is made
	dir *os.Root     // held open: later renames or mounts do not move the spool
}

// Open returns a Spool with files in dir, "" for the system's temporary
// directory, that hold at most max bytes at a time. It makes and writes a file
// there to see that it can.
func Open(dir string, max int64) (*Spool, error) {
	if dir == "" {
		dir = os.TempDir()
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot open spool directory: %w", err)
	}
	s := &Spool{dir: root}
	s.max.Store(max)
	if err := s.try(); err != nil {
		root.Close()
		return nil, fmt.Errorf("cannot use spool directory %s: %w", dir, err)
	}
	return s, nil
}

func (s *Spool) try() error {
	f, err := s.create()
	if err != nil {
		return err
	}
	_, err = f.Write([]byte{0})
	return errors.Join(err, f.Close())
}

// Used is how many bytes lie in files now.
func (s *Spool) Used() int64 { return s.used.Load() }

// Become takes the directory and the bound of next over, which is not to be used
// any more. Bodies that have a file keep it, and their bytes count towards the new
// bound: it is one for all bodies, whenever they began.
func (s *Spool) Become(next *Spool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dir.Close()
	s.dir = next.dir
	s.max.Store(next.max.Load())
}

// Close lets go of the directory. Bodies that have a file keep it until they
// are closed; others can no longer get one.
func (s *Spool) Close() error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.dir.Close()
}

// create makes a file that has no name.
func (s *Spool) create() (*os.File, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	name := "hangup-spool-" + rand.Text()
	f, err := s.dir.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, noRoom(err)
	}
	if err := s.dir.Remove(name); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// take reserves n bytes, or fails with ErrFull and reserves none.
func (s *Spool) take(n int64) error {
	for {
		used := s.used.Load()
		if n > s.max.Load()-used {
			return ErrFull
		}
		if s.used.CompareAndSwap(used, used+n) {
			return nil
		}
	}
}

func (s *Spool) give(n int64) { s.used.Add(-n) }

// noRoom makes ErrFull of the errors by which a file system says so.
func noRoom(err error) error {
	for _, full := range []error{syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG} {
		if errors.Is(err, full) {
			return fmt.Errorf("%w: %v", ErrFull, err)
		}
	}
	return err
}
