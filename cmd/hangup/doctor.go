package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"example.com/hangup/internal/client"
	"example.com/hangup/internal/config"
)

func doctorVerb() *cobra.Command {
	var r remote
	var file string
	var asJSON bool
	var tree int
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Tell what containment this host gives, or whether hang-ups get through to a server",
		Long: "Tries out what hangup needs of this host: starts a small process tree as the server\n" +
			"would, ends it, and says what holds and what does not.\n\n" +
			"With --url it tries out the way to a server instead: it makes requests that take no\n" +
			"worker, hangs up on them at three moments, and asks the server what it saw. A proxy\n" +
			"that hides hang-ups is found in this way, from the place where the callers are.\n" +
			"HANGUP_URL does not count here: without --url it is always about this host.\n\n" +
			"Exits with 1 when something is missing.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if tree > 0 {
				return beTree(tree)
			}
			var list []finding
			var err error
			switch name := changed(cmd, "url", "token", "cacert"); name {
			case "url":
				list, err = examineWay(cmd.Context(), &r)
			case "":
				list, err = examine(cmd, file)
			default:
				err = &exitError{exitUsage, fmt.Errorf("cannot use --%s without --url: it is for a server, and this looks at the host", name)}
			}
			if err != nil {
				return err
			}
			return printFindings(cmd.OutOrStdout(), list, asJSON)
		},
	}
	configFlag(cmd, &file)
	cmd.Flags().Lookup("config").Usage = "take what is needed from this config `FILE`, too"
	cmd.Flags().Lookup("config").DefValue = ""
	jsonFlag(cmd, &asJSON)
	remoteFlags(cmd, &r)
	exclusive(cmd, "url", "config")
	cmd.Flags().Lookup("url").Usage = "try out the way to this server instead of this host"
	cmd.Flags().IntVar(&tree, "tree", 0, "be a process of the tree that is ended")
	if err := cmd.Flags().MarkHidden("tree"); err != nil {
		panic(err) // there is no such flag: one line above is wrong
	}
	return cmd
}

// changed is the first of these flags that the user has written, or "".
func changed(cmd *cobra.Command, names ...string) string {
	for _, name := range names {
		if cmd.Flags().Changed(name) {
			return name
		}
	}
	return ""
}

// verdict is how good a thing is that doctor has looked at.
type verdict string

const (
	sound   verdict = "ok"
	weaker  verdict = "weaker"  // it works, and less is held than could be
	missing verdict = "missing" // it does not work
)

// finding is one line of doctor.
type finding struct {
	Check   string  `json:"check"`
	Verdict verdict `json:"verdict"`
	Detail  string  `json:"detail"`
	Remedy  string  `json:"remedy,omitempty"`
}

// examine looks at this host, for the config of a file if one was named.
func examine(cmd *cobra.Command, file string) ([]finding, error) {
	c := config.Default()
	if cmd.Flags().Changed("config") {
		loaded, err := config.Load(file)
		if err != nil {
			return nil, configFaults(cmd, err)
		}
		c = *loaded
	}
	list := []finding{kernel(), pidfds()}
	list = append(list, trees(cmd.Context(), c.Containment)...)
	return append(list, procfs(), descriptors(c.Limits.Connections), first(), spoolDir(c.Spool.Dir)), nil
}

// printFindings prints what was found. The exit code says whether anything is
// missing.
func printFindings(w io.Writer, list []finding, asJSON bool) error {
	bad := 0
	for _, f := range list {
		if f.Verdict == missing {
			bad++
		}
	}
	var err error
	if asJSON {
		err = printJSON(w, struct {
			OK       bool      `json:"ok"`
			Findings []finding `json:"findings"`
		}{bad == 0, list})
	} else {
		var b strings.Builder
		for _, f := range list {
			fmt.Fprintf(&b, "%-8s %-18s %s\n", f.Verdict, f.Check, f.Detail)
			if f.Remedy != "" {
				fmt.Fprintf(&b, "%-27s → %s\n", "", f.Remedy)
			}
		}
		if _, err = io.WriteString(w, b.String()); err != nil {
			err = fmt.Errorf("cannot write the findings: %w", err)
		}
	}
	if err == nil && bad > 0 {
		err = &exitError{code: exitFailed}
	}
	return err
}

