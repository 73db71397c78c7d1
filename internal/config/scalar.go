package config

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/goccy/go-yaml/ast"
)

// shownText is how many characters of a value a message repeats.
const shownText = 60

var secrets = regexp.MustCompile(`^workloads[.][^.]*[.]env[.]|^auth[.]`)

// secret tells whether what stands at path is not for messages, which end in logs.
func secret(path string) bool { return secrets.MatchString(path) }

// text reads a string. A number or a truth value is refused: which text was
// meant, 010 or 8, only its author knows.
var text = parser[string]{
	schema: fragment{Type: "string", form: "text"},
	parse: func(d *decoder, path string, n ast.Node) (string, bool) {
		var s string
		switch n := n.(type) {
		case *ast.StringNode:
			s = n.Value
		case *ast.LiteralNode:
			s = n.Value.Value
		case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.NullNode, *ast.InfinityNode, *ast.NanNode:
			if secret(path) {
				d.fault(n, "%s: must be text, not a number or a truth value: write it with quotes", path)
			} else {
				d.fault(n, `%s: must be text, not %s: write "%s" with its quotes`, path, describe(n), clip(raw(n)))
			}
			return "", false
		default:
			d.fault(n, "%s: must be text, not %s", path, describe(n))
			return "", false
		}
		if strings.ContainsRune(s, 0) {
			d.fault(n, "%s: holds a NUL character: remove it", path)
			return "", false
		}
		return s, true
	},
}

// textAs reads a string that read takes and turns into a T; where it does not, it says
// what is wrong and what to write instead.
func textAs[T any](schema fragment, read func(d *decoder, s string) (v T, wrong string)) parser[T] {
	schema.Type = "string"
	return parser[T]{schema: schema, parse: func(d *decoder, path string, n ast.Node) (v T, ok bool) {
		s, ok := text.parse(d, path, n)
		if !ok {
			return v, false
		}
		v, wrong := read(d, s)
		if wrong != "" {
			d.fault(n, "%s: %s", path, wrong)
		}
		return v, wrong == ""
	}}
}

// matching reads a string that is as re says; want says it for a person.
func matching(re *regexp.Regexp, want string) parser[string] {
	return textAs(fragment{Pattern: re.String(), form: "name"}, func(_ *decoder, s string) (string, string) {
		if !re.MatchString(s) {
			return "", quote(s) + " is not " + want
		}
		return s, ""
	})
}

// oneOf reads one of these words.
func oneOf(choice ...string) parser[string] {
	return parser[string]{
		schema: fragment{Enum: words(choice)},
		parse: func(d *decoder, path string, n ast.Node) (string, bool) {
			s, ok := n.(*ast.StringNode)
			if !ok {
				d.fault(n, "%s: must be %s, not %s", path, anyOf(choice), describe(n))
				return "", false
			}
			if !slices.Contains(choice, s.Value) {
				d.fault(n, "%s: cannot be %s: %s", path, quote(s.Value), remedy(s.Value, choice))
				return "", false
			}
			return s.Value, true
		},
	}
}

// without refuses words of a choice whose features are not built; instead says what
// to do.
func without(p parser[string], instead string, unbuilt ...string) parser[string] {
	parse := p.parse
	p.schema.Enum = slices.DeleteFunc(p.schema.Enum, func(w any) bool { return slices.Contains(unbuilt, w.(string)) })
	p.parse = func(d *decoder, path string, n ast.Node) (string, bool) {
		s, ok := parse(d, path, n)
		if ok && slices.Contains(unbuilt, s) {
			d.fault(n, "%s: %s is not available in this version%s", path, s, instead)
			return "", false
		}
		return s, ok
	}
	return p
}

// boolean reads true or false.
var boolean = parser[bool]{
	schema: fragment{Type: "boolean", form: "true or false"},
	parse: func(d *decoder, path string, n ast.Node) (bool, bool) {
		b, ok := n.(*ast.BoolNode)
		if !ok {
			d.fault(n, "%s: must be true or false, not %s", path, describe(n))
			return false, false
		}
		return b.Value, true
	},
}

// whole reads a whole number from least to most.
func whole(least, most int) parser[int] {
	s := fragment{Type: "integer", Minimum: bound(int64(least)), form: fmt.Sprintf("whole number, %d or more", least)}
	if most < math.MaxInt {
		s.Maximum, s.form = bound(int64(most)), fmt.Sprintf("whole number, %d to %d", least, most)
	}
	return parser[int]{schema: s, parse: func(d *decoder, path string, n ast.Node) (int, bool) {
		v, ok := wholeNumber(n)
		switch {
		case !ok:
			d.fault(n, "%s: must be a whole number, not %s", path, describe(n))
		case v < int64(least):
			d.fault(n, "%s: must be %d or more, not %d", path, least, v)
		case v > int64(most):
			d.fault(n, "%s: must be %d or less, not %d", path, most, v)
		default:
			return int(v), true
		}
		return 0, false
	}}
}

