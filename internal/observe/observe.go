// Package observe turns what happened into log records and metrics.
//
// It promises one record for each event it logs, whatever bytes the event
// carries, and metrics whose sums balance: whenever no call is under way,
// hangup_calls_accepted_total equals the sum of hangup_calls_total over all
// outcomes but rejected. It is the only room that knows a metrics library, and
// nothing in the program decides anything by what it holds.
//
// The package has no goroutine but the writer of a [Buffer]. It imports event and
// nothing else of this module.
package observe

import (
	"log/slog"
	"net/http"

	"example.com/hangup/internal/event"
)

// Options say what an Observer works with.
type Options struct {
	Log *slog.Logger

	// Workloads are the names that calls are counted under, beside those that
	// [Observer.Add] brings. Their series are there from the start, at 0. A call
	// for any other name, which only a refused one can have, is counted under "",
	// so that callers cannot make series.
	Workloads []string

	// Pools tells how the pools stand. It is called once for each scrape. Those of
	// one name are counted together.
	Pools func() []event.Pool

	// Containment is how the trees are held.
	Containment event.Containment
}

// Observer listens to events. Its methods may be called from any goroutine.
type Observer struct {
	records *records
	metrics *metrics
}

// New makes an Observer.
func New(o Options) *Observer {
	return &Observer{records: &records{o.Log.Handler()}, metrics: newMetrics(o)}
}

// Sink returns where events go in.
func (o *Observer) Sink() event.Sink {
	return func(e event.Event) {
		o.metrics.count(e)
		o.records.write(e)
	}
}

// Add has calls counted under more workloads, whose series begin at 0. Those that
// are there stay: a counter never goes back.
func (o *Observer) Add(workloads []string) { o.metrics.add(workloads) }

// Handler serves the metrics in the Prometheus formats.
func (o *Observer) Handler() http.Handler { return o.metrics.handler() }
