package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"example.com/hangup/internal/call"
	"example.com/hangup/internal/calls"
	"example.com/hangup/internal/connwatch"
)

// heartbeat is how long a stream is silent at most. A peer that vanished is missed
// from the first byte that it does not acknowledge, for connwatch.SendTimeout: with
// this before it, still within 35 s.
const heartbeat = 4 * time.Second

// errGone ends a stream whose reader has left.
var errGone = errors.New("the reader of the events has gone")

// stream writes the events of one call, as server-sent events. One goroutine at
// a time writes; leave may be called by another.
type stream struct {
	w    http.ResponseWriter
	conn *http.ResponseController
	buf  []byte // what is not sent yet

	gone  chan struct{} // closed when the reader has left
	leave func()        // closes it and ends a write that waits; may be called again
}

func newStream(v *visit) *stream {
	e := &stream{w: v.w, conn: v.body.conn, gone: make(chan struct{})}
	e.leave = sync.OnceFunc(func() {
		close(e.gone)
		_ = e.conn.SetWriteDeadline(past)
	})
	return e
}

// open sends the head of the reply.
func (e *stream) open() error {
	h := e.w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // a proxy that collects replies must not do it with this one
	e.w.WriteHeader(http.StatusOK)
	return e.conn.Flush()
}

// event puts an event behind what is not sent yet. The data is one line.
func (e *stream) event(id int64, name string, data []byte) {
	e.buf = fmt.Appendf(e.buf, "id: %d\nevent: %s\ndata: ", id, name)
	e.buf = append(append(e.buf, data...), "\n\n"...)
}

// send sends what has been put together. It fails when the reader has gone, or
// takes longer than connwatch.SendTimeout for a piece, whatever the connection.
func (e *stream) send() error {
	left := e.buf
	e.buf = e.buf[:0]
	for len(left) > 0 {
		part := left[:min(len(left), piece)]
		left = left[len(part):]
		_ = e.conn.SetWriteDeadline(time.Now().Add(connwatch.SendTimeout))
		select {
		case <-e.gone: // and its deadline may have come before this one
			return errGone
		default:
		}
		if _, err := e.w.Write(part); err != nil {
			return err
		}
		if err := e.conn.Flush(); err != nil {
			return err
		}
	}
	_ = e.conn.SetWriteDeadline(time.Time{})
	return nil
}

// follow writes the events of a call as they come. It returns the id of the last
// one, which is left to the caller, or 0 if stop was closed and nothing more was there.
func (e *stream) follow(w *calls.Watch, stop <-chan struct{}) (last int64, err error) {
	silent := time.NewTicker(heartbeat)
	defer silent.Stop()
	for {
		events, news := w.Next()
		for _, ev := range events {
			if ev.Name == "ended" {
				return ev.ID, e.send()
			}
			e.event(ev.ID, ev.Name, eventData(w, ev))
		}
		if len(events) > 0 {
			if err := e.send(); err != nil {
				return 0, err
			}
			silent.Reset(heartbeat)
			continue
		}
		select {
		case <-news:
		case <-silent.C:
			e.buf = append(e.buf, ":\n\n"...)
			if err := e.send(); err != nil {
				return 0, err
			}
		case <-stop:
			return 0, nil
		case <-e.gone:
			return 0, errGone
		}
	}
}

// eventData is the JSON of an event that is not the last.
func eventData(w *calls.Watch, ev calls.Event) []byte {
	rec := w.Record()
	var data any
	switch ev.Name {
	case "queued":
		data = struct {
			Call     string `json:"call"`
			Workload string `json:"workload"`
			Task     string `json:"task"`
		}{rec.ID, rec.Workload, rec.Task}
	case "started":
		data = struct {
			Call      string  `json:"call"`
			WorkerPid int     `json:"worker_pid"`
			QueueMs   float64 `json:"queue_ms"`
		}{rec.ID, rec.WorkerPid, milliseconds(rec.StartedAt.Sub(rec.QueuedAt))}
	case "output":
		out := struct {
			Call   string  `json:"call"`
			Stream string  `json:"stream"`
			Text   *string `json:"text,omitempty"`
			Base64 *[]byte `json:"base64,omitempty"`
			Left   int64   `json:"left_out,omitempty"`
		}{Call: rec.ID, Stream: ev.Stream, Left: ev.Left}
		if text := string(ev.Data); utf8.ValidString(text) {
			out.Text = &text
		} else {
			out.Base64 = &ev.Data
		}
		data = out
	case "progress":
		return progressData(rec.ID, ev.Data)
	case "gap":
		data = struct {
			Call   string `json:"call"`
			Missed int64  `json:"missed"`
		}{rec.ID, ev.Left}
	}
	line, _ := json.Marshal(data) // strings and numbers: it cannot fail
	return line
}

// progressData is a progress with the call beside what the work said, in one line.
func progressData(id string, said []byte) []byte {
	members := map[string]json.RawMessage{}
	_ = json.Unmarshal(said, &members) // the kind has checked that it is an object
	members["call"], _ = json.Marshal(id)
	line, err := json.Marshal(members)
	if err != nil {
		line, _ = json.Marshal(map[string]string{"call": id})
	}
	// Within strings the encoder leaves what is no UTF-8 as it was.
	if !utf8.Valid(line) {
		line = []byte(strings.ToValidUTF8(string(line), "\ufffd"))
	}
	return line
}

