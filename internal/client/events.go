package client

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"strings"
)

// maxEvent is how large one event may be, in bytes: a whole result is one.
const maxEvent = 256 << 20

// Event is one server-sent event.
type Event struct {
	ID   string // the last the stream has told
	Name string
	Data []byte // lines joined by line feeds
}

// Events reads a stream of server-sent events as the HTML standard has it.
type Events struct {
	in   *bufio.Reader
	id   string
	line []byte
	cr   bool // the last line ended with a CR: a LF that follows belongs to it
	top  bool // the first line is due
	most int  // bytes of one event
}

// NewEvents reads events from r.
func NewEvents(r io.Reader) *Events {
	return &Events{in: bufio.NewReaderSize(r, 32<<10), top: true, most: maxEvent}
}

// Next returns the next event. At the end of the stream it returns the error of
// the reader, io.EOF most of all; an event that is not complete by then is lost.
func (s *Events) Next() (Event, error) {
	name, hasData := "", false
	var data []byte
	for {
		if err := s.readLine(len(data)); err != nil {
			return Event{}, err
		}
		if len(s.line) == 0 {
			if !hasData { // nothing to tell, as the standard says
				name = ""
				continue
			}
			if name == "" {
				name = "message"
			}
			return Event{s.id, name, data}, nil
		}
		field, value, _ := bytes.Cut(s.line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(field) {
		case "event":
			name = string(value)
		case "data":
			if hasData {
				data = append(data, '\n')
			}
			data, hasData = append(data, value...), true
		case "id":
			if !bytes.ContainsRune(value, 0) {
				s.id = string(value)
			}
		}
		// A comment has no name. retry is for those who connect again, and a
		// call is never sent twice. Whatever else there may be is skipped.
	}
}

// readLine reads the next line into s.line. It ends with LF, CR or both.
func (s *Events) readLine(taken int) error {
	s.line = s.line[:0]
	for {
		b, err := s.in.ReadByte()
		if err != nil {
			return err
		}
		after := s.cr
		s.cr = b == '\r'
		switch {
		case b == '\n' && after:
			continue
		case b == '\n', b == '\r':
			if s.top {
				s.line = bytes.TrimPrefix(s.line, []byte("\ufeff"))
				s.top = false
			}
			return nil
		case taken+len(s.line) == s.most:
			return fmt.Errorf("cannot take in an event of more than %d bytes", s.most)
		}
		s.line = append(s.line, b)
	}
}

// isEvents tells whether a content type is that of an event stream.
func isEvents(contentType string) bool {
	kind, _, _ := strings.Cut(contentType, ";")
	return strings.EqualFold(strings.TrimSpace(kind), "text/event-stream")
}
