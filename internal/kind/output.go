package kind

import (
	"bytes"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"example.com/hangup/internal/event"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

// The bounds on what a worker may write to its stdout and stderr. What is over
// them is counted and dropped; a worker that goes on is read slowly, so that it
// waits and its neighbours do not.
const (
	// LineMax is the longest piece of a line in one record, in bytes.
	LineMax = 8 << 10
	// LogBurst and LogRate are how much of one worker's output is kept: at
	// once, and in a second after that, in bytes. A piece counts as RecordCost
	// more than it has, for what a record says beside it: short lines cost most.
	LogBurst   = 64 << 10
	LogRate    = 16 << 10
	RecordCost = 128
	// TailMax is how much of the end of stderr goes into an error, in bytes.
	TailMax = 4 << 10
	// pipeSize is what a Linux pipe holds, in bytes.
	pipeSize = 64 << 10
	// slowly is the pause after a large read of which most was not kept.
	slowly = 10 * time.Millisecond
)

// Output reads a worker's stdout and stderr and makes records of them. It has a
// goroutine a stream, which ends when nobody holds the other end of the pipe
// any more, or with Close.
type Output struct {
	workload string
	pid      atomic.Int64
	emit     event.Sink
	budget   *rate.Limiter
	streams  [2]*stream
	ended    sync.WaitGroup

	mu    sync.Mutex // guards the rest, and every read
	call  string
	tail  []byte // of stderr, since the call began
	kept  int64  // bytes in all records
	chunk [32 << 10]byte
}

type stream struct {
	name string
	file *os.File
	line []byte // what has come of a line that is not ended

	dropped int64 // bytes since the last record
}

// NewOutput makes the pipes. The two files are for the worker; the caller closes
// them once it has been started.
func NewOutput(workload string, emit event.Sink) (o *Output, stdout, stderr *os.File, err error) {
	o = &Output{workload: workload, emit: emit, budget: rate.NewLimiter(LogRate, LogBurst)}
	var ends [2]*os.File
	for i, name := range []string{"stdout", "stderr"} {
		ours, theirs, err := Pipe(false)
		if err != nil {
			o.Close()
			closeAll(ends[:])
			return nil, nil, nil, err
		}
		o.streams[i] = &stream{name: name, file: ours}
		ends[i] = theirs
	}
	return o, ends[0], ends[1], nil
}

// Pipe makes a pipe of which this process keeps one end, to write to if toChild,
// else to read from. Our end never blocks a thread; theirs is an ordinary
// blocking descriptor.
func Pipe(toChild bool) (ours, theirs *os.File, err error) {
	var fds [2]int
	if err := pipe(&fds); err != nil {
		return nil, nil, os.NewSyscallError("pipe", err)
	}
	r, w := fds[0], fds[1]
	our, their := r, w
	if toChild {
		our, their = w, r
	}
	if err := unix.SetNonblock(our, true); err != nil {
		unix.Close(r)
		unix.Close(w)
		return nil, nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(our), "pipe"), os.NewFile(uintptr(their), "pipe"), nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

// Start begins to read the output of the process with the given pid.
func (o *Output) Start(pid int) {
	o.pid.Store(int64(pid))
	for _, s := range o.streams {
		o.ended.Go(func() { o.read(s) })
	}
}

// read takes in a stream as it comes.
func (o *Output) read(s *stream) {
	raw, err := s.file.SyscallConn()
	if err != nil {
		return
	}
	for {
		flood, eof := false, false
		err := raw.Read(func(fd uintptr) bool {
			var n int
			n, flood, eof = o.pull(s, int(fd))
			return n > 0 || eof
		})
		if err != nil || eof {
			return
		}
		if flood {
			time.Sleep(slowly)
		}
	}
}

// pull reads once, without waiting. flood says that it read more than a long
// line, and most of that was not kept: it was dropped, or is nothing but ends of
// lines.
func (o *Output) pull(s *stream, fd int) (n int, flood, eof bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n, err := unix.Read(fd, o.chunk[:])
	for errors.Is(err, unix.EINTR) {
		n, err = unix.Read(fd, o.chunk[:])
	}
	switch {
	case errors.Is(err, unix.EAGAIN):
		return 0, false, false
	case err != nil || n == 0:
		o.flush(s)
		return 0, false, true
	}
	before := o.kept
	o.take(s, o.chunk[:n])
	return n, n > LineMax && o.kept-before < int64(n)/2, false
}

// take cuts what was read into lines.
func (o *Output) take(s *stream, data []byte) {
	if s.name == "stderr" {
		o.tail = append(o.tail, data...)
		if over := len(o.tail) - TailMax; over > 0 {
			o.tail = append(o.tail[:0], o.tail[over:]...)
		}
	}
	for len(data) > 0 {
		end := bytes.IndexByte(data, '\n')
		part, whole := data, end >= 0
		if whole {
			part = data[:end]
		}
		if room := LineMax - len(s.line); len(part) > room {
			part, whole = part[:room], true
			end = room - 1
		}
		s.line = append(s.line, part...)
		if !whole {
			return
		}
		data = data[end+1:]
		o.record(s, s.line)
		s.line = s.line[:0]
	}
}

// record emits one piece of a line, or counts it as dropped.
func (o *Output) record(s *stream, line []byte) {
	if len(line) == 0 {
		return
	}
	now := time.Now()
	if !o.budget.AllowN(now, len(line)+RecordCost) {
		s.dropped += int64(len(line)) + 1
		return
	}
	o.tell(s, line, now)
	o.kept += int64(len(line))
}

func (o *Output) tell(s *stream, line []byte, now time.Time) {
	o.emit(event.Output{
		Call: o.call, Workload: o.workload, Pid: int(o.pid.Load()), Stream: s.name,
		Text: line, Dropped: s.dropped, At: now,
	})
	s.dropped = 0
}

// flush records what is left of a stream: a line without an end, and how much
// was dropped since the last record.
func (o *Output) flush(s *stream) {
	o.record(s, s.line)
	s.line = s.line[:0]
	if s.dropped > 0 {
		o.tell(s, nil, time.Now())
	}
}

// Begin says which call the output belongs to from now on.
func (o *Output) Begin(call string) {
	o.mu.Lock()
	o.call, o.tail = call, o.tail[:0]
	o.mu.Unlock()
}

// End takes in what the worker wrote before its call ended, so that no line of
// one call is told of the next.
func (o *Output) End() {
	o.catchUp()
	o.mu.Lock()
	for _, s := range o.streams {
		o.flush(s)
	}
	o.call = ""
	o.mu.Unlock()
}

// catchUp reads what lies in the pipes now: no more than a pipe holds, so that a
// worker that writes on does not keep it.
func (o *Output) catchUp() {
	for _, s := range o.streams {
		raw, err := s.file.SyscallConn()
		if err != nil {
			continue
		}
		raw.Control(func(fd uintptr) {
			for total := 0; total < pipeSize; {
				n, _, _ := o.pull(s, int(fd))
				if n == 0 {
					return
				}
				total += n
			}
		})
	}
}

// Tail is the end of what was written to stderr since the call began, or since
// the start.
func (o *Output) Tail() string {
	o.catchUp()
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(bytes.TrimSpace(o.tail))
}

// Close stops reading, whoever still holds the other ends.
func (o *Output) Close() {
	for _, s := range o.streams {
		if s != nil {
			s.file.Close()
		}
	}
	o.ended.Wait()
}
