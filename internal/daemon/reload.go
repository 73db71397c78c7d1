package daemon

import (
	"context"
	"errors"
	"reflect"
	"slices"
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
	for _, prepare := range []func(now, next *config.Config) (part, error){
		prepareNothing, prepareStreams, s.prepareListeners, s.prepareSpool,
	} {
		one, err := prepare(now, next)
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
	s.log.Info("reloaded", "config", p.next.File,
		"added", p.plan.added, "removed", p.plan.removed, "changed", p.plan.changed, "keys", changedKeys(now, p.next))
}

// nothing is a part with nothing to do.
var nothing = part{commit: func() {}, drop: func() {}}

// prepareNothing refuses what holds for as long as the server runs.
func prepareNothing(now, next *config.Config) (part, error) {
	return nothing, fixed(now, next, "containment")
}

// prepareListeners opens the new addresses and loads the certificate, also when its
// files alone have changed.
func (s *server) prepareListeners(_, next *config.Config) (part, error) {
	change, err := s.doors.Prepare(context.Background(), next)
	if err != nil {
		return part{}, config.Faults{{File: next.File, Msg: err.Error()}}
	}
	return part{commit: change.Commit, drop: change.Discard}, nil
}

// prepareStreams refuses another number: net/http takes it once, for all connections.
func prepareStreams(now, next *config.Config) (part, error) {
	if now.Limits.Streams == next.Limits.Streams {
		return nothing, nil
	}
	return part{}, config.Faults{{File: next.File, Msg: unchangeable("limits.streams")}}
}

// prepareSpool opens another directory for the bodies to come.
func (s *server) prepareSpool(now, next *config.Config) (part, error) {
	if now.Spool == next.Spool {
		return nothing, nil
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

// fixed refuses another value for keys that cannot have one while the server runs.
func fixed(now, next *config.Config, names ...string) error {
	var faults config.Faults
	for _, name := range changedKeys(now, next) {
		if slices.Contains(names, name) {
			faults = append(faults, config.Fault{File: next.File, Msg: unchangeable(name)})
		}
	}
	if len(faults) == 0 {
		return nil
	}
	return faults
}

// unchangeable says that a key cannot have another value while the server runs.
func unchangeable(key string) string {
	return key + ": cannot be changed while the server runs: restart it, or put the old value back"
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
