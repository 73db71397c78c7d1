package proctest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// noSkipEnv is set where everything that tests need is installed: there, what
// is missing is a fault of that place and no reason to skip.
const noSkipEnv = "HANGUP_TEST_NO_SKIP"

// Need returns the path of a program that a test runs. Where it is not installed
// the test is skipped, or fails if HANGUP_TEST_NO_SKIP is set, and says which
// Debian package has it.
func Need(t testing.TB, program, pkg string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil { // servers are in a folder that ordinary users do not search
		path, err = exec.LookPath(filepath.Join("/usr/sbin", program))
	}
	if err == nil {
		return path
	}
	Lack(t, "cannot find %s: apt-get install %s", program, pkg)
	return ""
}

// Lack ends a test that needs what is not to be had here: it is skipped, or fails
// if HANGUP_TEST_NO_SKIP is set.
func Lack(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv(noSkipEnv) != "" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// Host ends a test of what only some machines have, and no package brings: hierarchies of
// cgroups of version 1, a second processor. A machine without is none that lacks anything, so the test is
// skipped there whatever HANGUP_TEST_NO_SKIP says, and says so.
func Host(t testing.TB, format string, args ...any) {
	t.Helper()
	t.Skipf("not on this host: "+format, args...)
}
