package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"example.com/hangup/internal/config"
	"example.com/hangup/internal/daemon"
	"example.com/hangup/internal/proc"
	"github.com/spf13/cobra"
)

func serveVerb() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the service",
		Long: "Runs the service of a config until SIGTERM or SIGINT, then drains; a second signal\n" +
			"kills. SIGHUP reads the config again. The process you start becomes the supervisor,\n" +
			"which may be PID 1; the server runs below it, and the workers below that. The log\n" +
			"goes to stderr, a record a line.",
		RunE: func(cmd *cobra.Command, _ []string) error { return serve(cmd, file) },
	}
	configFlag(cmd, &file)
	return cmd
}

// serve is called twice: by the user, when it puts the supervisor in its own
// place, and by the supervisor, when it is the server.
func serve(cmd *cobra.Command, file string) error {
	signal.Ignore(syscall.SIGHUP) // while there is no config yet that could be read again; this outlives exec
	shim, err := proc.FindShim()
	if err != nil {
		return err
	}
	supervisor, err := proc.SupervisorFromEnv()
	if err != nil {
		return err
	}
	if supervisor == nil && proc.Supervised {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("cannot find this program: %w", err)
		}
		return proc.ExecUnderSupervisor(shim, append([]string{self}, os.Args[1:]...))
	}

	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, proc.EndNow)
	reloads := make(chan os.Signal, 1) // of its own: many of one kind leave room for the other
	signal.Notify(reloads, syscall.SIGHUP)
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) // a log that nobody reads any more is no reason to end
	c, err := config.Load(file)
	if err != nil {
		return configFaults(cmd, forLog(err))
	}
	err = daemon.Run(cmd.Context(), daemon.Options{
		Config: c, Shim: shim, Supervisor: supervisor,
		Signals: signals, Reloads: reloads, Stderr: cmd.ErrOrStderr(), Version: version(),
	})
	var unfit *daemon.Unfit
	if errors.As(err, &unfit) {
		return &exitError{exitUsage, err}
	}
	return err
}

// forLog is what is wrong with a config without its lines: they may hold what is not
// for a log.
func forLog(err error) error {
	var faults config.Faults
	if !errors.As(err, &faults) {
		return err
	}
	bare := slices.Clone(faults)
	for i := range bare {
		bare[i].Excerpt = ""
	}
	return bare
}
