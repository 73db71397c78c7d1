package e2e

import (
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"example.com/hangup/internal/proc"
	"example.com/hangup/internal/proctest"
)

// number is what an environment variable says, or what holds without it.
func number(t *testing.T, variable string, otherwise uint64) uint64 {
	t.Helper()
	value := os.Getenv(variable)
	if value == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(value, 10, 64)
	if err != nil {
		t.Fatalf("%s=%q is no number", variable, value)
	}
	return n
}

// dice returns a source of chance that can be had again: the seed is printed, and
// HANGUP_TEST_SEED sets it.
func dice(t *testing.T) *rand.Rand {
	t.Helper()
	seed := number(t, "HANGUP_TEST_SEED", rand.Uint64())
	t.Logf("HANGUP_TEST_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// mixed are workloads of several kinds of trees: one with an event loop and
// terminals, one whose families flee into sessions of their own, one that just works.
const mixed = `
  seed: {command: [python3, -S, seed.py], workers: 2, spares: 1, stop: {grace: 200ms}}
  py: {command: [python3, -S, worker.py], workers: 3, spares: 1, stop: {grace: 500ms}}
  plain: {command: [python3, -S, worker.py], workers: 1, spares: 0, stop: {grace: 100ms}}
`

// load keeps callers busy with all of them; most hang up at random instants. It ends
// with the server, or when it is told to.
func (s *server) load() (stop func()) {
	var callers sync.WaitGroup
	enough := make(chan struct{})
	for _, path := range []string{"/execute/py/tree", "/execute/py/stubborn", "/execute/seed/story", "/execute/plain/late_echo"} {
		callers.Go(func() {
			for {
				conn, err := net.Dial("tcp", s.addr)
				if err != nil {
					return
				}
				io.WriteString(conn, request(path, "Content-Length: 4\r\n", "null"))
				select {
				case <-enough:
				case <-time.After(rand.N(150 * time.Millisecond)):
				}
				conn.Close()
				select {
				case <-enough:
					return
				default:
				}
			}
		})
	}
	return sync.OnceFunc(func() {
		close(enough)
		callers.Wait()
	})
}

// bare is how long it takes here and now to kill a bare tree of four and to see it
// gone: what the machine's load does to any such thing.
func bare(t *testing.T) time.Duration {
	t.Helper()
	cmd := exec.Command("sh", "-c", "sleep 1000 & sleep 1000 & sleep 1000 & echo up; wait")
	cmd.Env, cmd.SysProcAttr = proctest.Env(), &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	out.Read(make([]byte, 3))
	all := proc.Look(cmd.Process.Pid)
	began := time.Now()
	syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	cmd.Wait()
	if !allGone(all) {
		t.Error("a bare tree does not die")
	}
	return time.Since(began)
}

// allGone waits for the end of processes. One that is dead, and whose parents have
// all died, is the business of the machine's init, which may take its time.
func allGone(all []proc.Process) bool {
	ours := map[int]bool{}
	for _, p := range all {
		ours[p.Pid] = true
		ours[p.Parent] = p.Parent != 1
	}
	return proctest.Eventually(func() bool {
		return !slices.ContainsFunc(all, func(p proc.Process) bool {
			now := proc.Look(p.Pid)
			return p.There() && len(now) > 0 && (now[0].State != "Z" || ours[now[0].Parent])
		})
	})
}

// victim picks a process of that role at random, and returns it with all that has to die
// with it. There may be none at the moment.
func (s *server) victim(role string, random *rand.Rand) (pid int, doomed []proc.Process) {
	all := proc.Look(s.cmd.Process.Pid)
	switch role {
	case "supervisor":
		return s.cmd.Process.Pid, all
	case "server":
		return s.pid, all
	}
	shims := slices.DeleteFunc(slices.Clone(all), func(p proc.Process) bool { return p.Parent != s.pid || !strings.HasPrefix(p.Command, "hangup-shim") })
	for _, i := range random.Perm(len(shims)) {
		tree := proc.Look(shims[i].Pid)
		switch {
		case len(tree) < 2: // idle
		case role == "shim":
			return tree[0].Pid, tree
		default:
			return tree[1].Pid, tree[1:] // the shim takes the next worker
		}
	}
	return 0, nil
}

// TestKillAnyone: whoever is killed with -9, at whatever instant and under load,
// nothing of what was below it is left a second later: HANGUP_TEST_KILLS times one
// of the four, by chance.
func TestKillAnyone(t *testing.T) {
	kills := int(number(t, "HANGUP_TEST_KILLS", 40))
	if proctest.SecondLane() && kills == 40 {
		kills = 12 // the same again, briefly
	}
	random := dice(t)
	roles := []string{"supervisor", "server", "shim", "worker"}
	took := map[string][]float64{}
	late := 0
	note := func(role string, d time.Duration) {
		took[role] = append(took[role], d.Seconds()*1000)
		if d <= time.Second {
			return
		}
		late++
		// Bound by a second, and by nothing else where the machine has time for it.
		slow := bare(t)
		t.Logf("%s: %v until all was gone; a bare tree takes %v here now", role, d, slow)
		if d > time.Second+50*slow {
			t.Errorf("%s: %v until all was gone, want a second", role, d)
		}
	}
	var s *server
	var stop func()
	for range kills {
		if s == nil || s.ended {
			s = launch(t, mixed, "limits: {hangups: {burst: 0}}")
			stop = s.load()
			s.eventually("work", func() bool { return len(s.atWork()) >= 5 })
		}
		time.Sleep(time.Duration(random.IntN(300)) * time.Millisecond) // any instant will do
		role := roles[random.IntN(len(roles))]
		pid, doomed := s.victim(role, random)
		if pid == 0 {
			s.eventually("a victim", func() bool { pid, doomed = s.victim(role, random); return pid != 0 })
		}
		began := time.Now()
		if err := proctest.Kill(pid, syscall.SIGKILL); err != nil && role != "worker" { // it may have been quicker
			t.Fatal(err)
		}
		if role == "supervisor" || role == "server" {
			if !proctest.Eventually(func() bool { return len(s.atWork()) == 0 }) {
				t.Errorf("the %s was killed, left behind: %s", role, s.atWork())
			}
		}
		if !allGone(doomed) {
			t.Errorf("the %s was killed, and of its processes are left:", role)
			for _, p := range doomed {
				if p.There() {
					t.Errorf("\t%d %s %s", p.Pid, p.State, p.Command)
				}
			}
		}
		note(role, time.Since(began))
		if role == "supervisor" || role == "server" {
			s.gone(doomed, 128+int(syscall.SIGKILL))
			stop()
			if left := s.atWork(); len(left) > 0 {
				t.Errorf("the %s was killed, risen again: %s", role, left)
			}
		}
	}
	if !s.ended {
		stop()
		s.eventually("at rest", s.atRest)
		s.end(syscall.SIGTERM, 0)
	}
	for _, role := range roles {
		list := took[role]
		if len(list) > 0 {
			t.Logf("%3d × %-10s until all was gone, ms: p50 %.0f, most %.0f", len(list), role, quantile(list, 0.5), quantile(list, 1))
		}
	}
	t.Logf("%d kills, %d of them over a second", kills, late)
}
