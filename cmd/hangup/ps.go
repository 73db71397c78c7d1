package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"example.com/hangup/internal/client"
)

func psVerb() *cobra.Command {
	var r remote
	var all, asJSON bool
	cmd := &cobra.Command{
		Use:   "ps",
		Short: "List the calls that run and wait now",
		Args:  needs("", 0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := r.client()
			if err != nil {
				return err
			}
			defer c.Close()
			calls, err := c.Calls(cmd.Context(), all)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), struct {
					Calls []json.RawMessage `json:"calls"`
				}{documents(calls)})
			}
			return printCalls(cmd.OutOrStdout(), calls, all, time.Now())
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "the recent past as well, with outcomes")
	jsonFlag(cmd, &asJSON)
	remoteFlags(cmd, &r)
	return cmd
}

// documents are the calls as the server tells them.
func documents(calls []client.Record) []json.RawMessage {
	list := make([]json.RawMessage, len(calls))
	for i, c := range calls {
		list[i] = c.Document
	}
	return list
}

// printCalls prints a table, oldest call first.
func printCalls(w io.Writer, calls []client.Record, all bool, now time.Time) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	head := "ID\tWORKLOAD\tSTATE\tAGE\tCALLER\tPID"
	if all {
		head += "\tTOOK"
	}
	fmt.Fprintln(table, head)
	for _, c := range calls {
		state, pid := c.State, "-"
		if c.Outcome != "" {
			state = c.Outcome
		}
		if c.WorkerPid != 0 {
			pid = fmt.Sprint(c.WorkerPid)
		}
		row := []string{c.ID, c.Name(), state, age(now.Sub(c.QueuedAt)), c.Caller, pid}
		if all {
			took := "-"
			if c.EndedAt != nil {
				took = age(c.EndedAt.Sub(c.QueuedAt))
			}
			row = append(row, took)
		}
		for i, cell := range row {
			row[i] = oneLine(cell)
		}
		fmt.Fprintln(table, strings.Join(row, "\t"))
	}
	if err := table.Flush(); err != nil {
		return fmt.Errorf("cannot write the table: %w", err)
	}
	return nil
}

// oneLine is text that keeps to its cell.
func oneLine(s string) string {
	if s == "" {
		return "-"
	}
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return ' '
		}
		return r
	}, client.Plain(s))
}
