package api

import (
	"encoding/json"
	"mime"
	"net/http"
	"strings"
	"unicode/utf8"

	"example.com/hangup/internal/call"
	"example.com/hangup/internal/calls"
	"example.com/hangup/internal/connwatch"
)

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
	e := newEventWriter(v)
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
func (e *eventWriter) problem(id int64, c *call.Call, cause error) {
	doc := problemOf(cause).document(c, cause)
	e.event(id, "problem", doc[:len(doc)-1]) // without its end of line
}
