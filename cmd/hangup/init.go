package main

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"example.com/hangup/internal/config"
	"example.com/hangup/internal/proc"
	"example.com/hangup/python"
)

//go:embed starter
var starter embed.FS

func initVerb() *cobra.Command {
	return &cobra.Command{
		Use:   "init [DIR]",
		Short: "Write a starter config and a worker that run as they stand",
		Long: "Writes hangup.yaml, its JSON Schema for editors, worker.py and the Python SDK\n" +
			"hangup.py into DIR, which is the current directory by default. It never overwrites\n" +
			"a file.",
		Args: needs("DIR", 0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := "."
			if len(args) == 1 {
				dir = args[0]
			}
			if err := writeStarter(dir); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "wrote hangup.yaml, hangup.schema.json, worker.py and hangup.py in %s\n\n", dir)
			fmt.Fprint(cmd.OutOrStdout(), nextSteps(dir))
			if _, err := exec.LookPath("python3"); err != nil {
				fmt.Fprintln(cmd.ErrOrStderr(), "\nhangup init: python3 is not on the PATH, and the worker of this starter needs it: install Python 3.9 or later")
			}
			return nil
		},
	}
}

// writeStarter writes all files or none that is there already.
func writeStarter(dir string) error {
	files := map[string][]byte{"hangup.py": python.SDK, "hangup.schema.json": config.Schema()}
	for _, name := range []string{"hangup.yaml", "worker.py"} {
		data, err := starter.ReadFile("starter/" + name)
		if err != nil {
			return err
		}
		files[name] = data
	}
	files["hangup.yaml"] = append(files["hangup.yaml"], minimum()...)
	var there []string
	for _, name := range []string{"hangup.yaml", "hangup.schema.json", "worker.py", "hangup.py"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			there = append(there, filepath.Join(dir, name))
		}
	}
	if len(there) > 0 {
		return fmt.Errorf("cannot write a starter: %s there already, and nothing is overwritten; name another directory", exist(there))
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("cannot write a starter: %v", err)
	}
	for name, data := range files {
		if err := create(filepath.Join(dir, name), data); err != nil {
			return fmt.Errorf("cannot write a starter: %v", err)
		}
	}
	return nil
}

// minimum is the key of a config without which no server starts on this system; "" on
// Linux.
func minimum() string {
	if proc.Supervised {
		return ""
	}
	return "containment: {minimum: process-group}   # all that this system has; hangup doctor says what is missing\n"
}

// create writes a file that must not be there.
func create(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s is there already", path)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

func exist(paths []string) string {
	if len(paths) == 1 {
		return paths[0] + " is"
	}
	return strings.Join(paths, ", ") + " are"
}

func nextSteps(dir string) string {
	var b strings.Builder
	b.WriteString("next:\n")
	elsewhere := filepath.Clean(dir) != "."
	if elsewhere {
		fmt.Fprintf(&b, "  cd %s\n", shellWord(dir))
	}
	fmt.Fprintf(&b, "  %s serve\n", shellWord(ownName(elsewhere)))
	b.WriteString(`  curl --json '{"width": 4000, "height": 3000}' http://127.0.0.1:8080/execute/resize/fit
  curl --json '{"images": 60}' http://127.0.0.1:8080/execute/resize/batch    # takes a minute: press Ctrl-C
  curl http://127.0.0.1:8080/calls                                           # tells what became of it
`)
	return b.String()
}

// ownName is how a shell starts this program: as hangup where the PATH has it under that
// name, else as it was started, which in another directory takes the whole path.
func ownName(elsewhere bool) string {
	name := os.Args[0]
	if !strings.Contains(name, "/") { // the PATH had it
		return name
	}
	if found, err := exec.LookPath("hangup"); err == nil && sameFile(found, name) {
		return "hangup"
	}
	if full, err := filepath.Abs(name); err == nil && elsewhere {
		return full
	}
	return name
}

func sameFile(a, b string) bool {
	one, err := os.Stat(a)
	if err != nil {
		return false
	}
	other, err := os.Stat(b)
	return err == nil && os.SameFile(one, other)
}

// shellWord quotes s where a shell would take it apart.
func shellWord(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+,:@", r)
	}
	if strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
