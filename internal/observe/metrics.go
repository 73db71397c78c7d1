package observe

import (
	"maps"
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"example.com/hangup/internal/event"
)

// The upper bounds of the histograms' buckets, in seconds. Calls last from a
// warm round trip to the default time limit, waits to the default queue.wait,
// and a kill from one process (half a millisecond) to the 2 s after which a
// verdict is given without proof.
var (
	callBuckets  = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300}
	queueBuckets = []float64{.0001, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}
	killBuckets  = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 1.25, 2, 5, 10}
)

// outcomes are all the ways a call can end.
var outcomes = []event.Outcome{
	event.Done, event.Failed, event.Cancelled, event.TimedOut, event.Crashed, event.Rejected,
}

// metrics counts events. A series that was there once stays, so that no counter
// ever goes back.
type metrics struct {
	registry                     *prometheus.Registry
	total, accepted, killed      *prometheus.CounterVec
	callTime, queueTime, killing *prometheus.HistogramVec

	series atomic.Pointer[map[string]*series] // by workload; "" is for all names not declared; replaced, never changed

	mu    sync.Mutex   // held while series are added, and for:
	lying map[tree]int // killed so far in trees whose verdict was not empty
}

// series are the metrics of one workload, looked up once.
type series struct {
	total    map[event.Outcome]prometheus.Counter
	accepted prometheus.Counter
	call     prometheus.Observer
	queue    prometheus.Observer
	kill     prometheus.Observer
	killed   prometheus.Counter
}

// tree is one process tree. Two pools of a workload, one of which is on its way
// out, may both have a worker of that number.
type tree struct {
	workload string
	worker   uint64
	pid      int
}

func newMetrics(o Options) *metrics {
	m := &metrics{registry: prometheus.NewRegistry(), lying: map[tree]int{}}
	m.series.Store(&map[string]*series{})
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		m.registry.MustRegister(v)
		return v
	}
	histogram := func(name, help string, buckets []float64) *prometheus.HistogramVec {
		v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, []string{"workload"})
		m.registry.MustRegister(v)
		return v
	}
	m.total = counter("hangup_calls_total", "Calls that have ended, by outcome.", "workload", "outcome")
	m.accepted = counter("hangup_calls_accepted_total", "Calls that have ended, and were not rejected.", "workload")
	m.callTime = histogram("hangup_call_seconds", "From a call's headers to its end, rejected calls left out.", callBuckets)
	m.queueTime = histogram("hangup_queue_seconds", "From a call's headers to its worker, body included.", queueBuckets)
	m.killing = histogram("hangup_kill_seconds", "From the decision to stop a worker to its tree verified empty.", killBuckets)
	m.killed = counter("hangup_killed_processes_total", "Processes reaped from trees that were stopped.", "workload")
	m.add(append([]string{""}, o.Workloads...))
	m.registry.MustRegister(
		poolCollector{o.Pools, o.Containment},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return m
}

// add has calls counted under more names, from 0 on.
func (m *metrics) add(names []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := maps.Clone(*m.series.Load())
	for _, name := range names {
		if all[name] != nil {
			continue
		}
		s := &series{
			total: make(map[event.Outcome]prometheus.Counter, len(outcomes)), accepted: m.accepted.WithLabelValues(name),
			call: m.callTime.WithLabelValues(name), queue: m.queueTime.WithLabelValues(name),
			kill: m.killing.WithLabelValues(name), killed: m.killed.WithLabelValues(name),
		}
		for _, outcome := range outcomes {
			s.total[outcome] = m.total.WithLabelValues(name, string(outcome))
		}
		all[name] = s
	}
	m.series.Store(&all)
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{Registry: m.registry})
}

func (m *metrics) of(workload string) *series {
	all := *m.series.Load()
	if s := all[workload]; s != nil {
		return s
	}
	return all[""]
}

func (m *metrics) count(e event.Event) {
	switch e := e.(type) {
	case event.CallStarted:
		m.of(e.Workload).queue.Observe(e.Waited.Seconds())
	case event.CallEnded:
		s := m.of(e.Workload)
		if e.Outcome != event.Rejected { // which a call can be whose worker found its input malformed
			s.accepted.Inc()
			s.call.Observe((e.Waited + e.Ran).Seconds())
		}
		s.total[e.Outcome].Inc()
	case event.TreeStopped:
		m.countStop(e)
	}
}

// countStop counts a tree's dead once, though a verdict that was not empty is
// followed by another with all of them.
func (m *metrics) countStop(e event.TreeStopped) {
	s, t := m.of(e.Workload), tree{e.Workload, e.Worker, e.Pid}
	m.mu.Lock()
	before := m.lying[t]
	if e.Stop.Empty {
		delete(m.lying, t)
	} else {
		m.lying[t] = max(before, e.Stop.Killed)
	}
	m.mu.Unlock()
	s.killed.Add(float64(max(0, e.Stop.Killed-before)))
	if e.Stop.Empty {
		s.kill.Observe(e.Stop.Took.Seconds())
	}
}
