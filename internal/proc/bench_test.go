//go:build linux && !portable

package proc_test

import (
	"slices"
	"testing"
	"time"

	"example.com/hangup/internal/proc"
	"example.com/hangup/internal/proctest"
)

// BenchmarkStart measures a start and the end of /bin/true, under a shim that is
// there already, in each containment.
func BenchmarkStart(b *testing.B) {
	for _, c := range containments {
		b.Run(c.name, func(b *testing.B) {
			host := openWith(b, c)
			spec := sh("")
			spec.Argv = []string{"/bin/true"}
			measure(b, func() time.Duration {
				began := time.Now()
				<-start(b, host, spec).Done()
				return time.Since(began)
			})
		})
	}
}

// BenchmarkOpen measures the opening of a host, which is the start of a shim.
func BenchmarkOpen(b *testing.B) {
	shim := proctest.Shim(b)
	measure(b, func() time.Duration {
		began := time.Now()
		host, err := proc.Open(proc.Options{Shim: shim})
		took := time.Since(began)
		if err != nil {
			b.Fatal(err)
		}
		host.Close()
		return took
	})
}

func measure(b *testing.B, once func() time.Duration) {
	var all []time.Duration
	for b.Loop() {
		all = append(all, once())
	}
	slices.Sort(all)
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	b.ReportMetric(ms(all[len(all)/2]), "p50-ms")
	b.ReportMetric(ms(all[len(all)*99/100]), "p99-ms")
}