// beTree is a process of the tree that doctor ends: it has a child in a session of
// its own as long as depth says. It goes away by itself should nobody end it.
func beTree(depth int) error {
	if depth > 1 {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		if err := startApart(self, "doctor", "--tree", fmt.Sprint(depth-1)); err != nil {
			return err
		}
	}
	time.Sleep(time.Minute)
	return nil
}

// moments are the moments of a hang-up, in the words of doctor.
var moments = map[string]string{
	client.Waiting:   "while waiting",
	client.Streaming: "while streaming",
	client.Sending:   "while sending",
}

// examineWay hangs up on the server and finds out whether it noticed.
func examineWay(ctx context.Context, r *remote) ([]finding, error) {
	c, err := r.client()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	var list []finding
	for _, moment := range client.Moments {
		t, err := c.HangUp(ctx, moment)
		if err != nil {
			return nil, err
		}
		if len(list) == 0 {
			list = append(list, between(t))
		}
		list = append(list, judge(t))
		if t.Elsewhere {
			list = append(list, finding{
				"servers", weaker, "some requests went to a server that does not know the probe: several servers are behind this URL",
				"the hang-ups themselves need nothing: each goes the way of its call. `ps`, `cancel` and GET /calls see one server at a time; " +
					"try each one with --url, too",
			})
			if t.Result == client.Scattered {
				break
			}
		}
	}
	return list, nil
}

// between says who answered.
func between(t client.Trial) finding {
	var who []string
	if t.Server != "" {
		who = append(who, "Server: "+t.Server)
	}
	if t.Via != "" {
		who = append(who, "Via: "+t.Via)
	}
	if len(who) == 0 {
		return finding{Check: "proxy", Verdict: sound, Detail: "none says that it is there"}
	}
	return finding{Check: "proxy", Verdict: sound, Detail: "there is one (" + oneLine(strings.Join(who, ", ")) + ")"}
}

// judge turns a trial into a line, with the remedy of the proxy that it knows.
func judge(t client.Trial) finding {
	f := finding{Check: moments[t.Moment]}
	switch {
	case t.Result == client.Scattered:
		f.Verdict, f.Detail = missing, "the server that got the request could not be asked what it saw"
		f.Remedy = "give the address of one server with --url"
	case t.Result == client.Withheld:
		f.Verdict, f.Detail = weaker, "the server does not get the request before its whole body is there: nothing runs yet when the caller leaves, and a large body waits in two places"
		f.Remedy = remedy(t)
	case t.Result == client.Unnoticed:
		f.Verdict, f.Detail = missing, "the server does not notice: the work would go on without its caller"
		f.Remedy = remedy(t)
	case t.Buffered:
		f.Verdict, f.Detail = weaker, fmt.Sprintf("noticed within %s, but the proxy keeps the reply back until it is whole", ms(t.Took))
		f.Remedy = remedy(t)
	default:
		f.Verdict, f.Detail = sound, "noticed within "+ms(t.Took)
	}
	return f
}

// remedy is what to change in the proxy.
func remedy(t client.Trial) string {
	name := strings.ToLower(t.Server + " " + t.Via)
	nginx := map[string]string{
		client.Waiting:   "proxy_ignore_client_abort off; (its default)",
		client.Streaming: "proxy_buffering off; and proxy_ignore_client_abort off;",
		client.Sending:   "proxy_request_buffering off; and proxy_http_version 1.1;",
	}[t.Moment]
	haproxy := "option abortonclose in the backend"
	switch {
	case strings.Contains(name, "nginx"), strings.Contains(name, "openresty"):
		return "in the location of nginx: " + nginx
	case strings.Contains(name, "haproxy"):
		return "in haproxy: " + haproxy
	}
	return "have the proxy close its connection to the server when the caller's is closed, and buffer neither bodies nor replies. " +
		"haproxy: " + haproxy + "; nginx: " + nginx
}
