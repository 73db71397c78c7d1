package config

import (
	"encoding/json"
	"flag"
	"fmt"
	"slices"
	"strings"
)

var update = flag.Bool("update", false, "write docs/hangup.schema.json and docs/config.md instead of comparing them")

// keyed is a key of the schema with its place; NAME stands for a workload's name and []
// for any element of a list.
type keyed struct {
	path string
	must bool
	fragment
}

// keys lists the keys below f in its order, each before those inside it.
func keys(f fragment) []keyed {
	var list []keyed
	var walk func(path string, f fragment)
	walk = func(path string, f fragment) {
		for _, p := range f.Properties {
			at := join(path, p.name)
			list = append(list, keyed{at, slices.Contains(f.Required, p.name), p.fragment})
			walk(at, p.fragment)
		}
		if f.Items != nil {
			walk(path+"[]", *f.Items)
		}
		for _, choice := range f.AnyOf {
			walk(path, choice)
		}
		for _, one := range f.PatternProperties {
			walk(path+".NAME", one)
		}
	}
	walk("", f)
	return list
}

const referenceIntro = `# The config

<!-- Made of the rows in internal/config/schema.go by make docs: edit those. -->

One YAML file, ` + "`hangup.yaml`" + ` by default. ` + "`hangup check`" + ` validates it as ` + "`hangup serve`" + ` would and tells each fault as
FILE:LINE:COL with a remedy; ` + "`hangup init`" + ` writes a small one. The file is read strictly: an unknown key, a wrong unit or an impossible
combination is a fault, never ignored. A key of a feature that is not built is refused unless it says that the feature is off.

- **duration**: as Go writes it, with ` + "`h`, `m`, `s`, `ms`, `us`, `ns`" + `: ` + "`30s`, `1m30s`" + `. A number without a unit is refused, but for 0.
- **size**: bytes, or a whole number with ` + "`KiB`, `MiB`, `GiB` or `TiB`" + `: ` + "`512MiB`" + `. Decimal units are refused.
- **text**: a value that YAML reads as a number or a truth value needs quotes: ` + "`\"8080\"`" + `.
- Anchors, aliases, merge keys, tags and a second document are refused.

An editor with YAML support validates and completes with the [JSON Schema](hangup.schema.json), which ` + "`hangup check --schema`" + ` prints.
With the YAML language server (VS Code, Neovim, …) the first line of the file names it:

` + "```yaml" + `
# yaml-language-server: $schema=hangup.schema.json
listen: [127.0.0.1:8080]
workloads:
  resize:
    command: [python3, worker.py]
    workers: 4
` + "```" + `

What an editor cannot see, ` + "`hangup check`" + ` does: files, certificates, and keys that depend on one another.
`

// reference is docs/config.md: a table for each key of the file that has keys inside,
// and one for the others.
func reference() string {
	var b strings.Builder
	b.WriteString(referenceIntro)
	table := func(rows []keyed, section string) {
		b.WriteString("\n| key | value | default | meaning |\n|---|---|---|---|\n")
		for _, k := range rows {
			name := strings.TrimPrefix(strings.TrimPrefix(k.path, section+".NAME."), section+".")
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", name, cell(k.form()), k.told(), cell(k.Description))
		}
	}
	all := keys(published())
	table(slices.DeleteFunc(slices.Clone(all), func(k keyed) bool {
		return strings.Contains(k.path, ".") || k.hasKeys()
	}), "")
	for _, section := range all {
		if strings.Contains(section.path, ".") || !section.hasKeys() {
			continue
		}
		title := section.path
		fmt.Fprintf(&b, "\n## `%s`\n\n%s\n", title, section.Description)
		table(slices.DeleteFunc(slices.Clone(all), func(k keyed) bool {
			return !strings.HasPrefix(k.path, section.path+".")
		}), section.path)
	}
	return b.String()
}

func (k keyed) hasKeys() bool { return len(keys(k.fragment)) > 0 }

// form says what is written there.
func (k keyed) form() string {
	switch {
	case k.fragment.form != "":
		form := k.fragment.form
		if k.Items != nil && k.Items.Enum != nil {
			form += code(k.Items.Enum)
		} else if k.Items != nil && k.Items.Properties != nil {
			form += "keys"
		}
		return form
	case k.Enum != nil:
		return code(k.Enum)
	case k.Not != nil:
		return "–"
	default:
		return "keys"
	}
}

// told says what holds when the key is left out.
func (k keyed) told() string {
	switch {
	case k.must:
		return "*required*"
	case k.Default == nil:
		return "–"
	}
	data, err := json.Marshal(k.Default)
	if err != nil {
		panic(err) // defaults are numbers, texts, and lists of them
	}
	said := string(data)
	if s, ok := k.Default.(string); ok && s != "" {
		said = s
	}
	return "`" + said + "`"
}

// code is words as alternatives.
func code(all []any) string {
	list := make([]string, len(all))
	for i, v := range all {
		data, _ := json.Marshal(v) //nolint:errcheck // a text or a number
		list[i] = "`" + strings.Trim(string(data), `"`) + "`"
		if v == "" {
			list[i] = "`\"\"`"
		}
	}
	return strings.Join(list, ", ")
}

func cell(s string) string { return strings.ReplaceAll(s, "|", `\|`) }
