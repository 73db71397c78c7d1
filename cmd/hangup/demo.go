package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"example.com/hangup/internal/proc"
	"example.com/hangup/python"
)

func demoVerb() *cobra.Command {
	var asWorker bool
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show the story of the product, live",
		Long: "Starts a server with real workers, makes a call, and hangs up on another one that has\n" +
			"started an interactive program on a terminal and a background child in a session of\n" +
			"its own. Shows the processes as the kernel sees them, before and after. Exits with 0\n" +
			"when nothing survived.",
		Args: needs("", 0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if asWorker {
				return demoWorker()
			}
			return demo(cmd.OutOrStdout())
		},
	}
	cmd.Flags().BoolVar(&asWorker, "worker", false, "be the demo's worker")
	if err := cmd.Flags().MarkHidden("worker"); err != nil {
		panic(err) // there is no such flag: one line above is wrong
	}
	return cmd
}

// demoPatience bounds every wait of the demo.
const demoPatience = 10 * time.Second

// story is a demo that runs: a server of its own, and every process seen.
type story struct {
	out        io.Writer
	server     *exec.Cmd // the supervisor, which it becomes
	url        string
	supervisor int // or the server, where there is none
	pid        int // of the server
	seen       map[proc.Process]bool
}

// demo tells the story once in each language that is there.
func demo(out io.Writer) error {
	dir, err := os.MkdirTemp("", "hangup-demo-")
	if err != nil {
		return fmt.Errorf("cannot make a directory for the demo: %w", err)
	}
	defer os.RemoveAll(dir)
	if len(proc.Look(os.Getpid())) == 0 {
		return errors.New("cannot show processes on this system, and without them there is no story: try it on Linux or macOS")
	}
	s := &story{out: out, seen: map[proc.Process]bool{}}
	languages, err := s.write(dir)
	if err != nil {
		return err
	}
	if err := s.start(dir); err != nil {
		return err
	}
	for _, name := range languages {
		if err := s.tell(name); err != nil {
			s.stop()
			return fmt.Errorf("the demo with the %s worker broke off: %w", name, err)
		}
	}
	s.stop()
	return s.survivors()
}

// write makes the config and the workers, and returns the workloads.
func (s *story) write(dir string) ([]string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("cannot find this program: %w", err)
	}
	names := []string{"go"}
	if !proc.Supervised {
		s.say("(this system has nothing that a process cannot leave: the config of the demo accepts containment by process group)")
	}
	conf := "listen: [127.0.0.1:0]\n" + minimum() + "workloads:\n" +
		fmt.Sprintf("  go: {kind: worker, command: [%q, demo, --worker], workers: 1, spares: 1}\n", self)
	if _, err := exec.LookPath("python3"); err == nil {
		names = append(names, "python")
		conf += "  python: {kind: worker, command: [python3, demo.py], workers: 1, spares: 1}\n"
	} else {
		s.say("(no python3 here: the story is told with a Go worker only)")
	}
	for name, content := range map[string][]byte{"hangup.yaml": []byte(conf), "demo.py": demoPython, "hangup.py": python.SDK} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			return nil, fmt.Errorf("cannot write the demo: %w", err)
		}
	}
	return names, nil
}