func wholeNumber(n ast.Node) (int64, bool) {
	i, ok := n.(*ast.IntegerNode)
	if !ok {
		return 0, false
	}
	switch v := i.Value.(type) {
	case int64:
		return v, true
	case uint64:
		return int64(min(v, math.MaxInt64)), true
	}
	return 0, false
}

var (
	sizeSyntax = regexp.MustCompile(`^([0-9]+) ?([A-Za-z]+)$`)
	sizeShifts = map[string]uint{"B": 0, "KiB": 10, "MiB": 20, "GiB": 30, "TiB": 40}
)

// size reads bytes, least (0 or 1) or more: a whole number, or one with a binary
// unit. The decimal units are refused: half the world takes MB for MiB.
func size(least int64) parser[int64] {
	digits, form := "[0-9]+", "size"
	if least > 0 {
		digits, form = "0*[1-9][0-9]*", "size above 0"
	}
	return parser[int64]{
		schema: fragment{AnyOf: []fragment{
			{Type: "string", Pattern: "^" + digits + " ?(B|KiB|MiB|GiB|TiB)$"},
			{Type: "integer", Minimum: &least},
		}, form: form},
		write: func(v int64) any { return writeSize(v) },
		parse: func(d *decoder, path string, n ast.Node) (int64, bool) {
			bytes, ok := readSize(d, path, n)
			if ok && bytes < least {
				d.fault(n, "%s: must be %d bytes or more, not %d", path, least, bytes)
				return 0, false
			}
			return bytes, ok
		},
	}
}

func readSize(d *decoder, path string, n ast.Node) (int64, bool) {
	if bytes, plain := wholeNumber(n); plain {
		return bytes, true
	}
	m := []string(nil)
	if s, ok := n.(*ast.StringNode); ok {
		m = sizeSyntax.FindStringSubmatch(s.Value)
	}
	if m == nil {
		d.fault(n, "%s: must be a size, not %s: write bytes, or a whole number with KiB, MiB, GiB or TiB, as 512MiB", path, describe(n))
		return 0, false
	}
	shift, known := sizeShifts[m[2]]
	if !known {
		d.fault(n, "%s: the unit of %s is not known: %s", path, quote(m[0]), unitRemedy(m[1], m[2]))
		return 0, false
	}
	v, err := strconv.ParseInt(m[1], 10, 64)
	if err != nil || v > math.MaxInt64>>shift {
		d.fault(n, "%s: %s is too large", path, quote(m[0]))
		return 0, false
	}
	return v << shift, true
}

// Size is a number of bytes as one would write it in a config.
func Size(bytes int64) string {
	if text, ok := writeSize(bytes).(string); ok {
		return text
	}
	return fmt.Sprintf("%d bytes", bytes)
}

// writeSize is v in the largest unit that divides it.
func writeSize(v int64) any {
	for _, unit := range []string{"TiB", "GiB", "MiB", "KiB"} {
		if shift := sizeShifts[unit]; v > 0 && v%(1<<shift) == 0 {
			return fmt.Sprintf("%d%s", v>>shift, unit)
		}
	}
	return v
}

func unitRemedy(digits, unit string) string {
	if i := strings.IndexByte("KMGT", strings.ToUpper(unit)[0]); i >= 0 {
		return fmt.Sprintf("write %s%ciB (units are binary; for decimal ones write the bytes)", digits, "KMGT"[i])
	}
	return "write KiB, MiB, GiB or TiB"
}

// durationSyntax is a time as Go writes it, 0 or more.
const durationSyntax = `^[+]?(0|(([0-9]+([.][0-9]*)?|[.][0-9]+)(ns|us|µs|μs|ms|s|m|h))+)$`

// duration reads a time as Go writes it, 0 or more; positive refuses 0.
func duration(positive bool) parser[time.Duration] {
	s := fragment{form: "duration", AnyOf: []fragment{{Type: "string", Pattern: durationSyntax}, {Const: 0}}}
	if positive {
		s = fragment{form: "duration above 0", Type: "string", Pattern: durationSyntax, Not: &fragment{Pattern: "^[^1-9]*$"}}
	}
	return parser[time.Duration]{
		schema: s,
		write:  func(v time.Duration) any { return writeDuration(v) },
		parse: func(d *decoder, path string, n ast.Node) (time.Duration, bool) {
			v, ok := readDuration(d, path, n)
			if ok && v == 0 && positive {
				d.fault(n, "%s: must be more than 0", path)
				return 0, false
			}
			return v, ok
		},
	}
}

