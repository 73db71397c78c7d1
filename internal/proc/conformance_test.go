//go:build linux && !portable

package proc_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/hangup/internal/proc"
	"example.com/hangup/internal/proctest"
)

// The conformance suite: each program of testdata/misbehave.c, a way not to die, is
// started by a real host, brought to its end in every way, and then nothing of it
// is left, in each containment and for each user.

// A behaviour is one of the programs.
type behaviour struct {
	name string
	dots int // processes that say that they are in place
	only lane
	with func(*testing.T, *proc.Spec) // what else it needs
}

// lane names the user in whose lane alone something makes sense.
type lane string

const (
	asRoot lane = "root"
	asUser lane = "an ordinary user"
)

var behaviours = []behaviour{
	{name: "plain", dots: 2},
	{name: "session", dots: 2},
	{name: "double-fork", dots: 3},
	{name: "terminal", dots: 2},
	{name: "thousand", dots: 1001},
	{name: "deep", dots: 301},
	{name: "zombies", dots: 1},
	{name: "threads-fork", dots: 8},
	{name: "potato", dots: 5},
	{name: "potato-sessions", dots: 5},
	{name: "phoenix", dots: 2},
	{name: "bomb", dots: 1},
	{name: "massacre", dots: 1, only: asRoot}, // who throws its user away
	{name: "deaf", dots: 2},
	{name: "stopped", dots: 2},
	{name: "sigcont", dots: 4},
	{name: "no-sigchld", dots: 1},
	{name: "pester", dots: 2},
	{name: "regroup", dots: 2},
	{name: "vfork", dots: 1},
	{name: "leader", dots: 2},
	{name: "clone-parent", dots: 3},
	{name: "clone-silent", dots: 3},
	{name: "exec-loop", dots: 1},
	{name: "huge", dots: 2},
	{name: "rename", dots: 2},
	{name: "hidden", dots: 2},
	{name: "closes", dots: 2},
	{name: "writes", dots: 2},
	{name: "priority", dots: 2},
	{name: "fat", dots: 2},
	{name: "traces", dots: 2},
	{name: "traces-orphan", dots: 1},
	{name: "traces-shim", dots: 2, only: asUser}, // root may trace anybody
	{name: "other-user", dots: 2, only: asRoot},
	{name: "set-user-id", dots: 2, only: asRoot, with: setUserID},
	{name: "user-namespace", dots: 2},
	{name: "pid-namespace", dots: 3},
	{name: "subreaper", dots: 3},
	{name: "group-leave", dots: 4},
	{name: "group-nest", dots: 2, with: groupsAreRemoved},
	{name: "group-freeze", dots: 2, with: groupsAreRemoved},
}

// ends are the ways in which each comes to its end.
var ends = []struct {
	name  string
	leave bool // it is a child that misbehaves
	end   func(*misbehaving)
}{
	{"killed", false, func(m *misbehaving) { m.inPlace(); m.tree.Kill() }},
	{"killed early", false, func(m *misbehaving) { time.Sleep(rand.N(4 * time.Millisecond)); m.tree.Kill() }},
	{"main process exits", true, func(m *misbehaving) { m.inPlace(); m.stdin.Close() }},
}

func TestConformance(t *testing.T) {
	program := proctest.Compile(t, "misbehave", "testdata/misbehave.c")
	for _, c := range containments {
		t.Run(c.name, func(t *testing.T) {
			needContainment(t, c)
			for _, b := range behaviours {
				t.Run(b.name, func(t *testing.T) {
					b.only.check(t)
					host := openWith(t, c)
					allowed := true
					for _, end := range ends {
						allowed = allowed && t.Run(end.name, func(t *testing.T) {
							m := misbehave(t, host, program, b, end.leave)
							defer func() { allowed = !t.Skipped() }()
							end.end(m)
							m.over()
							if status := m.tree.Status(); end.leave && status.Exit != 7 {
								t.Errorf("status %+v, want exit 7", status)
							}
							next := start(t, host, sh("exit 6"))
							if ended(t, next); next.Status().Exit != 6 {
								t.Errorf("the next tree has status %+v, want exit 6", next.Status())
							}
							m.unchanged()
						})
					}
				})
			}
		})
	}
}

// needContainment makes sure that the trees of a host are in cgroups of their own, or
// in none. Where there are none to be had, the test ends.
func needContainment(t *testing.T, c containment) {
	t.Helper()
	own := false
	t.Run("in force", func(t *testing.T) {
		host := openWith(t, c)
		tree := start(t, host, sh("exec "+sleep))
		theirs, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", tree.Pid()))
		if err != nil {
			t.Error(err)
		}
		ours, err := os.ReadFile("/proc/self/cgroup")
		if err != nil {
			t.Error(err)
		}
		tree.Kill()
		ended(t, tree)
		if own = string(theirs) != string(ours); own && c.cgroup == proc.CgroupNever {
			t.Errorf("the tree was in cgroups of its own:\n%s", theirs)
		}
	})
	if !own && c.cgroup == proc.CgroupAuto {
		proctest.Lack(t, "no cgroup of version 2 may be made here: mount them, or have one delegated")
	}
}

