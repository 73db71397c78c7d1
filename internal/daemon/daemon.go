// Package daemon is the service: it puts the rooms together, runs them until it
// is told to end, and takes them apart again in the right order.
//
// It is the only package that knows all the others. What it does itself is the
// drain: unready at once, no new calls, the running ones get their time, then
// the stop sequence; a second signal kills at once.
package daemon

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"example.com/hangup/internal/api"
	"example.com/hangup/internal/call"
	"example.com/hangup/internal/calls"
	"example.com/hangup/internal/config"
	"example.com/hangup/internal/connwatch"
	"example.com/hangup/internal/event"
	"example.com/hangup/internal/listen"
	"example.com/hangup/internal/observe"
	"example.com/hangup/internal/pool"
	"example.com/hangup/internal/proc"
	"example.com/hangup/internal/spool"
	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/google/uuid"
)

const (
	// lastTrees is how long the trees have to be gone at the end of a drain, after
	// their grace. What is left then is the supervisor's.
	lastTrees = 700 * time.Millisecond
	// oneSignal is the time within which two signals are one: a service manager
	// may send it to the supervisor and to the server, and the supervisor
	// hands its own on.
	oneSignal = 20 * time.Millisecond
	// lastReplies is how long the replies of the last calls have to get out at
	// the end of a drain.
	lastReplies = 500 * time.Millisecond
)

// Containment and isolation in force. The layers that make more of them come
// with the cgroup probe.
const (
	containment = "subreaper"
	isolation   = "none"
)

// Options say what a server runs with.
type Options struct {
	Config     *config.Config
	Shim       string           // path of the shim program
	Supervisor *os.File         // the socket to the supervisor; nil: there is none
	Signals    <-chan os.Signal // SIGTERM and SIGINT drain, the second one kills
	Stderr     io.Writer        // the log goes here
	Version    string
}

// server is a running service.
type server struct {
	o      Options
	log    *slog.Logger
	host   *proc.Host
	pools  []*pool.Pool
	byName map[string]*pool.Pool
	calls  *calls.Registry
	http   *http.Server
	watch  *connwatch.Watcher
	doors  *listen.Set

	draining atomic.Bool
	booted   atomic.Bool // every pool has been up or has failed once
}

// Run serves until ctx ends or a signal comes, drains, and returns when nothing
// of it is left. It returns nil after a drain.
func Run(ctx context.Context, o Options) (err error) {
	buffer := observe.NewBuffer(o.Stderr)
	defer buffer.Close()
	s := &server{o: o, log: observe.NewLogger(buffer, o.Config.Log.Format, o.Config.Log.Level), byName: map[string]*pool.Pool{}}

	bodies, err := spool.Open(o.Config.Spool.Dir, o.Config.Spool.Max)
	if err != nil {
		return err
	}
	defer bodies.Close()
	if s.watch, err = connwatch.New(); err != nil {
		return err
	}
	defer s.watch.Close()
	if s.host, err = proc.Open(proc.Options{Shim: o.Shim, Supervisor: o.Supervisor}); err != nil {
		return err
	}
	defer s.host.Close()

	work, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWork()
	observer := observe.New(observe.Options{
		Log: s.log, Workloads: names(o.Config), Pools: s.snapshots, Level: containment, Isolation: isolation,
	})
	seen := observer.Sink()
	emit := func(e event.Event) {
		s.calls.Sink(e)
		seen(e)
	}
	if s.doors, err = listen.Open(ctx, o.Config, seen); err != nil {
		return err
	}
	defer s.doors.Close()
	s.calls = calls.New(work, calls.Options{Door: s, Emit: emit})
	for _, w := range o.Config.Workloads {
		p := s.open(work, w, emit)
		s.pools = append(s.pools, p)
		s.byName[w.Name] = p
	}

	supervisor := 0
	if o.Supervisor != nil {
		supervisor = os.Getppid()
	}
	s.http = s.newHTTP(api.New(api.Options{
		Config: o.Config, Calls: s.calls, Spool: bodies, Workloads: s.snapshots, Metrics: observer.Handler(),
		Ready: s.ready, Containment: containment, Isolation: isolation,
		ServerPid: os.Getpid(), SupervisorPid: supervisor, NewID: newID,
	}))
	s.logStart(supervisor)
	return s.serve(ctx)
}

// newID makes a call's id: a UUIDv7, which sorts by time.
func newID() string { return uuid.Must(uuid.NewV7()).String() }

func names(c *config.Config) []string {
	var list []string
	for _, w := range c.Workloads {
		list = append(list, w.Name)
	}
	return list
}

