package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"example.com/hangup/internal/client"
)

// screen is where a running call is shown: its result on stdout, all else on stderr. Where
// that is a terminal, a last line tells how long it has been going, and is wiped before
// anything else is written. That line has a goroutine, from begin to end.
type screen struct {
	stdout, stderr io.Writer
	live           bool // stderr is a terminal
	stdoutLive     bool // stdout is one: the shell's prompt must not stick to the result

	mu     sync.Mutex
	label  string
	id     string // of the call, once it is known
	detail string // of the last progress
	began  time.Time
	drawn  bool // the line is on the screen
	inLine bool // the result stands in the middle of a line
	stop   chan struct{}
	once   sync.Once // closes stop
	ended  sync.WaitGroup
}

// terminal tells whether a stream of the program is one.
func terminal(stream any) bool {
	if o, ok := stream.(*output); ok {
		stream = o.Writer
	}
	f, ok := stream.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), getTerminal)
	return err == nil
}

func newScreen(stdout, stderr io.Writer, label string) *screen {
	return &screen{
		stdout: stdout, stderr: stderr, live: terminal(stderr), stdoutLive: terminal(stdout),
		label: client.Plain(label), stop: make(chan struct{}),
	}
}

// drawEach is how often the line is drawn.
const drawEach = 100 * time.Millisecond

// begin shows the line until end.
func (s *screen) begin() {
	s.mu.Lock()
	s.began = time.Now()
	s.mu.Unlock()
	if !s.live {
		return
	}
	s.ended.Go(func() {
		beat := time.NewTicker(drawEach)
		defer beat.Stop()
		for {
			select {
			case <-beat.C:
				s.draw()
			case <-s.stop:
				return
			}
		}
	})
}

func (s *screen) draw() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inLine && s.stdoutLive {
		return
	}
	select {
	case <-s.stop:
		return
	default:
	}
	// Cut by the terminal, not wrapped: a wrapped line could not be wiped.
	fmt.Fprintf(s.stderr, "\r\x1b[?7l%s  %s%s\x1b[K\x1b[?7h", s.label, seconds(time.Since(s.began)), s.detail)
	s.drawn = true
}

// wipe takes the line away. The caller holds mu.
func (s *screen) wipe() {
	if s.drawn {
		io.WriteString(s.stderr, "\r\x1b[K")
		s.drawn = false
	}
}

func (s *screen) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wipe()
}

// end takes the line away for good. It may be called again, and does not wait
// for a write that is stuck.
func (s *screen) end() {
	s.once.Do(func() { close(s.stop) })
	if s.mu.TryLock() {
		s.wipe()
		s.mu.Unlock()
		s.ended.Wait()
	}
}

// finish ends the result of a call that is done.
func (s *screen) finish() {
	s.end()
	if s.stdoutLive && s.inLine {
		io.WriteString(s.stdout, "\n")
	}
}

// Write writes a piece of the result.
func (s *screen) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wipe()
	n, err := s.stdout.Write(b)
	if err != nil {
		return n, fmt.Errorf("cannot write the result: %w", err)
	}
	if n > 0 {
		s.inLine = b[n-1] != '\n'
	}
	return n, nil
}

// output writes a line of what the work writes to stderr, whichever stream it was
// written to. Without a reader of it, the result may still have one.
func (s *screen) output(line []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wipe()
	_, _ = s.stderr.Write(line)
}

// named adds the id of the call to the lines about it.
func (s *screen) named(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.id = client.Plain(id)
}

// note writes a line about the call, which has a name by then, to stderr.
func (s *screen) note(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tell(what)
}

// tell is note for who holds mu.
func (s *screen) tell(what string) {
	s.wipe()
	fmt.Fprintf(s.stderr, "%s  %s: %s after %s\n", s.label, s.id, what, seconds(time.Since(s.began)))
}

// progress shows how far the work is: in the last line where there is one, else in a
// line of its own for each change.
func (s *screen) progress(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed := s.detail != "  "+text
	s.detail = "  " + text
	if changed && !s.live {
		s.tell(text)
	}
}

// progressText is an object of JSON in one line: done=1 total=3.
func progressText(data []byte) string {
	var members map[string]json.RawMessage
	if json.Unmarshal(data, &members) != nil {
		return ""
	}
	delete(members, "call")
	if inner, ok := members["progress"]; ok && len(members) == 1 {
		if json.Unmarshal(inner, &members) == nil {
			delete(members, "progress")
		}
	}
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(members)) {
		parts = append(parts, name+"="+string(members[name]))
	}
	return strings.ReplaceAll(client.Plain(strings.Join(parts, " ")), "\n", " ")
}
