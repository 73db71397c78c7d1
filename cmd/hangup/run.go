package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"example.com/hangup/internal/client"
)

// runOptions are the flags of run.
type runOptions struct {
	remote
	input, contentType string
	timeout            time.Duration
	stream, json       bool
}

func runVerb() *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run WORKLOAD[/TASK]",
		Short: "Call a server; Ctrl-C hangs up",
		Long: "Makes a call and writes its result to stdout as it arrives, and all else to stderr.\n" +
			"Ctrl-C hangs up: the connection is closed at once, and the server ends the work with\n" +
			"all its processes. Exits with 0 when the work is done, 1 when it failed, 130 after\n" +
			"Ctrl-C.",
		Example: "  hangup run resize/fit --input '{\"width\": 1920, \"height\": 1080}'\n" +
			"  hangup run thumbnail --input @photo.jpg > small.webp\n" +
			"  jq .job file.json | hangup run resize/batch --input - --timeout 1m",
		Args:              needs("WORKLOAD", 1, 1),
		ValidArgsFunction: complete(&o.remote, 1, completeWorkloads),
		RunE:              func(cmd *cobra.Command, args []string) error { return makeCall(cmd, args[0], &o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.input, "input", "", "the input: `JSON`, @FILE, or - for stdin (default none)")
	f.StringVar(&o.contentType, "content-type", "", "the input's media `TYPE` (default application/json; of a @FILE not named .json application/octet-stream)")
	f.DurationVar(&o.timeout, "timeout", 0, "end the work after this time; the workload's own may be shorter")
	f.BoolVar(&o.stream, "stream", false, "watch the call: what the work writes and how far it is on stderr, then the result on stdout")
	f.BoolVar(&o.json, "json", false, "print one JSON document with the outcome; with --stream one a line for each event")
	remoteFlags(cmd, &o.remote)
	for name, words := range map[string][]string{
		"content-type": {"application/json", "application/octet-stream", "text/plain"}, "timeout": nil,
	} {
		if err := cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)); err != nil {
			panic(err) // there is no such flag: a line above is wrong
		}
	}
	return cmd
}

// interrupted is the cause of a hang-up that a signal asked for.
type interrupted struct{ signal syscall.Signal }

func (i *interrupted) Error() string { return "interrupted by " + unix.SignalName(i.signal) }

// code is the exit code, as shells have it: 130 for Ctrl-C.
func (i *interrupted) code() int { return 128 + int(i.signal) }

// lastWords is how long run waits after a hang-up for whoever reads its output.
const lastWords = 500 * time.Millisecond

// makeCall makes one call.
func makeCall(cmd *cobra.Command, target string, o *runOptions) error {
	call, done, err := o.call(target, cmd.InOrStdin())
	if err != nil {
		return &exitError{exitUsage, err}
	}
	defer done()
	c, err := o.client()
	if err != nil {
		return err
	}
	defer c.Close()

	ctx, cancel := context.WithCancelCause(cmd.Context())
	defer cancel(nil)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(signals)

	began := time.Now()
	r := &running{call: call, asJSON: o.json, screen: newScreen(cmd.OutOrStdout(), cmd.ErrOrStderr(), target)}
	ended, stuck := make(chan error, 1), false
	go func() { ended <- r.run(ctx, c) }()
	select {
	case err = <-ended:
	case s := <-signals:
		i := &interrupted{s.(syscall.Signal)}
		cancel(i) // which closes the connection
		select {
		case late := <-ended:
			var p *client.Problem
			if errors.As(late, &p) {
				r.over.Store(true)
			}
		case <-time.After(lastWords):
			stuck = true // nobody reads the output
		case <-signals:
			stuck = true
		}
		err = i
	}
	signal.Stop(signals) // from now on another one ends the program
	r.screen.end()

	var i *interrupted
	if errors.As(err, &i) {
		what := "hung up after %s; the server ends the call and all its processes"
		if r.over.Load() {
			what = "after %s; the call had ended already, and what came of it may not be written in full"
		}
		err = fmt.Errorf("%v: "+what, i, seconds(time.Since(began)))
		if o.json && !o.stream && !stuck {
			_ = printJSON(cmd.OutOrStdout(), runDocument{Error: err.Error()}) // stderr has it, too
		}
		return &exitError{i.code(), err}
	}
	if err != nil && o.json && !o.stream {
		if writeErr := printJSON(cmd.OutOrStdout(), r.failed(err)); writeErr != nil {
			return writeErr
		}
	}
	return err
}

