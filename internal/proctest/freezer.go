package proctest

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// A Freezer holds processes so that not even SIGKILL ends them, as a disk does that
// does not answer: they are in state D. It is a cgroup of version 1; one of version 2
// lets the killed go.
type Freezer struct {
	t   testing.TB
	dir string
}

// NewFreezer makes a freezer. It is thawed and removed with the test at the latest.
func NewFreezer(t testing.TB) *Freezer {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root may freeze")
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range bytes.Lines(mounts) {
		place, kind, _ := bytes.Cut(line, []byte(" - "))
		if fields := bytes.Fields(place); bytes.HasPrefix(kind, []byte("cgroup ")) && bytes.HasSuffix(bytes.TrimSpace(kind), []byte("freezer")) {
			f := &Freezer{t, filepath.Join(string(fields[4]), groupPrefix+strconv.Itoa(os.Getpid()))}
			if err := os.Mkdir(f.dir, 0o755); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(f.remove)
			return f
		}
	}
	Lack(t, "cannot find a freezer: mount -t cgroup -o freezer none /sys/fs/cgroup/freezer")
	return nil
}

// Freeze takes one more process in and returns when it is frozen.
func (f *Freezer) Freeze(pid int) {
	f.t.Helper()
	f.write("cgroup.procs", strconv.Itoa(pid))
	f.write("freezer.state", "FROZEN")
	if !Eventually(func() bool {
		state, _ := os.ReadFile(filepath.Join(f.dir, "freezer.state"))
		return strings.TrimSpace(string(state)) == "FROZEN"
	}) {
		f.t.Fatalf("process %d does not freeze", pid)
	}
}

// Thaw lets everyone in it go.
func (f *Freezer) Thaw() { f.write("freezer.state", "THAWED") }

func (f *Freezer) write(file, value string) {
	f.t.Helper()
	if err := os.WriteFile(filepath.Join(f.dir, file), []byte(value), 0); err != nil {
		f.t.Fatal(err)
	}
}

func (f *Freezer) remove() {
	f.Thaw()
	var err error
	if !Eventually(func() bool { err = os.Remove(f.dir); return err == nil }) {
		f.t.Errorf("cannot remove the freezer: %v", err)
	}
}
