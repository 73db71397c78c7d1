package proctest

import (
	"os"
	"path/filepath"
	"testing"
)

// told is a test that keeps how it was told to end.
type told struct {
	testing.TB
	end string
}

func (t *told) Helper()               {}
func (t *told) Fatalf(string, ...any) { t.end = "fail" }
func (t *told) Skipf(string, ...any) {
	if t.end == "" { // the real Fatalf does not return
		t.end = "skip"
	}
}

// TestNeed: what is not installed is a reason to skip, and a fault where all is
// said to be there.
func TestNeed(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	there := filepath.Join(dir, "there")
	if err := os.WriteFile(there, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	for noSkip, want := range map[string]string{"": "skip", "1": "fail"} {
		t.Setenv(noSkipEnv, noSkip)
		missing := &told{TB: t}
		Need(missing, "missing", "some-package")
		if missing.end != want {
			t.Errorf("%s=%q: told to %q, want %q", noSkipEnv, noSkip, missing.end, want)
		}
		without := &told{TB: t}
		if Host(without, "no such thing"); without.end != "skip" {
			t.Errorf("%s=%q: where the host has no such thing told to %q, want skip", noSkipEnv, noSkip, without.end)
		}
		if path := Need(t, "there", "some-package"); path != there {
			t.Errorf("found %q, want %q", path, there)
		}
	}
}
