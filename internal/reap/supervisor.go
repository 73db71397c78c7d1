//go:build linux

package reap

import (
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// forwarded are the signals that the supervisor hands on to the server. The
// server has a process group of its own, so that Ctrl-C reaches it once.
var forwarded = []os.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2}

// A supervisor holds one server, and all that rises past it.
type supervisor struct {
	conn    *Conn
	reaper  *reaper
	base    string // the cgroup of all trees; "": none, as far as is known
	server  int    // 0 when it has ended
	status  syscall.WaitStatus
	since   time.Time // when strangers were first seen; zero: there are none
	ending  bool      // it was told to end: the next such signal means at once
	asked   time.Time // when the server asked for a sweep; zero: it has its answer
	sweep   int       // the number of what it asked for
	accused bool      // the survivors of a dead server were named
}

// Supervise is the role of the top process. It starts the program argv[0], a path,
// and lives until the server and all that it left behind is gone. It returns the
// exit code: the server's, or 128 + n when signal n ended it.
//
// The caller must hold the main thread locked from the start: the kernel kills
// the server when the thread that started it ends.
func Supervise(argv []string) int {
	if err := private(); err != nil {
		return fail("supervisor", err)
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, forwarded...)
	deaths := make(chan os.Signal, 1)
	signal.Notify(deaths, unix.SIGCHLD)
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE) // a closed stderr is no reason to end

	reaper, err := newReaper()
	if err != nil {
		return fail("supervisor", err)
	}
	pair, err := Pair()
	if err != nil {
		return fail("supervisor", err)
	}
	conn, err := NewConn(pair[0], MaxReport)
	if err != nil {
		return fail("supervisor", err)
	}
	s := &supervisor{conn: conn, reaper: reaper}
	reaper.exited = s.exited
	if err := conn.Send(Hello{Version: ProtocolVersion, Build: Build}); err != nil {
		return fail("supervisor", err) // the server would wait for it
	}
	signal.Ignore(unix.SIGHUP) // so does the server, until it says otherwise
	if s.server, err = startServer(argv, pair[1], handed()); err != nil {
		os.Stderr.WriteString("hangup-shim: cannot start " + argv[0] + ": " + err.Error() + "\n")
		if err == unix.ENOENT {
			return 127 // as a shell has it
		}
		return 126
	}
	signal.Notify(signals, unix.SIGHUP)
	unix.Close(pair[1])
	reaper.spare = s.server
	return s.loop(signals, receive(conn), deaths)
}

// The variables of sd_listen_fds(3), by which a service manager hands sockets over.
const (
	listenPid   = "LISTEN_PID"
	listenCount = "LISTEN_FDS"
	listenNames = "LISTEN_FDNAMES"
	listenStart = 3 // the number of the first
)

// handed returns the sockets that were handed to this process by a service manager.
func handed() (sockets []int) {
	if os.Getenv(listenPid) != strconv.Itoa(os.Getpid()) {
		return nil
	}
	count, _ := strconv.Atoi(os.Getenv(listenCount))
	for i := range max(count, 0) {
		sockets = append(sockets, listenStart+i)
	}
	return sockets
}

// startServer starts the server with the sockets that were handed over, under the
// same numbers, and behind them its end of the socket to the supervisor. The server
// has another pid than the one they were meant for, so the variable that says it is
// left out; without sockets, so are the others.
func startServer(argv []string, socket int, sockets []int) (int, error) {
	env := make([]string, 0, len(os.Environ())+1)
	for _, entry := range os.Environ() {
		name, _, _ := strings.Cut(entry, "=")
		switch name {
		case SupervisorEnv, listenPid:
			continue
		case listenCount, listenNames:
			if len(sockets) == 0 {
				continue
			}
		}
		env = append(env, entry)
	}
	files := []uintptr{0, 1, 2}
	for _, fd := range sockets {
		files = append(files, uintptr(fd))
	}
	env = append(env, SupervisorEnv+"="+strconv.Itoa(len(files)))
	pid, err := syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{
		Env:   env,
		Files: append(files, uintptr(socket)),
		Sys:   &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL},
	})
	for _, fd := range sockets { // the server alone decides when they are closed
		unix.Close(fd)
	}
	return pid, err
}

func (s *supervisor) loop(signals <-chan os.Signal, orders <-chan order, deaths <-chan os.Signal) int {
	timer := time.NewTimer(0)
	for {
		select {
		case sig := <-signals:
			if number, ok := sig.(syscall.Signal); ok && s.server != 0 {
				s.forward(number)
			}
		case o, ok := <-orders:
			if !ok {
				orders = nil // a server may do without
			} else {
				s.obey(o.message)
			}
		case <-deaths:
		case <-timer.C:
		}
		if s.advance(); s.server == 0 && s.since.IsZero() {
			if s.base != "" {
				remove(unix.AT_FDCWD, s.base)
			}
			return s.exitCode()
		}
		if s.since.IsZero() {
			timer.Reset(strangersEvery) // orphans rise without a word
		} else {
			timer.Reset(s.reaper.pause)
		}
	}
}

func (s *supervisor) obey(m Message) {
	switch m := m.(type) {
	case Base:
		s.base = m.Path
	case Sweep:
		s.asked, s.sweep = time.Now(), m.Number
		s.reaper.reaped, s.reaper.seen = 0, 0
	}
}

// forward hands a signal on to the server, which was not reaped yet: the number is
// still its own.
func (s *supervisor) forward(sig syscall.Signal) {
	if sig == unix.SIGTERM || sig == unix.SIGINT {
		if s.ending {
			sig = EndNow
		}
		s.ending = true
	}
	unix.Kill(s.server, sig)
}

// exited is told of every death below. When the server has died, nobody is spared,
// and a cgroup of all trees ends them with one blow.
func (s *supervisor) exited(pid int, e Exited) {
	if pid == s.server {
		s.server, s.status = 0, e.Status
		s.reaper.spare = 0
		if s.base != "" {
			s.reaper.cgroup, _ = openGroup(unix.AT_FDCWD, s.base)
		}
		s.reaper.begin()
		s.since = time.Now()
	}
}

// advance kills and reaps whoever is not the server, and answers it.
func (s *supervisor) advance() {
	if s.since.IsZero() {
		s.since = time.Now()
		s.reaper.begin()
	}
	if s.reaper.step() {
		s.since = time.Time{}
		if !s.asked.IsZero() {
			s.asked = time.Time{}
			s.conn.Send(Empty{s.reaper.reaped, s.sweep})
		}
		return
	}
	if !s.asked.IsZero() && time.Since(s.asked) >= VerdictAfter {
		s.asked = time.Time{}
		s.conn.Send(NotEmpty{s.reaper.reaped, s.sweep, s.reaper.survivors()})
	}
	if s.server == 0 && !s.accused && time.Since(s.since) >= VerdictAfter {
		s.accused = true
		for _, left := range s.reaper.survivors() {
			os.Stderr.WriteString("hangup-shim: cannot end process " + strconv.Itoa(left.Pid) +
				" (state " + string(rune(left.State)) + ", waits in " + left.Wait + "); still trying\n")
		}
	}
}

func (s *supervisor) exitCode() int {
	if s.status.Signaled() {
		return 128 + int(s.status.Signal())
	}
	return s.status.ExitStatus()
}
