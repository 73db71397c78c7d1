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
		l.output(e)
	case event.WorkerChanged:
		l.log(slog.LevelDebug, e.At, "worker changed",
			slog.String("workload", e.Workload), slog.Uint64("worker", e.Worker), slog.Int("pid", e.Pid),
			slog.String("from", string(e.From)), slog.String("to", string(e.To)), slog.String("why", e.Why))
	case event.TreeStopped:
		l.treeStopped(e)
	case event.StartFailed:
		l.log(slog.LevelWarn, e.At, "worker did not start",
			slog.String("workload", e.Workload), slog.Uint64("worker", e.Worker),
			slog.String("cause", text(e.Err)), slog.Float64("retry_ms", event.Milliseconds(e.Retry)))
	case event.Trouble:
		l.log(slog.LevelWarn, e.At, e.What, slog.String("cause", text(e.Err)), slog.String("remedy", e.Remedy))
	case event.CertificateTaken:
		l.log(slog.LevelInfo, e.At, "certificate taken", slog.String("file", e.File), slog.Time("expires", e.Expires))
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

// output writes what a worker wrote. What was left out after its last piece is a
// record of its own kind: it must not pass for an empty line.
func (l *records) output(e event.Output) {
	attrs := []slog.Attr{
		slog.String("workload", e.Workload), slog.String("call", e.Call), slog.Int("pid", e.Pid), slog.String("stream", e.Stream),
	}
	msg := "output left out"
	if len(e.Text) > 0 || e.Dropped == 0 {
		msg, attrs = "output", append(attrs, slog.String("text", string(e.Text)))
	}
	l.log(slog.LevelInfo, e.At, msg, append(attrs, slog.Int64("dropped", e.Dropped))...)
}

func (l *records) callEnded(e event.CallEnded) {
	l.log(slog.LevelInfo, e.At, "call ended",
		slog.String("call", e.Call), slog.String("workload", e.Workload), slog.String("task", e.Task),
		slog.String("outcome", string(e.Outcome)), slog.String("cause", text(e.Cause)),
		slog.Float64("queue_ms", event.Milliseconds(e.Waited)), slog.Float64("run_ms", event.Milliseconds(e.Ran)), slog.String("caller", e.Caller))
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

// stopAttrs names the members of a stop as event.Cancel does in JSON. The lists
// are never null.
func stopAttrs(s event.Stop) []slog.Attr {
	return []slog.Attr{
		slog.Any("steps", append([]event.Step{}, s.Steps...)), slog.Int("killed", s.Killed),
		slog.Float64("empty_ms", event.Milliseconds(s.Took)), slog.Bool("empty", s.Empty), slog.String("proof", s.Proof),
		slog.Any("survivors", append([]event.Survivor{}, s.Survivors...)),
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
