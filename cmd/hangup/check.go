package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"example.com/hangup/internal/config"
)

func checkVerb() *cobra.Command {
	var path string
	var asJSON, schema bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Validate a config file",
		Long: "Reads a config as serve would and tells everything that is wrong with it, as\n" +
			"FILE:LINE:COL: message. Exits with 0 when nothing is, else with 2. What is odd and no\n" +
			"fault is told as a warning.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if schema {
				if _, err := cmd.OutOrStdout().Write(config.Schema()); err != nil {
					return fmt.Errorf("cannot write the schema: %w", err)
				}
				return nil
			}
			c, err := config.Load(path)
			if asJSON {
				return reportJSON(cmd.OutOrStdout(), path, c, err)
			}
			return report(cmd, path, c, err)
		},
	}
	configFlag(cmd, &path)
	jsonFlag(cmd, &asJSON)
	cmd.Flags().BoolVar(&schema, "schema", false, "print the JSON Schema of a config, for an editor, and validate nothing")
	exclusive(cmd, "schema", "json")
	exclusive(cmd, "schema", "config")
	return cmd
}

func report(cmd *cobra.Command, path string, c *config.Config, err error) error {
	if err != nil {
		return configFaults(cmd, err)
	}
	for _, w := range c.Warnings {
		w.Msg = "warning: " + w.Msg
		show(cmd.ErrOrStderr(), w)
	}
	noun := "workloads"
	if len(c.Workloads) == 1 {
		noun = "workload"
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s: ok: %d %s: %s\n", path, len(c.Workloads), noun, strings.Join(workloadNames(c), ", "))
	return nil
}

// configFaults shows what config.Load found, each fault with its place in the
// file, and returns what ends the program after that.
func configFaults(cmd *cobra.Command, err error) error {
	var faults config.Faults
	if !errors.As(err, &faults) {
		return &exitError{exitUsage, err}
	}
	for _, f := range faults {
		show(cmd.ErrOrStderr(), f)
	}
	return &exitError{code: exitUsage}
}

// show writes a fault with the line of the file it is about.
func show(w io.Writer, f config.Fault) {
	fmt.Fprintln(w, f)
	if f.Excerpt != "" {
		fmt.Fprintln(w, "    "+strings.ReplaceAll(f.Excerpt, "\n", "\n    "))
	}
}

func reportJSON(w io.Writer, path string, c *config.Config, err error) error {
	result := struct {
		File      string        `json:"file"`
		OK        bool          `json:"ok"`
		Workloads []string      `json:"workloads"`
		Faults    config.Faults `json:"faults"`
		Warnings  config.Faults `json:"warnings"`
	}{File: path, OK: err == nil, Workloads: []string{}, Faults: config.Faults{}, Warnings: config.Faults{}}
	if err == nil {
		result.Workloads = workloadNames(c)
		result.Warnings = append(result.Warnings, c.Warnings...)
	} else {
		errors.As(err, &result.Faults)
	}
	if err := printJSON(w, result); err != nil {
		return err
	}
	if !result.OK {
		return &exitError{code: exitUsage}
	}
	return nil
}

func workloadNames(c *config.Config) []string {
	names := make([]string, len(c.Workloads))
	for i, w := range c.Workloads {
		names[i] = w.Name
	}
	return names
}
