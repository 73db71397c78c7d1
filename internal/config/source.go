package config

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	yaml "github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// The YAML parser is quadratic in the depth and in the tokens of a line, the
// lexer before it is linear: the tokens are counted first.
const (
	maxDepth      = 32   // flow collections inside one another
	maxLineTokens = 2000 // tokens on one line
)

// source is a config file as text.
type source struct {
	file  string
	data  []byte
	lines []string
}

func newSource(file string, data []byte) *source {
	return &source{file: file, data: data, lines: strings.Split(string(data), "\n")}
}

// fault makes a fault at a place, which is moved into the file if it lies
// outside.
func (s *source) fault(line, col int, format string, args ...any) Fault {
	line = min(max(line, 1), len(s.lines))
	text := strings.TrimSuffix(s.lines[line-1], "\r")
	col = min(max(col, 1), utf8.RuneCountInString(text)+1)
	return Fault{
		File: s.file, Line: line, Col: col,
		Msg:     strings.Map(printable, fmt.Sprintf(format, args...)),
		Excerpt: excerpt(text, col),
	}
}

// faultAt makes a fault at the byte at offset.
func (s *source) faultAt(offset int, format string, args ...any) Fault {
	before := s.data[:offset]
	line := bytes.Count(before, []byte{'\n'}) + 1
	col := utf8.RuneCount(before[bytes.LastIndexByte(before, '\n')+1:]) + 1
	return s.fault(line, col, format, args...)
}

// parse returns the value of the only document in the file.
func (s *source) parse() (ast.Node, Faults) {
	if fault, bad := s.checkBytes(); bad {
		return nil, Faults{fault}
	}
	tokens := lexer.Tokenize(string(s.data))
	if faults := s.checkTokens(tokens); len(faults) > 0 {
		return nil, faults
	}
	file, err := parseTokens(tokens)
	if err != nil {
		return nil, Faults{s.syntaxFault(err)}
	}
	var root ast.Node
	for _, doc := range file.Docs {
		switch {
		case doc.Body == nil:
		case root != nil:
			t := position(doc.Body)
			return nil, Faults{s.fault(t.Line, t.Column, "a second document: a config is one; remove the line `---` and what follows, or merge the two")}
		default:
			root = doc.Body
		}
	}
	if root == nil {
		return nil, Faults{s.fault(1, 1, "the config is empty: it needs at least `workloads:`; `hangup init` writes a starter")}
	}
	return root, nil
}

// checkBytes refuses what is no text.
func (s *source) checkBytes() (Fault, bool) {
	if len(s.data) > MaxFile {
		return s.fault(1, 1, "the config is longer than %d KiB", MaxFile>>10), true
	}
	for i := 0; i < len(s.data); {
		r, n := utf8.DecodeRune(s.data[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			return s.faultAt(i, "byte %#02x is no UTF-8: save the file as UTF-8", s.data[i]), true
		case r == '\ufeff' && i == 0:
			return s.faultAt(i, "a byte order mark: save the file as UTF-8 without one"), true
		case r == '\r' && i+1 < len(s.data) && s.data[i+1] == '\n':
		case r < ' ' && r != '\t' && r != '\n', r == 0x7f:
			return s.faultAt(i, "control character %#02x: remove it", r), true
		}
		i += n
	}
	return Fault{}, false
}

// checkTokens refuses the parts of YAML that a config has no use for and that
// only make it harder to read or costly to parse.
func (s *source) checkTokens(tokens token.Tokens) Faults {
	var faults Faults
	refuse := func(t *token.Token, format string, args ...any) {
		faults = append(faults, s.fault(t.Position.Line, t.Position.Column, format, args...))
	}
	depth, line, onLine := 0, 0, 0
	for _, t := range tokens {
		if t.Position.Line != line {
			line, onLine = t.Position.Line, 0
		}
		if onLine++; onLine > maxLineTokens {
			refuse(t, "more than %d items on one line", maxLineTokens)
			return faults
		}
		switch t.Type {
		case token.SequenceStartType, token.MappingStartType:
			if depth++; depth > maxDepth {
				refuse(t, "nested more than %d levels deep", maxDepth)
				return faults
			}
		case token.SequenceEndType, token.MappingEndType:
			depth--
		case token.AnchorType, token.AliasType:
			refuse(t, "anchors and aliases (%s) are not read: write the value out", t.Value)
		case token.MergeKeyType:
			refuse(t, "merge keys (<<) are not read: write the keys out")
		case token.TagType:
			refuse(t, "tags (%s) are not read: write the plain value", t.Value)
		case token.DirectiveType:
			refuse(t, "directives (%%) are not read: remove the line")
		case token.MappingKeyType:
			refuse(t, "keys with `?` are not read: write `key: value`")
		}
	}
	return faults
}

// parseTokens turns a panic of the parser into an error: what is in the file is
// not ours, and a server that reloads must live on.
func parseTokens(tokens token.Tokens) (file *ast.File, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = errors.New("this is no YAML that can be read")
		}
	}()
	return yaml.Parse(tokens, 0, yaml.AllowDuplicateMapKey()) // object finds duplicates, all of them
}

func (s *source) syntaxFault(err error) Fault {
	var at interface {
		GetMessage() string
		GetToken() *token.Token
	}
	if !errors.As(err, &at) || at.GetToken() == nil {
		return s.fault(1, 1, "%v", err)
	}
	p := at.GetToken().Position
	msg := at.GetMessage()
	if strings.HasPrefix(strings.TrimLeft(s.lines[min(max(p.Line, 1), len(s.lines))-1], " "), "\t") {
		msg += "; indent with spaces, not with tabs"
	}
	return s.fault(p.Line, p.Column, "%s", msg)
}

// position is where n begins in the file.
func position(n ast.Node) *token.Position {
	switch n := n.(type) {
	case *ast.MappingNode:
		if !n.IsFlowStyle && len(n.Values) > 0 {
			return position(n.Values[0])
		}
	case *ast.MappingValueNode:
		return n.Key.GetToken().Position
	case *ast.LiteralNode:
		return n.Start.Position
	}
	return n.GetToken().Position
}