// call takes in what is to be called. done gives the input back.
func (o *runOptions) call(target string, stdin io.Reader) (call client.Call, done func(), err error) {
	call = client.Call{Timeout: o.timeout, Stream: o.stream, ContentType: o.contentType}
	call.Workload, call.Task, _ = strings.Cut(target, "/")
	done = func() {}
	if call.Workload == "" {
		return call, done, fmt.Errorf("cannot run %q: it must be WORKLOAD or WORKLOAD/TASK", target)
	}
	if o.timeout < 0 {
		return call, done, fmt.Errorf("cannot use --timeout %s: it must be above 0", o.timeout)
	}
	if strings.ContainsFunc(o.contentType, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return call, done, errors.New("cannot use --content-type: it has a control character in it")
	}
	kind := "application/json"
	switch path, isFile := strings.CutPrefix(o.input, "@"); {
	case o.input == "":
		kind = ""
	case o.input == "-":
		call.Input, call.Size = stdin, -1
	case isFile:
		f, err := os.Open(path)
		if err != nil {
			return call, done, fmt.Errorf("cannot read the input: %w", err)
		}
		done = func() { f.Close() }
		call.Input, call.Size = f, -1
		if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
			call.Size = info.Size()
		}
		if filepath.Ext(path) != ".json" {
			kind = "application/octet-stream"
		}
	default:
		if o.contentType == "" {
			var document json.RawMessage
			if err := json.Unmarshal([]byte(o.input), &document); err != nil {
				return call, done, fmt.Errorf("cannot use --input: it is no JSON (%v); a string needs quotes of its own, a file is written @FILE", err)
			}
		}
		call.Input, call.Size = strings.NewReader(o.input), int64(len(o.input))
	}
	if call.ContentType == "" {
		call.ContentType = kind
	}
	return call, done, nil
}

// running is a call under way.
type running struct {
	call     client.Call
	asJSON   bool
	screen   *screen
	over     atomic.Bool // the server has told how the call ended
	document runDocument // what is known of it, for --json
}

// runDocument is what run --json prints. What the server did not tell is left out.
type runDocument struct {
	Call        string          `json:"call,omitempty"`
	Outcome     string          `json:"outcome,omitempty"`
	Status      int             `json:"status,omitempty"`
	ContentType string          `json:"content_type,omitempty"`
	Result      json.RawMessage `json:"result,omitempty"` // one of these three
	Text        *string         `json:"text,omitempty"`
	Base64      []byte          `json:"base64,omitempty"`
	Problem     json.RawMessage `json:"problem,omitempty"`
	Error       string          `json:"error,omitempty"` // where there is no reply, or not all of it
	QueueMs     *float64        `json:"queue_ms,omitempty"`
	RunMs       *float64        `json:"run_ms,omitempty"`
}

// run makes the call and shows what comes of it.
func (r *running) run(ctx context.Context, c *client.Client) error {
	r.screen.begin()
	reply, err := c.Run(ctx, r.call)
	if err != nil {
		return err
	}
	defer reply.Body.Close()
	r.screen.named(reply.Call)
	switch {
	case reply.Events:
		return r.watch(client.NewEvents(reply.Body), reply.Call)
	case r.asJSON:
		r.document = runDocument{
			Call: reply.Call, Status: reply.Status, ContentType: reply.ContentType, QueueMs: reply.QueueMs, RunMs: reply.RunMs,
		}
		body, err := io.ReadAll(reply.Body)
		if err != nil {
			return err
		}
		r.over.Store(true)
		r.document.Outcome = "done"
		r.document.take(body)
		r.screen.end()
		return printJSON(r.screen.stdout, r.document)
	}
	_, err = io.Copy(r.screen, noting{reply.Body, &r.over})
	if err == nil {
		r.screen.finish()
	}
	return err
}

