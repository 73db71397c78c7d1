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
	faults Faults
}

// entry is one key and its value as written; key is nil for a list's element.
type entry struct {
	key   ast.Node
	value ast.Node
}

// value takes in what stands at path.
type value func(d *decoder, path string, n ast.Node)

// parser turns what stands at path into a T, or reports a fault and says false.
type parser[T any] func(d *decoder, path string, n ast.Node) (T, bool)

// key is one row of a schema.
type key struct {
	name  string
	value value
}

// set keeps what p reads in dst, which holds the default.
func set[T any](dst *T, p parser[T]) value {
	return func(d *decoder, path string, n ast.Node) {
		if v, ok := p(d, path, n); ok {
			*dst = v
		}
	}
}

// later is a key whose feature is not built: nothing that a file says is ever
// ignored in silence.
func later(d *decoder, path string, n ast.Node) {
	d.fault(n, "%s: not available in this version: leave it out", path)
}

// laterUnless lets a key of a feature that is not built say its default.
func laterUnless[T comparable](usual T, p parser[T]) value {
	return func(d *decoder, path string, n ast.Node) {
		if v, ok := p(d, path, n); ok && v != usual {
			later(d, path, n)
		}
	}
}

// laterUnlessZero lets a key of a feature that is not built say that it is off.
func laterUnlessZero[T comparable](p parser[T]) value {
	var zero T
	return laterUnless(zero, p)
}

// object takes in a mapping that knows these keys.
func object(keys ...key) value {
	names := make([]string, len(keys))
	for i, k := range keys {
		names[i] = k.name
	}
	return func(d *decoder, path string, n ast.Node) {
		for name, e := range d.entries(path, n) {
			if i := slices.Index(names, name); i >= 0 {
				keys[i].value(d, join(path, name), e.value)
				continue
			}
			d.fault(e.key, "unknown key %s%s: %s", quote(name), in(path), remedy(name, names))
		}
	}
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
	return func(d *decoder, path string, n ast.Node) ([]T, bool) {
		seq, ok := n.(*ast.SequenceNode)
		if !ok {
			d.fault(n, "%s: must be a list, not %s: write it as [%s]", path, describe(n), strings.Join(strings.Fields(raw(n)), ", "))
			return nil, false
		}
		all := make([]T, 0, len(seq.Values))
		for i, n := range seq.Values {
			at := fmt.Sprintf("%s[%d]", path, i)
			d.given[at] = entry{value: n}
			v, good := p(d, at, n)
			all, ok = append(all, v), ok && good
		}
		return all, ok
	}
}

// some refuses an empty list.
func some[T any](p parser[[]T], why string) parser[[]T] {
	return func(d *decoder, path string, n ast.Node) ([]T, bool) {
		all, ok := p(d, path, n)
		if ok && len(all) == 0 {
			d.fault(n, "%s: is empty: %s", path, why)
		}
		return all, ok && len(all) > 0
	}
}

func (d *decoder) fault(n ast.Node, format string, args ...any) {
	p := position(n)
	d.faults = append(d.faults, d.src.fault(p.Line, p.Column, format, args...))
}

// faultAt reports a fault in the value at path, which the file gives.
func (d *decoder) faultAt(path, format string, args ...any) {
	d.fault(d.given[path].value, "%s: %s", path, fmt.Sprintf(format, args...))
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