func readDuration(d *decoder, path string, n ast.Node) (time.Duration, bool) {
	switch n := n.(type) {
	case *ast.StringNode:
		v, err := time.ParseDuration(n.Value)
		switch {
		case err != nil:
			d.fault(n, "%s: cannot read %s as a duration: write numbers with h, m, s or ms, as 30s or 1m30s", path, quote(n.Value))
		case strings.HasPrefix(n.Value, "-"):
			d.fault(n, "%s: cannot be negative", path)
		default:
			return v, true
		}
	case *ast.IntegerNode:
		if i, ok := wholeNumber(n); ok && i == 0 {
			return 0, true
		}
		d.fault(n, "%s: %s has no unit: write %ss for seconds", path, clip(raw(n)), clip(raw(n)))
	case *ast.FloatNode:
		d.fault(n, "%s: %s has no unit: write %ss for seconds", path, clip(raw(n)), clip(raw(n)))
	default:
		d.fault(n, "%s: must be a duration as 30s, not %s", path, describe(n))
	}
	return 0, false
}

// writeDuration is v without the zeros that Go puts behind it: 5m, not 5m0s.
func writeDuration(v time.Duration) string {
	s := v.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// signals are those that ask a program to end, or that it may take for it.
// SIGSTOP and the like would only use up the grace.
var signals = []struct {
	name   string
	signal syscall.Signal
}{
	{"SIGTERM", syscall.SIGTERM},
	{"SIGINT", syscall.SIGINT},
	{"SIGHUP", syscall.SIGHUP},
	{"SIGQUIT", syscall.SIGQUIT},
	{"SIGABRT", syscall.SIGABRT},
	{"SIGUSR1", syscall.SIGUSR1},
	{"SIGUSR2", syscall.SIGUSR2},
	{"SIGKILL", syscall.SIGKILL},
}

// signal reads the name of one of them.
var signal = func() parser[syscall.Signal] {
	names := make([]string, len(signals))
	for i, s := range signals {
		names[i] = s.name
	}
	word := oneOf(names...)
	return parser[syscall.Signal]{
		schema: word.schema,
		write: func(v syscall.Signal) any {
			for _, s := range signals {
				if s.signal == v {
					return s.name
				}
			}
			return nil
		},
		parse: func(d *decoder, path string, n ast.Node) (syscall.Signal, bool) {
			name, ok := word.parse(d, path, n)
			if !ok {
				return 0, false
			}
			return signals[slices.Index(names, name)].signal, true
		},
	}
}()

// folder reads the path of a directory that exists and makes it absolute.
var folder = textAs(fragment{form: "directory"}, func(d *decoder, s string) (string, string) {
	full := d.absolute(s)
	info, err := os.Stat(full)
	switch {
	case err != nil:
		return "", fmt.Sprintf("cannot find the directory %s: %v", quote(full), reason(err))
	case !info.IsDir():
		return "", quote(full) + " is not a directory"
	}
	return full, ""
})

// absolute is the path that s means in the config file.
func (d *decoder) absolute(s string) string {
	if !filepath.IsAbs(s) {
		s = filepath.Join(d.dir, s)
	}
	return filepath.Clean(s)
}

func reason(err error) error {
	if pe, ok := err.(*os.PathError); ok {
		return pe.Err
	}
	return err
}

// describe names what n is for a message.
func describe(n ast.Node) string {
	switch n := n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		return "keys with values"
	case *ast.SequenceNode:
		return "a list"
	case *ast.NullNode:
		return "nothing"
	case *ast.StringNode:
		return quote(n.Value)
	case *ast.LiteralNode:
		return quote(n.Value.Value)
	case *ast.BoolNode:
		return "the truth value " + raw(n)
	case *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		return "the number " + clip(raw(n))
	default:
		return "this"
	}
}

// raw is a scalar as the file has it.
func raw(n ast.Node) string {
	switch n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode, *ast.SequenceNode:
		return "…"
	}
	return strings.TrimSpace(n.GetToken().Value)
}

func quote(s string) string { return strconv.Quote(clip(s)) }

func clip(s string) string {
	if r := []rune(s); len(r) > shownText {
		return string(r[:shownText]) + "…"
	}
	return s
}
