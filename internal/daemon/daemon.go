// Package daemon is the service: it puts the rooms together, runs them until it
// is told to end, and takes them apart again in the right order.
//
// It is the only package that knows every room a call goes through. What it does
// itself is the drain: unready at once, no new calls, the running ones get their
// time, then the stop sequence; [proc.EndNow] kills at once. And it is the
// reload (reload.go), which touches nothing but what has changed, for which it
// keeps the set of all pools (pools.go).
package daemon

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
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
	"example.com/hangup/internal/scratch"
	"example.com/hangup/internal/spool"
	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/google/uuid"
)

const (
	// lastTrees is how long the trees have to be gone at the end of a drain, after
	// their grace. What is left then is the supervisor's.
	lastTrees = 700 * time.Millisecond
	// lastReplies is how long the replies of the last calls have to get out at
	// the end of a drain.
	lastReplies = 500 * time.Millisecond
)

// Options say what a server runs with.
type Options struct {
	Config     *config.Config
	Shim       string           // path of the shim program
	Supervisor *os.File         // the socket to the supervisor; nil: there is none
	Signals    <-chan os.Signal // [proc.EndNow] kills, any other drains
	Reloads    <-chan os.Signal // SIGHUP; with room for one, so that many are one
	Stderr     io.Writer        // the log goes here
	Version    string
}

// server is a running service.
type server struct {
	o        Options
	log      *observe.Log
	host     *proc.Host
	held     event.Containment // by the host
	bodies   *spool.Spool
	scratch  *scratch.Base
	observer *observe.Observer
	pools    *pools
	calls    *calls.Registry
	http     *http.Server
	watch    *connwatch.Watcher
	doors    *listen.Set
	budget   *api.Budget
	probes   api.Probes

	config  atomic.Pointer[config.Config] // in force; a reload replaces it
	handler atomic.Pointer[http.Handler]  // made of it; requests keep the one they came to

	draining atomic.Bool
	booted   atomic.Bool // every pool has been up or has failed once
	survived atomic.Bool // something of a tree has
}

// Run serves until ctx ends or a signal comes, drains, and returns when nothing
// of it is left. It returns nil after a drain.
func Run(ctx context.Context, o Options) (err error) {
	buffer := observe.NewBuffer(o.Stderr)
	defer buffer.Close()
	s := &server{o: o, log: observe.NewLog(buffer, o.Config.Log.Format, o.Config.Log.Level)}
	s.config.Store(o.Config)

	if s.bodies, err = spool.Open(o.Config.Spool.Dir, o.Config.Spool.Max); err != nil {
		return err
	}
	defer s.bodies.Close()
	if s.scratch, err = scratch.Open(o.Config.Spool.Dir, s.tell); err != nil {
		return err
	}
	defer func() { s.scratch.Close(!s.survived.Load()) }()
	if s.watch, err = connwatch.New(); err != nil {
		return err
	}
	defer s.watch.Close()
	if s.host, err = proc.Open(proc.Options{Shim: o.Shim, Supervisor: o.Supervisor, Cgroup: o.Config.Containment.Cgroup}); err != nil {
		return err
	}
	defer s.endTrees()
	s.held = s.host.Containment()
	if err := Enough(s.held, o.Config.Containment.Minimum); err != nil {
		return err
	}

	work, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWork()
	var emit event.Sink
	s.pools = &pools{
		open:      func(w config.Workload) *pool.Pool { return s.open(work, w, emit) },
		isolation: s.isolation, enforced: s.enforced,
	}
	s.observer = observe.New(observe.Options{
		Log: s.log.Logger, Workloads: names(o.Config), Pools: s.pools.snapshots, Containment: s.held,
	})
	seen := s.observer.Sink()
	emit = func(e event.Event) {
		s.calls.Sink(e)
		seen(e)
	}
	s.calls = calls.New(work, calls.Options{Door: s.pools, Emit: emit})
	if s.doors, err = listen.Open(ctx, o.Config, seen); err != nil {
		return err
	}
	defer s.doors.Close()
	s.budget = api.NewBudget(o.Config.Limits.Hangups)
	first, err := s.pools.prepare(o.Config.Workloads)
	if err != nil {
		return err
	}
	s.pools.commit(first) // to be up is not waited for: readyz tells

	s.serveAs(o.Config)
	s.http = s.newHTTP()
	s.logStart()
	s.scratch.Sweep()
	return s.serve(ctx)
}

// tell hands on what happens, once there is somebody who listens.
func (s *server) tell(e event.Event) {
	if s.observer != nil {
		s.observer.Sink()(e)
	}
}

