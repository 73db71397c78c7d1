package wire

import "io"

// bufferSize holds a whole part of a body, with its header and a usual head, so
// that one read brings it in.
const bufferSize = Chunk + 4<<10

// Reader takes frames out of a stream. It reads as much as is there, never
// waits for more than the frame it returns needs, and keeps what it has when
// the stream fails with a deadline: then Next can be called again.
type Reader struct {
	r     io.Reader
	buf   []byte // buf[start:end] has been read and not been returned
	start int
	end   int
	bad   error // the breach after which nothing can be understood
}

// NewReader returns a Reader of r.
func NewReader(r io.Reader) *Reader { return &Reader{r: r, buf: make([]byte, bufferSize)} }

// Next returns the next frame. Its payload is good until the next call of Next.
//
// The error is io.EOF at the end of the stream between two frames,
// io.ErrUnexpectedEOF inside one, a [*FormatError] for a breach of the protocol,
// or what the stream failed with.
func (r *Reader) Next() (Frame, error) {
	if r.bad != nil {
		return Frame{}, r.bad
	}
	for {
		need := HeaderSize
		if r.end-r.start >= HeaderSize {
			f, n, err := parseHeader(r.buf[r.start:])
			if err != nil {
				r.bad = err
				return Frame{}, err
			}
			need += n
			if r.end-r.start >= need {
				f.Payload = r.buf[r.start+HeaderSize : r.start+need : r.start+need]
				r.start += need
				return f, nil
			}
		}
		if err := r.fill(need); err != nil {
			return Frame{}, err
		}
	}
}

// Buffered is how many bytes have been read and not been returned.
func (r *Reader) Buffered() int { return r.end - r.start }

// fill reads once, towards a frame of need bytes.
func (r *Reader) fill(need int) error {
	r.makeRoom(need)
	for range 100 { // as bufio: a stream that brings neither bytes nor an error
		n, err := r.r.Read(r.buf[r.end:])
		r.end += n
		switch {
		case n > 0:
			return nil // a lasting error comes again
		case err == io.EOF && r.end > r.start:
			return io.ErrUnexpectedEOF
		case err != nil:
			return err
		}
	}
	return io.ErrNoProgress
}

// makeRoom sees to it that there is room behind r.end. The buffer grows only
// when it is full of one unfinished frame, and then at most to twice what has
// really arrived; it goes back to its size when it is empty.
func (r *Reader) makeRoom(need int) {
	if r.start == r.end {
		r.start, r.end = 0, 0
		if len(r.buf) > bufferSize {
			r.buf = make([]byte, bufferSize)
		}
		return
	}
	if r.start+need > len(r.buf) {
		r.end = copy(r.buf, r.buf[r.start:r.end])
		r.start = 0
	}
	if r.end == len(r.buf) {
		grown := make([]byte, min(2*len(r.buf), need))
		copy(grown, r.buf)
		r.buf = grown
	}
}