// start starts `hangup serve` and waits until it is ready.
func (s *story) start(dir string) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("cannot find this program: %w", err)
	}
	began := time.Now()
	s.server = exec.Command(self, "serve", "--config", filepath.Join(dir, "hangup.yaml"))
	log, err := s.server.StderrPipe()
	if err != nil {
		return err
	}
	if err := s.server.Start(); err != nil {
		return fmt.Errorf("cannot start the server: %w", err)
	}
	lines := bufio.NewScanner(log)
	var first struct {
		Msg    string
		Listen []string
		Error  string
		Pid    int
		Super  int `json:"supervisor_pid"`
	}
	var said bytes.Buffer
	for first.Msg != "serving" {
		if !lines.Scan() {
			s.server.Wait()
			return fmt.Errorf("the server did not start:\n%s", said.String())
		}
		said.Write(append(lines.Bytes(), '\n'))
		json.Unmarshal(lines.Bytes(), &first) //nolint:errcheck // what is no record is told above
	}
	go io.Copy(io.Discard, log) // until the server ends
	s.url, s.pid, s.supervisor = "http://"+first.Listen[0], first.Pid, first.Super
	err = eventually(func() bool { return s.get("/readyz", nil) == nil })
	if err != nil {
		s.stop()
		return fmt.Errorf("the server is not ready: %w", err)
	}
	if !proc.Supervised {
		s.supervisor = s.pid
		s.say("server %d: ready in %s", s.pid, ms(time.Since(began)))
		return nil
	}
	s.say("server %d under supervisor %d: ready in %s", s.pid, s.supervisor, ms(time.Since(began)))
	return nil
}

// call is a call as GET /calls/{id} tells it.
type demoCall struct {
	ID      string
	Outcome string
	Pid     int `json:"worker_pid"`
	Cancel  *struct {
		By      string
		Killed  int
		EmptyMs float64 `json:"empty_ms"`
		Empty   bool
		Steps   []struct {
			Step string
			AtMs float64 `json:"at_ms"`
		}
	}
}

// tell tells the story with one workload.
func (s *story) tell(name string) error {
	s.say("\n── a %s worker ──", name)
	took, reply, err := s.ask(name, "hello")
	if err != nil {
		return err
	}
	s.say("a call: %s in %s", reply, ms(took))
	if err := s.settled(); err != nil {
		return err
	}
	files, err := s.openFiles()
	if err != nil {
		return err
	}

	caller, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		return err
	}
	defer caller.Close()
	fmt.Fprintf(caller, "POST /execute/%s/terminal HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n", name)
	var running demoCall
	var tree []proc.Process
	err = eventually(func() bool {
		var list struct{ Calls []demoCall }
		if s.get("/calls", &list) != nil || len(list.Calls) == 0 {
			return false
		}
		running = list.Calls[len(list.Calls)-1]
		if running.Pid == 0 || running.Outcome != "" {
			return false
		}
		tree = proc.Look(running.Pid)
		return len(tree) >= demoProcesses && strings.HasPrefix(tree[len(tree)-1].Command, "sleep")
	})
	if err != nil {
		return fmt.Errorf("its processes are not there: %w", err)
	}
	s.say("another call runs an interactive program on a terminal, with a background child:")
	for _, p := range tree {
		s.seen[p] = true
		s.say("    %6d  session %-6d %s  %s", p.Pid, p.Session, p.State, p.Command)
	}

	hungUp := time.Now()
	caller.Close()
	type answer struct {
		took time.Duration
		err  error
	}
	next := make(chan answer, 1)
	go func() {
		took, _, err := s.ask(name, "hello")
		next <- answer{took, err}
	}()
	err = eventually(func() bool {
		for _, p := range tree {
			if p.There() {
				return false
			}
		}
		return true
	})
	gone := time.Since(hungUp)
	if err != nil {
		return fmt.Errorf("the tree is still there: %w", err)
	}
	s.say("the caller hangs up: all %d processes dead and reaped after %s", len(tree), ms(gone))
	a := <-next
	if a.err != nil {
		return a.err
	}
	s.say("the next call, sent at that moment, was answered by the spare in %s", ms(a.took))

	var record demoCall
	err = eventually(func() bool { return s.get("/calls/"+running.ID, &record) == nil && record.Cancel != nil })
	if err != nil {
		return fmt.Errorf("there is no evidence of the cancel: %w", err)
	}
	var steps []string
	for _, step := range record.Cancel.Steps {
		steps = append(steps, fmt.Sprintf("%s at %.1f ms", step.Step, step.AtMs))
	}
	s.say("the record: %s by the %s; %s; %d reaped, proved empty at %.1f ms",
		record.Outcome, record.Cancel.By, strings.Join(steps, ", "), record.Cancel.Killed, record.Cancel.EmptyMs)

	if err := s.settled(); err != nil {
		return err
	}
	after := files
	err = eventually(func() bool { after, err = s.openFiles(); return err == nil && after == files })
	s.say("the server: still pid %d, descriptors %d before and %d after, zombies %d", s.pid, files, after, s.zombies())
	if err != nil {
		return errors.New("the server's descriptors are not what they were")
	}
	return nil
}

