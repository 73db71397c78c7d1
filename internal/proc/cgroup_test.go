//go:build linux && !portable

package proc_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"example.com/hangup/internal/event"
	"example.com/hangup/internal/proc"
	"example.com/hangup/internal/proctest"
)

func init() {
	proctest.Program("grouped", grouped)
}

// grouped says which layers a host of its own finds, and lives as long as its stdin.
//
//	args: shim
func grouped(args []string) {
	host, err := proc.Open(proc.Options{Shim: args[0]})
	must(err)
	held := host.Containment()
	for _, layer := range held.Layers {
		if layer.Name == "cgroup" {
			fmt.Printf("%s: %s → %s\n", held.Level, layer.Detail, layer.Remedy)
		}
	}
	bufio.NewReader(os.Stdin).ReadString('\n')
	must(host.Close())
}

// withGroups ends a test that needs cgroups where a lane can have none.
func withGroups(t *testing.T) {
	t.Helper()
	if group := proctest.Group(); group == "" || unix.Access(group, unix.W_OK) != nil {
		proctest.Lack(t, "no cgroup v2 that this user may make others in")
	}
}

// group is the cgroup of a process as a directory.
func group(t *testing.T, pid int) string {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	path := func(data []byte) string {
		_, path, _ := strings.Cut("\n"+string(data), "\n0::")
		return strings.TrimSpace(path)
	}
	return filepath.Join(proctest.Group(), strings.TrimPrefix(path(data), path(own)))
}

func write(t *testing.T, path, value string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}

// TestGroupOfTree: each tree is in a cgroup of its own, which is gone after it, and
// so is the whole directory with the host.
func TestGroupOfTree(t *testing.T) {
	withGroups(t)
	host := open(t)
	if level := host.Containment().Level; level != event.Cgroup {
		t.Fatalf("the level is %s: %+v", level, host.Containment().Layers)
	}
	seen := map[string]bool{}
	for range 3 {
		tree := start(t, host, sh("setsid "+sleep+" & (setsid "+sleep+" &) ; exec "+sleep))
		grown(t, tree, 3)
		in := group(t, tree.Pid())
		if seen[in] || !strings.HasPrefix(in, proctest.Group()+"/hangup.") {
			t.Errorf("the tree is in %s, after %v", in, seen)
		}
		seen[in] = true
		for _, pid := range proctest.Descendants(tree.ShimPid()) {
			if other := group(t, pid); other != in {
				t.Errorf("process %d is in %s, its tree in %s", pid, other, in)
			}
		}
		if shim := group(t, tree.ShimPid()); shim != proctest.Group() {
			t.Errorf("the shim is in %s, which a kill would reach", shim)
		}
		tree.Kill()
		ended(t, tree)
		if !proctest.Eventually(func() bool { _, err := os.Stat(in); return os.IsNotExist(err) }) {
			t.Errorf("%s is still there", in)
		}
	}
}

// TestGroupMisused: whatever a tree does to its cgroup, it dies, and the next one
// begins in a sound one.
func TestGroupMisused(t *testing.T) {
	withGroups(t)
	for _, test := range []struct {
		name string
		do   func(t *testing.T, tree *proc.Tree, in string)
	}{
		{"frozen", func(t *testing.T, _ *proc.Tree, in string) { write(t, in+"/cgroup.freeze", "1") }},
		{"left for another cgroup", func(t *testing.T, tree *proc.Tree, in string) {
			elsewhere := filepath.Join(proctest.Group(), "elsewhere")
			if err := os.Mkdir(elsewhere, 0o755); err != nil && !os.IsExist(err) {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := os.Remove(elsewhere); err != nil && !os.IsNotExist(err) {
					t.Error(err)
				}
			})
			for _, pid := range proctest.Descendants(tree.ShimPid()) {
				write(t, elsewhere+"/cgroup.procs", strconv.Itoa(pid))
			}
		}},
		{"divided", func(t *testing.T, tree *proc.Tree, in string) {
			deep := in
			for range 20 {
				deep += "/deeper"
				for _, dir := range []string{deep, deep + "-too"} {
					if err := os.Mkdir(dir, 0o755); err != nil {
						t.Fatal(err)
					}
				}
			}
			write(t, deep+"/cgroup.procs", strconv.Itoa(tree.Pid()))
			write(t, deep+"/cgroup.freeze", "1")
		}},
		{"bounded", func(t *testing.T, tree *proc.Tree, in string) {
			write(t, in+"/cgroup.max.descendants", "0")
			write(t, in+"/cgroup.max.depth", "0")
		}},
		{"not changed", func(*testing.T, *proc.Tree, string) {}},
	} {
		t.Run(test.name, func(t *testing.T) {
			host := openStock(t, best, 1)
			for range 20 { // the shim is kept only where the stock is not full again
				tree := start(t, host, sh("setsid "+sleep+" & exec "+sleep))
				grown(t, tree, 2)
				others := []*proc.Tree{start(t, host, sh("exec "+sleep))} // so that its shim is wanted again
				test.do(t, tree, group(t, tree.Pid()))
				tree.Kill()
				if v := ended(t, tree); v.Reaped != 2 {
					t.Errorf("%d processes reaped, want 2", v.Reaped)
				}
				next := start(t, host, sh("exec "+sleep))
				for _, one := range append(others, next) {
					one.Kill()
					ended(t, one)
				}
				if next.ShimPid() == tree.ShimPid() {
					return
				}
			}
			t.Error("no next tree was under the same shim")
		})
	}
}

