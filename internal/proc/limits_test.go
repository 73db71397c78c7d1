//go:build linux && !portable

package proc_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"example.com/hangup/internal/proc"
	"example.com/hangup/internal/proctest"
)

// python is a program of a tree, in a language in which memory is what it seems.
func python(t *testing.T, script string) proc.Spec {
	proctest.Need(t, "python3", "python3")
	return proc.Spec{
		Argv: []string{"python3", "-c", "import os, threading, time\n" + script},
		Env:  proctest.Env(), Files: []*os.File{nil, nil, os.Stderr},
	}
}

const (
	hog = "x = bytearray(b'x') * (160 << 20)\ntime.sleep(1000)\n"
	// A grandchild that fled, below a main process that is small.
	fled = "if os.fork() == 0:\n os.setsid()\n if os.fork() == 0:\n  x = bytearray(b'x') * (160 << 20)\n  time.sleep(1000)\n os._exit(0)\nos.wait()\ntime.sleep(1000)\n"
	// Each is within the limit, all of them together are not.
	several = "for i in range(4):\n if os.fork() == 0:\n  x = bytearray(b'x') * (40 << 20)\n  time.sleep(1000)\ntime.sleep(1000)\n"
	threads = "for i in range(99): threading.Thread(target=time.sleep, args=(1000,)).start()\n"
	// As many processes, half of them in sessions of their own and below nobody that lives.
	children = "for i in range(99):\n if os.fork() == 0:\n  if i % 2 == 0 or os.fork() == 0:\n   os.setsid()\n   time.sleep(1000)\n  os._exit(0)\ntime.sleep(1000)\n"
)

// A tree over a limit is killed, says which, and nobody else is touched. The shim
// forgets the limit with the tree.
func TestTreeOverItsLimit(t *testing.T) {
	memory, pids := proc.Limits{Memory: 100 << 20}, proc.Limits{Pids: 60}
	for _, test := range []struct {
		name, script string
		limits       proc.Limits
		want         string
	}{
		{"memory of the main process", hog, memory, "memory"},
		{"memory of a grandchild that fled", fled, memory, "memory"},
		{"memory of several together", several, memory, "memory"},
		{"threads", threads, pids, "pids"},
		{"processes", children, pids, "pids"},
		{"both, and only one exceeded", threads, proc.Limits{Memory: 1 << 40, Pids: 60}, "pids"},
		{"the other one", hog, proc.Limits{Memory: 100 << 20, Pids: 1000}, "memory"},
	} {
		t.Run(test.name, func(t *testing.T) {
			spec := python(t, test.script)
			host := open(t)
			neighbour := start(t, host, sh("exec "+sleep))
			spec.Limits = test.limits
			tree := start(t, host, spec)
			ended(t, tree)
			if status := tree.Status(); status.Limit != test.want || status.OOM {
				t.Errorf("status %+v, want the limit %s", status, test.want)
			}
			select {
			case <-neighbour.Exited():
				t.Error("a neighbour was ended, too")
			default:
			}
			next := start(t, host, sh("exit 5"))
			ended(t, next)
			if status := next.Status(); status.Exit != 5 || status.Limit != "" {
				t.Errorf("status of the next one %+v, want exit 5", status)
			}
		})
	}
}

// A tree of many that is within its limits stays.
func TestTreeWithinItsLimits(t *testing.T) {
	spec := python(t, "x = bytearray(b'x') * (40 << 20)\nfor i in range(5):\n if os.fork() == 0: time.sleep(1000)\nos.read(0, 1)\n")
	host := open(t)
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	spec.Files[0], spec.Limits = in, proc.Limits{Memory: 150 << 20, Pids: 6}
	tree := start(t, host, spec)
	grown(t, tree, 6)
	over := python(t, hog) // it is ended for its limit, so this one was looked at meanwhile
	over.Limits = proc.Limits{Memory: 100 << 20}
	ended(t, start(t, host, over))
	out.Close()
	ended(t, tree)
	if status := tree.Status(); status.Exit != 0 || status.Limit != "" {
		t.Errorf("status %+v, want exit 0", status)
	}
}

// bomb is a fork bomb, inside so many processes of its user. It writes to its stdout
// when there are no more.
const bomb = `import resource
most = min(%d, resource.getrlimit(resource.RLIMIT_NPROC)[1])
resource.setrlimit(resource.RLIMIT_NPROC, (most, most))
while True:
 try: os.fork()
 except OSError:
  os.write(1, b"full")
  time.sleep(0.01)
`

