package spool

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"sync"
)

// small is the first buffer of a body whose length is not known to need more:
// most fit, and one that trickles in holds no more.
const small = 4 << 10

var (
	smallBuffers = sync.Pool{New: func() any { return new([small]byte) }}
	largeBuffers = sync.Pool{New: func() any { return new([MemoryMax]byte) }}
)

// Body is one body. It has one user at a time, and must be closed.
type Body struct {
	spool *Spool
	limit int64
	hint  int64 // the announced length; 0 when unknown

	memory []byte           // the first bytes, in one of:
	small  *[small]byte     // from smallBuffers, or nil
	large  *[MemoryMax]byte // from largeBuffers, or nil
	file   *os.File         // the bytes behind memory; nil when there are none
	filed  int64            // how many, reserved from spool
}

// Body returns an empty body that may become limit bytes long.
func (s *Spool) Body(limit int64) *Body { return &Body{spool: s, limit: limit} }

// Expect announces n bytes, as Content-Length does; a negative n is ignored. It
// is only a hint: Fill chooses its first buffer by it, and refuses at once, with
// ErrTooLarge, what is announced beyond the limit.
func (b *Body) Expect(n int64) { b.hint = max(n, 0) }

// Fill reads r to its end. It is called once. It fails with ErrTooLarge, with
// ErrFull, or with the error of r, and the body is then only good to be closed.
func (b *Body) Fill(r io.Reader) error {
	if err := b.fill(&limited{r: r, left: b.limit}); err != nil {
		return fmt.Errorf("cannot take the body in: %w", err)
	}
	return nil
}

func (b *Body) fill(r io.Reader) error {
	if b.hint > b.limit {
		return ErrTooLarge
	}
	more, err := b.fillMemory(r)
	if err != nil || !more {
		return err
	}
	return b.fillFile(r)
}

// fillMemory fills the buffers, and tells whether r may have more to give.
func (b *Body) fillMemory(r io.Reader) (more bool, err error) {
	if b.hint <= small {
		b.small = smallBuffers.Get().(*[small]byte)
		if more, err = b.fillBuffer(r, b.small[:]); !more {
			return more, err
		}
	}
	b.large = largeBuffers.Get().(*[MemoryMax]byte)
	copy(b.large[:], b.memory)
	if b.small != nil {
		smallBuffers.Put(b.small)
		b.small = nil
	}
	return b.fillBuffer(r, b.large[:])
}

// fillBuffer makes buf the memory, whose start it holds already, and fills it up.
func (b *Body) fillBuffer(r io.Reader, buf []byte) (more bool, err error) {
	n, more, err := readUp(r, buf[len(b.memory):])
	b.memory = buf[:len(b.memory)+n]
	return more, err
}

// fillFile moves what is left of r into a file, which is not made before the
// first byte for it has come.
func (b *Body) fillFile(r io.Reader) error {
	buf := largeBuffers.Get().(*[MemoryMax]byte)
	defer largeBuffers.Put(buf)
	for more := true; more; {
		var n int
		var err error
		if n, more, err = readUp(r, buf[:]); err != nil {
			return err
		}
		if n == 0 {
			break
		}
		if err := b.write(buf[:n]); err != nil {
			return err
		}
	}
	return nil
}

// write appends p to the file.
func (b *Body) write(p []byte) (err error) {
	if err := b.spool.take(int64(len(p))); err != nil {
		return err
	}
	written := 0
	defer func() {
		b.filed += int64(written)
		b.spool.give(int64(len(p) - written))
	}()
	if b.file == nil {
		if b.file, err = b.spool.create(); err != nil {
			return err
		}
	}
	written, err = b.file.Write(p)
	return noRoom(err)
}

// Size is the length in bytes of what has been read.
func (b *Body) Size() int64 { return int64(len(b.memory)) + b.filed }

// Bytes returns the whole body when it lies in memory. The bytes are the body's
// own: they must not be changed, nor used after Close.
func (b *Body) Bytes() (p []byte, ok bool) {
	if b.file != nil {
		return nil, false
	}
	return b.memory, true
}

// Reader reads the body from its start. It may be called again; what it
// returned must not be used after Close, which gives the memory to others. It
// always implements [io.WriterTo].
func (b *Body) Reader() io.Reader {
	memory := bytes.NewReader(b.memory)
	if b.file == nil {
		return memory
	}
	return io.MultiReader(memory, io.NewSectionReader(b.file, 0, b.filed))
}

// Close gives back the memory, the file and its share of the spool. It may be
// called again.
func (b *Body) Close() error {
	if b.small != nil {
		smallBuffers.Put(b.small)
	}
	if b.large != nil {
		largeBuffers.Put(b.large)
	}
	var err error
	if b.file != nil {
		err = b.file.Close()
	}
	b.spool.give(b.filed)
	*b = Body{spool: b.spool}
	return err
}

// limited passes on at most left bytes, and fails with ErrTooLarge if there is
// one more.
type limited struct {
	r    io.Reader
	left int64
}

func (l *limited) Read(p []byte) (int, error) {
	if int64(len(p)) > l.left {
		p = p[:l.left+1]
	}
	n, err := l.r.Read(p)
	if int64(n) > l.left {
		return int(l.left), ErrTooLarge
	}
	l.left -= int64(n)
	return n, err
}

// readUp fills p from r, and tells whether r may have more to give. It is not
// io.ReadFull, because that has one error for a short end and for a body whose
// sender broke off, as net/http reports it.
func readUp(r io.Reader, p []byte) (n int, more bool, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = r.Read(p[n:])
		n += m
	}
	if err == io.EOF {
		return n, false, nil
	}
	return n, err == nil, err
}