// Every behaviour of the program is in the suite, and none but those.
func TestConformanceIsComplete(t *testing.T) {
	out, err := exec.Command(proctest.Compile(t, "misbehave", "testdata/misbehave.c")).Output()
	if err != nil {
		t.Fatal(err)
	}
	tested := slices.Clone(supervised)
	for _, b := range behaviours {
		tested = append(tested, b.name)
	}
	slices.Sort(tested)
	if there := slices.Sorted(slices.Values(strings.Fields(string(out)))); !slices.Equal(there, tested) {
		t.Errorf("the program has  %v\nthe suite tests %v", there, tested)
	}
}

// check leaves a test to the lane it is for.
func (l lane) check(t *testing.T) {
	t.Helper()
	if root := os.Geteuid() == 0; l == asRoot && !root || l == asUser && root {
		t.Skip("only as " + string(l))
	}
}

// setUserID gives the program a copy of itself that runs as another user.
func setUserID(t *testing.T, spec *proc.Spec) {
	t.Helper()
	dir, err := os.MkdirTemp(filepath.Dir(spec.Argv[0]), "setuid-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	program := filepath.Join(dir, "misbehave")
	for _, err := range []error{
		os.Chmod(dir, 0o755), duplicate(program, spec.Argv[0]),
		os.Chown(program, proctest.Begrudger, proctest.Begrudger), os.Chmod(program, 0o755|os.ModeSetuid),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	spec.NewPrivileges = true
	spec.Env = append(spec.Env, "MISBEHAVE_SETUID="+program)
}

// groupsAreRemoved removes the cgroups that the program makes beside the test's own
// processes, where it has none of its own. Those in a tree's own are the shim's.
func groupsAreRemoved(t *testing.T, _ *proc.Spec) {
	t.Helper()
	t.Cleanup(func() { proctest.RemoveGroup("misbehave") })
}

// supervised are the behaviours that lose the tree its shim, unless isolation keeps
// them from it. They are tested under a supervisor.
var supervised = []string{"kill-shim", "stop-shim"}

func init() { proctest.Program("keeper", keeper) }

// keeper is a server that has a program misbehave, ends it, and says how that went.
//
//	args: shim containment isolated|free program behaviour file [leave]
func keeper(args []string) {
	socket, err := proc.SupervisorFromEnv()
	must(err)
	c := containments[slices.IndexFunc(containments, func(c containment) bool { return c.name == args[1] })]
	host, err := proc.Open(proc.Options{Shim: args[0], Cgroup: c.cgroup, NoScope: c.noScope, Supervisor: socket})
	must(err)
	stdin, _, err := os.Pipe()
	must(err)
	stdout, dots, err := os.Pipe()
	must(err)
	tree, err := host.Start(context.Background(), proc.Spec{
		Argv: args[3:], Env: proctest.Env(), Files: []*os.File{stdin, dots, os.Stderr},
		NewPrivileges: args[2] == free, // nothing keeps it from its shim then
	})
	must(err)
	dots.Close()
	must(os.WriteFile(args[5], []byte("go"), 0)) // its shim has said all there is to say
	stdout.Read(make([]byte, 1))                 // the dot, or the end of all who could have said it
	tree.Kill()
	verdict := tree.Wait(context.Background())
	next, err := host.Start(context.Background(), proc.Spec{Argv: []string{"sh", "-c", "exit 6"}, Env: proctest.Env()})
	must(err)
	proof := verdict.Proof
	if args[2] != free {
		proof = "any" // as far as the kernel isolates it
	}
	fmt.Println(verdict.Empty, proof, next.Status().Exit, next.Wait(context.Background()).Proof)
	must(host.Close())
}

const isolated, free = "isolated", "free"

func TestConformanceSupervised(t *testing.T) {
	program := proctest.Compile(t, "misbehave", "testdata/misbehave.c")
	shim := proctest.Shim(t)
	for _, c := range containments {
		for _, name := range supervised {
			for _, power := range []string{isolated, free} {
				for _, end := range [][]string{nil, {"leave"}} {
					t.Run(fmt.Sprint(c.name, "/", name, "/", power, end), func(t *testing.T) {
						proctest.Check(t)
						heart := filepath.Join(t.TempDir(), "heartbeat")
						if err := os.WriteFile(heart, nil, 0o600); err != nil {
							t.Fatal(err)
						}
						argv, env := proctest.Command("keeper", append([]string{shim, c.name, power, program, name, heart}, end...)...)
						cmd := exec.Command(shim, append([]string{"supervise", "--"}, argv...)...)
						cmd.Env, cmd.Stderr = env, os.Stderr
						want := "true any 6 ECHILD\n"
						if power == free {
							want = "true supervisor 6 ECHILD\n"
						}
						if out, err := cmd.Output(); err != nil || string(out) != want {
							t.Errorf("%v: the server says %q, want %q", err, out, want)
						}
						alone(t, heart)
					})
				}
			}
		}
	}
}
