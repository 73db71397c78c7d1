package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"example.com/hangup/internal/proctest"
)

// groups says whether servers of this lane can make cgroups.
func groups() bool {
	group := proctest.Group()
	return group != "" && unix.Access(group, unix.W_OK) == nil
}

// bases are the cgroups that servers of this lane have made for their workers.
func bases() []string {
	list, _ := filepath.Glob(proctest.Group() + "/hangup*")
	return list
}

// noGroups makes sure that no server has left a cgroup: one that nobody has locked, as a
// server does that lives, and in which nobody is.
func noGroups(t *testing.T) {
	t.Helper()
	var left []string
	if groups() && !proctest.Eventually(func() bool { left = slices.DeleteFunc(bases(), baseInUse); return len(left) == 0 }) {
		t.Errorf("cgroups left: %v", left)
	}
}

func baseInUse(base string) bool {
	dir, err := os.Open(base)
	if err != nil {
		return true // gone meanwhile
	}
	defer dir.Close()
	state, _ := os.ReadFile(base + "/cgroup.events")
	return unix.Flock(int(dir.Fd()), unix.LOCK_SH|unix.LOCK_NB) != nil || strings.Contains(string(state), "populated 1")
}

// layer is one in GET /workloads.
type layer struct {
	Name, Detail, Remedy string
	On                   bool
}

// held is what GET /workloads says of the containment.
type held struct {
	Containment, Isolation string
	Layers                 []layer
	Workloads              []struct{ Name, Isolation string }
}

func (s *server) held() (all held) {
	s.t.Helper()
	s.fetch("/workloads", &all)
	return all
}

func (s *server) layer(name string) layer {
	s.t.Helper()
	for _, l := range s.held().Layers {
		if l.Name == name {
			return l
		}
	}
	s.t.Fatalf("there is no layer %s", name)
	return layer{}
}

// TestLayers: what holds the workers, and what does not, is the same in the log, in
// GET /workloads and in the metrics, and follows a reload.
func TestLayers(t *testing.T) {
	for _, cgroup := range []string{"auto", "never"} {
		t.Run(cgroup, func(t *testing.T) {
			setting := "containment: {cgroup: " + cgroup + "}"
			weaker := 1 // workloads that are kept in less than they could be
			if os.Geteuid() == 0 {
				weaker = 2
			}
			const loose = "  loose: {command: [python3, worker.py], workers: 1, spares: 0, new_privileges: true}\n"
			const tight = "  tight: {command: [python3, worker.py], workers: 1, spares: 0}\n"
			s := start(t, tight+loose, setting)
			level, best := "subreaper", "signals"
			if cgroup == "auto" && groups() {
				level = "cgroup"
			}
			if !s.layer("signals").On || os.Geteuid() == 0 {
				best = "none"
			}
			now := s.held()
			if now.Containment != level || now.Isolation != "none" {
				t.Errorf("containment %s, isolation %s, want %s and none", now.Containment, now.Isolation, level)
			}
			if w := now.Workloads; len(w) != 2 || w[0].Isolation != best || w[1].Isolation != "none" {
				t.Errorf("the workloads are %+v, want %s and none", w, best)
			}
			if s.layer("cgroup").On != (level == "cgroup") || !s.layer("subreaper").On || !s.layer("supervisor").On {
				t.Errorf("the layers are %+v", now.Layers)
			}
			var missing, logged []string
			for _, l := range now.Layers {
				on := 0.0
				if l.On {
					on = 1
				} else {
					missing = append(missing, l.Name)
					if l.Detail == "" || l.Remedy == "" {
						t.Errorf("%+v says neither why nor what to do", l)
					}
				}
				if got := s.metric(`hangup_containment_layer{layer="` + l.Name + `"}`); got != on {
					t.Errorf("the metric of %s is %v", l.Name, got)
				}
			}
			for _, r := range s.records("weaker containment") {
				logged = append(logged, r["layer"].(string))
				if (r["level"] == "INFO") != (r["layer"] == "controllers") { // no workload has a limit
					t.Errorf("the log says %v", r)
				}
			}
			if !slices.Equal(missing, logged) {
				t.Errorf("the log tells of %v, missing are %v", logged, missing)
			}
			if r := s.records("weaker isolation"); len(r) != weaker || r[weaker-1]["workload"] != "loose" {
				t.Errorf("the log says of the isolation: %v", r)
			}
			if r := s.records("serving"); r[0]["containment"] != level || r[0]["isolation"] != "none" {
				t.Errorf("the log says that it serves with %v", r)
			}
			metric := func(isolation string) float64 {
				return s.metric(`hangup_containment{isolation="` + isolation + `",level="` + level + `"}`)
			}
			if metric("none") != 1 {
				t.Errorf("the metric is not there")
			}
			s.write("hangup.yaml", "listen: [127.0.0.1:0]\n"+setting+"\nworkloads:\n"+tight)
			if err := s.cmd.Process.Signal(syscall.SIGHUP); err != nil {
				t.Fatal(err)
			}
			s.eventually("as isolated as it can be", func() bool { return s.held().Isolation == best && metric(best) == 1 })
			s.base = s.settled() // with a pool less
		})
	}
}

