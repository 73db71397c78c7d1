// Command flood measures what callers notice while others attack the server: by ten
// thousand connections whose headers never end, by streams of HTTP/2 that are reset at
// once, and by connections opened for nothing. A flooder is a process of its own with
// an address of its own. Callers offer a modest, steady load, once at rest and once in
// the flood, then as many calls as they can; the same is done to a bare net/http echo,
// which shows what is the machine's share: generator and server have the same CPUs.
//
// It needs bin/hangup and bin/hangup-shim (make build), and 11,000 descriptors
// (ulimit -n). Everything stays on loopback, ends by itself, and leaves nothing.
package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"example.com/hangup/worker"
)

var (
	program = flag.String("hangup", "bin/hangup", "the program to measure")
	seconds = flag.Int("seconds", 30, "length of each flood")
	short   = flag.Bool("short", false, "floods of 3 s")
	only    = flag.String("only", "", "the floods to run, by name, with commas")
	rate    = flag.Int("rate", 400, "calls a second that the callers offer together")
	role    = flag.String("role", "", "internal: be the floor, a worker or a flooder")
	target  = flag.String("target", "", "internal: the address that a flooder floods")
)

func main() {
	flag.Parse()
	if *short {
		*seconds = 3
	}
	var err error
	switch name, flooding := strings.CutPrefix(*role, "flooder:"); {
	case flooding:
		err = beFlooder(name)
	case *role == "floor":
		err = beFloor()
	case *role == "worker":
		err = worker.Serve(worker.Tasks{
			"echo": func(_ context.Context, c *worker.Call) (any, error) { return c.Input() },
			"hang": func(ctx context.Context, _ *worker.Call) (any, error) { <-ctx.Done(); return nil, ctx.Err() },
		})
	default:
		err = measure()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "flood:", err)
		os.Exit(1)
	}
}

// measure runs every flood against a fresh server and a fresh floor, and prints what
// came of it.
func measure() error {
	dir, err := os.MkdirTemp("", "hangup-flood-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := writeCertificate(dir); err != nil {
		return err
	}
	fmt.Printf("%d calls/s offered by %d callers, floods of %d s\n", *rate, callers, *seconds)
	fmt.Printf("%-18s %-7s %24s %24s %14s %16s %26s %9s\n", "", "", "paced, at rest", "paced, in the flood", "closed loop", "CPUs used by", "the flood", "memory")
	fmt.Printf("%-18s %-7s %8s %7s %7s %8s %7s %7s %6s %7s %8s %7s %10s %15s %9s\n", "flood", "server",
		"calls/s", "p50 ms", "p99 ms", "ratio", "p50 ms", "p99 ms", "calls", "ratio", "server", "flooder", "units/s", "CPU µs a unit", "MiB more")
	for _, f := range floods {
		if *only != "" && !slices.Contains(strings.Split(*only, ","), f.name) {
			continue
		}
		var remarks []string
		for _, start := range []func(string, bool) (*server, error){startHangup, startFloor} {
			remark, err := measureOne(dir, f, start)
			if err != nil {
				return fmt.Errorf("%s: %w", f.name, err)
			}
			remarks = append(remarks, remark...)
		}
		for _, r := range remarks {
			fmt.Println("    " + r)
		}
	}
	return nil
}

