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
	containment = prometheus.NewDesc("hangup_containment",
		"1: the containment in force, and the isolation of the weakest workload.", []string{"level", "isolation"}, nil)
	containmentLayer = prometheus.NewDesc("hangup_containment_layer",
		"Whether a layer of the containment is in force: 1, or 0 where it is missing.", []string{"layer"}, nil)
)

// sum is all pools of one workload together: one that a reload has changed has
// another, for a while, with the calls that were in it.
type sum struct {
	workers          map[event.WorkerState]int
	queued, notEmpty int
}

// poolCollector makes the gauges of the pools at the moment of a scrape, so that
// nothing keeps a second count of what the pools know. So it is with the isolation,
// which a reload may change.
type poolCollector struct {
	pools func() []event.Pool
	held  event.Containment
}

func (poolCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- queueLength
	ch <- workerCount
	ch <- treesNotEmpty
	ch <- containment
	ch <- containmentLayer
}

func (c poolCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, n int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n), labels...)
	}
	sums, pools := map[string]*sum{}, c.pools()
	gauge(containment, 1, c.held.Level, event.WeakestOf(pools))
	for _, layer := range c.held.Layers {
		on := 0
		if layer.On {
			on = 1
		}
		gauge(containmentLayer, on, layer.Name)
	}
	for _, p := range pools {
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