// settled waits until every worker is idle again, the replacement too, and the
// stock of shims is full.
func (s *story) settled() error {
	return eventually(func() bool {
		var all struct {
			ServerPid int `json:"server_pid"`
			Workloads []struct {
				Limit, Spares int
				Workers       []struct{ State string }
			}
		}
		if s.get("/workloads", &all) != nil || all.ServerPid != s.pid {
			return false
		}
		own, each := 2+proc.DefaultStock, 2 // supervisor, server and idle shims; a shim and a worker
		if !proc.Supervised {
			own, each = 1, 1
		}
		processes := own
		for _, w := range all.Workloads {
			processes += each * len(w.Workers)
			if len(w.Workers) != w.Limit+w.Spares {
				return false
			}
			for _, one := range w.Workers {
				if one.State != "idle" {
					return false
				}
			}
		}
		there := proc.Look(s.supervisor)
		for _, p := range there {
			s.seen[p] = true
		}
		return len(there) == processes
	})
}

// openFiles asks the server for the number of its descriptors, less the
// connections that asking needs.
func (s *story) openFiles() (n int, err error) {
	http.DefaultClient.CloseIdleConnections()
	reply, err := http.Get(s.url + "/metrics")
	if err != nil {
		return 0, err
	}
	defer reply.Body.Close()
	for lines := bufio.NewScanner(reply.Body); lines.Scan(); {
		if _, err := fmt.Sscanf(lines.Text(), "process_open_fds %d", &n); err == nil {
			return n, nil
		}
	}
	return 0, errors.New("the server does not tell its descriptors")
}

func (s *story) zombies() int {
	n := 0
	for _, p := range proc.Look(s.supervisor) {
		if p.State == "Z" {
			n++
		}
	}
	return n
}

// ask makes a call and returns how long it took.
func (s *story) ask(workload, task string) (time.Duration, string, error) {
	began := time.Now()
	reply, err := http.Post(s.url+"/execute/"+workload+"/"+task, "application/json", strings.NewReader(`"world"`))
	if err != nil {
		return 0, "", err
	}
	defer reply.Body.Close()
	body, err := io.ReadAll(reply.Body)
	if err == nil && reply.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", reply.Status, body)
	}
	return time.Since(began), string(body), err
}

// get reads a resource of the server into to, or just asks for it.
func (s *story) get(path string, to any) error {
	reply, err := http.Get(s.url + path)
	if err != nil {
		return err
	}
	defer reply.Body.Close()
	if reply.StatusCode != http.StatusOK {
		return errors.New(reply.Status)
	}
	if to == nil {
		return nil
	}
	return json.NewDecoder(reply.Body).Decode(to)
}

// stop ends the server as a user would.
func (s *story) stop() {
	s.server.Process.Signal(syscall.SIGTERM)
	s.server.Wait()
}

// survivors counts every process of the story that is still there.
func (s *story) survivors() error {
	n := 0
	for p := range s.seen {
		if p.There() {
			n++
			s.say("survivor: %d %s %s", p.Pid, p.State, p.Command)
		}
	}
	s.say("\nthe server was told to end; of %d processes seen", len(s.seen))
	s.say("survivors: %d", n)
	if n > 0 {
		return &exitError{code: exitFailed}
	}
	return nil
}

func (s *story) say(format string, args ...any) { fmt.Fprintf(s.out, format+"\n", args...) }

// eventually polls until f is true, which is an error after demoPatience.
func eventually(f func() bool) error {
	for end := time.Now().Add(demoPatience); ; time.Sleep(200 * time.Microsecond) {
		if f() {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("not within %s", demoPatience)
		}
	}
}