// Do is the one door: it finds the pool of a call's workload.
func (s *server) Do(ctx context.Context, c *call.Call) error {
	p := s.byName[c.Workload]
	if p == nil {
		return fmt.Errorf("%w: %q", call.ErrNoSuchWorkload, c.Workload)
	}
	return p.Do(ctx, c)
}

// snapshots tells how every pool stands, in the order of the config.
func (s *server) snapshots() []event.Pool {
	list := make([]event.Pool, 0, len(s.pools))
	for _, p := range s.pools {
		list = append(list, p.Snapshot())
	}
	return list
}

// ready is nil when the server can take calls: it is not draining, every
// workload has got over its first start, and not all of them are down.
func (s *server) ready() error {
	if s.draining.Load() {
		return call.ErrDraining
	}
	pools := s.snapshots()
	is := func(state string) func(event.Pool) bool {
		return func(p event.Pool) bool { return p.State == state }
	}
	if !s.booted.Load() {
		if i := slices.IndexFunc(pools, is("starting")); i >= 0 {
			return fmt.Errorf("%w: no worker of %s is ready yet", call.ErrDown, pools[i].Name)
		}
		s.booted.Store(true)
	}
	if !slices.ContainsFunc(pools, func(p event.Pool) bool { return p.State != "down" }) {
		return fmt.Errorf("%w: all of them; GET /workloads tells why", call.ErrDown)
	}
	return nil
}

// serve runs until something ends it.
func (s *server) serve(ctx context.Context) error {
	failed := s.doors.Serve(s.http)
	notify(s.log, daemon.SdNotifyReady)
	var cause error
	for waiting := true; waiting; {
		select {
		case <-ctx.Done():
			waiting = false
		case cause = <-failed:
			waiting = false
		case sig := <-s.o.Signals:
			if sig == syscall.SIGHUP {
				s.log.Warn("SIGHUP: this version cannot reload its config; restart it")
				continue
			}
			s.log.Info("draining", "signal", sig.String(), "drain", s.o.Config.Drain.String())
			waiting = false
		}
	}
	s.drain()
	return cause
}

// drain takes the service down: see the package comment.
func (s *server) drain() {
	s.draining.Store(true)
	notify(s.log, daemon.SdNotifyStopping)
	for _, p := range s.pools {
		p.Drain()
	}
	began := time.Now()
	now := make(chan struct{}) // closed by a second signal
	ended := make(chan struct{})
	var waiting sync.WaitGroup
	waiting.Go(func() {
		for {
			select {
			case <-ended:
				return
			case sig := <-s.o.Signals:
				if sig == syscall.SIGHUP || time.Since(began) < oneSignal {
					continue
				}
				s.log.Warn("killing everything", "signal", sig.String())
				close(now)
				s.host.Close()
				return
			}
		}
	})
	defer waiting.Wait()
	defer close(ended)

	left := time.NewTimer(s.o.Config.Drain)
	select {
	case <-s.calls.Quiet():
	case <-left.C:
	case <-now:
	}
	left.Stop()
	s.calls.CancelAll(call.ErrDrained)

	grace := time.Duration(0)
	for _, w := range s.o.Config.Workloads {
		grace = max(grace, w.Stop.Cooperative+w.Stop.Grace)
	}
	deadline, done := context.WithTimeout(context.Background(), grace+lastTrees)
	defer done()
	var pools sync.WaitGroup
	for _, p := range s.pools {
		pools.Go(func() {
			if err := p.Close(deadline); err != nil {
				s.log.Error("left behind", "error", err)
			}
		})
	}
	<-s.calls.Quiet()
	last, cancel := context.WithTimeout(context.Background(), lastReplies)
	defer cancel()
	if s.http.Shutdown(last) != nil {
		s.http.Close()
	}
	pools.Wait()
	s.log.Info("ended")
}

func (s *server) logStart(supervisor int) {
	for _, w := range s.o.Config.Warnings {
		s.log.Warn("odd in the config: "+w.Msg, "file", w.File, "line", w.Line)
	}
	s.log.Info("serving", "version", s.o.Version, "listen", s.doors.Addresses(), "tls", s.o.Config.TLS.On(), "pid", os.Getpid(), "supervisor_pid", supervisor,
		"containment", containment, "isolation", isolation, "workloads", names(s.o.Config))
	if s.doors.Inherited() {
		s.log.Info("the sockets were handed over by the service manager; listen in the config is not used")
	}
	if os.Geteuid() == 0 {
		s.log.Warn("running as root: the workers are root, too, and nothing keeps them from the rest of the machine",
			"remedy", "run hangup as an ordinary user")
	}
}
