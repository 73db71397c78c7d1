package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// lookProgram looks for the program of a workload as its workers will, and says what is
// wrong, or "". It is no fault: serve may find more than whoever checks the file.
func (w *Workload) lookProgram() (wrong string) {
	name := w.Command[0]
	if strings.Contains(name, "/") {
		path := w.within(name)
		switch info, err := os.Stat(path); {
		case err != nil:
			return fmt.Sprintf("cannot find the program %s (%v): no worker can start", quote(path), reason(err))
		case info.IsDir():
			return quote(path) + " is a directory and no program: no worker can start"
		case !executable(path):
			return quote(path) + " is not executable: no worker can start; chmod +x, or name its interpreter before it"
		}
		return ""
	}
	list, set := w.Env["PATH"]
	if !set {
		list = os.Getenv("PATH")
	}
	for _, dir := range filepath.SplitList(list) {
		path := w.within(filepath.Join(dir, name))
		if info, err := os.Stat(path); err == nil && !info.IsDir() && executable(path) {
			return ""
		}
	}
	return fmt.Sprintf("cannot find the program %s in the PATH of the workers, which is %s: no worker can start; install it, or write its path", quote(name), quote(list))
}

// within is path as a process in the workload's directory has it.
func (w *Workload) within(path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(w.Dir, path)
}

// executable tells whether this user may run a file.
func executable(path string) bool {
	return unix.Faccessat(unix.AT_FDCWD, path, unix.X_OK, unix.AT_EACCESS) == nil
}
