package observe

import (
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/hangup/internal/event"
	"github.com/google/go-cmp/cmp"
)

func quiet() *slog.Logger { return NewLogger(io.Discard, "json", "error") }

func observer(pools ...event.Pool) *Observer {
	return New(Options{
		Log: quiet(), Workloads: []string{"echo", "resize"},
		Pools: func() []event.Pool { return pools }, Containment: event.Containment{Level: "subreaper", Layers: []event.Layer{{Name: "cgroup"}, {Name: "subreaper", On: true}}},
	})
}

// scrape returns the sample lines of hangup's own metrics.
func scrape(t *testing.T, o *Observer) []string {
	t.Helper()
	rec := httptest.NewRecorder()
	o.Handler().ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	if rec.Code != 200 {
		t.Fatalf("GET /metrics: %d: %s", rec.Code, rec.Body)
	}
	var lines []string
	for line := range strings.Lines(rec.Body.String()) {
		if !strings.HasPrefix(line, "#") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

func has(t *testing.T, lines []string, wants ...string) {
	t.Helper()
	set := map[string]bool{}
	for _, line := range lines {
		set[line] = true
	}
	for _, want := range wants {
		if !set[want] {
			t.Errorf("no sample %q", want)
		}
	}
	if t.Failed() {
		t.Logf("samples:\n%s", strings.Join(lines, "\n"))
	}
}

func TestEverySeriesIsThereFromTheStart(t *testing.T) {
	lines := scrape(t, observer(event.Pool{Name: "echo"}))
	for _, w := range []string{"", "echo", "resize"} {
		for _, o := range []string{"done", "failed", "cancelled", "timed-out", "crashed", "rejected"} {
			has(t, lines, `hangup_calls_total{outcome="`+o+`",workload="`+w+`"} 0`)
		}
		has(t, lines,
			`hangup_calls_accepted_total{workload="`+w+`"} 0`,
			`hangup_killed_processes_total{workload="`+w+`"} 0`,
			`hangup_call_seconds_count{workload="`+w+`"} 0`,
			`hangup_queue_seconds_count{workload="`+w+`"} 0`,
			`hangup_kill_seconds_count{workload="`+w+`"} 0`)
	}
	for _, state := range event.WorkerStates {
		has(t, lines, `hangup_workers{state="`+string(state)+`",workload="echo"} 0`)
	}
	has(t, lines,
		`hangup_queue_length{workload="echo"} 0`,
		`hangup_trees_not_empty{workload="echo"} 0`,
		`hangup_containment{isolation="none",level="subreaper"} 1`, `hangup_containment_layer{layer="cgroup"} 0`, `hangup_containment_layer{layer="subreaper"} 1`)

	text := strings.Join(lines, "\n")
	for _, name := range []string{"\nprocess_open_fds ", "\ngo_goroutines "} {
		if !strings.Contains(text, name) {
			t.Errorf("no metric %q", name)
		}
	}
}

func TestGaugesAreThePoolsAtTheScrape(t *testing.T) {
	pool := event.Pool{Name: "echo"}
	o := New(Options{Log: quiet(), Workloads: []string{"echo"}, Pools: func() []event.Pool { return []event.Pool{pool} }})
	scrape(t, o)

	pool.Queued, pool.NotEmpty = 3, 1
	pool.Workers = []event.Worker{{State: event.Idle}, {State: event.Busy}, {State: event.Busy}, {State: event.Dying}}
	has(t, scrape(t, o),
		`hangup_queue_length{workload="echo"} 3`,
		`hangup_trees_not_empty{workload="echo"} 1`,
		`hangup_workers{state="idle",workload="echo"} 1`,
		`hangup_workers{state="busy",workload="echo"} 2`,
		`hangup_workers{state="dying",workload="echo"} 1`,
		`hangup_workers{state="starting",workload="echo"} 0`)
}

// TestAddedWorkload: its series begin at 0, and the others go on.
func TestAddedWorkload(t *testing.T) {
	o := observer()
	o.Sink()(event.CallEnded{Workload: "echo", Outcome: event.Rejected})
	o.Add([]string{"new", "echo"})
	lines := scrape(t, o)
	has(t, lines, `hangup_calls_total{outcome="rejected",workload="echo"} 1`)
	for _, outcome := range outcomes {
		has(t, lines, `hangup_calls_total{outcome="`+string(outcome)+`",workload="new"} 0`)
	}
	o.Sink()(event.CallEnded{Workload: "new", Outcome: event.Rejected})
	has(t, scrape(t, o), `hangup_calls_total{outcome="rejected",workload="new"} 1`, `hangup_calls_total{outcome="rejected",workload=""} 0`)
}

// TestTwoPoolsOfAWorkload are counted together, and their dead apart.
func TestTwoPoolsOfAWorkload(t *testing.T) {
	o := observer(
		event.Pool{Name: "echo", Queued: 1, Workers: []event.Worker{{State: event.Idle}}},
		event.Pool{Name: "echo", Queued: 2, NotEmpty: 1, Workers: []event.Worker{{State: event.Idle}, {State: event.Busy}}, Retiring: true},
	)
	has(t, scrape(t, o),
		`hangup_queue_length{workload="echo"} 3`,
		`hangup_trees_not_empty{workload="echo"} 1`,
		`hangup_workers{state="idle",workload="echo"} 2`,
		`hangup_workers{state="busy",workload="echo"} 1`)
	for _, pid := range []int{100, 200} {
		o.Sink()(event.TreeStopped{Workload: "echo", Worker: 1, Pid: pid, Stop: event.Stop{Killed: 3}})
	}
	has(t, scrape(t, o), `hangup_killed_processes_total{workload="echo"} 6`)
}

// TestLogChanges: format and level of what is logged after it, also by those who
// have had the logger before.
func TestLogChanges(t *testing.T) {
	var out strings.Builder
	log := NewLog(&out, "json", "error")
	sink := New(Options{Log: log.Logger}).Sink()
	sink(event.CallEnded{Call: "before", Outcome: event.Done})
	log.Change("text", "info")
	sink(event.CallEnded{Call: "after", Outcome: event.Done})
	log.Debug("too low")
	if got := out.String(); !strings.Contains(got, "call=after") || strings.Count(got, "\n") != 1 {
		t.Errorf("logged: %s", got)
	}
}

func TestStrangersMakeNoSeries(t *testing.T) {
	o := observer()
	before := len(scrape(t, o))
	for _, name := range []string{"nope", "x\"} 1\nevil 7", "../../etc"} {
		o.Sink()(event.CallEnded{Workload: name, Outcome: event.Rejected})
	}
	lines := scrape(t, o)
	has(t, lines, `hangup_calls_total{outcome="rejected",workload=""} 3`)
	// The process collector may add a line of its own between two scrapes.
	for _, line := range lines {
		if strings.Contains(line, "evil") || strings.Contains(line, "nope") {
			t.Errorf("a caller made %q", line)
		}
	}
	if after := len(lines); after > before+2 {
		t.Errorf("%d samples after, %d before", after, before)
	}
}

// At any quiet moment accepted is the sum of the outcomes but rejected, however
// the calls went and whoever told of them at once.
func TestSumsBalance(t *testing.T) {
	o := observer()
	sink := o.Sink()
	var running sync.WaitGroup
	for range 8 {
		running.Go(func() {
			for range 500 {
				end := event.CallEnded{Workload: "echo", Outcome: outcomes[rand.N(len(outcomes))]}
				if rand.N(3) > 0 { // cancelled calls need not have been started, and a rejected one may have been
					sink(event.CallStarted{Workload: "echo", Waited: time.Millisecond})
					end.Started = true // Ran may still be 0: clocks are coarse
				}
				sink(end)
			}
		})
	}
	running.Wait()

	var ended, rejected, accepted int
	for _, line := range scrape(t, o) {
		name, value, _ := strings.Cut(line, " ")
		n, _ := strconv.Atoi(value)
		switch {
		case name == `hangup_calls_accepted_total{workload="echo"}`:
			accepted = n
		case name == `hangup_calls_total{outcome="rejected",workload="echo"}`:
			rejected = n
			ended += n
		case strings.HasPrefix(name, `hangup_calls_total{`):
			ended += n
		}
	}
	if ended != 4000 || accepted != ended-rejected {
		t.Errorf("%d ended, %d of them rejected, %d accepted", ended, rejected, accepted)
	}
}

func TestStopsAreCountedOnce(t *testing.T) {
	o := observer()
	stop := func(worker uint64, killed int, empty bool, took time.Duration) {
		o.Sink()(event.TreeStopped{Workload: "echo", Worker: worker, Stop: event.Stop{Killed: killed, Empty: empty, Took: took}})
	}
	stop(1, 10, true, 5*time.Millisecond)
	stop(2, 4, false, 2*time.Second) // one of five would not die
	stop(2, 4, false, 4*time.Second)
	stop(2, 5, true, 6*time.Second) // now it has
	has(t, scrape(t, o),
		`hangup_killed_processes_total{workload="echo"} 15`,
		`hangup_kill_seconds_count{workload="echo"} 2`,
		`hangup_kill_seconds_sum{workload="echo"} 6.005`)
	if diff := cmp.Diff(map[tree]int{}, o.metrics.lying); diff != "" {
		t.Errorf("still lying (-want +got):\n%s", diff)
	}
}

func BenchmarkCallEnded(b *testing.B) {
	buffer := NewBuffer(io.Discard)
	defer buffer.Close()
	sink := New(Options{Log: NewLogger(buffer, "json", "info"), Workloads: []string{"echo"}}).Sink()
	e := event.CallEnded{
		Call: "0193b0a5-6f5e-7c6a-9a5b-2f6f0d9f2c11", Workload: "echo", Caller: "127.0.0.1", Outcome: event.Done,
		Waited: 40 * time.Microsecond, Ran: 90 * time.Microsecond, At: time.Now(),
	}
	b.ReportAllocs()
	for b.Loop() {
		sink(e)
	}
}

func BenchmarkCallStarted(b *testing.B) {
	sink := New(Options{Log: quiet(), Workloads: []string{"echo"}}).Sink()
	e := event.CallStarted{Workload: "echo", Waited: 40 * time.Microsecond}
	b.ReportAllocs()
	for b.Loop() {
		sink(e)
	}
}
