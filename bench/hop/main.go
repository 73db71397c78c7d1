// Command hop measures what the way through hangup costs: calls of 64 bytes over 8
// kept connections to a worker in Go and, where python3 is there, in Python,
// beside a bare net/http echo, in interleaved rounds of one run. Ratios of the
// medians are what to look at; absolute figures are the machine's.
//
// It needs bin/hangup and bin/hangup-shim (make build).
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"example.com/hangup/internal/proc"
	"example.com/hangup/python"
	"example.com/hangup/worker"
)

var (
	binary      = flag.String("hangup", "bin/hangup", "the program to measure")
	connections = flag.Int("connections", 8, "connections at once")
	size        = flag.Int("size", 64, "bytes of a call's input")
	rounds      = flag.Int("rounds", 5, "rounds of each")
	length      = flag.Duration("length", 2*time.Second, "length of a round")
	role        = flag.String("role", "", "internal: be the floor or a worker")
)

func main() {
	flag.Parse()
	var err error
	switch *role {
	case "floor":
		err = floor()
	case "worker":
		err = worker.Serve(worker.Tasks{"echo": func(_ context.Context, c *worker.Call) (any, error) { return c.Input() }})
	default:
		err = measure()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "hop:", err)
		os.Exit(1)
	}
}

// floor is the bare echo server. It prints its address.
func floor() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	return http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Write(body) //nolint:errcheck // the caller is this program
	}))
}

// subject is one thing that is measured.
type subject struct {
	name, url string
	root      int // the top of its processes
	rps, cpu  []float64
}

func measure() error {
	dir, err := os.MkdirTemp("", "hangup-hop-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	subjects, stop, err := launch(dir)
	defer stop()
	if err != nil {
		return err
	}
	payload := bytes.Repeat([]byte("x"), *size)
	for range *rounds {
		for _, s := range subjects {
			before := cpu(s.root)
			n, err := load(s.url, payload)
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			s.rps = append(s.rps, float64(n)/length.Seconds())
			s.cpu = append(s.cpu, float64((cpu(s.root)-before).Microseconds())/float64(n))
		}
	}
	fmt.Printf("%d bytes, %d connections, medians of %d rounds of %s\n\n", *size, *connections, *rounds, *length)
	fmt.Printf("%-22s %10s %8s %14s %8s\n", "", "calls/s", "ratio", "CPU µs a call", "ratio")
	for _, s := range subjects {
		fmt.Printf("%-22s %10.0f %8.2f %14.1f %8.2f\n", s.name,
			median(s.rps), median(s.rps)/median(subjects[0].rps), median(s.cpu), median(s.cpu)/median(subjects[0].cpu))
	}
	return nil
}

func median(list []float64) float64 {
	sorted := slices.Sorted(slices.Values(list))
	return sorted[len(sorted)/2]
}

// load makes calls for the length of a round and returns how many.
func load(url string, payload []byte) (int64, error) {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: *connections}}
	defer client.CloseIdleConnections()
	var n atomic.Int64
	var failed atomic.Pointer[error]
	var callers sync.WaitGroup
	end := time.Now().Add(*length)
	for range *connections {
		callers.Go(func() {
			for time.Now().Before(end) && failed.Load() == nil {
				if err := call(client, url, payload); err != nil {
					failed.Store(&err)
				}
				n.Add(1)
			}
		})
	}
	callers.Wait()
	if err := failed.Load(); err != nil {
		return 0, *err
	}
	return n.Load(), nil
}

func call(client *http.Client, url string, payload []byte) error {
	reply, err := client.Post(url, "application/octet-stream", bytes.NewReader(payload))
	if err != nil {
		return err
	}
	defer reply.Body.Close()
	body, err := io.ReadAll(reply.Body)
	if err == nil && !bytes.Equal(body, payload) {
		err = fmt.Errorf("%s: %.200s", reply.Status, body)
	}
	return err
}

// cpu is the time that a process and all that is below it have used. The kernel
// counts it in ticks of 10 ms.
func cpu(root int) time.Duration {
	var ticks int64
	for _, p := range proc.Look(root) {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(p.Pid) + "/stat")
		if err != nil {
			continue
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		const utime, stime = 14 - 3, 15 - 3
		for _, i := range []int{utime, stime} {
			n, _ := strconv.ParseInt(fields[i], 10, 64)
			ticks += n
		}
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// launch starts everything that is measured; stop ends it, as far as it came.
func launch(dir string) (subjects []*subject, stop func(), err error) {
	var started []*exec.Cmd
	stop = func() {
		for _, cmd := range started {
			cmd.Process.Signal(syscall.SIGTERM) //nolint:errcheck // it may have ended
			cmd.Wait()                          //nolint:errcheck
		}
	}
	self, err := os.Executable()
	if err != nil {
		return nil, stop, err
	}
	bare := exec.Command(self, "-role", "floor")
	out, err := bare.StdoutPipe()
	if err != nil {
		return nil, stop, err
	}
	if err := bare.Start(); err != nil {
		return nil, stop, err
	}
	started = append(started, bare)
	address, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return nil, stop, err
	}
	subjects = append(subjects, &subject{name: "bare net/http echo", url: "http://" + strings.TrimSpace(address), root: bare.Process.Pid})

	conf := map[string]string{"hangup, Go worker": fmt.Sprintf("[%q, -role, worker]", self)}
	if _, err := exec.LookPath("python3"); err == nil {
		conf["hangup, Python worker"] = "[python3, echo.py]"
	}
	for name, content := range map[string]string{
		"hangup.py": string(python.SDK), "echo.py": "import hangup\n\n\n@hangup.task\ndef echo(input):\n    return input\n\n\nhangup.serve()\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			return nil, stop, err
		}
	}
	for _, name := range slices.Sorted(func(yield func(string) bool) {
		for name := range conf {
			if !yield(name) {
				return
			}
		}
	}) {
		file := filepath.Join(dir, "hangup.yaml")
		yaml := "listen: [127.0.0.1:0]\nworkloads:\n  echo: {kind: worker, command: " + conf[name] + ", workers: 4}\n"
		if err := os.WriteFile(file, []byte(yaml), 0o644); err != nil {
			return nil, stop, err
		}
		server := exec.Command(*binary, "serve", "--config", file)
		url, err := serving(server)
		if server.Process != nil {
			started = append(started, server)
		}
		if err != nil {
			return nil, stop, err
		}
		subjects = append(subjects, &subject{name: name, url: url + "/execute/echo", root: server.Process.Pid})
	}
	return subjects, stop, nil
}

// serving starts a server and waits until its workers are ready.
func serving(server *exec.Cmd) (string, error) {
	log, err := server.StderrPipe()
	if err != nil {
		return "", err
	}
	if err := server.Start(); err != nil {
		return "", fmt.Errorf("cannot start %s: %w (make build makes it)", server.Path, err)
	}
	var first struct {
		Msg    string
		Listen []string
	}
	for lines := bufio.NewScanner(log); first.Msg != "serving"; {
		if !lines.Scan() {
			return "", errors.New("the server did not start")
		}
		json.Unmarshal(lines.Bytes(), &first) //nolint:errcheck // other lines are no matter
	}
	go io.Copy(io.Discard, log) //nolint:errcheck // ends with the server
	url := "http://" + first.Listen[0]
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		reply, err := http.Get(url + "/readyz")
		if err != nil {
			return "", err
		}
		reply.Body.Close()
		if reply.StatusCode == http.StatusOK {
			return url, nil
		}
	}
	return "", errors.New("the server is not ready")
}
