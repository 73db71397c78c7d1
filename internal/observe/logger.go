package observe

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"
)

// NewLogger makes the server's logger. The format is json, one object a line,
// or text; the level debug, info, warn or error. An unknown one counts as json
// or info: config has refused it long before.
//
// Whatever strings a record carries, it is one line of valid UTF-8 without
// control characters. Where w is a [Buffer], a record from warn upwards is
// flushed at once, and one of the same format tells how many were lost.
func NewLogger(w io.Writer, format, level string) *slog.Logger {
	return slog.New(newHandler(w, format, level))
}

// Log is a logger, as [NewLogger] makes it, whose format and level can be changed
// while it is in use.
type Log struct {
	*slog.Logger
	w   io.Writer
	now *changing
}

// NewLog makes a Log.
func NewLog(w io.Writer, format, level string) *Log {
	l := &Log{w: w, now: &changing{}}
	l.Logger = slog.New(l.now)
	l.Change(format, level)
	return l
}

// Change holds for every record from now on.
func (l *Log) Change(format, level string) {
	h := newHandler(l.w, format, level)
	l.now.handler.Store(&h)
}

// changing is a handler that hands on to the one of the moment.
type changing struct{ handler atomic.Pointer[slog.Handler] }

func (c *changing) Enabled(ctx context.Context, level slog.Level) bool {
	return (*c.handler.Load()).Enabled(ctx, level)
}

func (c *changing) Handle(ctx context.Context, r slog.Record) error {
	return (*c.handler.Load()).Handle(ctx, r)
}

// A logger with attributes of its own keeps what it was made with.
func (c *changing) WithAttrs(attrs []slog.Attr) slog.Handler {
	return (*c.handler.Load()).WithAttrs(attrs)
}

func (c *changing) WithGroup(name string) slog.Handler {
	return (*c.handler.Load()).WithGroup(name)
}

func newHandler(w io.Writer, format, level string) slog.Handler {
	o := &slog.HandlerOptions{Level: slog.LevelInfo}
	var l slog.Level
	if l.UnmarshalText([]byte(level)) == nil {
		o.Level = l
	}
	handler := func(w io.Writer) slog.Handler {
		if format == "text" {
			return slog.NewTextHandler(escaper{w}, o)
		}
		return slog.NewJSONHandler(escaper{w}, o)
	}
	h := handler(w)
	if b, ok := w.(*Buffer); ok {
		b.tellWith(handler(b.w))
		h = urgent{h, b}
	}
	return h
}

// escaper escapes the control characters that slog leaves bare and terminals
// obey: DEL and the C1 set, of which U+009B begins a sequence as ESC [ does. In
// JSON they can only stand in strings, so the document stays what it is.
type escaper struct{ w io.Writer }

func (e escaper) Write(p []byte) (int, error) {
	if bytes.IndexByte(p, 0xc2) < 0 && bytes.IndexByte(p, 0x7f) < 0 {
		return e.w.Write(p)
	}
	out := make([]byte, 0, len(p)+64)
	for i := 0; i < len(p); i++ {
		switch {
		case p[i] == 0x7f:
			out = append(out, `\u007f`...)
		case p[i] == 0xc2 && i+1 < len(p) && p[i+1] < 0xa0: // U+0080 to U+009F in UTF-8
			i++
			out = fmt.Appendf(out, `\u%04x`, p[i])
		default:
			out = append(out, p[i])
		}
	}
	if _, err := e.w.Write(out); err != nil {
		return 0, err
	}
	return len(p), nil
}

// urgent flushes what must not wait.
type urgent struct {
	slog.Handler
	out *Buffer
}

func (u urgent) Handle(ctx context.Context, r slog.Record) error {
	if err := u.Handler.Handle(ctx, r); err != nil || r.Level < slog.LevelWarn {
		return err
	}
	return u.out.Flush()
}

func (u urgent) WithAttrs(attrs []slog.Attr) slog.Handler {
	return urgent{u.Handler.WithAttrs(attrs), u.out}
}

func (u urgent) WithGroup(name string) slog.Handler {
	return urgent{u.Handler.WithGroup(name), u.out}
}
