package config

import (
	"encoding/json"
	"errors"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// compiled is the published schema, which the compiler has held against its draft.
var compiled = sync.OnceValue(func() *jsonschema.Schema {
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(string(Schema())))
	if err != nil {
		panic(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("hangup.schema.json", doc); err != nil {
		panic(err)
	}
	return c.MustCompile("hangup.schema.json")
})

// edited is what an editor that knows the schema says of a file.
func edited(data string) error {
	var v any
	if err := yaml.Unmarshal([]byte(data), &v); err != nil {
		return err
	}
	asJSON, err := json.Marshal(v)
	if err != nil {
		return err
	}
	v, err = jsonschema.UnmarshalJSON(strings.NewReader(string(asJSON)))
	if err != nil {
		return err
	}
	return compiled().Validate(v)
}

// beyond are the faults that the schema cannot tell, by what their message says; why is
// said here, and each must occur among the cases below.
var beyond = []struct{ fault, why string }{
	{"is longer than 256 KiB", "the file as a whole"},
	{"a second document", "one document of a file is validated"},
	{"anchors and aliases", "YAML, resolved before a schema sees it"},
	{"tags (", "YAML"},
	{"directives (", "YAML"},
	{"merge keys (<<)", "YAML"},
	{"keys with `?`", "YAML"},
	{"NUL character", "a character that nobody types"},
	{"is too large", "overflow: no pattern counts"},
	{`cannot read "9999999999h" as a duration`, "overflow"},
	{"as a port", "a port up to 99999: no pattern counts"},
	{"is neither an address nor a host name", "the shape of an address"},
	{"address inside a network", "arithmetic"},
	{"as a network or an address", "the shape of an address"},
	{"stands in the list already", "uniqueItems compares as written, and paths are made absolute first"},
	{"can be reached from other machines", "listen and auth together"},
	{"no workload is named", "a token and the workloads together"},
	{"cannot be with containment.minimum", "two keys together"},
	{"names another token already", "two tokens together"},
	{"this is the token of", "two tokens together"},
	{"is set in env already", "env and pass_env together"},
	{"cannot find the directory", "the file system"},
	{"is not a directory", "the file system"},
	{"is no socket", "the file system"},
	{"and the kernel takes 107", "the length of the absolute path"},
	{"cannot read the certificate", "the file system"},
	{"cannot read the key", "the file system"},
}

// told notes each fault of the list above that was needed.
type told map[string]bool

// agrees holds Parse and the schema against each other on one file.
func (b told) agrees(t *testing.T, file, data string) (faults Faults) {
	t.Helper()
	_, err := Parse(file, []byte(data))
	editor := edited(data)
	if err == nil {
		if editor != nil {
			t.Errorf("serve takes it, an editor marks it:\n%s\n%v", data, editor)
		}
		return nil
	}
	errors.As(err, &faults)
	if editor != nil {
		return faults
	}
	for _, f := range faults {
		i := slices.IndexFunc(beyond, func(k struct{ fault, why string }) bool { return strings.Contains(f.Msg, k.fault) })
		if i < 0 {
			t.Errorf("an editor takes it, and no reason is given:\n%s\n%v", data, f)
			continue
		}
		b[beyond[i].fault] = true
	}
	return faults
}

// values are good and bad values of every key that has one.
var values = []struct {
	key       string
	good, bad []string
}{
	{
		"listen",
		[]string{"[127.0.0.1:0]", `["[::1]:80", localhost:65535]`, "[unix:h.sock]", "[unix:/tmp/h.sock, 127.1.2.3:1]", `["[::ffff:127.0.0.1]:80"]`},
		[]string{"127.0.0.1:80", "[]", "[80]", "[localhost]", "[a:b]", "[a:080]", "[a:65536]", `["a b:80"]`, `["::1:80"]`, `["unix:"]`, `["unix:@x"]`, "[unix:no/where]", "[unix:/" + strings.Repeat("x", 107) + "]", "[true]", "[unix:text]", `["a..b:80"]`},
	},
	{"tls.cert", []string{"good.pem", "./good.pem"}, []string{`""`, "nowhere.pem", "7", "[good.pem]"}},
	{"tls.key", []string{"good.key"}, []string{`""`, "nowhere.key", "7"}},
	{"hosts", []string{"[]", "[a.example, A_b, 10.0.0.1]", `["::1", "fe80::1%eth0", "::ffff:1.2.3.4"]`}, []string{"a.example", `["*.example"]`, "[a.example:80]", `["https://a"]`, `[""]`, "[7]", "[-a]", "[a..b]"}},
	{"trusted_proxies", []string{"[]", "[10.0.0.0/8, 192.0.2.7]", `["2001:db8::/32", "::1", "::ffff:10.0.0.0/104", "::/0"]`}, []string{"10.0.0.0/8", "[10.0.0.1/8]", "[proxy]", "[10.0.0.0/33]", "[10.0]", "[10]", `["fe80::1%eth0"]`, `["10.0.0.0/"]`}},
	{"auth", []string{"none", "{}", "{tokens: []}"}, []string{"open", "true", "{none: true}", "[]", `""`}},
	{"auth.tokens", []string{"[]"}, []string{"{}", "[{}]", "[a]"}},
	{"auth.tokens[].name", []string{"a", "A.b_c@d-e"}, []string{"7", `""`, "a b", "-a", strings.Repeat("a", 64)}},
	{"auth.tokens[].sha256", []string{digestA, strings.Repeat("0aF9", 16)}, []string{"abc", "7", digestA + "a", strings.Repeat("g", 64)}},
	{"auth.tokens[].allow", []string{"[execute]", "[observe, operate]"}, []string{"[]", "execute", "[exec]", "[7]"}},
	{"auth.tokens[].workloads", []string{`["*"]`, "[w]"}, []string{"[]", "w", "[7]", "[v]"}},
	{"limits.body", goodSizes[1:], append(badSizes, "0", "0MiB", "00B")},
	{"limits.body_timeout", goodDurations[2:], append(badDurations, "0", "0s", `"0"`)},
	{"limits.connections", []string{"1", "1000000"}, []string{"0", "1000001", "-1", "x", "1.5"}},
	{"limits.streams", []string{"1", "100", "10000"}, []string{"0", "10001", "x"}},
	{"limits.hangups.burst", []string{"0", "2000", "1000000"}, []string{"-1", "1000001", "5s"}},
	{"limits.hangups.per_minute", []string{"1", "600", "1000000"}, []string{"0", "1000001", "true"}},
	{"spool.dir", []string{`""`, ".", "/tmp"}, []string{"nowhere", "text", "7", "true"}},
	{"spool.max", goodSizes, badSizes},
	{"drain", goodDurations, badDurations},
	{"containment.minimum", []string{"process-group", "subreaper", "cgroup"}, []string{"none", "7"}},
	{"containment.cgroup", []string{"auto", "never"}, []string{"always", "true"}},
	{"log.format", []string{"json", "text"}, []string{"xml", "7", `""`}},
	{"log.level", []string{"debug", "info", "warn", "error"}, []string{"warning", "INFO", "7"}},
	{"workloads", []string{"{a: {command: [a]}}", "{a-1_b: {command: [a]}, 7: {command: [a]}}"}, []string{"{}", "[w]", "w", "{W: {command: [a]}}", "{a/b: {command: [a]}}", "{w: {}}", "{w: []}", "{w: {command: &c [a]}}"}},
	{"workloads.w.kind", []string{"worker"}, []string{"http", "command", "terminal", "x", "7"}},
	{"workloads.w.command", []string{"[a]", `[a, "5", ""]`}, []string{"a", "[]", `[""]`, "[a, 5]", "[[a]]"}},
	{"workloads.w.dir", []string{".", "/tmp", `""`}, []string{"nowhere", "text", "7"}},
	{"workloads.w.env", []string{"{}", `{A: "", _b1: x}`}, []string{"[]", "{A: 5}", "{1A: x}", "{A-B: x}", "{HANGUP_X: x}", "{A: [x]}", "{A: true}"}},
	{"workloads.w.pass_env", []string{"[]", "[PATH]"}, []string{"PATH", "[1A]", "[HANGUP_X]", "[PATH, PATH]", "[7]"}},
	{"workloads.w.user", []string{`""`}, []string{"nobody", "7", "true"}},
	{"workloads.w.new_privileges", []string{"true", "false"}, []string{"yes", "1", `"true"`}},
	{"workloads.w.workers", []string{"0", "10000"}, []string{"-1", "10001", "two", "1.5", "18446744073709551615"}},
	{"workloads.w.spares", []string{"0", "10000"}, []string{"-1", "10001", ".inf"}},
	{"workloads.w.queue.length", []string{"0", "1000000"}, []string{"-1", "1000001", "x"}},
	{"workloads.w.queue.wait", goodDurations, badDurations},
	{"workloads.w.timeout", goodDurations, badDurations},
	{"workloads.w.start_timeout", goodDurations[2:], append(badDurations, "0", "0s")},
	{"workloads.w.stop.cooperative", goodDurations, badDurations},
	{"workloads.w.stop.signal", []string{"SIGTERM", "SIGKILL", "SIGUSR2"}, []string{"TERM", "15", "SIGSTOP"}},
	{"workloads.w.stop.grace", goodDurations, badDurations},
	{"workloads.w.on_hangup.allow", []string{"[cancel]"}, []string{"[]", "[linger]", "[cancel, detach]", "cancel"}},
	{"workloads.w.on_hangup.result_ttl", []string{"5m"}, []string{"6m", "0s", "0", "x"}},
	{"workloads.w.recycle.calls", []string{"0"}, []string{"5", "-1", `"0"`, "x"}},
	{"workloads.w.recycle.age", []string{"0", "0s"}, []string{"1h", "5", "x"}},
	{"workloads.w.recycle.memory", []string{"0"}, []string{"1GiB", "5", "x"}},
	{"workloads.w.limits.memory", []string{"0"}, []string{"1GiB", "5"}},
	{"workloads.w.limits.pids", []string{"0"}, []string{"5"}},
	{"workloads.w.limits.cpus", []string{"0"}, []string{"0.5", "2"}},
	{"workloads.w.limits.output", goodSizes, badSizes},
	{"workloads.w.limits.files", []string{"0", "16", "99999999"}, []string{"1", "15", "-1", "1KiB"}},
	{"workloads.w.input.schema", nil, []string{"a.json", `""`, "0"}},
	{"workloads.w.ready", nil, []string{"{path: /}", "{}"}},
	{"workloads.w.stdin", nil, []string{"body", `""`}},
	{"workloads.w.script", nil, []string{"[]", "x"}},
}

var (
	goodSizes     = []string{"0", "1", "1000", "64KiB", "16 MiB", "1GiB", "1TiB", "7B"}
	badSizes      = []string{"-1", "16MB", "16k", "16x", "1.5GiB", "1.5", "true", "[1]", "MiB", "9999999TiB"}
	goodDurations = []string{"0", "0s", "8s", "1m30s", "1.5h", ".5s", "+1s", "1ms", "3us", "3µs", "1ns"}
	badDurations  = []string{"8", "1.5", "-8s", "8 s", "1d", "true", "[8s]", "9999999999h", `""`, "s"}
)

// document is a config file that is good when v is a good value of key.
func document(key, v string) string {
	nested := func(key string) string {
		keys := strings.Split(key, ".")
		return strings.Join(keys, ": {") + ": " + v + strings.Repeat("}", len(keys)-1)
	}
	pairs := func(m map[string]string) string {
		var all []string
		for _, name := range slices.Sorted(maps.Keys(m)) {
			all = append(all, name+": "+m[name])
		}
		return "{" + strings.Join(all, ", ") + "}"
	}
	if name, ok := strings.CutPrefix(key, "workloads.w."); ok {
		if name == "command" {
			return "workloads: {w: {command: " + v + "}}\n"
		}
		return "workloads: {w: {command: [a], " + nested(name) + "}}\n"
	}
	if name, ok := strings.CutPrefix(key, "auth.tokens[]."); ok {
		token := map[string]string{"name": "t", "sha256": digestA, "allow": "[execute]"}
		token[name] = v
		return work + "auth: {tokens: [" + pairs(token) + "]}\n"
	}
	if name, ok := strings.CutPrefix(key, "tls."); ok {
		pair := map[string]string{"cert": "good.pem", "key": "good.key"}
		pair[name] = v
		return work + "tls: " + pairs(pair) + "\n"
	}
	if key == "workloads" {
		return nested(key) + "\n"
	}
	return work + nested(key) + "\n"
}

func TestSchemaAgrees(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "hangup.yaml")
	writePair(t, dir, "good", time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	writeFile(t, filepath.Join(dir, "text"), "hello\n")
	writeFile(t, filepath.Join(dir, "a-file"), "")
	needed := told{}
	for _, c := range faultCases {
		if len(c.yaml) < 1<<16 || strings.HasPrefix(c.yaml, work) { // the deep ones would keep the validator's parser busy
			needed.agrees(t, file, c.yaml)
		}
	}
	tested := map[string]bool{}
	for _, row := range values {
		tested[strings.Replace(row.key, ".w.", ".NAME.", 1)] = true
		for _, v := range row.good {
			data := document(row.key, v)
			if faults := needed.agrees(t, file, data); faults != nil {
				t.Errorf("%s: %s is refused: %v", row.key, v, faults)
			}
		}
		for _, v := range row.bad {
			data := document(row.key, v)
			if faults := needed.agrees(t, file, data); faults == nil {
				t.Errorf("%s: %s is taken", row.key, v)
			}
		}
	}
	for _, b := range beyond {
		if !needed[b.fault] {
			t.Errorf("%q (%s) is beyond the schema in no case: remove it", b.fault, b.why)
		}
	}
	for _, k := range keys(published()) {
		if k.Properties == nil && !tested[k.path] {
			t.Errorf("%s: has no row of values", k.path)
		}
		delete(tested, k.path)
	}
	for name := range tested {
		t.Errorf("%s: has a row of values and is not in the schema", name)
	}
}

// What the project itself gives to its users is taken by both.
func TestOwnConfigs(t *testing.T) {
	root := filepath.Join("..", "..")
	whole := []string{filepath.Join("cmd", "hangup", "starter", "hangup.yaml"), filepath.Join("examples", "go", "hangup.yaml")}
	for _, name := range whole {
		data, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		if faults := (told{}).agrees(t, filepath.Join(root, name), string(data)); faults != nil {
			t.Errorf("%s: %v", name, faults)
		}
	}
	for _, name := range []string{"README.md", filepath.Join("docs", "config.md")} {
		data, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllSubmatch(data, -1)
		if len(blocks) == 0 {
			t.Errorf("%s: found no config", name)
		}
		for _, b := range blocks {
			text := strings.ReplaceAll(string(b[1]), "<hex SHA-256 of the token>", digestA)
			for _, f := range (told{}).agrees(t, filepath.Join(root, name), text) {
				if !strings.HasSuffix(f.Msg, "no such file or directory") { // they name files of the reader
					t.Errorf("%s: %v", name, f)
				}
			}
		}
	}
}

// A field without a row could not be set, and a row without a field would do nothing.
func TestRowsAndFields(t *testing.T) {
	elsewhere := map[string]string{ // fields that are no key
		"auth.off":            "auth: none",
		"workloads.NAME.name": "the key of the workload",
		"warnings":            "found", "file": "given", "dir": "given",
	}
	fields := map[string]bool{}
	var walk func(path string, typ reflect.Type)
	walk = func(path string, typ reflect.Type) {
		for i := range typ.NumField() {
			f := typ.Field(i)
			at := join(path, keyName(f.Name))
			if _, known := elsewhere[at]; known {
				delete(elsewhere, at)
				continue
			}
			fields[at] = true
			switch inner := f.Type; {
			case inner == reflect.TypeFor[[]Workload]():
				walk(at+".NAME", inner.Elem())
			case inner.Kind() == reflect.Slice && inner.Elem() == reflect.TypeFor[Token]():
				walk(at+"[]", inner.Elem())
			case inner.Kind() == reflect.Struct:
				walk(at, inner)
			}
		}
	}
	walk("", reflect.TypeFor[Config]())
	for name, why := range elsewhere {
		t.Errorf("%s (%s) is no field", name, why)
	}
	for _, k := range keys(published()) {
		unbuilt := strings.HasPrefix(k.Description, "Not available in this version. ")
		if !fields[k.path] && !unbuilt && !slices.Contains([]string{"workloads.NAME.recycle", "workloads.NAME.input"}, k.path) { // all of whose keys are unbuilt
			t.Errorf("%s: has a row and no field", k.path)
		}
		if strings.TrimPrefix(k.Description, "Not available in this version. ") == "" {
			t.Errorf("%s: has no documentation", k.path)
		}
		delete(fields, k.path)
	}
	for name := range fields {
		t.Errorf("%s: has a field and no row", name)
	}
}

var wordStart = regexp.MustCompile(`([a-z])([A-Z])`)

// keyName is the key of a field: pass_env of PassEnv.
func keyName(field string) string {
	return strings.ToLower(wordStart.ReplaceAllString(field, "${1}_$2"))
}

// A file that says each default as the schema tells it is as one that says nothing.
func TestDefaultsTold(t *testing.T) {
	var said func(f fragment) map[string]any
	said = func(f fragment) map[string]any {
		all := map[string]any{}
		for _, p := range f.Properties {
			inner := p.fragment
			for _, choice := range inner.AnyOf {
				if choice.Properties != nil {
					inner = choice
				}
			}
			switch {
			case p.Default != nil:
				all[p.name] = p.Default
			case inner.Properties != nil && inner.Required == nil:
				if keys := said(inner); len(keys) > 0 {
					all[p.name] = keys
				}
			}
		}
		return all
	}
	root := published()
	all := said(root)
	w := said(root.property("workloads").PatternProperties[workloadSyntax])
	if len(all) < 8 || len(w) < 12 {
		t.Fatalf("found few defaults: %v, %v", all, w)
	}
	w["command"] = []string{"sh"} // which is there: a warning has a place in the file
	all["workloads"] = map[string]any{"w": w}
	data, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "hangup.yaml")
	got, err := Parse(file, data)
	if err != nil {
		t.Fatalf("%s:\n%v", data, err)
	}
	want, err := Parse(file, []byte("workloads: {w: {command: [sh]}}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("said or not (-not +said):\n%s", diff)
	}
}

func (f fragment) property(name string) fragment {
	i := slices.IndexFunc(f.Properties, func(p property) bool { return p.name == name })
	return f.Properties[i].fragment
}

// FuzzSchema looks for a file that serve takes and an editor marks.
func FuzzSchema(f *testing.F) {
	for _, row := range values {
		for _, v := range row.good {
			f.Add(document(row.key, v))
		}
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data string) {
		if _, err := Parse(filepath.Join(dir, "hangup.yaml"), []byte(data)); err != nil {
			return
		}
		if err := edited(data); err != nil {
			t.Errorf("serve takes it, an editor marks it:\n%s\n%v", data, err)
		}
	})
}

func TestSchemaPublished(t *testing.T) { holdPublished(t, "hangup.schema.json", string(Schema())) }

func TestReferencePublished(t *testing.T) { holdPublished(t, "config.md", reference()) }

// holdPublished holds a committed file against what it is made of.
func holdPublished(t *testing.T, name, want string) {
	file := filepath.Join("..", "..", "docs", name)
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(have)); diff != "" {
		t.Errorf("docs/%s is not what the rows in schema.go say: run `make docs` (-want +have):\n%s", name, diff)
	}
}
