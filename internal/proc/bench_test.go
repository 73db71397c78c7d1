package proc_test

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"example.com/hangup/internal/proc"
	"example.com/hangup/internal/proctest"
)

// BenchmarkStop measures from the decision to the proof that a tree is empty,
// beside the least that could be done: kill and wait for each of as many children
// of one's own. The numbers of interest are p50-ms and p99-ms.
func BenchmarkStop(b *testing.B) {
	for _, n := range []int{1, 10, 100} {
		b.Run(fmt.Sprintf("tree/%d", n), func(b *testing.B) {
			host := open(b)
			spec := sh(`i=1; while [ $i -lt ` + strconv.Itoa(n) + ` ]; do i=$((i+1)); sleep 1000 & done; exec sleep 1000`)
			measure(b, func() time.Duration {
				tree := start(b, host, spec)
				grown(b, tree, n)
				for name(tree.Pid()) != "sleep" {
					time.Sleep(time.Millisecond)
				}
				tree.Kill()
				return ended(b, tree).Took
			})
		})
		b.Run(fmt.Sprintf("bare/%d", n), func(b *testing.B) {
			measure(b, func() time.Duration {
				children := make([]*os.Process, n)
				for i := range children {
					var err error
					if children[i], err = os.StartProcess("/bin/sleep", []string{"sleep", "1000"}, &os.ProcAttr{Env: proctest.Env()}); err != nil {
						b.Fatal(err)
					}
				}
				began := time.Now()
				for _, child := range children {
					child.Kill()
				}
				for _, child := range children {
					child.Wait()
				}
				return time.Since(began)
			})
		})
	}
}

// BenchmarkStart measures a start and the end of /bin/true, under a shim that is
// there already, in a cgroup and without.
func BenchmarkStart(b *testing.B) {
	for _, cgroup := range []string{proc.CgroupAuto, proc.CgroupNever} {
		b.Run("cgroup="+cgroup, func(b *testing.B) {
			host := openWith(b, cgroup)
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
