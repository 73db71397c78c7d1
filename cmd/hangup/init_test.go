package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The next steps can be typed as they are, however the program was started.
func TestNextSteps(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	for name, target := range map[string]string{"bin/hangup": "", "path/hangup": "../bin/hangup", "other/hangup": ""} {
		err := os.MkdirAll(filepath.Dir(name), 0o755)
		if err == nil && target != "" {
			err = os.Symlink(target, name)
		} else if err == nil {
			err = os.WriteFile(name, []byte("#!/bin/sh\n"), 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	started := os.Args[0]
	t.Cleanup(func() { os.Args[0] = started })
	for _, tt := range []struct{ started, path, where, want string }{
		{"hangup", "path", "sub", "hangup"},
		{"hangup-next", "path", "sub", "hangup-next"},
		{"bin/hangup", "nowhere", ".", "bin/hangup"},
		{"bin/hangup", "nowhere", "sub", filepath.Join(dir, "bin/hangup")},
		{"bin/hangup", "path", "sub", "hangup"},
		{"bin/hangup", "other", ".", "bin/hangup"}, // there the PATH has another
	} {
		os.Args[0] = tt.started
		t.Setenv("PATH", filepath.Join(dir, tt.path))
		if got := nextSteps(tt.where); !strings.Contains(got, "\n  "+tt.want+" serve\n") {
			t.Errorf("%+v:\n%s", tt, got)
		}
	}
}
