package observe

import (
	"github.com/prometheus/client_golang/prometheus"

	"example.com/hangup/internal/event"
)

var (
	queueLength = prometheus.NewDesc("hangup_queue_length",
		"Calls that have a place and no worker yet.", []string{"workload"}, nil)
	workerCount = prometheus.NewDesc("hangup_workers",
		"Workers, by state.", []string{"workload", "state"}, nil)
	treesNotEmpty = prometheus.NewDesc("hangup_trees_not_empty",
		"Stopped process trees that still have processes after the verdict.", []string{"workload"}, nil)
)

// sum is all pools of one workload together: one that a reload has changed has
// another, for a while, with the calls that were in it.
type sum struct {
	workers          map[event.WorkerState]int
	queued, notEmpty int
}

// poolCollector makes the gauges of the pools at the moment of a scrape, so that
// nothing keeps a second count of what the pools know.
type poolCollector struct{ pools func() []event.Pool }

func (poolCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- queueLength
	ch <- workerCount
	ch <- treesNotEmpty
}

func (c poolCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, n int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n), labels...)
	}
	sums := map[string]*sum{}
	for _, p := range c.pools() {
		s := sums[p.Name]
		if s == nil {
			s = &sum{workers: make(map[event.WorkerState]int, len(event.WorkerStates))}
			sums[p.Name] = s
		}
		for _, w := range p.Workers {
			s.workers[w.State]++
		}
		s.queued += p.Queued
		s.notEmpty += p.NotEmpty
	}
	for name, s := range sums {
		for _, state := range event.WorkerStates {
			gauge(workerCount, s.workers[state], name, string(state))
		}
		gauge(queueLength, s.queued, name)
		gauge(treesNotEmpty, s.notEmpty, name)
	}
}
