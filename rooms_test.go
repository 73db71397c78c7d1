// Package hangup_test holds the tests of the house as a whole: which room may
// know which other. They parse the files in the test process, so that the cached
// result of a test run is never older than the code.
package hangup_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "example.com/hangup"

// rooms is the import graph: what the packages of this module may import of it.
// A call goes down, from api to proc; facts come up as values of event. Tests may
// import the same, their own room, and internal/proctest.
var rooms = map[string][]string{
	"internal/event":     {},
	"internal/call":      {"internal/event"},
	"internal/wire":      {},
	"internal/config":    {},
	"internal/connwatch": {},
	"internal/listen":    {"internal/config", "internal/event"},
	"internal/spool":     {},
	"internal/scratch":   {"internal/event"},
	"internal/reap":      {},
	"internal/cgroup":    {},
	"internal/proc":      {"internal/cgroup", "internal/event", "internal/reap"},
	"internal/kind":      {"internal/config", "internal/event", "internal/proc"},
	"internal/kind/worker": {
		"internal/call", "internal/config", "internal/event", "internal/kind", "internal/proc", "internal/scratch", "internal/wire",
	},
	"internal/pool":    {"internal/call", "internal/event"},
	"internal/calls":   {"internal/call", "internal/event"},
	"internal/observe": {"internal/event"},
	"internal/api": {
		"internal/call", "internal/calls", "internal/config", "internal/connwatch", "internal/event", "internal/spool",
	},
	"internal/daemon": { // the wiring: every room a call goes through
		"internal/api", "internal/call", "internal/calls", "internal/config", "internal/connwatch", "internal/event",
		"internal/kind", "internal/kind/worker", "internal/listen", "internal/observe", "internal/pool", "internal/proc", "internal/scratch", "internal/spool",
	},
	"internal/client":   {},
	"internal/proctest": {},

	"cmd/hangup": {
		"internal/client", "internal/config", "internal/daemon", "internal/event", "internal/proc", "internal/scratch", "internal/wire", "python", "worker",
	},
	"cmd/hangup-shim": {"internal/reap"},
	"worker":          {"internal/wire"},
	"python":          {},
	"bench/flood":     {"internal/proc", "worker"},
	"bench/hop":       {"internal/proc", "python", "worker"},
	"bench/kill":      {"internal/cgroup", "internal/proc"},
	"examples/go":     {"worker"},
	"e2e":             {"internal/connwatch", "internal/proc"}, // tests only: a bound, and the kernel's view of a tree
	".":               {},                                      // this file
}

// homes are libraries that one room knows for all the others.
var homes = map[string]string{
	"github.com/goccy/go-yaml":            "internal/config",
	"github.com/prometheus/client_golang": "internal/observe",
	"github.com/spf13/cobra":              "cmd/hangup",
}

// standardOnly are the rooms that pull nothing but the standard library into the
// programs of others.
var standardOnly = []string{"internal/wire", "worker", "internal/event", "internal/call"}

// vague are names that say nothing about what is inside.
var vague = []string{"util", "utils", "common", "helper", "helpers", "types", "model", "models", "misc"}

// file is one Go file, parsed.
type file struct {
	path string // from the root of the module, with slashes
	room string // its folder
	test bool
	*ast.File
	set *token.FileSet
}

// imports lists the import paths of a file.
func (f file) imports(t *testing.T) []string {
	var all []string
	for _, spec := range f.Imports {
		p, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			t.Fatalf("%s: %v", f.path, err)
		}
		all = append(all, p)
	}
	return all
}

// parseAll parses every Go file of the module, whatever platform it is for.
func parseAll(t *testing.T) []file {
	t.Helper()
	var files []file
	set := token.NewFileSet()
	walk(t, func(p string) {
		if path.Ext(p) != ".go" {
			return
		}
		parsed, err := parser.ParseFile(set, filepath.FromSlash(p), nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file{p, path.Dir(p), strings.HasSuffix(p, "_test.go"), parsed, set})
	})
	if len(files) == 0 {
		t.Fatal("found no Go file")
	}
	return files
}