// serveAs has the requests to come served as the config says.
func (s *server) serveAs(c *config.Config) {
	h := api.New(api.Options{
		Config: c, Calls: s.calls, Spool: s.bodies, Workloads: s.pools.snapshots, Metrics: s.observer.Handler(),
		Ready: s.ready, Containment: s.held,
		ServerPid: os.Getpid(), SupervisorPid: s.supervisorPid(), NewID: newID, Budget: s.budget, Probes: &s.probes, ShowOut: listen.ShowOut,
	})
	s.handler.Store(&h)
}

// supervisorPid is 0 where there is no supervisor.
func (s *server) supervisorPid() int {
	if s.o.Supervisor == nil {
		return 0
	}
	return os.Getppid()
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

// ready is nil when the server can take calls: it is not draining, every
// workload has got over its first start, and not all of them are down. A workload
// that a reload has added or changed may start without the server being unready:
// its calls wait, as they do for any worker.
func (s *server) ready() error {
	if s.draining.Load() {
		return call.ErrDraining
	}
	pools := slices.DeleteFunc(s.pools.snapshots(), func(p event.Pool) bool { return p.Retiring })
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
	s.notify(daemon.SdNotifyReady)
	open, over := context.WithCancel(ctx)
	defer over()
	var reload <-chan prepared // the one under way; nil: none
	var cause error
	for waiting := true; waiting; {
		reloads := s.o.Reloads
		if reload != nil {
			reloads = nil // one after the other
		}
		select {
		case <-ctx.Done():
			waiting = false
		case cause = <-failed:
			waiting = false
		case <-reloads:
			s.notify(reloading())
			reload = s.prepareReload(open)
		case p := <-reload:
			reload = nil
			s.commit(p)
			s.notify(daemon.SdNotifyReady)
		case sig := <-s.o.Signals:
			s.log.Info("draining", "signal", sig.String(), "drain", s.config.Load().Drain.String())
			waiting = false
		}
	}
	over()
	s.drain()
	return cause
}

// drain takes the service down: see the package comment.
func (s *server) drain() {
	s.draining.Store(true)
	s.notify(daemon.SdNotifyStopping)
	s.pools.drain()
	now := make(chan struct{}) // closed by EndNow
	ended := make(chan struct{})
	var waiting sync.WaitGroup
	waiting.Go(func() {
		for {
			select {
			case <-ended:
				return
			case sig := <-s.o.Signals:
				if sig != proc.EndNow && s.o.Supervisor != nil { // it drains already, and the supervisor counts
					continue
				}
				s.log.Warn("killing everything", "reason", "told to end again")
				close(now)
				s.endTrees()
				return
			}
		}
	})
	defer waiting.Wait()
	defer close(ended)

	left := time.NewTimer(s.config.Load().Drain)
	select {
	case <-s.calls.Quiet():
	case <-left.C:
	case <-now:
	}
	left.Stop()
	s.calls.CancelAll(call.ErrDrained)

	deadline, done := context.WithTimeout(context.Background(), s.pools.grace()+lastTrees)
	defer done()
	var pools sync.WaitGroup
	pools.Go(func() {
		for _, err := range s.pools.close(deadline) {
			s.log.Error("left behind", "error", err)
		}
	})
	<-s.calls.Quiet()
	last, cancel := context.WithTimeout(context.Background(), lastReplies)
	defer cancel()
	if s.http.Shutdown(last) != nil {
		s.http.Close()
	}
	pools.Wait()
	s.log.Info("ended")
}

// endTrees kills whatever is there, and says what does not die of it.
func (s *server) endTrees() {
	if err := s.host.Close(); err != nil {
		s.survived.Store(true)
		s.log.Error("left behind", "error", err)
	}
}

func (s *server) logStart() {
	c := s.o.Config
	s.logWarnings(c)
	s.log.Info("serving", "version", s.o.Version, "listen", s.doors.Addresses(), "tls", c.TLS.On(),
		"pid", os.Getpid(), "supervisor_pid", s.supervisorPid(),
		"containment", s.held.Level, "isolation", s.weakest(), "workloads", names(c), "scratch", s.scratch.Path())
	if s.doors.Inherited() {
		s.log.Info("the sockets were handed over by the service manager: listen in the config is not used")
	}
	s.logLayers(c)
	s.logIsolation(c)
	s.logLimits(c)
}

// logWarnings tells what in a config works and is probably not meant.
func (s *server) logWarnings(c *config.Config) {
	for _, w := range c.Warnings {
		s.log.Warn("odd in the config: "+w.Msg, "file", w.File, "line", w.Line)
	}
}
