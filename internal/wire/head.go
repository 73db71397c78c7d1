package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
	"unicode/utf8"
)

// The keys of heads. Unknown ones are passed over.
const (
	KeyCall        = "call"         // EXECUTE: the call's id, as its caller knows it
	KeyTask        = "task"         // EXECUTE: the task's name; "" is the only task there is
	KeyContentType = "content-type" // both: the media type of the body; may be ""
	KeySize        = "size"         // both: the body's length in bytes, decimal; may be missing in RESULT
	KeyTraceparent = "traceparent"  // EXECUTE: the W3C trace context, where the call has one
	KeyScratch     = "scratch"      // EXECUTE: the call's scratch directory
)

// Head is what comes before the body in the payloads of EXECUTE and RESULT:
// keys and values in turn, each ended by a NUL.
type Head string

// Get returns the value of key, and "" when there is none. Of a key that comes
// twice the last counts.
func (h Head) Get(key string) (value string) {
	for rest := string(h); rest != ""; {
		var k, v string
		k, rest, _ = strings.Cut(rest, "\x00")
		v, rest, _ = strings.Cut(rest, "\x00")
		if k == key {
			value = v
		}
	}
	return value
}

// AppendHead appends a head of keys and values in turn, with its length in
// front. It fails, and returns dst as it was, when the strings do not pair up,
// when one has a NUL or is not UTF-8, or when all of it passes 65,535 bytes.
func AppendHead(dst []byte, pairs ...string) ([]byte, error) {
	if len(pairs)%2 != 0 {
		return dst, errors.New("cannot write a head: a key without a value")
	}
	out := append(dst, 0, 0)
	for _, s := range pairs {
		if strings.IndexByte(s, 0) >= 0 || !utf8.ValidString(s) {
			return dst, fmt.Errorf("cannot write a head: %.80q has a NUL or is not UTF-8", s)
		}
		out = append(append(out, s...), 0)
	}
	n := len(out) - len(dst) - 2
	if n > math.MaxUint16 {
		return dst, fmt.Errorf("cannot write a head: %d bytes, the most is %d", n, math.MaxUint16)
	}
	binary.BigEndian.PutUint16(out[len(dst):], uint16(n))
	return out, nil
}

// SplitHead takes the payload of an EXECUTE or a RESULT apart. The head is a
// copy, the body is part of payload. Its error is a [*FormatError].
func SplitHead(payload []byte) (head Head, body []byte, err error) {
	if len(payload) < 2 {
		return "", nil, breach("a head cut short")
	}
	n := int(binary.BigEndian.Uint16(payload))
	if n > len(payload)-2 {
		return "", nil, breach("a head of %d bytes in a payload of %d", n, len(payload))
	}
	raw := payload[2 : 2+n]
	switch {
	case !utf8.Valid(raw):
		return "", nil, breach("a head that is not UTF-8")
	case n > 0 && raw[n-1] != 0:
		return "", nil, breach("a head whose last string is not ended")
	}
	head = Head(raw)
	if strings.Count(string(head), "\x00")%2 != 0 {
		return "", nil, breach("a head with a key without a value")
	}
	return head, payload[2+n:], nil
}
