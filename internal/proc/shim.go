//go:build linux && !portable

package proc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"example.com/hangup/internal/reap"
)

// A shim is one hangup-shim process: idle, or holding one tree. Its reader
// goroutine owns the process; mu guards which tree is held.
type shim struct {
	host    *Host
	process *os.Process
	conn    *reap.Conn
	scoped  bool // in a signal scope of its own: nothing below it can have new privileges

	mu   sync.Mutex
	tree *Tree // nil: idle
	gone bool  // the process has been reaped
}

// errLost is what a Start fails with whose shim died.
var errLost = errors.New("its shim has ended")

// launch starts a shim and waits for its first words.
func (h *Host) launch(scoped bool) (*shim, error) {
	s, err := h.spawn(scoped)
	if err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", h.options.Shim, err)
	}
	if err := greet(s.conn, h.options.Shim); err != nil {
		s.end()
		return nil, err
	}
	if !h.add(s) {
		s.end()
		return nil, errClosed
	}
	return s, nil
}

func (h *Host) spawn(scoped bool) (*shim, error) {
	pair, err := reap.Pair()
	if err != nil {
		return nil, err
	}
	theirs := os.NewFile(uintptr(pair[1]), "control socket")
	defer theirs.Close()
	conn, err := reap.NewConn(pair[0], reap.MaxReport)
	if err != nil {
		return nil, err
	}
	s := &shim{host: h, conn: conn, scoped: scoped}
	start := func() (err error) {
		s.process, err = os.StartProcess("/proc/self/fd/"+strconv.Itoa(int(h.binary.Fd())), h.shimArgs(scoped), &os.ProcAttr{
			// One after the other, as reap's descriptors of a shim. Nothing of the
			// server's environment: no secret is any business of a shim.
			Files: []*os.File{h.null, h.null, os.Stderr, theirs, h.self},
			Env:   []string{"GOMAXPROCS=2", "GOTRACEBACK=single"},
			Sys:   &syscall.SysProcAttr{Setsid: true},
		})
		return err
	}
	if scoped {
		err = reap.InScope(start)
	} else {
		err = start()
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return s, nil
}

// greet waits for the hello of a program and compares it with this build.
func greet(conn *reap.Conn, program string) error {
	conn.SetReadDeadline(time.Now().Add(helloTimeout))
	m, _, err := conn.Receive()
	conn.SetReadDeadline(time.Time{})
	if err != nil {
		return fmt.Errorf("cannot use %s: it did not greet as hangup-shim does (%w): reinstall hangup and hangup-shim together", program, err)
	}
	if hello, ok := m.(reap.Hello); !ok || hello.Version != reap.ProtocolVersion || hello.Build != reap.Build {
		return fmt.Errorf("cannot use %s: it speaks version %d (build %q), want %d (build %q): reinstall hangup and hangup-shim together",
			program, hello.Version, hello.Build, reap.ProtocolVersion, reap.Build)
	} else if hello.Group != 0 {
		return fmt.Errorf("cannot use %s: it cannot make a cgroup: %w", program, hello.Group)
	}
	return nil
}

// end kills the shim and reaps it. In that order of events its children have
// risen to the supervisor when end returns: an exit closes files first, which is
// when the reader notices, and reparents children afterwards. A shim that could
// not be killed ends by itself, when it sees the end of its socket.
func (s *shim) end() {
	s.process.Kill()
	s.conn.Close()
	s.process.Wait()
	s.host.forgetGroups(s.process.Pid)
}

// start has the shim start t, and waits until it has or has not.
func (s *shim) start(t *Tree, path string, spec Spec) error {
	order := reap.Start{
		Path: path, Argv: spec.Argv, Env: spec.Env, Dir: spec.Dir,
		NewPrivileges: spec.NewPrivileges, Scoped: s.scoped, Nofile: max(spec.MaxFiles, 0), Files: len(spec.Files),
		Limits: s.host.limits(spec.Limits),
	}
	if u := spec.User; u != nil {
		order.User = reap.User{Set: true, UID: u.UID, GID: u.GID, Groups: u.Groups}
	}
	files := make([]int, len(spec.Files))
	for i, file := range spec.Files {
		if file == nil {
			file = s.host.null
		}
		files[i] = int(file.Fd())
	}
	if err := s.hold(t); err != nil {
		return err
	}
	err := s.conn.Send(order, files...)
	runtime.KeepAlive(spec.Files)
	if errors.Is(err, reap.ErrTooLarge) { // nothing was sent
		s.mu.Lock()
		s.drop()
		s.mu.Unlock()
		return syscall.E2BIG
	}
	if err != nil {
		s.abandon()
	}
	switch answer := (<-t.started).(type) {
	case reap.Started:
		return nil
	case reap.StartFailed:
		return startError(answer, path, spec)
	default:
		return errLost
	}
}

// hold gives the shim a tree, if both are still wanted.
func (s *shim) hold(t *Tree) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.gone:
		return errLost
	case s.host.closing(): // and has this shim ended
		return errClosed
	case t.killed:
		s.drop()
		return context.Canceled
	}
	s.tree = t
	return nil
}

