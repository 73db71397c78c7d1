package spool

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"example.com/hangup/internal/proctest"
)

func TestFullFileSystem(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount a small file system")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=128k"); err != nil {
		proctest.Lack(t, "cannot mount a tmpfs: %v", err)
	}
	s, err := Open(dir, 1<<30)
	// The spool holds the directory open: unmounted now, it goes with it.
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		t.Error(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()

	for range 3 { // what a failure took is given back each time
		b := s.Body(1 << 20)
		if err := b.Fill(bytes.NewReader(pattern(MemoryMax + 128<<10 + 1))); !errors.Is(err, ErrFull) {
			t.Errorf("got %v, want %v", err, ErrFull)
		}
		if b.Size() != MemoryMax+128<<10 || s.Used() != 128<<10 {
			t.Errorf("size %d, used %d: not what the file system took", b.Size(), s.Used())
		}
		b.Close()
		if s.Used() != 0 {
			t.Errorf("%d still used", s.Used())
		}
		b = s.Body(1 << 20)
		if err := b.Fill(bytes.NewReader(pattern(MemoryMax + 128<<10))); err != nil {
			t.Errorf("a body that just fits: %v", err)
		}
		b.Close()
	}
}
