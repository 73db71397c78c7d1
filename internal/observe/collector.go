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
	for _, p := range c.pools() {
		count := make(map[event.WorkerState]int, len(event.WorkerStates))
		for _, w := range p.Workers {
			count[w.State]++
		}
		for _, state := range event.WorkerStates {
			gauge(workerCount, count[state], p.Name, string(state))
		}
		gauge(queueLength, p.Queued, p.Name)
		gauge(treesNotEmpty, p.NotEmpty, p.Name)
	}
}
