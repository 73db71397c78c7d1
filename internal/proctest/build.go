package proctest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// runDir is where this run keeps what it builds. Every user can read it.
var runDir string

// building guards the builds: one at a time, each program once.
var building sync.Mutex

// Shim returns the path of hangup-shim, built from this checkout once a run.
func Shim(t testing.TB) string {
	t.Helper()
	return Build(t, "hangup-shim", "./cmd/hangup-shim")
}

// Build returns the path of a program of this module, built once a run with the
// given flags of the go command. All programs of a run lie in one directory.
func Build(t testing.TB, name, pkg string, flags ...string) string {
	t.Helper()
	building.Lock()
	defer building.Unlock()
	variable := buildEnv + name
	if path := os.Getenv(variable); path != "" { // the lane of the ordinary user cannot build
		return path
	}
	path := filepath.Join(runDir, name)
	if err := build(path, pkg, flags); err != nil {
		t.Fatalf("cannot build %s: %v", name, err)
	}
	os.Setenv(variable, path)
	return path
}

// Compile returns the path of a program in C, compiled once a run from a source in
// the package's directory.
func Compile(t testing.TB, name, source string) string {
	t.Helper()
	building.Lock()
	defer building.Unlock()
	variable := buildEnv + name
	if path := os.Getenv(variable); path != "" {
		return path
	}
	path := filepath.Join(runDir, name)
	if _, err := os.ReadFile(source); err != nil { // so that the cache of test results knows of it
		t.Fatal(err)
	}
	cmd := exec.Command(Need(t, "gcc", "gcc"), "-O1", "-Wall", "-pthread", "-o", path, source, "-lutil")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cannot compile %s: %v\n%s", source, err, out)
	}
	os.Setenv(variable, path)
	return path
}

func build(path, pkg string, flags []string) error {
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	if err := readSources(root); err != nil {
		return err
	}
	cmd := exec.Command("go", append(append([]string{"build", "-o", path}, flags...), pkg)...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), runEnv+"=") // no mark: the go command may leave a helper running
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return os.Chmod(path, 0o755)
}

// readSources reads every source of the programs, so that the cache of test
// results knows what they depend on: the go command leaves no trace in it.
func readSources(root string) error {
	for _, dir := range []string{"cmd", "internal", "worker", "python"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, entry os.DirEntry, err error) error {
			if err != nil || entry.IsDir() || strings.HasSuffix(path, "_test.go") {
				return err
			}
			_, err = os.ReadFile(path)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// moduleRoot finds the directory of go.mod above the package under test.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", os.ErrNotExist
		}
		dir = filepath.Dir(dir)
	}
}
