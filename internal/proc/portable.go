//go:build !linux || portable

package proc

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"example.com/hangup/internal/event"
)

// This file is the Host of macOS and other Unix, which have nothing that a process
// cannot leave: process trees are ended as well as that lets it. On Linux the build
// tag `portable` selects it, so that it can be tested there.
//
// Promises, of which the first two are as on Linux:
//   - Start gives the program its descriptors and nothing else of the server's.
//   - When the main process ends, for whatever reason, the rest is killed at once.
//   - The rest is the process group of the program, which has a session of its
//     own, and those who had left the group and were seen below the main process
//     when it was signalled or killed. Done means that all of these are gone.
//
// Not promised: whoever left the group and lost its parent before that is not
// found, and when this process is killed itself, nobody ends the trees.
//
// Each tree has two goroutines here: one waits for the main process, the other
// ends the rest; both end with the tree. It imports event.

// Supervised tells whether servers run below a supervisor, and workers below shims.
const Supervised = false

// DefaultStock is how many idle shims a server keeps.
const DefaultStock = 0

// ProofGroup is the proof on which an empty [Verdict] rests here: nobody is left
// in the process group, nor of those who were seen to have left it.
const ProofGroup = "process-group"

// EndNow is never sent here: without a supervisor the server hears of a second
// SIGTERM or SIGINT itself.
const EndNow = syscall.Signal(40)

// verdictAfter is how long a stop takes before the verdict is: not empty.
const verdictAfter = 2 * time.Second

// The pauses between two rounds of a stop.
const (
	minPause = time.Millisecond
	maxPause = 50 * time.Millisecond
)

// Host starts trees. Its methods may be called from any goroutine.
type Host struct {
	trees sync.WaitGroup // those that are not given up

	mu     sync.Mutex
	closed bool
	live   map[*Tree]struct{}
	left   int // trees that Close had to leave behind
}

// Open returns a Host. Every descriptor that this process has so far is closed on
// exec, where the system lists them.
func Open(Options) (*Host, error) {
	own, _ := os.ReadDir("/dev/fd")
	for _, entry := range own {
		var fd int
		if n, _ := fmt.Sscan(entry.Name(), &fd); n == 1 && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
	return &Host{live: make(map[*Tree]struct{})}, nil
}

// Enforcement tells how limits are enforced: not at all, see [Host.Start].
func (h *Host) Enforcement(Limits) map[string]string { return nil }

// Containment tells how the trees are held.
func (h *Host) Containment() event.Containment {
	const remedy = "run hangup on Linux, on its own or in a virtual machine or container"
	return event.Containment{Level: event.ProcessGroup, Isolation: event.NoIsolation, Layers: []event.Layer{
		{Name: "process-group", On: true, Detail: "a worker's process group is killed, and those seen below it"},
		{Name: "subreaper", Detail: "not on this system: a process that left its group and lost its parent is not found", Remedy: remedy},
		{Name: "supervisor", Detail: "not on this system: a kill -9 of the server leaves processes behind", Remedy: remedy},
		{Name: "cgroup", Detail: "not on this system: a fork bomb is not ended for sure", Remedy: remedy},
		{Name: "no_new_privs", Detail: "not on this system: sudo and su work in workers, and what they start may not be killed", Remedy: remedy},
		{Name: "signals", Detail: "not on this system: a worker can signal the server, and others of its user", Remedy: remedy},
	}}
}

// Start starts a tree. When ctx ends before the program runs, Start returns its
// cause and what was begun is undone; afterwards ctx has no meaning.
func (h *Host) Start(ctx context.Context, spec Spec) (*Tree, error) {
	if len(spec.Argv) == 0 {
		return nil, errors.New("cannot start a program: no name given")
	}
	t, err := h.start(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", spec.Argv[0], err)
	}
	if ctx.Err() != nil {
		t.Kill()
		return nil, fmt.Errorf("cannot start %s: %w", spec.Argv[0], context.Cause(ctx))
	}
	return t, nil
}

func (h *Host) start(ctx context.Context, spec Spec) (*Tree, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	if spec.User != nil || spec.Limits != (Limits{}) {
		return nil, errors.New("user, limits.memory, limits.pids and limits.cpus need Linux: leave them out here")
	}
	path, err := lookPath(spec)
	if err != nil {
		return nil, err
	}
	argv := spec.Argv
	if spec.MaxFiles > 0 {
		if path, argv, err = limited(path, spec); err != nil {
			return nil, err
		}
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	files := slices.Clone(spec.Files)
	for i, file := range files {
		if file == nil {
			files[i] = null
		}
	}

	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, errors.New("the host is closed")
	}
	process, err := os.StartProcess(path, argv, &os.ProcAttr{
		Dir: spec.Dir, Env: append([]string{}, spec.Env...), Files: files, // nil would be the server's own
		Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return nil, cause(err)
	}
	t := newTree(h, process)
	h.live[t] = struct{}{}
	h.trees.Add(1)
	go t.wait()
	go t.run()
	return t, nil
}

// limited has the program started by a shell that sets the limit of open files and
// then becomes it: nothing else can set one for another process on every system. What
// would keep the program from being started is looked at here; the shell says it too
// late.
func limited(path string, spec Spec) (string, []string, error) {
	var own unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &own); err != nil {
		return "", nil, fmt.Errorf("cannot set its limit of open files: %w", err)
	}
	file := within(path, spec.Dir)
	if err := unix.Faccessat(unix.AT_FDCWD, file, unix.X_OK, 0); err != nil {
		return "", nil, err
	}
	if info, err := os.Stat(file); err == nil && info.IsDir() {
		return "", nil, syscall.EACCES
	}
	most := fmt.Sprint(min(uint64(spec.MaxFiles), uint64(own.Max), math.MaxInt32))
	argv := []string{"sh", "-c", `ulimit -n "$0" && exec "$@"`, most, path}
	return "/bin/sh", append(argv, spec.Argv[1:]...), nil
}

// cause takes from an error what Start's own words say again.
func cause(err error) error {
	var path *os.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}

// forget takes a tree out that is empty, or, if it was left, given up.
func (h *Host) forget(t *Tree, left bool) {
	h.mu.Lock()
	delete(h.live, t)
	if left {
		h.left++
	}
	h.mu.Unlock()
	h.trees.Done()
}

func (h *Host) closing() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.closed
}

// Close kills every tree that is still there and waits until all are gone. One
// that is not empty by the time of its verdict is left behind, and is an error.
func (h *Host) Close() error {
	h.mu.Lock()
	h.closed = true
	for t := range h.live {
		t.Kill()
	}
	h.mu.Unlock()
	h.trees.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	if left := h.left; left > 0 {
		h.left = 0 // is said once
		return fmt.Errorf("cannot end %d process trees", left)
	}
	return nil
}

// FindShim returns "": none is needed here.
func FindShim() (string, error) { return "", nil }

// SupervisorFromEnv returns nil: there is none here.
func SupervisorFromEnv() (*os.File, error) { return nil, nil }

// ExecUnderSupervisor fails: see [Supervised].
func ExecUnderSupervisor(string, []string) error {
	return errors.New("cannot become a supervisor: this system has no means for one")
}