// TestContainmentMinimum: a server starts with what its config demands, or not at all,
// and says what is missing.
func TestContainmentMinimum(t *testing.T) {
	strict := "containment: {minimum: cgroup}"
	if groups() {
		s := start(t, python, strict)
		s.check()
	}
	s := prepare(t, python, strict)
	if os.Geteuid() == 0 && groups() {
		mount := proctest.Group()
		for !isMount(t, mount) {
			mount = filepath.Dir(mount)
		}
		argv := append([]string{"-m", "sh", "-c", `mount -o bind,remount,ro ` + mount + ` && exec "$0" "$@"`, s.cmd.Path}, s.cmd.Args[1:]...)
		env := s.cmd.Env
		s.cmd = exec.Command("unshare", argv...)
		s.cmd.Env = env
	} else if groups() {
		return // this lane has no way to be without
	}
	serving := s.begin()
	select {
	case <-serving:
		t.Fatal("it serves")
	case err := <-s.exit:
		s.exit <- err
	}
	s.gone(nil, 2)
	want := regexp.MustCompile(`cannot hold process trees as containment.minimum demands: it is cgroup, and subreaper is what there is.*
.*  why: .* read-only.*
.*  what to do: mount cgroup v2 writable.*; or accept that by containment: {minimum: subreaper} in the config`)
	if !strings.Contains(s.logText(), "containment.minimum") || os.Geteuid() == 0 && !want.MatchString(s.logText()) {
		t.Errorf("it says:\n%s", s.logText())
	}
}

func isMount(t *testing.T, dir string) bool {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || dir == "/" {
		t.Fatalf("no mount of cgroups: %v", err)
	}
	return strings.Contains(string(data), " "+dir+" ")
}

// TestGroupsAreGone: whoever of a server is killed, its cgroups go with it.
func TestGroupsAreGone(t *testing.T) {
	if !groups() {
		proctest.Lack(t, "no cgroup v2 that this user may make others in")
	}
	for _, victim := range []string{"server", "supervisor", "shim"} {
		t.Run(victim, func(t *testing.T) {
			s := launch(t, python)
			s.eventually("at rest", s.atRest) // a worker that is not ready has no shim yet
			if n := len(bases()); n != 1 {
				t.Fatalf("%d cgroups, want 1: %v", n, bases())
			}
			pid := map[string]int{"server": s.pid, "supervisor": s.cmd.Process.Pid, "shim": s.workloads()[0].Workers[0].ShimPid}[victim]
			if err := proctest.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if victim == "shim" {
				s.eventually("no cgroup of the lost shim", func() bool {
					left, err := filepath.Glob(fmt.Sprintf("%s/%d.*", bases()[0], pid))
					return err == nil && len(left) == 0
				})
				s.eventually("at rest again", s.atRest)
				s.end(syscall.SIGTERM, 0)
			} else {
				<-s.exit
				s.ended = true
			}
			noGroups(t)
		})
	}
}
