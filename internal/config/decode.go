package config

import (
	"fmt"
	"slices"
	"strings"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"
)

// decoder walks the tree and collects what is wrong. path names a place as
// messages do: workloads.resize.queue.length, listen[0].
type decoder struct {
	src    *source
	dir    string           // relative paths start here
	given  map[string]entry // what the file says, by path
	meant  map[string]bool  // paths of keys that it probably says, with a slip
	faults Faults
	odd    Faults // and no reason to refuse the file
}

// entry is one key and its value as written; key is nil for a list's element.
type entry struct {
	key   ast.Node
	value ast.Node
}

// value takes in what stands at a path, and says what may stand there.
type value struct {
	take   func(d *decoder, path string, n ast.Node)
	schema fragment
	must   bool // there is no default
	later  bool // its feature is not built
}

// parser turns what stands at a path into a T, or reports a fault and says false.
type parser[T any] struct {
	parse  func(d *decoder, path string, n ast.Node) (T, bool)
	schema fragment
	write  func(T) any // how a file says a T; nil: as it is
}

func (p parser[T]) written(v T) any {
	if p.write == nil {
		return v
	}
	return p.write(v)
}

// key is one row of a schema: doc is for users, in the reference and in editors.
type key struct {
	name, doc string
	value     value
}

// set keeps what p reads in dst, which holds the default.
func set[T any](dst *T, p parser[T]) value {
	s := p.schema
	s.Default = p.written(*dst)
	return value{schema: s, take: func(d *decoder, path string, n ast.Node) {
		if v, ok := p.parse(d, path, n); ok {
			*dst = v
		}
	}}
}

// must keeps what p reads in dst, for a key that has no default.
func must[T any](dst *T, p parser[T]) value {
	v := set(dst, p)
	v.must, v.schema.Default = true, nil
	return v
}

// later is a key whose feature is not built: nothing that a file says is ever ignored
// in silence. It may say that the feature is off, in one of these spellings.
func later(off ...any) value {
	s := fragment{Not: &fragment{}}
	if len(off) > 0 {
		s = fragment{Enum: off, Default: off[0]}
	}
	return value{later: true, schema: s, take: func(d *decoder, path string, n ast.Node) {
		if !slices.Contains(off, literal(n)) {
			d.fault(n, "%s: not available in this version: leave it out", path)
		}
	}}
}

// literal is the text or the whole number that n is, else nil.
func literal(n ast.Node) any {
	if s, ok := n.(*ast.StringNode); ok {
		return s.Value
	}
	if i, ok := wholeNumber(n); ok {
		return int(i)
	}
	return nil
}

// object takes in a mapping that knows these keys.
func object(keys ...key) value {
	names := make([]string, len(keys))
	s := fragment{Type: "object", AdditionalProperties: false}
	for i, k := range keys {
		names[i] = k.name
		p := property{k.name, k.value.schema}
		p.Description = k.doc
		if k.value.later {
			p.Description = "Not available in this version. " + k.doc
		}
		s.Properties = append(s.Properties, p)
		if k.value.must {
			s.Required = append(s.Required, k.name)
		}
	}
	return value{schema: s, take: func(d *decoder, path string, n ast.Node) {
		for name, e := range d.entries(path, n) {
			if i := slices.Index(names, name); i >= 0 {
				keys[i].value.take(d, join(path, name), e.value)
				continue
			}
			d.fault(e.key, "unknown key %s%s: %s", quote(name), in(path), remedy(name, names))
			if near := nearest(name, names); near != "" {
				d.meant[join(path, near)] = true
			}
		}
	}}
}

// entries yields the keys of a mapping in the order of the file. It reports a
// node that is none, a key that comes twice and a key without a value, and
// leaves those out.
func (d *decoder) entries(path string, n ast.Node) func(yield func(string, entry) bool) {
	return func(yield func(string, entry) bool) {
		var values []*ast.MappingValueNode
		switch n := n.(type) {
		case *ast.MappingNode:
			values = n.Values
		case *ast.MappingValueNode:
			values = []*ast.MappingValueNode{n}
		default:
			d.fault(n, "%smust be keys with values, not %s", label(path), describe(n))
			return
		}
		first := map[string]*token.Position{}
		for _, v := range values {
			at := v.Key.GetToken().Position
			name := v.Key.GetToken().Value
			if before, twice := first[name]; twice {
				d.fault(v.Key, "key %s stands in line %d already%s: remove one", quote(name), before.Line, in(path))
				continue
			}
			first[name] = at
			e := entry{key: v.Key, value: v.Value}
			d.given[join(path, name)] = e
			if _, null := v.Value.(*ast.NullNode); null {
				d.fault(v.Key, "%s: has no value: give it one, or leave it out for the default", join(path, name))
				continue
			}
			if !yield(name, e) {
				return
			}
		}
	}
}

// list reads a sequence of what p reads.
func list[T any](p parser[T]) parser[[]T] {
	return parser[[]T]{
		schema: fragment{Type: "array", Items: &p.schema, form: "list: " + p.schema.form},
		write: func(all []T) any {
			written := make([]any, len(all))
			for i, v := range all {
				written[i] = p.written(v)
			}
			return written
		},
		parse: func(d *decoder, path string, n ast.Node) ([]T, bool) {
			seq, ok := n.(*ast.SequenceNode)
			if !ok {
				d.fault(n, "%s: must be a list, not %s: write it as [%s]", path, describe(n), strings.Join(strings.Fields(raw(n)), ", "))
				return nil, false
			}
			var all []T // an empty list is as none
			for i, n := range seq.Values {
				at := fmt.Sprintf("%s[%d]", path, i)
				d.given[at] = entry{value: n}
				v, good := p.parse(d, at, n)
				all, ok = append(all, v), ok && good
			}
			return all, ok
		},
	}
}

// some refuses an empty list.
func some[T any](p parser[[]T], why string) parser[[]T] {
	parse := p.parse
	p.schema.MinItems = 1
	p.parse = func(d *decoder, path string, n ast.Node) ([]T, bool) {
		all, ok := parse(d, path, n)
		if ok && len(all) == 0 {
			d.fault(n, "%s: is empty: %s", path, why)
		}
		return all, ok && len(all) > 0
	}
	return p
}

func (d *decoder) fault(n ast.Node, format string, args ...any) {
	p := position(n)
	d.faults = append(d.faults, d.src.fault(p.Line, p.Column, format, args...))
}

// missing tells whether the file lacks the key at path. One written with a slip has been
// told of, and is there.
func (d *decoder) missing(path string) bool {
	_, given := d.given[path]
	return !given && !d.meant[path]
}

// faultAt reports a fault in the value at path, which the file gives.
func (d *decoder) faultAt(path, format string, args ...any) {
	d.fault(d.given[path].value, "%s: %s", path, fmt.Sprintf(format, args...))
}

// warnAt tells of something odd in the value at path, which the file gives.
func (d *decoder) warnAt(path, format string, args ...any) {
	p := position(d.given[path].value)
	d.odd = append(d.odd, d.src.fault(p.Line, p.Column, "%s: %s", path, fmt.Sprintf(format, args...)))
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func in(path string) string {
	if path == "" {
		return ""
	}
	return " in " + path
}

func label(path string) string {
	if path == "" {
		return "the config "
	}
	return path + ": "
}
