package main

import (
	"errors"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"hangup": main})
}

// TestScripts tells the product as a shell sees it.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		Cmds:                map[string]func(*testscript.TestScript, bool, []string){"exits": exits},
		Setup: func(env *testscript.Env) error {
			// The folder of the command itself, for a PATH with nothing else in it.
			env.Setenv("BIN", filepath.SplitList(env.Getenv("PATH"))[0])
			return nil
		},
	})
}

// exits CODE PROGRAM ARG… runs a program that must end with this exit code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARG…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	code := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("cannot run %s: %v", args[1], err)
		}
		code = exit.ExitCode()
	}
	if code != want {
		ts.Fatalf("%s: exit code %d, want %d", args[1], code, want)
	}
}

// full is a disk without room.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

// Output that is lost is a failure, whichever verb's it is.
func TestFullStdout(t *testing.T) {
	for _, line := range []string{
		"", "--help", "--version", "help", "run --help", "completion", "completion --help", "completion bash", "completion zsh", "completion fish",
		"completion powershell", "__complete ch", "version", "version --json", "check --schema", "init " + t.TempDir() + "/starter",
	} {
		var said strings.Builder
		if code := run(strings.Fields(line), strings.NewReader(""), full{}, &said); code != exitFailed {
			t.Errorf("hangup %s: exit code %d, want %d", line, code, exitFailed)
		}
		if !strings.Contains(said.String(), syscall.ENOSPC.Error()) || strings.Contains(said.String(), "tells how") {
			t.Errorf("hangup %s: %q", line, said.String())
		}
	}
}

// A help text fits a narrow terminal.
func TestHelpWidth(t *testing.T) {
	for _, verb := range verbs {
		cmd := verb()
		for line := range strings.Lines(cmd.Long) {
			if n := utf8.RuneCountInString(line); n > 90 {
				t.Errorf("%s --help: a line of %d columns: %s", cmd.Name(), n, line)
			}
		}
	}
}
