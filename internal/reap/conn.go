//go:build linux

package reap

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrTooLarge says that a message is over the limit of its connection.
var ErrTooLarge = errors.New("message too large")

// Conn carries messages over a stream socket of the unix kind. Send may be
// called from any goroutine, Receive from one.
type Conn struct {
	file  *os.File
	raw   syscall.RawConn
	limit int    // bytes of one frame received
	in    []byte // received, not yet decoded
	files []int  // received, not yet claimed by a Start
}

// NewConn takes over the socket fd, also where it fails. It refuses messages of more
// than limit bytes.
func NewConn(fd int, limit int) (*Conn, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "control socket")
	raw, err := file.SyscallConn()
	if err == nil {
		err = file.SetReadDeadline(time.Time{}) // only where it can be polled
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return &Conn{file: file, raw: raw, limit: limit}, nil
}

// Pair makes two connected sockets, both closed on exec.
func Pair() ([2]int, error) {
	return unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
}

// Close closes the socket. A Receive that is under way fails.
func (c *Conn) Close() error { return c.file.Close() }

// SetReadDeadline ends a Receive at t with [os.ErrDeadlineExceeded]; the zero
// time is none.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.file.SetReadDeadline(t) }

// Send sends m, and the descriptors with it. It waits while the peer does not
// read.
func (c *Conn) Send(m Message, files ...int) error {
	frame := encode(m)
	if len(frame) > MaxOrder {
		return ErrTooLarge
	}
	var rights []byte
	if len(files) > 0 {
		rights = unix.UnixRights(files...)
	}
	var failed error
	err := c.raw.Write(func(fd uintptr) bool {
		for len(frame) > 0 {
			n, err := send(int(fd), frame, rights)
			if err == unix.EAGAIN {
				return false
			}
			if err != nil {
				failed = err
				return true
			}
			frame, rights = frame[n:], nil
		}
		return true
	})
	if err != nil {
		return err
	}
	return failed
}

// Offer sends m if the peer has room for it, and reports whether it did. It
// waits only for a Send that is under way.
func (c *Conn) Offer(m Message) bool {
	frame := encode(m)
	started := false
	err := c.raw.Write(func(fd uintptr) bool {
		for len(frame) > 0 {
			n, err := send(int(fd), frame, nil)
			if err != nil {
				// What has begun must be finished, or the peer loses its place.
				return err != unix.EAGAIN || !started
			}
			frame, started = frame[n:], true
		}
		return true
	})
	return err == nil && len(frame) == 0
}

func encode(m Message) []byte {
	b := m.append([]byte{0, 0, 0, 0, m.kind()})
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return b
}

func send(fd int, b, rights []byte) (n int, err error) {
	for try := 0; again(err, try); try++ {
		n, err = unix.SendmsgN(fd, b, rights, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
	}
	return max(n, 0), err
}

// again tells whether to try once more what has failed with err, or was not tried
// yet. The kernel may be out of memory for a moment, and a message that gets lost
// costs a tree; so a few times and for some milliseconds.
func again(err error, try int) bool {
	switch err {
	case unix.EINTR:
		return true
	case unix.ENOMEM, unix.ENOBUFS:
		const most = 5
		if try < most {
			time.Sleep(time.Millisecond << try)
		}
		return try < most
	}
	return try == 0
}

// Receive waits for a message. The descriptors that came with a [Start] belong to
// the caller. It returns io.EOF when the peer has closed.
func (c *Conn) Receive() (Message, []int, error) {
	for {
		m, err := c.next()
		if err != nil {
			return nil, nil, err
		}
		if start, ok := m.(Start); ok {
			files := c.files
			c.files = nil
			if start.Files != len(files) {
				closeAll(files)
				return nil, nil, errMessage
			}
			return m, files, nil
		}
		if m != nil {
			return m, nil, nil
		}
		if err := c.fill(); err != nil {
			closeAll(c.files)
			return nil, nil, err
		}
	}
}

// next takes one message off what was received; nil when it is not all there.
func (c *Conn) next() (Message, error) {
	if len(c.in) < 4 {
		return nil, nil
	}
	size := int(binary.BigEndian.Uint32(c.in))
	if size > c.limit {
		return nil, ErrTooLarge
	}
	if len(c.in) < 4+size {
		return nil, nil
	}
	m, err := decode(c.in[4 : 4+size])
	c.in = c.in[4+size:]
	if len(c.in) == 0 && size > MaxReport {
		c.in = nil // a large start leaves no large buffer behind
	}
	return m, err
}

func (c *Conn) fill() error {
	if cap(c.in)-len(c.in) < 2048 {
		c.in = append(make([]byte, 0, 2*len(c.in)+4096), c.in...)
	}
	room := c.in[len(c.in):cap(c.in)]
	oob := make([]byte, unix.CmsgSpace(4*MaxFiles))
	var n, oobn, flags int
	var failed error
	err := c.raw.Read(func(fd uintptr) bool {
		failed = nil
		for try := 0; again(failed, try); try++ {
			n, oobn, flags, _, failed = unix.Recvmsg(int(fd), room, oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
		}
		return failed != unix.EAGAIN
	})
	switch {
	case err != nil:
		return err
	case failed != nil:
		return failed
	case n == 0:
		return io.EOF
	}
	c.in = c.in[:len(c.in)+n]
	if oobn > 0 {
		files, err := rights(oob[:oobn])
		c.files = append(c.files, files...)
		if err != nil {
			return err
		}
	}
	if flags&unix.MSG_CTRUNC != 0 || len(c.files) > MaxFiles {
		return ErrTooLarge
	}
	return nil
}

func rights(oob []byte) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []int
	for i := range messages {
		more, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return files, err
		}
		files = append(files, more...)
	}
	return files, nil
}

func closeAll(files []int) {
	for _, fd := range files {
		unix.Close(fd)
	}
}
