package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
)

// Problem is a problem document (RFC 9457) of the server. As an error it reads
// as a person needs it.
type Problem struct {
	Type     string `json:"type"`
	Title    string `json:"title"`
	Status   int    `json:"status"`
	Detail   string `json:"detail"`
	Call     string `json:"call"`
	Workload string `json:"workload"`
	Outcome  string `json:"outcome"`

	Class   string `json:"error"` // what failed work says of itself
	Message string `json:"message"`
	Tail    string `json:"stderr"` // the last of what the worker wrote

	Document json.RawMessage `json:"-"` // all of it
	Retry    string          `json:"-"` // Retry-After: seconds
	Token    bool            `json:"-"` // whether a token was sent

	QueueMs, RunMs *float64 `json:"-"` // where the server tells
}

// Slug is the name of the problem's type.
func (p *Problem) Slug() string { return strings.TrimPrefix(p.Type, "/problems/") }

func (p *Problem) Error() string {
	text := p.Detail
	if text == "" {
		text = p.Title
	}
	switch p.Slug() {
	case "unauthorized":
		text = "the server wants a token: give one with HANGUP_TOKEN or --token"
		if p.Token {
			text = "the server does not know this token: is it whole, and is it this server's? Its config lists them under auth.tokens"
		}
	case "not-found":
		text += ": is the server older than this client, or does the URL need no path?"
	}
	if p.Retry != "" {
		text += fmt.Sprintf("; try again in %s s", p.Retry)
	}
	if p.Call != "" {
		text += fmt.Sprintf(" (%d, call %s)", p.Status, p.Call)
	} else {
		text += fmt.Sprintf(" (%d)", p.Status)
	}
	if tail := strings.TrimRight(p.Tail, "\n"); tail != "" {
		text += "\nthe last it wrote to stderr:\n    " + strings.ReplaceAll(tail, "\n", "\n    ")
	}
	return Plain(text)
}

// problem reads the reply to a request that was refused or failed.
func (c *Client) problem(reply *http.Response) error {
	const enough = 1 << 20
	body, err := io.ReadAll(io.LimitReader(reply.Body, enough))
	kind, _, _ := mime.ParseMediaType(reply.Header.Get("Content-Type"))
	if kind != "application/problem+json" {
		return c.stranger(reply, body)
	}
	p := ParseProblem(body)
	if err != nil || p == nil {
		return fmt.Errorf("cannot read the reply of %s: %s, and its problem document broke off", c.shown, Plain(reply.Status))
	}
	p.Retry, p.Token = Plain(reply.Header.Get("Retry-After")), c.token != ""
	p.QueueMs, p.RunMs = timings(reply.Header.Get("Server-Timing"))
	if p.Status == 0 {
		p.Status = reply.StatusCode
	}
	return p
}

// ParseProblem takes in a problem document, or returns nil where it is none. Work
// can add members of its own: one of a strange type is no reason to lose the rest.
func ParseProblem(document []byte) *Problem {
	p := &Problem{}
	err := json.Unmarshal(document, p)
	var strange *json.UnmarshalTypeError
	if err != nil && (!errors.As(err, &strange) || strange.Field == "") {
		return nil
	}
	p.Document = document
	return p
}
