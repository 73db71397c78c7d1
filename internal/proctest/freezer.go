package proctest

import (
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
	f := &Freezer{t, OldGroup(t, "freezer")}
	t.Cleanup(f.Thaw)
	return f
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
