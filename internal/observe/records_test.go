package observe

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"example.com/hangup/internal/event"
)

var at = time.Date(2026, 11, 5, 10, 0, 0, 0, time.UTC)

// logged returns what one event becomes at the debug level.
func logged(t *testing.T, e event.Event) map[string]any {
	t.Helper()
	var out bytes.Buffer
	New(Options{Log: NewLogger(&out, "json", "debug")}).Sink()(e)
	if n := strings.Count(out.String(), "\n"); n != 1 {
		t.Fatalf("%d lines for one event:\n%s", n, out.String())
	}
	var m map[string]any
	if err := json.Unmarshal(out.Bytes(), &m); err != nil {
		t.Fatalf("not JSON: %v: %s", err, out.String())
	}
	return m
}

func TestRecords(t *testing.T) {
	stop := event.Stop{
		Steps: []event.Step{{Name: "signal", At: 0}, {Name: "kill", At: 1500 * time.Microsecond}},
		Took:  2 * time.Millisecond, Killed: 7, Empty: true, Proof: "ECHILD",
	}
	steps := []any{map[string]any{"step": "signal", "at_ms": 0.}, map[string]any{"step": "kill", "at_ms": 1.5}}
	stuck := event.Stop{Took: 2 * time.Second, Survivors: []event.Survivor{{Pid: 9, State: "D", UID: 33, Wait: "nfs_wait"}}}
	survivors := []any{map[string]any{"pid": 9., "state": "D", "uid": 33., "wait_channel": "nfs_wait"}}

	for _, tt := range []struct {
		name string
		e    event.Event
		want map[string]any
	}{
		{"a call's end", event.CallEnded{
			Call: "c1", Workload: "echo", Task: "up", Caller: "ci", Outcome: event.Failed, Cause: errors.New("boom"),
			Waited: 1500 * time.Microsecond, Ran: 2 * time.Second, At: at,
		}, map[string]any{
			"level": "INFO", "msg": "call ended", "call": "c1", "workload": "echo", "task": "up", "outcome": "failed",
			"cause": "boom", "queue_ms": 1.5, "run_ms": 2000., "caller": "ci", "time": "2026-11-05T10:00:00Z",
		}},
		{"the evidence of a cancel", event.CallCancelled{
			Call: "c1", Workload: "echo", Cancel: event.Cancel{By: "caller", NoticedAt: at, Stop: stop},
		}, map[string]any{
			"level": "INFO", "msg": "call cancelled", "call": "c1", "workload": "echo", "by": "caller",
			"noticed_at": "2026-11-05T10:00:00Z", "steps": steps, "killed": 7., "empty_ms": 2., "empty": true,
			"proof": "ECHILD", "survivors": []any{},
		}},
		{"the evidence that something is left", event.CallCancelled{
			Call: "c1", Workload: "echo", Cancel: event.Cancel{By: "timeout", NoticedAt: at, Stop: stuck},
		}, map[string]any{
			"level": "WARN", "msg": "call cancelled", "call": "c1", "workload": "echo", "by": "timeout",
			"noticed_at": "2026-11-05T10:00:00Z", "steps": []any{}, "killed": 0., "empty_ms": 2000., "empty": false,
			"proof": "", "survivors": survivors,
		}},
		{"output", event.Output{Call: "c1", Workload: "echo", Pid: 7, Stream: "stderr", Text: []byte("hi"), Dropped: 3, At: at}, map[string]any{
			"level": "INFO", "msg": "output", "call": "c1", "workload": "echo", "pid": 7., "stream": "stderr", "text": "hi",
			"dropped": 3., "time": "2026-11-05T10:00:00Z",
		}},
		{"what was left out at the end", event.Output{Call: "c1", Workload: "echo", Pid: 7, Stream: "stderr", Dropped: 3, At: at}, map[string]any{
			"level": "INFO", "msg": "output left out", "call": "c1", "workload": "echo", "pid": 7., "stream": "stderr",
			"dropped": 3., "time": "2026-11-05T10:00:00Z",
		}},
		{"an empty line", event.Output{Workload: "echo", Pid: 7, Stream: "stdout", At: at}, map[string]any{
			"level": "INFO", "msg": "output", "call": "", "workload": "echo", "pid": 7., "stream": "stdout", "text": "",
			"dropped": 0., "time": "2026-11-05T10:00:00Z",
		}},
		{"a worker's step", event.WorkerChanged{Workload: "echo", Worker: 2, Pid: 7, From: event.Idle, To: event.Busy, Why: "taken", At: at}, map[string]any{
			"level": "DEBUG", "msg": "worker changed", "workload": "echo", "worker": 2., "pid": 7., "from": "idle", "to": "busy",
			"why": "taken", "time": "2026-11-05T10:00:00Z",
		}},
		{"a tree that is gone", event.TreeStopped{Workload: "echo", Worker: 2, Pid: 7, Why: "exited", Stop: stop, At: at}, map[string]any{
			"level": "DEBUG", "msg": "tree stopped", "workload": "echo", "worker": 2., "pid": 7., "why": "exited", "steps": steps,
			"killed": 7., "empty_ms": 2., "empty": true, "proof": "ECHILD", "survivors": []any{}, "time": "2026-11-05T10:00:00Z",
		}},
		{"a tree that is not", event.TreeStopped{Workload: "echo", Worker: 2, Pid: 7, Why: "exited", Stop: stuck, At: at}, map[string]any{
			"level": "WARN", "msg": "tree stopped", "workload": "echo", "worker": 2., "pid": 7., "why": "exited", "steps": []any{},
			"killed": 0., "empty_ms": 2000., "empty": false, "proof": "", "survivors": survivors, "time": "2026-11-05T10:00:00Z",
		}},
		{"a failed start", event.StartFailed{Workload: "echo", Worker: 2, Err: errors.New("no such file"), Retry: time.Second, At: at}, map[string]any{
			"level": "WARN", "msg": "worker did not start", "workload": "echo", "worker": 2., "cause": "no such file",
			"retry_ms": 1000., "time": "2026-11-05T10:00:00Z",
		}},
		{"a defect", event.Illegal{Workload: "echo", Err: errors.New("busy: ready"), At: at}, map[string]any{
			"level": "ERROR", "msg": "illegal transition: a defect of hangup", "workload": "echo", "cause": "busy: ready",
			"time": "2026-11-05T10:00:00Z",
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := logged(t, tt.e)
			if _, ok := tt.want["time"]; !ok {
				delete(got, "time")
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestWhatIsNotLogged(t *testing.T) {
	var out bytes.Buffer
	sink := New(Options{Log: NewLogger(&out, "json", "info")}).Sink()
	sink(event.CallStarted{Call: "c1"})
	sink(event.CallProgress{Call: "c1"})
	sink(event.WorkerChanged{Worker: 1})
	sink(event.TreeStopped{Worker: 1, Stop: event.Stop{Empty: true}})
	if out.Len() > 0 {
		t.Errorf("logged at info:\n%s", out.String())
	}
}

// Whatever a worker prints, the log stays one clean line an event.
func TestHostileText(t *testing.T) {
	for _, raw := range []string{
		"a\nb", "a\r\n{\"level\":\"ERROR\"}", "\x1b[31mred\x1b[0m\x07", "nul\x00", "\xff\xfe broken", "del\x7f",
		"c1 \u009b31m \u0085", "\u2028", "cut \xc2", "plain é ü 漢",
	} {
		for _, format := range []string{"json", "text"} {
			var out bytes.Buffer
			New(Options{Log: NewLogger(&out, format, "info")}).Sink()(event.Output{Text: []byte(raw)})
			line := strings.TrimSuffix(out.String(), "\n")
			if !utf8.ValidString(line) || strings.ContainsFunc(line, unicode.IsControl) {
				t.Errorf("%s: %q became %q", format, raw, line)
			}
		}
		got := logged(t, event.Output{Text: []byte(raw)})["text"]
		if want := strings.ToValidUTF8(raw, "\ufffd"); utf8.ValidString(raw) && got != want {
			t.Errorf("%q came back as %q", raw, got)
		}
	}
}
