//go:build linux && !portable

package proc

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"example.com/hangup/internal/reap"
)

// sweepTimeout bounds the wait for the supervisor's answer, which comes after
// reap.VerdictAfter at the latest.
const sweepTimeout = reap.VerdictAfter + 10*time.Second

// EndNow is the signal by which the supervisor hands on a second SIGTERM or SIGINT.
const EndNow = reap.EndNow

// A supervisor is the process above the server, as seen from here.
type supervisor struct {
	process *os.File // a pidfd

	mu     sync.Mutex // held during a sweep
	conn   *reap.Conn
	sweeps int // so far
}

// SupervisorFromEnv returns the socket to the supervisor, or nil when this process
// was not started by one. It takes the variable out of the environment.
func SupervisorFromEnv() (*os.File, error) {
	value, ok := os.LookupEnv(reap.SupervisorEnv)
	if !ok {
		return nil, nil
	}
	os.Unsetenv(reap.SupervisorEnv)
	fd, err := strconv.Atoi(value)
	if err != nil || fd <= 2 {
		return nil, fmt.Errorf("cannot use %s=%q: not the number of a descriptor", reap.SupervisorEnv, value)
	}
	if _, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil {
		return nil, fmt.Errorf("cannot use %s=%d: %w", reap.SupervisorEnv, fd, err)
	}
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), "supervisor"), nil
}

func newSupervisor(file *os.File) (*supervisor, error) {
	fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	file.Close()
	if err != nil {
		return nil, fmt.Errorf("cannot reach the supervisor: %w", err)
	}
	conn, err := reap.NewConn(fd, reap.MaxReport)
	if err != nil {
		return nil, fmt.Errorf("cannot reach the supervisor: %w", err)
	}
	parent, err := unix.PidfdOpen(os.Getppid(), unix.PIDFD_NONBLOCK)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("cannot open a pidfd of the supervisor: %w", err)
	}
	process := os.NewFile(uintptr(parent), "pidfd of the supervisor")
	if err := greet(conn, "the supervisor"); err != nil { // so it lived when the pidfd was opened
		conn.Close()
		process.Close()
		return nil, err
	}
	return &supervisor{process: process, conn: conn}, nil
}

// follow ends this process when the supervisor has ended. The kernel would, by the
// supervisor's wish, but it forgets that for a program with capabilities of its own.
// It returns when the pidfd is closed.
func (s *supervisor) follow() {
	raw, err := s.process.SyscallConn()
	if err != nil {
		return
	}
	err = raw.Read(func(fd uintptr) bool {
		polled := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, _ := unix.Poll(polled, 0)
		return n > 0
	})
	if err == nil {
		unix.Kill(os.Getpid(), unix.SIGKILL)
	}
}

// sweep has the supervisor end everything that rose to it, and returns the answer. One
// to an earlier sweep, for which nobody waits any more, is passed over.
func (s *supervisor) sweep() (reap.Message, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sweeps++
	if err := s.conn.Send(reap.Sweep{Number: s.sweeps}); err != nil {
		return nil, err
	}
	s.conn.SetReadDeadline(time.Now().Add(sweepTimeout))
	for {
		m, _, err := s.conn.Receive()
		if err != nil {
			return nil, err
		}
		switch answer := m.(type) {
		case reap.Empty:
			if answer.Sweep == s.sweeps {
				return m, nil
			}
		case reap.NotEmpty:
			if answer.Sweep == s.sweeps {
				return m, nil
			}
		}
	}
}

// recover brings the tree of a lost shim to its end. It runs in the goroutine of
// that shim, which has been reaped: what is left of the tree has risen.
func (h *Host) recover(t *Tree) {
	s := t.shim
	s.mu.Lock()
	t.stop()
	select {
	case <-t.exited:
	default:
		t.exit(Status{Exit: -1, Signal: syscall.SIGKILL})
	}
	s.mu.Unlock()
	select {
	case t.started <- nil: // a Start may be waiting
	default:
	}
	reaped := 0
	for {
		reason := "its shim has ended, and there is no supervisor"
		if h.supervisor != nil {
			m, err := h.supervisor.sweep()
			switch m := m.(type) {
			case reap.Empty:
				t.finish(Verdict{Empty: true, Proof: ProofSupervisor, Reaped: reaped + m.Reaped})
				return
			case reap.NotEmpty:
				reaped += m.Reaped
				t.report(Verdict{Reaped: reaped, Survivors: survivors(m.Survivors), Reason: "its shim has ended, and they do not die"})
				if !h.closing() {
					continue
				}
			default:
				reason = fmt.Sprintf("its shim has ended, and the supervisor does not answer (%v)", err)
				if errors.Is(err, os.ErrDeadlineExceeded) && !h.closing() { // it may have been stopped
					t.report(Verdict{Reaped: reaped, Reason: reason})
					continue
				}
			}
		}
		t.report(Verdict{Reaped: reaped, Reason: reason})
		h.mu.Lock()
		h.left++
		h.mu.Unlock()
		return
	}
}