// measureOne measures one flood of one server, and prints a line of the table.
func measureOne(dir string, f flood, start func(dir string, secure bool) (*server, error)) (remarks []string, err error) {
	s, err := start(dir, f.secure)
	if err != nil {
		return nil, err
	}
	defer func() { err = cmp.Or(err, s.end()) }()
	length := time.Duration(*seconds) * time.Second
	quiet := max(length/6, time.Second)

	restClosed, err := closedLoop(s, quiet)
	if err != nil {
		return nil, err
	}
	before := s.used()
	rest := paced(s, quiet)
	idle := s.used().cpu - before.cpu // of the callers alone

	began, before := time.Now(), s.used()
	countsBefore, err := s.counts()
	if err != nil {
		return nil, err
	}
	flooder, err := startFlooder(f, s.address)
	if err != nil {
		return nil, err
	}
	defer flooder.end() //nolint:errcheck // once more, where it was not reached
	memory := s.watchMemory()
	inside, flooderBefore := s.used(), cpu(flooder.cmd.Process.Pid)
	did := flooder.done()
	in := paced(s, length)
	span := in.took
	usedCPU := s.used().cpu - inside.cpu
	floodCPU := cpu(flooder.cmd.Process.Pid) - flooderBefore
	did = flooder.done() - did
	inClosed, closedErr := closedLoop(s, quiet)
	peak := memory()
	took := time.Since(began)
	countsAfter, err := s.counts()
	if err != nil {
		return nil, err
	}
	what, err := flooder.end()
	if err != nil {
		return nil, err
	}

	own := usedCPU - time.Duration(float64(idle)*float64(span)/float64(rest.took))
	fmt.Printf("%-18s %-7s %8.0f %7.2f %7.2f %8.3f %7.2f %7.2f %6.0f %7.2f %8.2f %7.2f %10.0f %15.1f %9.1f\n", f.name, s.name,
		rest.rate(), ms(rest.quantile(.5)), ms(rest.quantile(.99)),
		in.rate()/rest.rate(), ms(in.quantile(.5)), ms(in.quantile(.99)),
		inClosed.rate(), inClosed.rate()/restClosed.rate(),
		usedCPU.Seconds()/span.Seconds(), floodCPU.Seconds()/span.Seconds(), float64(did)/span.Seconds(),
		float64(own.Microseconds())/float64(max(did, 1)), float64(peak-before.memory)/(1<<20))

	if len(in.failures)+len(inClosed.failures)+len(rest.failures) > 0 || closedErr != nil {
		remarks = append(remarks, fmt.Sprintf("%s: calls that failed: at rest %v, in the flood %v, in the closed loop %v", s.name, rest.failures, in.failures, inClosed.failures))
	}
	remarks = append(remarks, fmt.Sprintf("%s: the flooder: %s; calls answered in each second: %v", s.name, what, in.seconds))
	if countsAfter != nil {
		budget := hangupsBurst + hangupsPerMinute*took.Minutes()
		remarks = append(remarks, fmt.Sprintf("%s: calls of the flooder: %s; workers started: %.0f in %.0f s, the budget is %.0f",
			s.name, outcomes(countsBefore, countsAfter, len(in.times)+len(inClosed.times)),
			countsAfter[started]-countsBefore[started], took.Seconds(), budget))
	}
	return remarks, nil
}

// outcomes tells how many calls ended in which way, but for those of the callers.
func outcomes(before, after map[string]float64, callers int) string {
	var list []string
	for _, outcome := range slices.Sorted(maps.Keys(after)) {
		n := after[outcome] - before[outcome]
		if outcome == "done" {
			n -= float64(callers)
		}
		if outcome != started && n != 0 {
			list = append(list, fmt.Sprintf("%.0f %s", n, outcome))
		}
	}
	if list == nil {
		return "none"
	}
	return strings.Join(list, ", ")
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// flooder is a process that floods.
type flooder struct {
	cmd   *exec.Cmd
	stdin io.Closer
	lines *bufio.Scanner
	ended bool
	count func() int64
}

// startFlooder returns when the flood is under way.
func startFlooder(f flood, address string) (*flooder, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, "-role", "flooder:"+f.name, "-target", address)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	one := &flooder{cmd: cmd, stdin: in, lines: bufio.NewScanner(out)}
	one.count = func() int64 {
		fmt.Fprintln(in) // it answers each line with what it has done
		var d done
		if one.lines.Scan() {
			json.Unmarshal(one.lines.Bytes(), &d) //nolint:errcheck // 0 then
		}
		return d.Units
	}
	if !one.lines.Scan() {
		one.end() //nolint:errcheck // it ended before it began
		return nil, errors.New("the flooder did not start")
	}
	return one, nil
}

// done is how many units the flooder has done.
func (f *flooder) done() int64 { return f.count() }

// end ends the flooder, and returns what it has done.
func (f *flooder) end() (string, error) {
	if f.ended {
		return "", nil
	}
	f.ended = true
	f.stdin.Close()
	var last string
	for f.lines.Scan() {
		last = f.lines.Text()
	}
	return last, f.cmd.Wait()
}
