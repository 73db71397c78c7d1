package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"example.com/hangup/internal/client"
)

const defaultURL = "http://127.0.0.1:8080"

// remote is the server that a client verb talks to.
type remote struct{ url, token, caCert string }

// remoteFlags adds the flags that say which server. No default of theirs comes
// from the environment: --help would print it, and one of them is a secret.
func remoteFlags(cmd *cobra.Command, r *remote) {
	cmd.Flags().StringVar(&r.url, "url", "", "the server: http://…, https://… or unix:/path/of/socket (default $HANGUP_URL, or "+defaultURL+")")
	cmd.Flags().StringVar(&r.token, "token", "", "the token (default $HANGUP_TOKEN, which other users cannot see)")
	cmd.Flags().StringVar(&r.caCert, "cacert", "", "trust the authorities in this PEM `FILE`, and no others")
	for _, name := range []string{"url", "token"} {
		if err := cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions); err != nil {
			panic(err) // there is no such flag: a line above is wrong
		}
	}
}

// client makes the client. What is wrong with the flags is a usage error.
func (r *remote) client() (*client.Client, error) {
	o := client.Options{URL: r.url, Token: r.token, CACert: r.caCert}
	if o.URL == "" {
		o.URL = os.Getenv("HANGUP_URL")
	}
	if o.URL == "" {
		o.URL = defaultURL
	}
	if o.Token == "" {
		o.Token = os.Getenv("HANGUP_TOKEN")
	}
	c, err := client.New(o)
	if err != nil {
		return nil, &exitError{exitUsage, err}
	}
	return c, nil
}

// completeWithin is how long a shell waits for completions; without a server
// there are none, and nothing is said.
const completeWithin = 500 * time.Millisecond

// complete makes a completion function that asks the server. Only the first so
// many arguments are completed.
func complete(r *remote, most int, list func(context.Context, *client.Client) ([]string, error)) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		c, err := r.client()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer c.Close()
		ctx, cancel := context.WithTimeout(context.Background(), completeWithin)
		defer cancel()
		words, _ := list(ctx, c)
		return words, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeWorkloads lists what can be run: a workload with several tasks needs
// one of them named.
func completeWorkloads(ctx context.Context, c *client.Client) ([]string, error) {
	list, err := c.Workloads(ctx)
	var words []string
	for _, w := range list {
		if len(w.Tasks) < 2 {
			words = append(words, client.Plain(w.Name))
			continue
		}
		for _, task := range w.Tasks {
			words = append(words, client.Plain(w.Name+"/"+task))
		}
	}
	return words, err
}

func completeCalls(ctx context.Context, c *client.Client) ([]string, error) {
	list, err := c.Calls(ctx, false)
	var words []string
	for _, call := range list {
		words = append(words, client.Plain(fmt.Sprintf("%s\t%s, %s", call.ID, call.Name(), call.State)))
	}
	return words, err
}
