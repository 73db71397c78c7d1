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

// text reads a string. A number or a truth value is refused: which text was
// meant, 010 or 8, only its author knows.
func text(d *decoder, path string, n ast.Node) (string, bool) {
	var s string
	switch n := n.(type) {
	case *ast.StringNode:
		s = n.Value
	case *ast.LiteralNode:
		s = n.Value.Value
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.NullNode, *ast.InfinityNode, *ast.NanNode:
		d.fault(n, `%s: must be text, not %s: write "%s" with its quotes`, path, describe(n), clip(raw(n)))
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
}

// matching reads a string that is as re says; want says it for a person.
func matching(re *regexp.Regexp, want string) parser[string] {
	return func(d *decoder, path string, n ast.Node) (string, bool) {
		s, ok := text(d, path, n)
		if ok && !re.MatchString(s) {
			d.fault(n, "%s: %s is not %s", path, quote(s), want)
			return "", false
		}
		return s, ok
	}
}

// oneOf reads one of these words.
func oneOf(words ...string) parser[string] {
	return func(d *decoder, path string, n ast.Node) (string, bool) {
		s, ok := n.(*ast.StringNode)
		if !ok {
			d.fault(n, "%s: must be %s, not %s", path, anyOf(words), describe(n))
			return "", false
		}
		if !slices.Contains(words, s.Value) {
			d.fault(n, "%s: cannot be %s: %s", path, quote(s.Value), remedy(s.Value, words))
			return "", false
		}
		return s.Value, true
	}
}

// boolean reads true or false.
func boolean(d *decoder, path string, n ast.Node) (bool, bool) {
	b, ok := n.(*ast.BoolNode)
	if !ok {
		d.fault(n, "%s: must be true or false, not %s", path, describe(n))
		return false, false
	}
	return b.Value, true
}

// whole reads a whole number of least or more.
func whole(least, most int) parser[int] {
	return func(d *decoder, path string, n ast.Node) (int, bool) {
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
	}
}

// number reads any number that is not negative.
func number(d *decoder, path string, n ast.Node) (float64, bool) {
	if v, ok := wholeNumber(n); ok && v >= 0 {
		return float64(v), true
	}
	if f, ok := n.(*ast.FloatNode); ok && f.Value >= 0 {
		return f.Value, true
	}
	d.fault(n, "%s: must be a number, 0 or more, not %s", path, describe(n))
	return 0, false
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

// size reads bytes, least or more: a whole number, or one with a binary unit.
// The decimal units are refused: half the world takes MB for MiB.
func size(least int64) parser[int64] {
	return func(d *decoder, path string, n ast.Node) (int64, bool) {
		bytes, plain := wholeNumber(n)
		if !plain {
			s, ok := n.(*ast.StringNode)
			m := []string(nil)
			if ok {
				m = sizeSyntax.FindStringSubmatch(s.Value)
			}
			if m == nil {
				d.fault(n, "%s: must be a size, not %s: write bytes, or a whole number with KiB, MiB, GiB or TiB, as 512MiB", path, describe(n))
				return 0, false
			}
			shift, known := sizeShifts[m[2]]
			if !known {
				d.fault(n, "%s: the unit of %s is not known: %s", path, quote(s.Value), unitRemedy(m[1], m[2]))
				return 0, false
			}
			v, err := strconv.ParseInt(m[1], 10, 64)
			if err != nil || v > math.MaxInt64>>shift {
				d.fault(n, "%s: %s is too large", path, quote(s.Value))
				return 0, false
			}
			bytes = v << shift
		}
		if bytes < least {
			d.fault(n, "%s: must be %d bytes or more, not %d", path, least, bytes)
			return 0, false
		}
		return bytes, true
	}
}

func unitRemedy(digits, unit string) string {
	if i := strings.IndexByte("KMGT", strings.ToUpper(unit)[0]); i >= 0 {
		return fmt.Sprintf("write %s%ciB (units are binary; for decimal ones write the bytes)", digits, "KMGT"[i])
	}
	return "write KiB, MiB, GiB or TiB"
}

// duration reads a time as Go writes it, 0 or more; positive refuses 0.
func duration(positive bool) parser[time.Duration] {
	return func(d *decoder, path string, n ast.Node) (time.Duration, bool) {
		var v time.Duration
		switch n := n.(type) {
		case *ast.StringNode:
			var err error
			if v, err = time.ParseDuration(n.Value); err != nil {
				d.fault(n, "%s: cannot read %s as a duration: write numbers with h, m, s or ms, as 30s or 1m30s", path, quote(n.Value))
				return 0, false
			}
		case *ast.IntegerNode:
			if i, ok := wholeNumber(n); !ok || i != 0 {
				d.fault(n, "%s: %s has no unit: write %ss for seconds", path, clip(raw(n)), clip(raw(n)))
				return 0, false
			}
		case *ast.FloatNode:
			d.fault(n, "%s: %s has no unit: write %ss for seconds", path, clip(raw(n)), clip(raw(n)))
			return 0, false
		default:
			d.fault(n, "%s: must be a duration as 30s, not %s", path, describe(n))
			return 0, false
		}
		if v < 0 {
			d.fault(n, "%s: cannot be negative", path)
			return 0, false
		}
		if v == 0 && positive {
			d.fault(n, "%s: must be more than 0", path)
			return 0, false
		}
		return v, true
	}
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

func signal(d *decoder, path string, n ast.Node) (syscall.Signal, bool) {
	names := make([]string, len(signals))
	for i, s := range signals {
		names[i] = s.name
	}
	name, ok := oneOf(names...)(d, path, n)
	if !ok {
		return 0, false
	}
	return signals[slices.Index(names, name)].signal, true
}

// folder reads the path of a directory that exists and makes it absolute.
func folder(d *decoder, path string, n ast.Node) (string, bool) {
	s, ok := text(d, path, n)
	if !ok {
		return "", false
	}
	full := s
	if !filepath.IsAbs(s) {
		full = filepath.Join(d.dir, s)
	}
	full = filepath.Clean(full)
	info, err := os.Stat(full)
	switch {
	case err != nil:
		d.fault(n, "%s: cannot find the directory %s: %v", path, quote(full), reason(err))
	case !info.IsDir():
		d.fault(n, "%s: %s is not a directory", path, quote(full))
	default:
		return full, true
	}
	return "", false
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
