package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode"
)

// Fault is one thing wrong with a config file.
type Fault struct {
	File    string `json:"file"`
	Line    int    `json:"line,omitempty"` // from 1; 0 when the file could not be read
	Col     int    `json:"col,omitempty"`  // from 1, in characters
	Msg     string `json:"message"`        // what is wrong and what to write instead; one line
	Excerpt string `json:"-"`              // the line and a caret below the place; "" where there is none
}

// Error is FILE:LINE:COL: message.
func (f Fault) Error() string {
	if f.Line == 0 {
		return f.File + ": " + f.Msg
	}
	return fmt.Sprintf("%s:%d:%d: %s", f.File, f.Line, f.Col, f.Msg)
}

// Faults is everything found wrong with a file, in the order of the file; there
// is at least one.
type Faults []Fault

// Error has one line for each fault.
func (fs Faults) Error() string {
	lines := make([]string, len(fs))
	for i, f := range fs {
		lines[i] = f.Error()
	}
	return strings.Join(lines, "\n")
}

func (fs Faults) sort() {
	slices.SortStableFunc(fs, func(a, b Fault) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Col, b.Col))
	})
}

// excerptWidth is how many characters of a line an excerpt shows.
const excerptWidth = 100

// excerpt shows line with a caret below the character at col.
func excerpt(line string, col int) string {
	text := []rune(strings.TrimRight(line, "\r\n"))
	at := min(max(col-1, 0), len(text))
	from := 0
	if at >= excerptWidth { // keep some of what stands before
		from = at - excerptWidth/2
	}
	shown := text[from:min(from+excerptWidth, len(text))]
	var b strings.Builder
	for _, r := range shown {
		b.WriteRune(printable(r))
	}
	b.WriteByte('\n')
	for _, r := range text[from:at] {
		if r == '\t' { // keeps the caret in place whatever the width of a tab
			b.WriteByte('\t')
		} else {
			b.WriteByte(' ')
		}
	}
	b.WriteByte('^')
	return b.String()
}

// printable keeps what a file says from steering the terminal that shows it.
func printable(r rune) rune {
	if r == '\t' || unicode.IsPrint(r) {
		return r
	}
	return unicode.ReplacementChar
}