// walk visits the files of the module and leaves out test data and other modules.
func walk(t *testing.T, visit func(path string)) {
	t.Helper()
	err := filepath.WalkDir(".", func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !e.IsDir() {
			visit(filepath.ToSlash(p))
			return nil
		}
		if p == "." {
			return nil
		}
		if e.Name() == "testdata" || e.Name() == "bin" || e.Name() == "build" || strings.HasPrefix(e.Name(), ".") || strings.HasPrefix(e.Name(), "_") {
			return filepath.SkipDir
		}
		if _, err := os.Stat(filepath.Join(p, "go.mod")); err == nil {
			return filepath.SkipDir
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestRoomsImportOnlyWhatTheyMay(t *testing.T) {
	there := map[string]bool{}
	for _, f := range parseAll(t) {
		may, known := rooms[f.room]
		there[f.room] = true
		if !known {
			t.Errorf("%s: %s is no room of the map in rooms_test.go", f.path, f.room)
			continue
		}
		for _, imported := range f.imports(t) {
			room, ours := strings.CutPrefix(imported, module+"/")
			switch {
			case !ours, slices.Contains(may, room):
			case f.test && (room == f.room || room == "internal/proctest"):
			default:
				t.Errorf("%s: %s may not import %s", f.path, f.room, room)
			}
		}
	}
	for room := range rooms {
		if !there[room] {
			t.Errorf("the map in rooms_test.go has a row for %s, and there is no such package", room)
		}
	}
}

func TestLibrariesStayInTheirRooms(t *testing.T) {
	for _, f := range parseAll(t) {
		for _, imported := range f.imports(t) {
			for library, home := range homes {
				if imported != library && !strings.HasPrefix(imported, library+"/") {
					continue
				}
				if f.room != home {
					t.Errorf("%s: only %s may import %s", f.path, home, library)
				}
			}
			host, _, _ := strings.Cut(imported, "/")
			foreign := strings.Contains(host, ".") && !strings.HasPrefix(imported, module+"/")
			if foreign && !f.test && slices.Contains(standardOnly, f.room) {
				t.Errorf("%s: %s may import nothing but the standard library and its row, not %s", f.path, f.room, imported)
			}
		}
	}
}

func TestEveryRoomHasOnePackageComment(t *testing.T) {
	comments := map[string][]string{}
	for _, f := range parseAll(t) {
		if f.test {
			continue
		}
		if _, seen := comments[f.room]; !seen {
			comments[f.room] = nil
		}
		if f.Doc == nil {
			continue
		}
		comments[f.room] = append(comments[f.room], f.path)
		if text := f.Doc.Text(); f.Name.Name != "main" && !strings.HasPrefix(text, "Package "+f.Name.Name+" ") {
			t.Errorf("%s: the package comment must begin with \"Package %s \"", f.path, f.Name.Name)
		}
	}
	for room, in := range comments {
		if len(in) != 1 {
			t.Errorf("%s: has %d package comments, want one: %v", room, len(in), in)
		}
	}
}

func TestNamesSaySomething(t *testing.T) {
	walk(t, func(p string) {
		dir, name := path.Split(p)
		name = strings.TrimSuffix(strings.TrimSuffix(name, path.Ext(name)), "_test")
		for _, part := range append(strings.Split(strings.TrimSuffix(dir, "/"), "/"), name) {
			if slices.Contains(vague, part) {
				t.Errorf("%s: %q says nothing about what is inside", p, part)
			}
		}
	})
}

// Whoever waits for any child takes the exit status from whoever waits for one.
func TestOnlyReapWaitsForStrangers(t *testing.T) {
	for _, f := range parseAll(t) {
		if f.test || f.room == "internal/reap" || f.path == "bench/kill/bare.go" { // a process that does nothing else
			continue
		}
		ast.Inspect(f.File, func(n ast.Node) bool {
			id, ok := n.(*ast.Ident)
			if ok && slices.Contains([]string{"Wait4", "SYS_WAIT4", "Waitid", "SYS_WAITID"}, id.Name) {
				t.Errorf("%s: only internal/reap may use %s", f.set.Position(id.Pos()), id.Name)
			}
			return true
		})
	}
}
