//go:build linux

package reap

import (
	"os"
	"os/signal"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// forever is the pause of a loop that waits for news only.
const forever = time.Duration(1<<63 - 1)

// A shim holds one tree after the other.
type shim struct {
	conn    *Conn
	reaper  *reaper
	groups  *groups   // nil: no cgroups
	main    int       // the worker's main process; 0 when it has ended
	guard   *guard    // of the newest tree; it looks on no longer than until the stop
	limit   string    // the limit over which that tree was
	shot    bool      // the server had SIGKILL sent to its main process
	stop    time.Time // when the stop began; zero when no stop is under way
	beat    time.Time // the last sign of life
	reports int       // verdicts given in this stop
	leaving bool      // the server is gone, or not to be understood
}

// Shim is the role of the process above a worker, whose cgroups are to be made in the
// directory base; "" is for none. With scoped it was started in a signal scope of its
// own, see [InScope]. It returns when the server is gone and the tree is empty, with
// the exit code of the program.
func Shim(base string, scoped bool) int {
	if scoped {
		if err := inScope(); err != nil {
			return fail("shim", err)
		}
	}
	if err := private(); err != nil {
		return fail("shim", err)
	}
	// Handlers for all signals, and nobody who listens: none of them ends the
	// shim, and exec resets a handler, where it would keep what is ignored.
	signal.Notify(make(chan os.Signal, 1))
	defaultInternal()
	deaths := make(chan os.Signal, 1)
	signal.Notify(deaths, unix.SIGCHLD)
	// What a worker had in memory is no business of a file; all of them inherit it.
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fail("shim", err)
	}

	conn, err := NewConn(ControlFD, MaxOrder)
	if err != nil {
		return fail("shim", err)
	}
	reaper, err := newReaper()
	if err != nil {
		return fail("shim", err)
	}
	s := &shim{conn: conn, reaper: reaper, guard: &guard{}}
	reaper.scoped, reaper.exited, reaper.alive = scoped, s.exited, s.alive
	hello := Hello{Version: ProtocolVersion, Build: Build}
	if base != "" {
		if s.groups, err = openGroups(base); err != nil {
			hello.Group = errnoOf(err)
		}
		defer s.groups.leave()
	}
	if err := conn.Send(hello); err != nil {
		return 0 // the server has lost interest
	}
	s.loop(receive(conn), ended(ServerFD), deaths)
	return 0
}

// defaultInternal sets the signals to their default that the Go runtime leaves to
// a C library. A parent that starts programs by posix_spawn has them ignored, and
// what is ignored is inherited.
func defaultInternal() {
	for number := 32; number <= 34; number++ {
		var action [4]uint64 // a sigaction of zeros: SIG_DFL
		unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(number), uintptr(unsafe.Pointer(&action)), 0, 8, 0, 0)
	}
}

// private makes this process unreadable for its equals, and closes what it was
// started with for everyone it will start.
func private() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return err
	}
	return CloseOnExec()
}

