// Package wire is the worker protocol, version 1, as bytes: what a frame looks
// like, and which frames cannot be. It knows nothing of processes or pipes;
// docs/protocol.md tells who may say what, and when.
//
// A frame is a header of 16 bytes, big-endian, and a payload:
//
//	u32 length of the payload | u8 type | u8 flags | u16 zero | u64 id
//
// The id is the number of a call on its worker, counted from 1 by the server;
// it is 0 in the two frames that are not about a call. Everything a header
// announces is checked before the payload is waited for, so that a length from
// outside never becomes an allocation.
//
// The package has no goroutine and imports nothing of this module.
package wire

import (
	"encoding/binary"
	"fmt"
)

const (
	// Version is the protocol's version, as HANGUP_PROTOCOL and READY tell it.
	Version = 1
	// HeaderSize is the length of every frame's header in bytes.
	HeaderSize = 16
	// MaxPayload is the longest payload in bytes. It is the protocol's, not a setting.
	MaxPayload = 1 << 20
	// Chunk is the size in bytes of the parts a body is cut in by those who
	// write one: what a Linux pipe holds. A reader takes any up to MaxPayload.
	Chunk = 64 << 10
)

// FlagEnd marks the last frame of a body. The other bits are reserved.
const FlagEnd uint8 = 1

// Type says what a frame is.
type Type uint8

// The types of frames.
const (
	TypeReady     Type = 1 + iota // to the server: the worker can take calls; a ReadyInfo
	TypeExecute                   // to the worker: a call; a head and the first part of its input
	TypeChunk                     // both ways: a further part of the input, or of the result
	TypeResult                    // to the server: a head and the first part of the result
	TypeProgress                  // to the server: a JSON object, what the work says of itself
	TypeFailure                   // to the server: the work failed; a FailureInfo
	TypeCancel                    // to the worker: stop that call
	TypeCancelled                 // to the server: that call is over, and all its frames are sent
	TypeShutdown                  // to the worker, while it has no call: exit
)

// shape is what the header of a type may say.
type shape struct {
	name   string
	body   bool // may carry FlagEnd
	nobody bool // is about no call: its id is 0
	bare   bool // has no payload
}

var shapes = [...]shape{
	TypeReady:     {name: "READY", nobody: true},
	TypeExecute:   {name: "EXECUTE", body: true},
	TypeChunk:     {name: "CHUNK", body: true},
	TypeResult:    {name: "RESULT", body: true},
	TypeProgress:  {name: "PROGRESS"},
	TypeFailure:   {name: "FAILURE"},
	TypeCancel:    {name: "CANCEL", bare: true},
	TypeCancelled: {name: "CANCELLED", bare: true},
	TypeShutdown:  {name: "SHUTDOWN", nobody: true, bare: true},
}

func (t Type) known() bool { return t != 0 && int(t) < len(shapes) }

// String is the type's name in docs/protocol.md.
func (t Type) String() string {
	if !t.known() {
		return fmt.Sprintf("type %d", uint8(t))
	}
	return shapes[t].name
}

// Frame is one frame.
type Frame struct {
	Type    Type
	Flags   uint8
	ID      uint64 // the call's number on its worker; 0: about no call
	Payload []byte
}

// End reports whether the frame is the last of its body.
func (f Frame) End() bool { return f.Flags&FlagEnd != 0 }

// Append appends f to dst. The payload must not be longer than MaxPayload.
func Append(dst []byte, f Frame) []byte {
	dst = AppendHeader(dst, f.Type, f.Flags, f.ID, len(f.Payload))
	return append(dst, f.Payload...)
}

// AppendHeader appends the header of a frame with n bytes of payload, for those
// who have the payload elsewhere. It panics when n is not a payload's length.
func AppendHeader(dst []byte, t Type, flags uint8, id uint64, n int) []byte {
	if n < 0 || n > MaxPayload {
		panic(fmt.Sprintf("wire: a %v frame with %d bytes of payload", t, n))
	}
	dst = binary.BigEndian.AppendUint32(dst, uint32(n))
	dst = append(dst, byte(t), flags, 0, 0)
	return binary.BigEndian.AppendUint64(dst, id)
}

// FormatError is a breach of the protocol: bytes that no version 1 peer sends.
// What follows them cannot be understood.
type FormatError struct{ Reason string }

func (e *FormatError) Error() string { return "protocol breach: " + e.Reason }

func breach(format string, args ...any) error {
	return &FormatError{fmt.Sprintf(format, args...)}
}

// parseHeader takes a header apart and says how long its payload is.
func parseHeader(h []byte) (f Frame, n int, err error) {
	length := binary.BigEndian.Uint32(h)
	f = Frame{Type: Type(h[4]), Flags: h[5], ID: binary.BigEndian.Uint64(h[8:])}
	switch {
	case length > MaxPayload:
		return f, 0, breach("a payload of %d bytes, the most is %d", length, MaxPayload)
	case !f.Type.known():
		return f, 0, breach("unknown frame type %d", uint8(f.Type))
	case f.Flags&^FlagEnd != 0:
		return f, 0, breach("%v with reserved flags %#02x", f.Type, f.Flags)
	case h[6] != 0 || h[7] != 0:
		return f, 0, breach("%v with reserved bytes that are not zero", f.Type)
	}
	switch s := shapes[f.Type]; {
	case f.End() && !s.body:
		return f, 0, breach("%v with the flag END, it has no body", f.Type)
	case s.nobody && f.ID != 0:
		return f, 0, breach("%v with the id %d, it is about no call", f.Type, f.ID)
	case !s.nobody && f.ID == 0:
		return f, 0, breach("%v without an id", f.Type)
	case s.bare && length != 0:
		return f, 0, breach("%v with a payload of %d bytes, it has none", f.Type, length)
	}
	return f, int(length), nil
}

// ReadyInfo is the payload of READY, in JSON.
type ReadyInfo struct {
	Protocol int      `json:"protocol"` // the version the worker speaks
	SDK      string   `json:"sdk"`      // what speaks it, for people: "python/0.1"
	Tasks    []string `json:"tasks"`    // the names of its tasks, at least one
}

// FailureInfo is the payload of FAILURE, in JSON: why the work failed, in its
// own words.
type FailureInfo struct {
	Error   string         `json:"error"`             // the class of the error; may be ""
	Message string         `json:"message"`           // for the caller
	Detail  string         `json:"detail,omitempty"`  // a traceback, for the operator
	Members map[string]any `json:"members,omitempty"` // what the work adds to the problem document
	// Malformed says that the input is not what its content type says, and that
	// nothing was done with it.
	Malformed bool `json:"malformed,omitempty"`
}
