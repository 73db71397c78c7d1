package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"example.com/hangup/internal/config"
	"example.com/hangup/internal/daemon"
	"example.com/hangup/internal/event"
	"example.com/hangup/internal/scratch"
)

// isolation is that of the weakest of these workloads; where none is known, that of a
// worker who is the user of doctor.
func isolation(held event.Containment, workloads []config.Workload) string {
	var list []string
	for _, w := range workloads {
		list = append(list, daemon.Isolation(held, w))
	}
	if len(list) == 0 {
		return held.Isolation
	}
	return event.Weakest(list...)
}

// users says of the workloads whether serve would run them, and as whom. Where none is
// known, it is about one without a user of its own.
func users(workloads []config.Workload) (list []finding) {
	for _, w := range workloads {
		if err := daemon.Allowed(w); err != nil {
			list = append(list, finding{"user", missing, err.Error(), ""})
		}
	}
	switch {
	case len(list) > 0:
	case os.Geteuid() != 0:
		list = append(list, finding{Check: "user", Verdict: sound, Detail: fmt.Sprintf("uid %d", os.Geteuid())})
	case asRoot(workloads):
		list = append(list, finding{
			"user", weaker, "root: so are workers without a user of their own, and nothing keeps them from the rest of the machine",
			"give each workload a user, or run hangup as an ordinary user",
		})
	default:
		list = append(list, finding{Check: "user", Verdict: sound, Detail: "root, and each workload has a user"})
	}
	return list
}

// asRoot says whether workers would be root.
func asRoot(workloads []config.Workload) bool {
	without := func(w config.Workload) bool { return w.User == nil }
	return os.Geteuid() == 0 && (len(workloads) == 0 || slices.ContainsFunc(workloads, without))
}

// startApart starts a program in a session of its own, and does not wait for it.
func startApart(argv ...string) error {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd.Start()
}

// descriptors compares the limit of open files with what so many connections need.
func descriptors(connections int) finding {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return finding{"open files", weaker, "cannot ask for the limit: " + err.Error(), ""}
	}
	const rest = 1000 // workers with their pipes, bodies in files, the log
	need := uint64(connections) + rest
	detail := fmt.Sprintf("at most %d; limits.connections is %d", limit.Max, connections)
	if uint64(limit.Max) < need {
		return finding{
			"open files", weaker, detail + ": new connections fail before that is reached",
			fmt.Sprintf("LimitNOFILE=%d in the systemd unit, ulimit -Hn, or fewer limits.connections", need),
		}
	}
	return finding{Check: "open files", Verdict: sound, Detail: detail}
}

// spoolDir writes where the bodies would wait.
func spoolDir(dir string) finding {
	shown := dir
	if dir == "" {
		shown = os.TempDir()
	}
	f, err := os.CreateTemp(shown, "hangup-doctor-")
	if err == nil {
		_, err = f.WriteString("x")
		f.Close()
		os.Remove(f.Name())
	}
	if err != nil {
		return finding{"spool", missing, "large bodies cannot wait in files: " + err.Error(), "name a directory that this user may write to with spool.dir, or set TMPDIR"}
	}
	return finding{Check: "spool", Verdict: sound, Detail: shown + " can be written"}
}

// scratchDir makes a directory for a call as the server would, and removes it.
func scratchDir(ctx context.Context, dir string) finding {
	const remedy = "name a directory on a local disk that this user may write to with spool.dir, or set TMPDIR"
	var left error
	base, err := scratch.Open(dir, func(e event.Event) {
		if t, ok := e.(event.Trouble); ok {
			left = t.Err
		}
	})
	if err != nil {
		return finding{"scratch", missing, "calls can have no directory: " + err.Error(), remedy}
	}
	call := base.Holder(nil)
	_, err = call.Begin(ctx, "doctor")
	call.End()
	base.Close(true)
	if err = errors.Join(err, left); err != nil {
		return finding{"scratch", missing, "calls can have no directory: " + err.Error(), remedy}
	}
	return finding{Check: "scratch", Verdict: sound, Detail: "a directory was made, locked and removed in " + filepath.Dir(base.Path())}
}
