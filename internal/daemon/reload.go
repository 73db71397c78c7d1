package daemon

import (
	"context"
	"errors"
	"reflect"
	"time"

	"example.com/hangup/internal/config"
	"example.com/hangup/internal/spool"
)

// A reload reads the config file again and has two phases. What can fail is
// prepared beside all that runs and touches nothing of it; one failure, and all of
// it is dropped. What is left then cannot fail, and is committed at once. So a
// reload happens as a whole or not at all, and nobody waits for a file or a worker.

// warmUp is how long a reload waits for the first workers of new pools.
const warmUp = 10 * time.Second

// part is a piece of a reload that has been prepared. Either commit or drop is
// called, once, and neither can fail.
type part struct{ commit, drop func() }

// prepared is a reload before its commit. With faults it will not have one.
type prepared struct {
	next   *config.Config
	parts  []part
	plan   *plan
	faults []string
}

// prepareReload prepares a reload in a goroutine, because reading a file may take
// any time, and the server is to hear its signals meanwhile. When ctx ends before
// the result was taken, the result is dropped.
func (s *server) prepareReload(ctx context.Context) <-chan prepared {
	result := make(chan prepared)
	go func() {
		p := s.prepare(ctx)
		select {
		case result <- p:
		case <-ctx.Done():
			s.drop(p)
		}
	}()
	return result
}

// drop undoes what was prepared. What has faults has been dropped.
func (s *server) drop(p prepared) {
	if len(p.faults) > 0 {
		return
	}
	for _, one := range p.parts {
		one.drop()
	}
	s.pools.drop(p.plan)
}

func (s *server) prepare(ctx context.Context) (p prepared) {
	now := s.config.Load()
	next, err := config.Load(now.File)
	if err != nil {
		return prepared{faults: faultsOf(err)}
	}
	p.next = next
	p.faults = refuseFixed(now, next)
	for _, prepare := range []func(context.Context, *config.Config) (part, error){s.prepareListeners, s.prepareSpool} {
		one, err := prepare(ctx, next)
		if err != nil {
			p.faults = append(p.faults, faultsOf(err)...)
			continue
		}
		p.parts = append(p.parts, one)
	}
	if len(p.faults) == 0 { // workers are not started in vain
		if p.plan, err = s.prepareWorkloads(ctx, next); err != nil {
			p.faults = faultsOf(err)
		}
	}
	if len(p.faults) > 0 {
		for _, one := range p.parts {
			one.drop()
		}
	}
	return p
}

// prepareWorkloads starts the pools of new and changed workloads, and has them
// warm before anybody calls them. One that cannot start a worker is a fault. One
// that takes longer than warmUp is not waited for: its calls will.
func (s *server) prepareWorkloads(ctx context.Context, next *config.Config) (*plan, error) {
	p, err := s.pools.prepare(next.Workloads)
	if err != nil {
		return nil, err
	}
	ctx, done := context.WithTimeout(ctx, warmUp)
	defer done()
	var faults config.Faults
	for _, wrong := range p.settle(ctx) {
		faults = append(faults, config.Fault{File: next.File, Msg: wrong})
	}
	if len(faults) > 0 {
		s.pools.drop(p)
		return nil, faults
	}
	return p, nil
}

// commit makes what was prepared true, and says so, or says why not.
func (s *server) commit(p prepared) {
	if len(p.faults) > 0 {
		s.log.Error("reload refused", "config", s.config.Load().File, "faults", p.faults)
		return
	}
	now := s.config.Swap(p.next)
	for _, one := range p.parts {
		one.commit()
	}
	s.budget.SetLimits(p.next.Limits.Hangups)
	s.log.Change(p.next.Log.Format, p.next.Log.Level)
	s.observer.Add(names(p.next))
	s.pools.commit(p.plan)
	s.serveAs(p.next) // last: whoever it lets in finds the pools
	s.logWarnings(p.next)
	s.logIsolation(p.next)
	s.logLimits(p.next)
	if now.Spool.Dir != p.next.Spool.Dir {
		s.log.Warn("scratch directories stay where they are until a restart", "scratch", s.scratch.Path())
	}
	s.log.Info("reloaded", "config", p.next.File,
		"added", p.plan.added, "removed", p.plan.removed, "changed", p.plan.changed, "keys", changedKeys(now, p.next))
}

// prepareListeners opens the new addresses and loads the certificate, also when its
// files alone have changed.
func (s *server) prepareListeners(ctx context.Context, next *config.Config) (part, error) {
	change, err := s.doors.Prepare(ctx, next)
	if err != nil {
		return part{}, config.Faults{{File: next.File, Msg: err.Error()}}
	}
	return part{commit: change.Commit, drop: change.Discard}, nil
}

// prepareSpool opens another directory for the bodies to come.
func (s *server) prepareSpool(_ context.Context, next *config.Config) (part, error) {
	if s.config.Load().Spool == next.Spool {
		return part{commit: func() {}, drop: func() {}}, nil
	}
	opened, err := spool.Open(next.Spool.Dir, next.Spool.Max)
	if err != nil {
		return part{}, config.Faults{{File: next.File, Msg: "spool: " + err.Error()}}
	}
	return part{
		commit: func() { s.bodies.Become(opened) },
		drop:   func() { opened.Close() },
	}, nil
}

// fixed are the keys that hold for as long as a server runs: net/http takes the streams
// once for all connections, and what holds the workers is found out at the start.
var fixed = []struct {
	name string
	of   func(*config.Config) any
}{
	{"limits.streams", func(c *config.Config) any { return c.Limits.Streams }},
	{"containment", func(c *config.Config) any { return c.Containment }},
}

// refuseFixed tells which of those have another value.
func refuseFixed(now, next *config.Config) (faults []string) {
	for _, key := range fixed {
		if key.of(now) != key.of(next) {
			faults = append(faults, config.Fault{
				File: next.File, Msg: key.name + ": cannot be changed while the server runs: restart it, or put the old value back",
			}.Error())
		}
	}
	return faults
}

// keys are the keys of a config beside its workloads.
var keys = []struct {
	name string
	of   func(*config.Config) any
}{
	{"listen", func(c *config.Config) any { return c.Listen }},
	{"tls", func(c *config.Config) any { return c.TLS }},
	{"hosts", func(c *config.Config) any { return c.Hosts }},
	{"trusted_proxies", func(c *config.Config) any { return c.TrustedProxies }},
	{"auth", func(c *config.Config) any { return c.Auth }},
	{"limits", func(c *config.Config) any { return c.Limits }},
	{"spool", func(c *config.Config) any { return c.Spool }},
	{"drain", func(c *config.Config) any { return c.Drain }},
	{"containment", func(c *config.Config) any { return c.Containment }},
	{"log", func(c *config.Config) any { return c.Log }},
}

// changedKeys names the keys beside the workloads whose values differ.
func changedKeys(now, next *config.Config) []string {
	changed := []string{}
	for _, key := range keys {
		if !reflect.DeepEqual(key.of(now), key.of(next)) {
			changed = append(changed, key.name)
		}
	}
	return changed
}

// faultsOf is an error as a list of what is wrong.
func faultsOf(err error) []string {
	var faults config.Faults
	if !errors.As(err, &faults) {
		return []string{err.Error()}
	}
	list := make([]string, len(faults))
	for i, f := range faults {
		list[i] = f.Error()
	}
	return list
}
