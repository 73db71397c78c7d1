package daemon

import (
	"context"
	"errors"
	"fmt"
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
	open func(config.Workload) *pool.Pool

	mu       sync.Mutex
	current  []*member // in the order of the config
	byName   map[string]*member
	retiring []*member // in the order in which they were told to go

	going sync.WaitGroup // a goroutine for each that is retiring
}

// member is a pool and what it was made for.
type member struct {
	*pool.Pool
	workload config.Workload
}

// changes names the workloads that a reload has touched.
type changes struct{ added, removed, changed []string }

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

// swap has these workloads served from now on and no others. The pool of one that
// is as it was is not touched. All others start, or are retired, in their own time.
func (ps *pools) swap(workloads []config.Workload) changes {
	c := changes{[]string{}, []string{}, []string{}}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	current := make([]*member, 0, len(workloads))
	byName := make(map[string]*member, len(workloads))
	for _, w := range workloads {
		m := ps.byName[w.Name]
		switch {
		case m == nil:
			c.added = append(c.added, w.Name)
			m = &member{ps.open(w), w}
		case !reflect.DeepEqual(m.workload, w):
			c.changed = append(c.changed, w.Name)
			ps.retire(m)
			m = &member{ps.open(w), w}
		}
		current = append(current, m)
		byName[w.Name] = m
	}
	for _, m := range ps.current {
		if byName[m.workload.Name] == nil {
			c.removed = append(c.removed, m.workload.Name)
			ps.retire(m)
		}
	}
	ps.current, ps.byName = current, byName
	return c
}

// retire has a pool go, in a goroutine that ends when it is gone. A call that the
// pool hands back meanwhile waits in find until swap is done.
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
		list = append(list, m.Snapshot())
	}
	for _, m := range retiring {
		snapshot := m.Snapshot()
		snapshot.Retiring = true
		list = append(list, snapshot)
	}
	return list
}

// drain lets no new calls in. There is no swap after it.
func (ps *pools) drain() {
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
	current, retiring := ps.all()
	members := slices.Concat(current, retiring)
	errs := make([]error, len(members))
	var closing sync.WaitGroup
	for i, m := range members {
		closing.Go(func() { errs[i] = m.Close(ctx) })
	}
	closing.Wait()
	ps.going.Wait()
	return slices.DeleteFunc(errs, func(err error) bool { return err == nil })
}
