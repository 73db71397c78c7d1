package hangup_test

import (
	"fmt"
	"go/ast"
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestPromisesHaveTheirTests: docs/promises.md has a row for every promise, and each test it
// names is there, in the package that its command runs.
func TestPromisesHaveTheirTests(t *testing.T) {
	data, err := os.ReadFile("docs/promises.md")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(string(data), `\|`, "|") // as a table has it
	for n := 1; n <= 15; n++ {
		if !strings.Contains(text, fmt.Sprintf("\n| P%d | ", n)) {
			t.Errorf("docs/promises.md has no row for P%d", n)
		}
	}
	tests := map[string]bool{} // room.TestName
	for _, f := range parseAll(t) {
		for _, decl := range f.Decls {
			if function, ok := decl.(*ast.FuncDecl); ok && f.test && function.Recv == nil {
				tests[f.room+"."+function.Name.Name] = true
			}
		}
	}
	command := regexp.MustCompile("go test \\./(\\S+) -run '?([^'`\\s]+)")
	for _, found := range command.FindAllStringSubmatch(text, -1) {
		for pattern := range strings.SplitSeq(found[2], "|") {
			if name := strings.TrimSuffix(pattern, "$"); !tests[found[1]+"."+name] {
				t.Errorf("docs/promises.md: %s has no test %s", found[1], name)
			}
		}
	}
	for _, name := range regexp.MustCompile(`\bTest\w+`).FindAllString(command.ReplaceAllString(text, ""), -1) {
		t.Errorf("docs/promises.md: no command runs %s", name)
	}
	for _, file := range []string{"README.md", "ARCHITECTURE.md"} {
		if data, err := os.ReadFile(file); err != nil || !strings.Contains(string(data), "docs/promises.md") {
			t.Errorf("%s does not lead to docs/promises.md (%v)", file, err)
		}
	}
}
