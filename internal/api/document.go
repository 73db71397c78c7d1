package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"example.com/hangup/internal/call"
)

// maxDepth is how many brackets may be open at once in a JSON document.
const maxDepth = 10_000

// maxString bounds a string that the server itself must understand, in bytes as
// it is written.
const maxString = 1024

// document is what POST /execute says: {"workload": …, "task": …, "input": …}.
// The input is not decoded; it is a part of the body that has been read through.
type document struct {
	workload, task string
	from, to       int64 // where the input is in the body; to is 0 where there is none
}

// position is a place in a document; line and column count from 1, the column in
// characters, the offset in bytes from 0.
type position struct {
	line, column int
	offset       int64
}

// positionError is a call.ErrBadRequest with the place of the fault.
type positionError struct {
	at  position
	msg string
}

func (e *positionError) Error() string {
	return fmt.Sprintf("line %d, column %d (offset %d): %s", e.at.line, e.at.column, e.at.offset, e.msg)
}

func (e *positionError) Unwrap() error { return call.ErrBadRequest }

// parseDocument reads a document to its end. It takes no more memory than
// maxDepth and maxString say, however long the input is.
func parseDocument(r io.Reader) (document, error) {
	s := &scanner{in: bufio.NewReader(r), at: position{line: 1, column: 1}}
	d, err := s.document()
	if errors.Is(err, io.EOF) {
		err = s.fault("the document ends too early")
	}
	return d, err
}

func (s *scanner) document() (document, error) {
	var d document
	seen := map[string]bool{}
	if err := s.expect('{', "an object"); err != nil {
		return d, err
	}
	for first := true; ; first = false {
		c, err := s.peek()
		if err != nil {
			return d, err
		}
		if first && c == '}' {
			break
		}
		at := s.at
		name, err := s.text()
		if err != nil {
			return d, err
		}
		if seen[name] {
			return d, &positionError{at, fmt.Sprintf("%q comes twice", clip(name))}
		}
		seen[name] = true
		if err := s.expect(':', `":"`); err != nil {
			return d, err
		}
		if _, err := s.peek(); err != nil {
			return d, err
		}
		switch name {
		case "workload":
			d.workload, err = s.text()
		case "task":
			d.task, err = s.text()
		case "input":
			d.from = s.at.offset
			err = s.value()
			d.to = s.at.offset
		default:
			err = &positionError{at, fmt.Sprintf("%q is none of workload, task, input", clip(name))}
		}
		if err != nil {
			return d, err
		}
		if c, err = s.peek(); err != nil {
			return d, err
		}
		if c != ',' {
			break
		}
		s.skip()
	}
	end := s.at
	if err := s.expect('}', `"," or "}"`); err != nil {
		return d, err
	}
	switch _, err := s.peek(); {
	case err == nil:
		return d, s.fault("something follows the document")
	case err != io.EOF:
		return d, err
	case d.workload == "":
		return d, &positionError{end, `"workload" is missing`}
	}
	return d, nil
}

// input is the document's input as that of a call.
func (d document) input(b *body) call.Input { return &part{b, d.from, d.to} }

// part is a call's input that lies within a body. One that is not there is null.
type part struct {
	body     *body
	from, to int64
}

const null = "null"

func (p *part) Receive(context.Context) error { return nil } // it has been read through
func (p *part) ContentType() string           { return "application/json" }

func (p *part) Size() int64 {
	if p.to == 0 {
		return int64(len(null))
	}
	return p.to - p.from
}

func (p *part) Reader() io.Reader {
	if p.to == 0 {
		return strings.NewReader(null)
	}
	if b := p.body.spooled; b != nil {
		if whole, ok := b.Bytes(); ok {
			return bytes.NewReader(whole[p.from:p.to])
		}
	}
	r := p.body.Reader()
	if _, err := io.CopyN(io.Discard, r, p.from); err != nil {
		return failed{err}
	}
	return io.LimitReader(r, p.to-p.from)
}

