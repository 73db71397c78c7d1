package proc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// lookPath finds the file of spec's program as execvp would in the environment
// and directory of the program itself, not of the server.
func lookPath(spec Spec) (string, error) {
	name := spec.Argv[0]
	if name == "" {
		return "", errors.New("no name given")
	}
	if strings.Contains(name, "/") {
		return name, nil
	}
	list, ok := lookEnv(spec.Env, "PATH")
	if !ok {
		return "", errors.New("not found: its environment has no PATH")
	}
	var denied string
	for _, dir := range filepath.SplitList(list) {
		path := filepath.Join(dir, name)
		if !strings.Contains(path, "/") {
			path = "./" + path
		}
		info, err := os.Stat(within(path, spec.Dir))
		switch {
		case err != nil || info.IsDir():
		case unix.Faccessat(unix.AT_FDCWD, within(path, spec.Dir), unix.X_OK, unix.AT_EACCESS) != nil:
			denied = path
		default:
			return path, nil
		}
	}
	if denied != "" {
		return "", fmt.Errorf("%s is not executable", denied)
	}
	return "", fmt.Errorf("not found in PATH %s", list)
}

// lookEnv returns the first value of name in env, the one that getenv finds.
func lookEnv(env []string, name string) (string, bool) {
	for _, entry := range env {
		if value, ok := strings.CutPrefix(entry, name+"="); ok {
			return value, true
		}
	}
	return "", false
}

// within resolves path as a process in dir would.
func within(path, dir string) string {
	if filepath.IsAbs(path) || dir == "" {
		return path
	}
	return filepath.Join(dir, path)
}

func exists(path, dir string) bool {
	_, err := os.Stat(within(path, dir))
	return err == nil
}
