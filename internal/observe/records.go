package observe

import (
	"context"
	"log/slog"
	"time"

	"example.com/hangup/internal/event"
)

// records writes one log record an event. It goes to the handler directly: a
// [slog.Logger] would look up the caller's line, which is the same for all.
type records struct{ handler slog.Handler }

func (l *records) write(e event.Event) {
	switch e := e.(type) {
	case event.CallEnded:
		l.callEnded(e)
	case event.CallCancelled:
		l.callCancelled(e)
	case event.Output:
		l.log(slog.LevelInfo, e.At, "output",
			slog.String("workload", e.Workload), slog.String("call", e.Call), slog.Int("pid", e.Pid),
			slog.String("stream", e.Stream), slog.String("text", string(e.Text)), slog.Int64("dropped", e.Dropped))
	case event.WorkerChanged:
		l.log(slog.LevelDebug, e.At, "worker changed",
			slog.String("workload", e.Workload), slog.Uint64("worker", e.Worker), slog.Int("pid", e.Pid),
			slog.String("from", string(e.From)), slog.String("to", string(e.To)), slog.String("why", e.Why))
	case event.TreeStopped:
		l.treeStopped(e)
	case event.StartFailed:
		l.log(slog.LevelWarn, e.At, "worker did not start",
			slog.String("workload", e.Workload), slog.Uint64("worker", e.Worker),
			slog.String("cause", text(e.Err)), slog.Float64("retry_ms", ms(e.Retry)))
	case event.Illegal:
		l.log(slog.LevelError, e.At, "illegal transition: a defect of hangup",
			slog.String("workload", e.Workload), slog.String("cause", text(e.Err)))
	}
}

// log writes a record. What is dear to compute asks Enabled first.
func (l *records) log(level slog.Level, at time.Time, msg string, attrs ...slog.Attr) {
	ctx := context.Background()
	if !l.handler.Enabled(ctx, level) {
		return
	}
	if at.IsZero() {
		at = time.Now()
	}
	r := slog.NewRecord(at, level, msg, 0)
	r.AddAttrs(attrs...)
	// A log that cannot be written is no reason to fail, and nobody could be told.
	_ = l.handler.Handle(ctx, r)
}

func (l *records) callEnded(e event.CallEnded) {
	l.log(slog.LevelInfo, e.At, "call ended",
		slog.String("call", e.Call), slog.String("workload", e.Workload), slog.String("task", e.Task),
		slog.String("outcome", string(e.Outcome)), slog.String("cause", text(e.Cause)),
		slog.Float64("queue_ms", ms(e.Waited)), slog.Float64("run_ms", ms(e.Ran)), slog.String("caller", e.Caller))
}

// callCancelled writes the evidence of a cancelled call, as a warning where it
// shows that something is left.
func (l *records) callCancelled(e event.CallCancelled) {
	level := slog.LevelInfo
	if !e.Cancel.Stop.Empty {
		level = slog.LevelWarn
	}
	attrs := []slog.Attr{
		slog.String("call", e.Call), slog.String("workload", e.Workload),
		slog.String("by", e.Cancel.By), slog.Time("noticed_at", e.Cancel.NoticedAt),
	}
	l.log(level, time.Time{}, "call cancelled", append(attrs, stopAttrs(e.Cancel.Stop)...)...)
}

func (l *records) treeStopped(e event.TreeStopped) {
	level := slog.LevelDebug
	if !e.Stop.Empty {
		level = slog.LevelWarn
	}
	if !l.handler.Enabled(context.Background(), level) {
		return
	}
	attrs := []slog.Attr{
		slog.String("workload", e.Workload), slog.Uint64("worker", e.Worker), slog.Int("pid", e.Pid), slog.String("why", e.Why),
	}
	l.log(level, e.At, "tree stopped", append(attrs, stopAttrs(e.Stop)...)...)
}

// stopAttrs names the members of a stop as GET /calls does.
func stopAttrs(s event.Stop) []slog.Attr {
	type step struct {
		Step string  `json:"step"`
		AtMs float64 `json:"at_ms"`
	}
	type survivor struct {
		Pid   int    `json:"pid"`
		State string `json:"state"`
		UID   int    `json:"uid"`
		Wait  string `json:"wait_channel,omitempty"`
	}
	steps := make([]step, 0, len(s.Steps))
	for _, st := range s.Steps {
		steps = append(steps, step{st.Name, ms(st.At)})
	}
	survivors := make([]survivor, 0, len(s.Survivors))
	for _, sv := range s.Survivors {
		survivors = append(survivors, survivor(sv))
	}
	return []slog.Attr{
		slog.Any("steps", steps), slog.Int("killed", s.Killed), slog.Float64("empty_ms", ms(s.Took)),
		slog.Bool("empty", s.Empty), slog.String("proof", s.Proof), slog.Any("survivors", survivors),
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// ms is d in milliseconds, to the microsecond.
func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
