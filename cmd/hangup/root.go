package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"sync"

	"github.com/spf13/cobra"
)

// The exit codes. An interrupt ends a client with 130, as shells have it.
const (
	exitFailed = 1
	exitUsage  = 2 // the command line or the config is wrong
)

// verbs are all commands, in the order of the help. A verb returns an error for
// exit code 1, or an [exitError] for another.
var verbs = []func() *cobra.Command{
	serveVerb,
	checkVerb,
	initVerb,
	demoVerb,
	runVerb,
	psVerb,
	cancelVerb,
	doctorVerb,
	versionVerb,
}

// exitError ends the program with a code. A nil err says that the verb has told
// the user already.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

// run is the whole program: it returns the exit code.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(stdin)
	out := &output{Writer: stdout}
	root.SetOut(out)
	root.SetErr(stderr)
	cmd, err := root.ExecuteC()
	var exit *exitError
	if lost := out.lost(); lost != nil && !errors.As(err, &exit) { // in a help or a completion, say
		err = &exitError{exitFailed, fmt.Errorf("cannot write the output: %w", lost)}
	}
	if err == nil {
		return 0
	}
	if !errors.As(err, &exit) { // cobra's own: it never reached the verb
		exit = &exitError{exitUsage, fmt.Errorf("%s; `%s --help` tells how", firstLine(err), cmd.CommandPath())}
	}
	if exit.err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", cmd.CommandPath(), exit.err)
	}
	return exit.code
}

// output is stdout. It remembers when something could not be written, for those who
// do not ask.
type output struct {
	io.Writer
	mu  sync.Mutex
	err error // the first
}

func (o *output) Write(b []byte) (int, error) {
	n, err := o.Writer.Write(b)
	if err != nil {
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.err == nil {
			o.err = err
		}
	}
	return n, err
}

func (o *output) lost() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "hangup",
		Short: "Runs work for HTTP callers, and ends it when they hang up",
		Long: "hangup runs work in worker processes and ties each piece of it to the request that\n" +
			"asked for it: when the caller hangs up, the whole process tree is killed and reaped.",
		Example:           "  hangup init starter && cd starter && hangup serve",
		Version:           version(),
		Args:              noSuchVerb,
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SilenceErrors:     true,
		SilenceUsage:      true,
		DisableAutoGenTag: true,
	}
	for _, verb := range verbs {
		cmd := verb()
		work := cmd.RunE
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			err := work(cmd, args)
			var exit *exitError
			if err == nil || errors.As(err, &exit) {
				return err
			}
			return &exitError{exitFailed, err}
		}
		root.AddCommand(cmd)
	}
	return root
}

// noSuchVerb is asked when the first argument is no verb.
func noSuchVerb(root *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	remedy := "`hangup --help` lists them"
	root.SuggestionsMinimumDistance = 2
	if near := root.SuggestionsFor(args[0]); len(near) > 0 {
		remedy = "did you mean " + strings.Join(near, " or ") + "?"
	}
	return &exitError{exitUsage, fmt.Errorf("there is no command %q: %s", args[0], remedy)}
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

// configFlag adds --config to a verb that reads a config file and takes nothing
// else.
func configFlag(cmd *cobra.Command, path *string) {
	cmd.Flags().StringVar(path, "config", "hangup.yaml", "the config `FILE`")
	if err := cmd.MarkFlagFilename("config", "yaml", "yml"); err != nil {
		panic(err) // there is no such flag: the line above is wrong
	}
	cmd.Args = func(_ *cobra.Command, args []string) error {
		if len(args) > 0 {
			return fmt.Errorf("cannot use %q: --config names the file", args[0])
		}
		return nil
	}
}

// many is how many arguments needs allows where there is no bound.
const many = math.MaxInt

// needs makes an argument check that says what is missing or too much.
func needs(what string, least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return errors.New(what + " is missing")
		case most == 0 && len(args) > 0:
			return fmt.Errorf("cannot use %q: %s takes flags only", args[0], cmd.Name())
		case len(args) > most:
			return fmt.Errorf("cannot use %q: one %s is enough", args[most], what)
		}
		return nil
	}
}

// exclusive makes two flags of a verb exclude each other, in words for a person: cobra's,
// which come later, speak of groups. The argument check of the verb must be set.
func exclusive(cmd *cobra.Command, one, other string) {
	cmd.MarkFlagsMutuallyExclusive(one, other) // for completion
	arguments := cmd.Args
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if cmd.Flags().Changed(one) && cmd.Flags().Changed(other) {
			return fmt.Errorf("cannot use --%s with --%s: write one of them", one, other)
		}
		return arguments(cmd, args)
	}
}

// printJSON prints one document as a line.
func printJSON(w io.Writer, document any) error {
	var line bytes.Buffer
	e := json.NewEncoder(&line)
	e.SetEscapeHTML(false)
	if err := e.Encode(document); err != nil {
		return fmt.Errorf("cannot write the result: %w", err)
	}
	if _, err := w.Write(line.Bytes()); err != nil {
		return fmt.Errorf("cannot write the result: %w", err)
	}
	return nil
}

// jsonFlag adds --json to a verb whose output a script would read.
func jsonFlag(cmd *cobra.Command, on *bool) {
	cmd.Flags().BoolVar(on, "json", false, "print one JSON document")
}
