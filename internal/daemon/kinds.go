package daemon

import (
	"context"

	"example.com/hangup/internal/config"
	"example.com/hangup/internal/event"
	"example.com/hangup/internal/kind"
	"example.com/hangup/internal/kind/worker"
	"example.com/hangup/internal/pool"
	"example.com/hangup/internal/scratch"
)

// kinds has a row a kind of work: how its workers are launched.
var kinds = map[string]func(s *server, w config.Workload, emit event.Sink) pool.Launch{
	"worker": launchWorker,
}

// open makes the pool of a workload. config has checked that its kind exists.
func (s *server) open(ctx context.Context, w config.Workload, emit event.Sink) *pool.Pool {
	return pool.New(ctx, pool.Options{
		Name: w.Name, Kind: w.Kind, Limit: w.Workers, Spares: w.Spares,
		QueueLength: w.Queue.Length, QueueWait: w.Queue.Wait,
		StartTimeout: w.StartTimeout, Timeout: w.Timeout, Cooperative: w.Stop.Cooperative,
		Launch: kinds[w.Kind](s, w, emit), Emit: emit,
	})
}

// enforced tells how each limit of a workload's process trees is enforced here.
func (s *server) enforced(w config.Workload) map[string]string {
	return s.host.Enforcement(kind.Limits(w))
}

func launchWorker(s *server, w config.Workload, emit event.Sink) pool.Launch {
	o := worker.Options{Host: s.host, Scratch: s.scratch, Workload: w, Emit: emit}
	if u := w.User; u != nil {
		o.Owner = &scratch.Owner{UID: u.UID, GID: u.GID}
	}
	return func(ctx context.Context, exited func()) (pool.Worker, pool.Info, error) {
		one, err := worker.Start(ctx, o, exited)
		if one == nil {
			return nil, pool.Info{}, err
		}
		return one, pool.Info{Pid: one.Pid(), ShimPid: one.ShimPid(), Tasks: one.Tasks(), RSS: one.RSS, Sound: one.Sound}, err
	}
}
