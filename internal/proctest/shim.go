package proctest

import (
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// shimDir is where this run keeps its hangup-shim.
var shimDir string

var buildShim = sync.OnceValues(func() (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	// Read here, so that the cache of test results knows what they depend on: the
	// go command below leaves no trace in it.
	for _, dir := range []string{"cmd/hangup-shim", "internal/reap"} {
		files, _ := filepath.Glob(filepath.Join(root, dir, "*.go"))
		for _, file := range files {
			if _, err := os.ReadFile(file); err != nil {
				return "", err
			}
		}
	}
	path := filepath.Join(shimDir, "hangup-shim")
	cmd := exec.Command("go", "build", "-o", path, "./cmd/hangup-shim")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", runEnv+"=") // no mark: the go command may leave a helper running
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", &buildError{string(out), err}
	}
	os.Setenv(shimEnv, path) // for the lane of the ordinary user, which cannot build
	return path, os.Chmod(path, 0o755)
})

type buildError struct {
	output string
	err    error
}

func (e *buildError) Error() string {
	return "cannot build hangup-shim: " + e.err.Error() + "\n" + e.output
}

// Shim returns the path of hangup-shim, built from this checkout once a run.
func Shim(t testing.TB) string {
	t.Helper()
	if path := os.Getenv(shimEnv); path != "" {
		return path
	}
	path, err := buildShim()
	if err != nil {
		t.Fatal(err)
	}
	return path
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