// CloseOnExec marks every descriptor above the standard three as closed on exec.
func CloseOnExec() error {
	err := unix.CloseRange(3, 1<<32-1, unix.CLOSE_RANGE_CLOEXEC)
	if err != unix.ENOSYS && err != unix.EINVAL { // before Linux 5.11
		return err
	}
	for _, fd := range numbers("/proc/self/fd") {
		if fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}

// An order is a message with the descriptors that came with it.
type order struct {
	message Message
	files   []int
}

// receive hands on what comes over conn, and closes the channel at its end. The
// goroutine ends with the connection.
func receive(conn *Conn) <-chan order {
	orders := make(chan order)
	go func() {
		defer close(orders)
		for {
			m, files, err := conn.Receive()
			if err != nil {
				return
			}
			orders <- order{m, files}
		}
	}()
	return orders
}

// ended closes the channel when the process of pidfd has ended, as does the
// goroutine. Without a poller for it there is still the end of the socket.
func ended(pidfd int) <-chan struct{} {
	gone := make(chan struct{})
	unix.SetNonblock(pidfd, true)
	raw, err := os.NewFile(uintptr(pidfd), "server").SyscallConn()
	if err != nil {
		return gone
	}
	go func() {
		err := raw.Read(func(fd uintptr) bool {
			polled := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			n, _ := unix.Poll(polled, 0)
			return n > 0
		})
		if err == nil {
			close(gone)
		}
	}()
	return gone
}

func (s *shim) loop(orders <-chan order, serverGone <-chan struct{}, deaths <-chan os.Signal) {
	timer := time.NewTimer(forever)
	for {
		select {
		case o, ok := <-orders:
			if ok {
				s.obey(o)
			} else {
				orders = nil
				s.leave()
			}
		case <-serverGone:
			serverGone = nil
			s.leave()
		case limit := <-s.guard.over:
			s.limit = limit
			s.beginStop()
		case <-deaths:
		case <-timer.C:
		}
		if s.advance(); s.leaving && s.idle() {
			return
		}
		if s.stop.IsZero() {
			timer.Reset(forever)
		} else {
			timer.Reset(s.reaper.pause)
		}
	}
}

// idle says that there is no tree.
func (s *shim) idle() bool { return s.main == 0 && s.stop.IsZero() }

func (s *shim) obey(o order) {
	switch m := o.message.(type) {
	case Start:
		s.start(m, o.files)
	case Signal:
		// Not reaped yet, so the number is still the main process's own.
		if s.main != 0 {
			s.shot = s.shot || m.Signal == unix.SIGKILL
			unix.Kill(s.main, m.Signal)
		}
	case Kill:
		if !s.idle() {
			s.beginStop()
		}
	default:
		s.leave()
	}
}

func (s *shim) leave() {
	s.leaving = true
	if !s.idle() {
		s.beginStop()
	}
}

func (s *shim) beginStop() {
	if !s.stop.IsZero() {
		return
	}
	s.stop = time.Now()
	s.reports = 0
	s.guard.end()
	s.reaper.begin()
}

func (s *shim) start(m Start, files []int) {
	defer closeAll(files)
	if !s.idle() {
		s.tell(StartFailed{StageOrder, unix.EBUSY})
		return
	}
	cgroup, err := s.enter()
	if err != nil {
		s.tell(failed(StageGroup, err))
		return
	}
	guard, err := newGuard(cgroup, m.Limits)
	if err != nil {
		s.tell(failed(StageLimits, err))
		return
	}
	s.guard, s.limit, s.shot = guard, "", false
	m.Limits.CPUs = guard.left.CPUs
	done := make(chan Message)
	go func() { done <- start(m, files, cgroup) }()
	answer := <-done
	if started, ok := answer.(Started); ok {
		s.main = started.Pid
		if err := limitProcess(s.main, m); err != nil {
			answer = failed(StageFiles, err)
			s.beginStop()
		}
	}
	s.tell(answer)
	if s.main != 0 && s.stop.IsZero() {
		guard.watch(s.reaper.self, m.User)
	}
}

// enter returns the cgroup of the tree to come, or nil where there are none. It is
// made beforehand, but another worker of the same user may have removed it.
func (s *shim) enter() (*group, error) {
	if s.groups == nil {
		return nil, nil
	}
	if s.groups.gone() {
		if err := s.groups.next(); err != nil {
			return nil, err
		}
	}
	s.reaper.cgroup = s.groups.group
	return s.groups.group, nil
}

// tell reports what the server has to know. A server that cannot be told would wait
// for ever: it learns by the end of the shim.
func (s *shim) tell(m Message) {
	if s.conn.Send(m) != nil {
		s.leave()
	}
}

// exited is told of every death below. That of the main process is the end of
// the whole tree.
func (s *shim) exited(pid int, e Exited) {
	if pid != s.main {
		return
	}
	s.main = 0
	if s.stop.IsZero() {
		s.limit = s.guard.exceeded()
		e.OOM = s.limit == "" && killed(e.Status) && !s.shot && s.guard.starved()
		s.beginStop()
		s.reaper.reaped = 1 // the main process
	}
	e.Limit = s.limit
	s.tell(e)
}

// alive tells the server now and then that the stop goes on.
func (s *shim) alive() {
	if now := time.Now(); !s.stop.IsZero() && now.Sub(s.beat) >= BeatEvery {
		s.beat = now
		s.conn.Offer(Sweeping{})
	}
}

// advance reaps, and goes on with the stop when one is under way.
func (s *shim) advance() {
	if s.stop.IsZero() {
		if s.reaper.reap(); s.stop.IsZero() {
			return
		}
	}
	if s.reaper.step() {
		s.stop = time.Time{}
		s.tell(Empty{Reaped: s.reaper.reaped})
		if s.groups != nil {
			s.groups.next() // after the verdict: nobody waits for it. A start will say if it failed.
		}
		return
	}
	s.alive()
	if time.Since(s.stop) >= time.Duration(s.reports+1)*VerdictAfter {
		s.reports++
		s.conn.Offer(NotEmpty{Reaped: s.reaper.reaped, Survivors: s.reaper.survivors()})
	}
}

// Pause is the role of a process that waits to be killed.
func Pause() int {
	for {
		unix.Pause()
	}
}

// fail says on stderr why the program cannot take on its role.
func fail(role string, err error) int {
	os.Stderr.WriteString("hangup-shim: cannot begin as " + role + ": " + err.Error() + "\n")
	return 1
}

// StartedByServer says whether this process has the descriptors of a shim.
func StartedByServer() bool {
	kind, err := unix.GetsockoptInt(ControlFD, unix.SOL_SOCKET, unix.SO_TYPE)
	return err == nil && kind == unix.SOCK_STREAM
}