// failed is a reader that could not be made.
type failed struct{ err error }

func (f failed) Read([]byte) (int, error) { return 0, f.err }

func (p *part) Check() error { return nil } // or the document would not have been one

// checkJSON reads one value and tells where it is none.
func checkJSON(r io.Reader) error {
	s := &scanner{in: bufio.NewReader(r), at: position{line: 1, column: 1}}
	_, err := s.peek()
	if err == nil {
		err = s.value()
	}
	if err == nil {
		if _, err = s.peek(); err == nil {
			return s.fault("something follows the value")
		}
		if err == io.EOF {
			return nil
		}
	}
	if errors.Is(err, io.EOF) {
		return s.fault("the JSON ends too early")
	}
	return err
}

// scanner checks JSON (RFC 8259) byte by byte and knows where it is.
type scanner struct {
	in *bufio.Reader
	at position
}

func (s *scanner) fault(msg string) error { return &positionError{s.at, msg} }

// peek goes to the next byte that is no space and returns it without taking it.
func (s *scanner) peek() (byte, error) {
	for {
		c, err := s.look()
		if err != nil || c != ' ' && c != '\t' && c != '\n' && c != '\r' {
			return c, err
		}
		s.skip()
	}
}

// look returns the next byte without taking it.
func (s *scanner) look() (byte, error) {
	p, err := s.in.Peek(1)
	if err != nil {
		return 0, err
	}
	return p[0], nil
}

// skip takes the byte that look has returned.
func (s *scanner) skip() {
	c, err := s.in.ReadByte()
	switch {
	case err != nil:
	case c == '\n':
		s.at.line++
		s.at.column = 1
	case c&0xc0 != 0x80: // not the inside of a character
		s.at.column++
	}
	s.at.offset++
}

func (s *scanner) expect(want byte, name string) error {
	c, err := s.peek()
	if err != nil {
		return err
	}
	if c != want {
		return s.unexpected(name)
	}
	s.skip()
	return nil
}

// unexpected is the fault that the next character is not what is wanted.
func (s *scanner) unexpected(want string) error {
	c, _, err := s.in.ReadRune()
	if err != nil {
		return err
	}
	return s.fault(fmt.Sprintf("%q where %s belongs", c, want))
}

// value takes one value of any kind.
func (s *scanner) value() error {
	var open []byte // the brackets that are
	for {
		c, err := s.peek()
		if err != nil {
			return err
		}
		switch {
		case c == '{' || c == '[':
			if len(open) == maxDepth {
				return s.fault(fmt.Sprintf("more than %d brackets are open", maxDepth))
			}
			s.skip()
			open = append(open, c)
			next, err := s.peek()
			if err != nil {
				return err
			}
			if next != c+2 { // '{' + 2 is '}', '[' + 2 is ']'
				if err := s.key(c); err != nil {
					return err
				}
				continue
			}
		case c == '"':
			err = s.str(nil)
		case c == '-' || digit(c):
			err = s.number()
		case c == 't':
			err = s.word("true")
		case c == 'f':
			err = s.word("false")
		case c == 'n':
			err = s.word("null")
		default:
			err = s.unexpected("a value")
		}
		if err != nil {
			return err
		}
		if open, err = s.after(open); err != nil || len(open) == 0 {
			return err
		}
	}
}

// after takes what may follow a value within open brackets: those that close
// them, and a comma. It returns the brackets still open; within them the next
// value is due.
func (s *scanner) after(open []byte) ([]byte, error) {
	for len(open) > 0 {
		top := open[len(open)-1]
		c, err := s.peek()
		switch {
		case err != nil:
			return nil, err
		case c == ',':
			s.skip()
			return open, s.key(top)
		case c == top+2:
			s.skip()
			open = open[:len(open)-1]
		default:
			return nil, s.unexpected(fmt.Sprintf(`"," or "%c"`, top+2))
		}
	}
	return open, nil
}