func TestForkBombOverItsLimit(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("only as an ordinary user, whose processes are limited")
	}
	spec := python(t, fmt.Sprintf(bomb, 300))
	host := open(t)
	spec.Files[2], spec.Limits = nil, proc.Limits{Pids: 100}
	tree := start(t, host, spec)
	verdict := ended(t, tree)
	if status := tree.Status(); status.Limit != "pids" {
		t.Errorf("status %+v, want the limit pids", status)
	}
	t.Logf("%d processes reaped in %v", verdict.Reaped, verdict.Took)
}

// Trees with a limit of processors are bound to some, each to others.
func TestCPUs(t *testing.T) {
	var may unix.CPUSet
	if err := unix.SchedGetaffinity(0, &may); err != nil {
		t.Fatal(err)
	}
	host := open(t)
	on := func(cpus float64) string {
		spec := sh("sh -c 'grep Cpus_allowed_list /proc/self/status'")
		spec.Limits.CPUs = cpus
		_, list, _ := strings.Cut(strings.TrimSpace(output(t, host, spec)), "\t")
		return list
	}
	all := on(0)
	if got := on(float64(may.Count())); got != all {
		t.Errorf("with as many processors as there are: %s, want %s", got, all)
	}
	if may.Count() < 2 {
		proctest.Host(t, "there is one processor")
	}
	first, second := on(0.5), on(1)
	if _, err := strconv.Atoi(first); err != nil || first == second {
		t.Errorf("bound to %s and %s of %s", first, second, all)
	}
}

// One that the kernel has killed for want of memory is told from one that was killed.
func TestOOM(t *testing.T) {
	killed := sh("kill -KILL $$")
	host := open(t)
	tree := start(t, host, killed)
	ended(t, tree)
	if status := tree.Status(); status.Signal != syscall.SIGKILL || status.OOM {
		t.Errorf("killed by itself: status %+v", status)
	}
	dir := proctest.OldGroup(t, "memory")
	if err := os.WriteFile(filepath.Join(dir, "memory.limit_in_bytes"), []byte("30000000"), 0); err != nil {
		t.Fatal(err)
	}
	spec := python(t, fmt.Sprintf("open('%s/cgroup.procs', 'w').write(str(os.getpid()))\n", dir)+hog)
	spec.Limits.Memory = 1 << 40 // one that is not the cause
	tree = start(t, host, spec)
	ended(t, tree)
	if status := tree.Status(); status.Signal != syscall.SIGKILL || !status.OOM || status.Limit != "" {
		t.Errorf("killed by the kernel: status %+v", status)
	}
}

// A fork bomb takes no process of the server's and its shims': they go on, and so
// does the next call.
func TestHeadRoom(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("only as an ordinary user, whose processes are limited")
	}
	proctest.Need(t, "python3", "python3")
	shim := proctest.Shim(t)
	proctest.Check(t)
	argv, env := proctest.Command("crowded", shim)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = env
	out, err := cmd.CombinedOutput()
	if want := "full with true\nnext: 6 ECHILD\nnext: 6 ECHILD\nnext: 6 ECHILD\nbomb: true ECHILD\n"; err != nil || string(out) != want {
		t.Errorf("%v:\n%s\nwant\n%s", err, out, want)
	}
}

func init() {
	if os.Geteuid() != 0 {
		proctest.Program("crowded", crowded)
	}
}

// crowded is a server with few processes to live on, one of whose workers is a fork
// bomb. It says how it goes on.
//
//	args: shim
func crowded(args []string) {
	const most = 300
	must(unix.Setrlimit(unix.RLIMIT_NPROC, &unix.Rlimit{Cur: most, Max: most}))
	host, err := proc.Open(proc.Options{Shim: args[0], Patience: proctest.Patience})
	must(err)
	ctx := context.Background()
	reader, writer, err := os.Pipe()
	must(err)
	tree, err := host.Start(ctx, proc.Spec{
		Argv: []string{"python3", "-c", "import os, time\n" + fmt.Sprintf(bomb, most)}, Env: proctest.Env(), Files: []*os.File{nil, writer, nil},
	})
	must(err)
	_, err = reader.Read(make([]byte, 4))
	must(err)
	fmt.Println("full with", len(proctest.Descendants(tree.ShimPid())) > most/3)
	for range 3 {
		next, err := host.Start(ctx, proc.Spec{Argv: []string{"sh", "-c", "exit 6"}, Env: proctest.Env(), Files: make([]*os.File, 3)})
		must(err)
		fmt.Println("next:", next.Status().Exit, next.Wait(ctx).Proof)
	}
	var threads sync.WaitGroup // the runtime crashes when it does not get one
	release := make(chan struct{})
	for range 10 {
		threads.Go(func() {
			runtime.LockOSThread()
			<-release
		})
	}
	close(release)
	threads.Wait()
	tree.Kill()
	verdict := tree.Wait(ctx)
	fmt.Println("bomb:", verdict.Empty, verdict.Proof)
	must(host.Close())
}
