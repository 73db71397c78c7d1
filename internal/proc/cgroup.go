//go:build linux && !portable

package proc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"example.com/hangup/internal/cgroup"
	"example.com/hangup/internal/reap"
)

// probeTimeout bounds the wait for each thing that a probe waits for.
const probeTimeout = 5 * time.Second

// openCgroup makes the directory in which the shims make cgroups, and tries it out.
// Where that fails the host goes on without, and noCgroup says why.
func (h *Host) openCgroup() {
	h.noCgroup = func() *cgroup.Missing {
		if h.options.Cgroup == CgroupNever {
			return &cgroup.Missing{Reason: "switched off", Remedy: "containment.cgroup: auto in the config"}
		}
		pids := []int{os.Getpid()}
		if h.supervisor != nil {
			pids = append(pids, os.Getppid())
		}
		base, err := cgroup.Open(pids...)
		if err == nil {
			h.base = base
			if err = h.probe(); err != nil {
				h.base = nil
				base.Close()
			}
		}
		var missing *cgroup.Missing
		if err != nil && !errors.As(err, &missing) {
			missing = &cgroup.Missing{Reason: "it does not work: " + err.Error(), Remedy: "the log of the system may say who forbids it"}
		}
		return missing
	}()
}

// probe has a shim start a process, kills that by its cgroup alone, and makes sure
// that it is dead. The shim is kept: it is the first of the stock.
func (h *Host) probe() error {
	if h.supervisor != nil {
		if err := h.supervisor.conn.Send(reap.Base{Path: h.base.Path()}); err != nil {
			return fmt.Errorf("cannot tell the supervisor: %w", err)
		}
	}
	s, err := h.launch(h.scoped())
	if err != nil {
		return err
	}
	ctx, done := context.WithTimeout(context.Background(), probeTimeout)
	defer done()
	t := newTree(s)
	program := "/proc/self/fd/0" // the shim's own, whatever is at its path by now
	if err := s.start(t, program, Spec{Argv: []string{"hangup-shim", "pause"}, Files: []*os.File{h.binary, nil, nil}}); err != nil {
		t.forget()
		s.abandon()
		return err
	}
	group := h.base.Of(t.Pid())
	if group == "" {
		t.Kill()
		<-t.done
		s.abandon()
		return errors.New("the process is not in its cgroup")
	}
	if err := cgroup.Kill(group); err != nil {
		s.abandon()
		return err
	}
	select {
	case <-t.done:
	case <-ctx.Done():
		s.abandon()
		return errors.New("cgroup.kill has not killed a process")
	}
	if status := t.Status(); status.Signal != syscall.SIGKILL || !t.verdict.Empty {
		return fmt.Errorf("a process that cgroup.kill was to kill ended with %+v", status)
	}
	return nil
}

// shimArgs are the arguments of a shim.
func (h *Host) shimArgs(scoped bool) []string {
	args := []string{"hangup-shim", "shim"}
	if scoped {
		args[1] = "scoped-shim"
	}
	if h.base != nil {
		args = append(args, h.base.Path())
	}
	return args
}

// forgetGroups removes the cgroups of a shim that has ended, and kills what is in them.
func (h *Host) forgetGroups(pid int) {
	if h.base != nil {
		h.base.Remove(pid)
	}
}