// key takes a member's name and colon if the bracket is an object's.
func (s *scanner) key(bracket byte) error {
	if bracket != '{' {
		return nil
	}
	if c, err := s.peek(); err != nil {
		return err
	} else if c != '"' {
		return s.unexpected("a string")
	}
	if err := s.str(nil); err != nil {
		return err
	}
	return s.expect(':', `":"`)
}

// text takes a string and decodes it.
func (s *scanner) text() (string, error) {
	c, err := s.peek()
	if err != nil {
		return "", err
	}
	if c != '"' {
		return "", s.unexpected("a string")
	}
	at := s.at
	var raw []byte
	if err := s.str(&raw); err != nil {
		return "", err
	}
	var text string
	if err := json.Unmarshal(raw, &text); err != nil {
		return "", &positionError{at, "this is no string: " + err.Error()}
	}
	return text, nil
}

// str takes a string, of which the first byte has been seen. It keeps the bytes
// in raw, if that is not nil, and then allows no more than maxString.
func (s *scanner) str(raw *[]byte) error {
	at := s.at
	take := func() {
		if raw != nil {
			c, _ := s.look()
			*raw = append(*raw, c)
		}
		s.skip()
	}
	take()
	for {
		c, err := s.look()
		switch {
		case err != nil:
			return err
		case raw != nil && len(*raw) > maxString:
			return &positionError{at, fmt.Sprintf("this string is longer than %d bytes", maxString)}
		case c < ' ':
			return s.fault(fmt.Sprintf("the control character %q must be escaped in a string", c))
		case c == '"':
			take()
			return nil
		case c == '\\':
			take()
			if c, err = s.look(); err != nil {
				return err
			}
			if !strings.ContainsRune(`"\/bfnrtu`, rune(c)) {
				return s.unexpected(`one of "\/bfnrtu`)
			}
			take()
			for i := 0; c == 'u' && i < 4; i++ {
				if h, err := s.look(); err != nil {
					return err
				} else if !digit(h) && (h|0x20 < 'a' || h|0x20 > 'f') {
					return s.unexpected("a hexadecimal digit")
				}
				take()
			}
		case c >= 0x80:
			n, err := s.character()
			if err != nil {
				return err
			}
			for range n {
				take()
			}
		default:
			take()
		}
	}
}

// character returns the length of the next character, which must be UTF-8.
func (s *scanner) character() (int, error) {
	p, err := s.in.Peek(4)
	if err != nil && err != io.EOF {
		return 0, err
	}
	r, n := utf8.DecodeRune(p)
	if r == utf8.RuneError && n <= 1 {
		return 0, s.fault(fmt.Sprintf("the byte 0x%02x is not UTF-8 here", p[0]))
	}
	return n, nil
}

// number takes a number, of which the first byte has been seen.
func (s *scanner) number() error {
	if c, _ := s.look(); c == '-' {
		s.skip()
	}
	c, err := s.look()
	if err != nil {
		return err
	}
	if c == '0' {
		s.skip()
	} else if err := s.digits(); err != nil {
		return err
	}
	if c, _ = s.look(); c == '.' {
		s.skip()
		if err := s.digits(); err != nil {
			return err
		}
	}
	if c, _ = s.look(); c == 'e' || c == 'E' {
		s.skip()
		if c, _ = s.look(); c == '+' || c == '-' {
			s.skip()
		}
		return s.digits()
	}
	return nil
}

// digits takes one digit or more.
func (s *scanner) digits() error {
	c, err := s.look()
	if err != nil {
		return err
	}
	if !digit(c) {
		return s.unexpected("a digit")
	}
	for digit(c) {
		s.skip()
		if c, err = s.look(); err != nil {
			break // the end of the number, if not of the document
		}
	}
	return nil
}

// word takes true, false or null.
func (s *scanner) word(w string) error {
	for i := range len(w) {
		c, err := s.look()
		if err != nil {
			return err
		}
		if c != w[i] {
			return s.unexpected(w)
		}
		s.skip()
	}
	return nil
}

func digit(c byte) bool { return '0' <= c && c <= '9' }