// noting notes when a reply has come to its end, which may be before it is written.
type noting struct {
	io.Reader
	over *atomic.Bool
}

func (n noting) Read(b []byte) (int, error) {
	got, err := n.Reader.Read(b)
	if err == io.EOF {
		n.over.Store(true)
	}
	return got, err
}

// take puts a result into the member that fits it.
func (d *runDocument) take(body []byte) {
	kind, _, _ := strings.Cut(d.ContentType, ";")
	switch text := string(body); {
	case strings.HasSuffix(kind, "json") && json.Valid(body):
		d.Result = body
	case strings.ToValidUTF8(text, "") == text:
		d.Text = &text
	default:
		d.Base64 = body
	}
}

// failed is the document of a call without a result.
func (r *running) failed(err error) runDocument {
	d := r.document
	var p *client.Problem
	if errors.As(err, &p) {
		return runDocument{
			Call: p.Call, Outcome: p.Outcome, Status: p.Status, ContentType: "application/problem+json",
			Problem: p.Document, QueueMs: p.QueueMs, RunMs: p.RunMs,
		}
	}
	d.Error = client.Plain(err.Error())
	return d
}

// watch shows the events of a call up to the last.
func (r *running) watch(events *client.Events, id string) error {
	for {
		e, err := events.Next()
		if err == io.EOF {
			return fmt.Errorf("%w: it has neither a result nor a problem (call %s)", client.ErrBrokeOff, client.Plain(id))
		}
		if err != nil {
			return err
		}
		last := e.Name == "result" || e.Name == "problem"
		r.over.Store(last)
		if r.asJSON {
			err = r.printEvent(e)
		} else {
			err = r.show(e)
		}
		if err != nil {
			return err
		}
		if e.Name == "problem" {
			if p := client.ParseProblem(e.Data); p != nil {
				return p
			}
			return errors.New("the call ended with a problem that cannot be read")
		}
		if last {
			r.screen.finish()
			return nil
		}
	}
}

// printEvent prints an event as one line of JSON.
func (r *running) printEvent(e client.Event) error {
	if !json.Valid(e.Data) {
		return unreadable(e, errors.New("it is no JSON"))
	}
	r.screen.clear()
	return printJSON(r.screen.stdout, struct {
		Event string          `json:"event"`
		Data  json.RawMessage `json:"data"`
	}{e.Name, e.Data})
}

// content is what a result or a piece of output carries.
type content struct {
	JSON   json.RawMessage `json:"json"`
	Text   string          `json:"text"`
	Base64 []byte          `json:"base64"`
	Left   int64           `json:"left_out"` // bytes of output that a bound has cost
}

func (c content) bytes() []byte {
	switch {
	case c.JSON != nil:
		return c.JSON
	case c.Base64 != nil:
		return c.Base64
	}
	return []byte(c.Text)
}

// show shows an event to a person. Only the result goes to stdout, which may be a
// file that it must be whole in.
func (r *running) show(e client.Event) error {
	var err error
	switch e.Name {
	case "queued", "started":
		r.screen.note(e.Name)
	case "progress":
		r.screen.progress(progressText(e.Data))
	case "output":
		var c content
		if err := json.Unmarshal(e.Data, &c); err != nil {
			return unreadable(e, err)
		}
		if c.Left > 0 {
			r.screen.note(fmt.Sprintf("%d bytes of output left out", c.Left))
		}
		line := append(c.bytes(), '\n') // the server takes lines apart
		if len(line) == 1 && c.Left > 0 {
			break
		}
		r.screen.output(line)
	case "result":
		var c content
		if err := json.Unmarshal(e.Data, &c); err != nil {
			return unreadable(e, err)
		}
		_, err = r.screen.Write(c.bytes())
	}
	return err
}

func unreadable(e client.Event, err error) error {
	return fmt.Errorf("cannot read the event %q of the server: %v", client.Plain(e.Name), err)
}