// drop makes the shim idle without a tree having been started.
func (s *shim) drop() {
	if !s.release() {
		s.abandon()
	}
}

// kill has the shim kill its tree. One that has no room for the message is beyond
// hope.
func (s *shim) kill() {
	if !s.conn.Offer(reap.Kill{}) {
		s.process.Kill()
	}
}

// abandon has the reader end the shim, whatever it is doing.
func (s *shim) abandon() { s.conn.SetReadDeadline(time.Unix(1, 0)) }

// read is the shim's goroutine.
func (s *shim) read() {
	for {
		m, _, err := s.conn.Receive()
		if err != nil || !s.report(m) {
			break
		}
	}
	s.end()
	s.host.remove(s)
	s.mu.Lock()
	t := s.tree
	s.tree, s.gone = nil, true
	s.mu.Unlock()
	if t != nil {
		s.host.recover(t)
	}
}

// report takes one report. It returns false when the shim is not to be kept.
func (s *shim) report(m reap.Message) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tree
	if t == nil {
		return false // nothing is to be said about no tree
	}
	switch m := m.(type) {
	case reap.Started:
		t.pid = m.Pid
		t.started <- m
		if t.killed {
			s.await()
			s.kill()
		}
	case reap.StartFailed:
		if m.Stage == reap.StageFiles { // it runs, and is being ended
			t.stop()
			s.await()
			t.started <- m
			return true
		}
		kept := s.release()
		t.started <- m
		return kept
	case reap.Exited:
		t.stop()
		t.exit(statusOf(m))
		s.await()
	case reap.Sweeping:
		s.await()
	case reap.NotEmpty:
		s.await()
		t.report(Verdict{Reaped: m.Reaped, Survivors: survivors(m.Survivors), Reason: "they do not die"})
		return !s.host.closing()
	case reap.Empty:
		kept := s.release()
		t.finish(Verdict{Empty: true, Proof: ProofECHILD, Reaped: m.Reaped})
		return kept
	default:
		return false
	}
	return true
}

// await gives the shim some time for its next sign of life.
func (s *shim) await() { s.conn.SetReadDeadline(time.Now().Add(s.host.options.Patience)) }

// release makes the shim idle and reports whether it is kept in the stock.
func (s *shim) release() bool {
	s.tree = nil
	s.conn.SetReadDeadline(time.Time{})
	return s.host.keep(s)
}

// close ends the shim when its tree is empty.
func (s *shim) close() {
	s.mu.Lock()
	t := s.tree
	s.mu.Unlock()
	if t != nil {
		t.Kill()
	} else {
		s.abandon()
	}
}

// FindShim returns the path of hangup-shim: it is installed beside this program.
func FindShim() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("cannot find hangup-shim: %w", err)
	}
	path := filepath.Join(filepath.Dir(self), "hangup-shim")
	if info, err := os.Stat(path); err != nil || info.Mode()&0o111 == 0 || info.IsDir() {
		return "", fmt.Errorf("cannot find hangup-shim beside %s: install both programs in one directory (make build does)", self)
	}
	return path, nil
}

// ExecUnderSupervisor replaces this process by a supervisor that starts argv, the
// path of a program and its arguments. It returns only when that failed, or when
// the shim's program is not of this build.
func ExecUnderSupervisor(shim string, argv []string) error {
	said, err := exec.Command(shim, "version").Output()
	build, ok := strings.CutPrefix(strings.TrimSpace(string(said)), "hangup-shim ")
	if err != nil || !ok || build != reap.Build {
		return fmt.Errorf("cannot use %s: it is not of this build (build %q), want %q: reinstall hangup and hangup-shim together",
			shim, build, reap.Build)
	}
	err = syscall.Exec(shim, append([]string{"hangup-shim", "supervise", "--"}, argv...), os.Environ())
	return fmt.Errorf("cannot become a supervisor by %s: %w", shim, err)
}
