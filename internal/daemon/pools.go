package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	"example.com/hangup/internal/call"
	"example.com/hangup/internal/config"
	"example.com/hangup/internal/event"
	"example.com/hangup/internal/pool"
)

// pools is the set of all pools: for each workload of the config the one that takes
// its calls, and those that are on their way out, because a reload has removed
// their workload or put another pool in their place.
//
// No call is counted here: a pool knows itself who is in it. One that is on its way
// out hands back, untouched, whoever found it too late, and [pools.Do] looks again.
// The mutex guards the lists and is never held while a pool is waited for.
type pools struct {
	open      func(config.Workload) *pool.Pool
	isolation func(config.Workload) string
	enforced  func(config.Workload) map[string]string // how each limit of a workload's trees is

	mu       sync.Mutex
	current  []*member // in the order of the config
	byName   map[string]*member
	coming   []*member // of a plan that is neither committed nor dropped
	retiring []*member // in the order in which they were told to go
	drained  bool      // nothing comes any more

	going sync.WaitGroup // a goroutine for each that is retiring
}

// member is a pool and what it was made for.
type member struct {
	*pool.Pool
	workload config.Workload
}

// changes names the workloads that a reload touches.
type changes struct{ added, removed, changed []string }

// plan is the pools to come: those that stay, and new ones, which have begun to
// start beside them.
type plan struct {
	changes
	pools []*member
	fresh []*member // those that are new
}

// Do is the one door: it finds the pool of a call's workload.
func (ps *pools) Do(ctx context.Context, c *call.Call) error {
	for {
		m := ps.find(c.Workload)
		if m == nil {
			return fmt.Errorf("%w: %q", call.ErrNoSuchWorkload, c.Workload)
		}
		if err := m.Do(ctx, c); !errors.Is(err, pool.ErrRetired) {
			return err
		}
	}
}

func (ps *pools) find(workload string) *member {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.byName[workload]
}

// prepare makes a plan for these workloads and no others. Nothing that is there is
// touched. It fails in a drain, and where this server may not run them. There is one
// plan at a time.
func (ps *pools) prepare(workloads []config.Workload) (*plan, error) {
	for _, w := range workloads {
		if err := Allowed(w); err != nil {
			return nil, err
		}
	}
	p := &plan{changes: changes{[]string{}, []string{}, []string{}}}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.drained {
		return nil, call.ErrDraining
	}
	removed := maps.Clone(ps.byName)
	for _, w := range workloads {
		m := removed[w.Name]
		delete(removed, w.Name)
		if m == nil || !reflect.DeepEqual(m.workload, w) {
			names := &p.changed
			if m == nil {
				names = &p.added
			}
			*names = append(*names, w.Name)
			m = &member{ps.open(w), w}
			p.fresh = append(p.fresh, m)
		}
		p.pools = append(p.pools, m)
	}
	for _, m := range ps.current {
		if removed[m.workload.Name] != nil {
			p.removed = append(p.removed, m.workload.Name)
		}
	}
	ps.coming = p.fresh
	return p, nil
}

// settle waits for the first worker of each new pool, as long as ctx lets it. It
// returns what is wrong with those that could not start one.
func (p *plan) settle(ctx context.Context) (wrong []string) {
	for _, m := range p.fresh {
		if err := m.Settle(ctx); err != nil {
			wrong = append(wrong, fmt.Sprintf("workloads.%s: %v", m.workload.Name, err))
		}
	}
	return wrong
}

// commit has the pools of a plan take every call from now on. The others are
// retired, and go in their own time.
func (ps *pools) commit(p *plan) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for _, m := range ps.current {
		if !slices.Contains(p.pools, m) {
			ps.retire(m)
		}
	}
	ps.current, ps.byName, ps.coming = p.pools, make(map[string]*member, len(p.pools)), nil
	for _, m := range p.pools {
		ps.byName[m.workload.Name] = m
	}
}

// drop lets go of the new pools of a plan, unless the drain has come first: then
// close does.
func (ps *pools) drop(p *plan) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.drained {
		return
	}
	for _, m := range p.fresh {
		ps.retire(m)
	}
	ps.coming = nil
}

// retire has a pool go, in a goroutine that ends when it is gone. A call that the
// pool hands back meanwhile waits in find until commit is done.
func (ps *pools) retire(m *member) {
	ps.retiring = append(ps.retiring, m)
	ps.going.Go(func() {
		m.Retire()
		ps.mu.Lock()
		defer ps.mu.Unlock()
		ps.retiring = slices.DeleteFunc(ps.retiring, func(other *member) bool { return other == m })
	})
}

// all returns the pools that take calls, and those that are on their way out.
func (ps *pools) all() (current, retiring []*member) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return slices.Clone(ps.current), slices.Clone(ps.retiring)
}

// snapshots tells how every pool stands, in the order of the config, and those on
// their way out behind them.
func (ps *pools) snapshots() []event.Pool {
	current, retiring := ps.all()
	list := make([]event.Pool, 0, len(current)+len(retiring))
	for _, m := range current {
		list = append(list, ps.snapshot(m))
	}
	for _, m := range retiring {
		snapshot := ps.snapshot(m)
		snapshot.Retiring = true
		list = append(list, snapshot)
	}
	return list
}

func (ps *pools) snapshot(m *member) event.Pool {
	snapshot := m.Snapshot()
	snapshot.Isolation = ps.isolation(m.workload)
	snapshot.Limits = ps.enforced(m.workload)
	return snapshot
}

// drain lets no new calls in, and makes no more plans. There is no commit after it.
func (ps *pools) drain() {
	ps.mu.Lock()
	ps.drained = true
	ps.mu.Unlock()
	current, _ := ps.all()
	for _, m := range current {
		m.Drain()
	}
}

// grace is how long the longest stop sequence takes.
func (ps *pools) grace() time.Duration {
	current, retiring := ps.all()
	grace := time.Duration(0)
	for _, m := range slices.Concat(current, retiring) {
		grace = max(grace, m.workload.Stop.Cooperative+m.workload.Stop.Grace)
	}
	return grace
}

// close lets go of every pool, and returns when all are gone, or ctx ends. It
// returns an error for each that leaves something behind.
func (ps *pools) close(ctx context.Context) []error {
	ps.mu.Lock()
	members := slices.Concat(ps.current, ps.coming, ps.retiring)
	ps.mu.Unlock()
	errs := make([]error, len(members))
	var closing sync.WaitGroup
	for i, m := range members {
		closing.Go(func() { errs[i] = m.Close(ctx) })
	}
	closing.Wait()
	ps.going.Wait()
	return slices.DeleteFunc(errs, func(err error) bool { return err == nil })
}