// A cgroup that was taken away while no tree was in it is made again.
func TestGroupTakenAway(t *testing.T) {
	withGroups(t)
	host := open(t)
	bases, _ := filepath.Glob(proctest.Group() + "/hangup.*")
	if len(bases) != 1 {
		t.Fatalf("the bases are %v", bases)
	}
	if !proctest.Eventually(func() bool {
		idle, _ := filepath.Glob(bases[0] + "/*.*[0-9]")
		for _, dir := range idle {
			os.Remove(dir)
		}
		return len(idle) > 0
	}) {
		t.Fatal("no shim has made a group")
	}
	tree := start(t, host, sh("exec "+sleep))
	if in := group(t, tree.Pid()); filepath.Dir(in) != bases[0] {
		t.Errorf("the tree is in %s", in)
	}
	tree.Kill()
	ended(t, tree)
}

// TestGroupNever: without cgroups, by order, nothing is made and a tree dies as well.
func TestGroupNever(t *testing.T) {
	host := openWith(t, containments[1])
	if held := host.Containment(); held.Level != event.Subreaper {
		t.Errorf("the level is %s", held.Level)
	}
	tree := start(t, host, sh("setsid "+sleep+" & exec "+sleep))
	grown(t, tree, 2)
	if in := group(t, tree.Pid()); in != proctest.Group() {
		t.Errorf("the tree is in %s", in)
	}
	tree.Kill()
	ended(t, tree)
}

// TestGroupsOfDead: what a server leaves that was killed together with its shims, and
// without a supervisor, is removed when the next one starts; what belongs to a living
// one is not touched.
func TestGroupsOfDead(t *testing.T) {
	withGroups(t)
	living := open(t)
	tree := start(t, living, sh("exec "+sleep))
	bases := func() []string {
		list, _ := filepath.Glob(proctest.Group() + "/hangup.*")
		return list
	}
	dead := beGrouped(t)
	dead.line()
	if n := len(bases()); n != 2 {
		t.Fatalf("%d bases, want 2", n)
	}
	stop := append([]int{dead.cmd.Process.Pid}, proctest.Descendants(dead.cmd.Process.Pid)...)
	for _, pid := range stop { // so that none sees another die
		proctest.Kill(pid, syscall.SIGSTOP)
	}
	for _, pid := range stop {
		proctest.Kill(pid, syscall.SIGKILL)
	}
	dead.cmd.Wait()
	if n := len(bases()); n != 2 {
		t.Fatalf("%d bases after the kill, want 2", n)
	}
	next := beGrouped(t)
	next.line()
	if n := len(bases()); n != 2 {
		t.Errorf("%d bases beside the living, want 1: %v", n-1, bases())
	}
	fmt.Fprintln(next.stdin)
	if err := next.cmd.Wait(); err != nil {
		t.Error(err)
	}
	select {
	case <-tree.Done():
		t.Error("the tree of the living server was ended")
	default:
	}
	tree.Kill()
	ended(t, tree)
}

// beGrouped starts the program grouped. prefix is put before its argv.
func beGrouped(t *testing.T, prefix ...string) *served {
	t.Helper()
	argv, env := proctest.Command("grouped", proctest.Shim(t))
	argv = append(prefix, argv...)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env, cmd.Stderr = env, os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			cmd.Process.Kill()
			cmd.Wait()
		}
	})
	return &served{t: t, cmd: cmd, stdin: stdin, stdout: bufio.NewScanner(stdout)}
}

// TestGroupsMissing: where there are none, the host says why, and does without.
func TestGroupsMissing(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can take them away")
	}
	withGroups(t)
	proctest.Check(t)
	mount := proctest.Group()
	for mount != "/" && !mountPoint(mount) {
		mount = filepath.Dir(mount)
	}
	for _, test := range []struct{ name, before, want string }{
		{"read-only", "mount -o bind,remount,ro " + mount, "subreaper: " + proctest.Group() + " is mounted read-only: "},
		{"not mounted", "umount -l " + mount, "subreaper: cgroup v2 is not mounted: "},
		{"hidden", "mount -t tmpfs none " + mount, "subreaper: the own cgroup "},
		{"forbidden", "", fmt.Sprint("subreaper: uid ", proctest.Groupless, " may not make a cgroup in ", proctest.Group(), ": ")},
		{"a mount of another namespace", "", "subreaper: the own cgroup / is not in what is mounted at "},
		{"a namespace of its own", "umount -l " + mount + " && mount -t cgroup2 none " + mount, "cgroup: a tree is killed in one step, below " + mount + "/hangup."},
	} {
		t.Run(test.name, func(t *testing.T) {
			prefix := []string{"unshare", "-m", "sh", "-c", test.before + ` && exec "$0" "$@"`}
			switch test.name {
			case "forbidden":
				prefix = []string{"setpriv", fmt.Sprint("--reuid=", proctest.Groupless), fmt.Sprint("--regid=", proctest.Groupless), "--clear-groups"}
			case "a mount of another namespace":
				prefix = []string{"unshare", "-C"}
			case "a namespace of its own":
				prefix[1] = "-Cm"
			}
			s := beGrouped(t, prefix...)
			if got := s.line(); !strings.HasPrefix(got, test.want) {
				t.Errorf("%s\nwant %s", got, test.want)
			}
			fmt.Fprintln(s.stdin)
			if err := s.cmd.Wait(); err != nil {
				t.Error(err)
			}
		})
	}
}

func mountPoint(dir string) bool {
	data, _ := os.ReadFile("/proc/self/mountinfo")
	return strings.Contains(string(data), " "+dir+" ")
}