// resultData is a result in one line: as JSON or text where its type says so and
// it is that, else in base64. But for the spaces in JSON, each form gives back
// the same bytes.
func resultData(id, contentType string, body []byte) []byte {
	result := struct {
		Call        string          `json:"call"`
		ContentType string          `json:"content_type"`
		JSON        json.RawMessage `json:"json,omitempty"`
		Text        *string         `json:"text,omitempty"`
		Base64      *[]byte         `json:"base64,omitempty"`
	}{Call: id, ContentType: contentType}
	switch isJSON, isText := textual(contentType); {
	case isJSON && utf8.Valid(body) && json.Valid(body):
		result.JSON = body
	case isText && utf8.Valid(body):
		text := string(body)
		result.Text = &text
	default:
		result.Base64 = &body
	}
	line, _ := json.Marshal(result) // the JSON is valid: it cannot fail
	return line
}

// textual tells what a content type says of a body: that it is JSON, or text in
// UTF-8.
func textual(contentType string) (isJSON, isText bool) {
	media, params, err := mime.ParseMediaType(contentType)
	if err != nil {
		return false, false
	}
	switch strings.ToLower(params["charset"]) {
	case "", "utf-8", "us-ascii":
		return media == "application/json" || strings.HasSuffix(media, "+json"), strings.HasPrefix(media, "text/")
	}
	return false, false
}

// watchCall answers GET /calls/{id}/events. Whoever watches owns nothing; they
// get no body of a result.
func (s *server) watchCall(v *visit) {
	record, err := s.record(v)
	after := int64(0)
	if err == nil {
		after, err = lastEventID(v.r.Header)
	}
	if err != nil {
		s.fail(v, nil, err)
		return
	}
	watch, ok := s.o.Calls.Watch(record.ID, after)
	if !ok { // it was forgotten just now
		_, err = s.record(v)
		s.fail(v, nil, err)
		return
	}
	v.w.Header().Set("Hangup-Call", record.ID)
	e := newStream(v)
	// A reader who has had the last event and comes again, as browsers do, is
	// told not to.
	if watch.Over() {
		v.w.WriteHeader(http.StatusNoContent)
		return
	}
	_, over := connwatch.Streaming(v.r) // the pace of the reader is seen to here
	defer over()
	defer connwatch.Bound(v.r)()
	defer hangUp(v, e.leave)()
	err = e.open()
	if err == nil && v.r.Method == http.MethodHead {
		return
	}
	var last int64
	if err == nil {
		last, err = e.follow(watch, nil)
	}
	if err == nil {
		result, cause := watch.End()
		if cause == nil {
			line, _ := json.Marshal(struct {
				Call        string `json:"call"`
				ContentType string `json:"content_type"`
				Size        int64  `json:"size"`
			}{record.ID, result.ContentType, result.Size})
			e.event(last, "result", line)
		} else {
			e.problem(last, &call.Call{ID: record.ID, Workload: record.Workload}, cause)
		}
		err = e.send()
	}
	if err != nil {
		v.abort()
	}
}

// problem puts the last event of a call without a result behind what is not
// sent yet: the document that a plain reply would be.
func (e *stream) problem(id int64, c *call.Call, cause error) {
	doc := problemOf(cause).document(c, cause)
	e.event(id, "problem", doc[:len(doc)-1]) // without its end of line
}

// hangUp has f called when the peer goes. The returned stop prevents that, or
// waits until f is done.
func hangUp(v *visit, f func()) (stop func()) {
	done := make(chan struct{})
	cut := connwatch.AfterHangUp(v.r, func() {
		defer close(done)
		f()
	})
	return func() {
		if !cut() {
			<-done
		}
	}
}

// lastEventID is the id of the last event that a reader has had, 0 where it says none.
func lastEventID(h http.Header) (int64, error) {
	said, ok, err := single(h, "Last-Event-ID")
	if err != nil || !ok || said == "" {
		return 0, err
	}
	id, err := strconv.ParseInt(said, 10, 64)
	if err != nil || id < 0 {
		return 0, fmt.Errorf("%w: Last-Event-ID: %q is no id of an event here", call.ErrBadRequest, clip(said))
	}
	return id, nil
}

// wantsEvents tells whether a caller prefers an event stream to a plain reply:
// it names text/event-stream, no other type that it names is as welcome, and no
// wildcard more.
func wantsEvents(h http.Header) bool {
	stream, named, wild := 0.0, 0.0, 0.0
	for part := range strings.SplitSeq(strings.Join(h.Values("Accept"), ","), ",") {
		media, params, _ := strings.Cut(part, ";")
		media = strings.ToLower(strings.TrimSpace(media))
		q, ok := quality(params)
		switch {
		case media == "" || !ok:
		case media == "text/event-stream":
			stream = max(stream, q)
		case strings.HasSuffix(media, "/*"):
			wild = max(wild, q)
		default:
			named = max(named, q)
		}
	}
	return stream > named && stream >= wild
}

// quality is the weight in the parameters of a media range, which is 1 where
// they do not say.
func quality(params string) (q float64, ok bool) {
	for param := range strings.SplitSeq(params, ";") {
		name, value, _ := strings.Cut(strings.TrimSpace(param), "=")
		if strings.EqualFold(name, "q") {
			q, err := strconv.ParseFloat(value, 64)
			return q, err == nil && q >= 0 && q <= 1
		}
	}
	return 1, true
}
