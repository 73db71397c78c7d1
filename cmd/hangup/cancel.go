package main

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"example.com/hangup/internal/client"
)

func cancelVerb() *cobra.Command {
	var r remote
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "cancel ID…",
		Short: "Cancel calls; `hangup ps` lists them",
		Long: "Cancels calls. Their callers get 409, and their work ends with all its processes. The\n" +
			"beginning or the end of an id is enough where it is that of one call alone. Exits with\n" +
			"1 when one was not there.",
		Args:              needs("ID", 1, many),
		ValidArgsFunction: complete(&r, many, completeCalls),
		RunE: func(cmd *cobra.Command, ids []string) error {
			c, err := r.client()
			if err != nil {
				return err
			}
			defer c.Close()
			return cancelCalls(cmd, c, ids, asJSON)
		},
	}
	jsonFlag(cmd, &asJSON)
	remoteFlags(cmd, &r)
	return cmd
}

// cancelCalls cancels each call, whatever became of those before it.
func cancelCalls(cmd *cobra.Command, c *client.Client, ids []string, asJSON bool) error {
	type failure struct {
		ID    string `json:"id"`
		Error string `json:"error"`
	}
	result := struct {
		Cancelled []json.RawMessage `json:"cancelled"`
		Failed    []failure         `json:"failed"`
	}{[]json.RawMessage{}, []failure{}}
	for _, id := range ids {
		call, err := c.Cancel(cmd.Context(), id)
		switch {
		case err != nil:
			result.Failed = append(result.Failed, failure{id, err.Error()})
			if !asJSON {
				fmt.Fprintf(cmd.ErrOrStderr(), "%s: %v\n", cmd.CommandPath(), err)
			}
		default:
			result.Cancelled = append(result.Cancelled, call.Document)
			if !asJSON {
				fmt.Fprintf(cmd.OutOrStdout(), "%s  %s: cancelled\n", oneLine(call.ID), oneLine(call.Name()))
			}
		}
	}
	if asJSON {
		if err := printJSON(cmd.OutOrStdout(), result); err != nil {
			return err
		}
	}
	if len(result.Failed) > 0 {
		return &exitError{code: exitFailed}
	}
	return nil
}
