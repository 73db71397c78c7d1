//go:build linux && !portable

package proc_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"example.com/hangup/internal/proc"
	"example.com/hangup/internal/proctest"
)

// Two users that nobody else has.
var (
	alice = &proc.User{Name: "alice", UID: proctest.Alice, GID: 65132, Groups: []int{65133, 65134}}
	bob   = &proc.User{Name: "bob", UID: proctest.Bob, GID: proctest.Bob}
)

// as is a script run as a user, who is in a directory that all may enter.
func as(u *proc.User, script string) proc.Spec {
	spec := sh(script)
	spec.User, spec.Dir = u, "/"
	return spec
}

func TestUserNeedsRoot(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root may")
	}
	host := open(t)
	_, err := host.Start(t.Context(), as(alice, "exit 0"))
	if want := "cannot start sh as user alice (uid 65131): only root can: run hangup as root, or leave user out"; err == nil || err.Error() != want {
		t.Errorf("error %v\n want %s", err, want)
	}
}

// needRoot leaves a test out where nobody can be somebody else.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can run a tree as somebody else")
	}
}

// A worker with a user of its own is that user and nothing else.
func TestUser(t *testing.T) {
	needRoot(t)
	host := open(t)
	for _, newPrivileges := range []bool{false, true} {
		spec := as(alice, "cat /proc/self/status")
		spec.NewPrivileges = newPrivileges
		status := regexp.MustCompile(`\s+`).ReplaceAllString(output(t, host, spec), " ")
		for _, want := range []string{
			" Uid: 65131 65131 65131 65131 ", " Gid: 65132 65132 65132 65132 ", " Groups: 65133 65134 ",
			" CapPrm: 0000000000000000 ", " CapEff: 0000000000000000 ", " CapAmb: 0000000000000000 ",
			fmt.Sprintf(" NoNewPrivs: %d ", map[bool]int{false: 1, true: 0}[newPrivileges]),
		} {
			if !strings.Contains(status, want) {
				t.Errorf("new privileges %v: no %q in %s", newPrivileges, want, status)
			}
		}
	}
	if out := output(t, host, as(bob, "id -G")); out != "65135\n" {
		t.Errorf("one without supplementary groups has %q", out)
	}
	if out := output(t, host, sh("id -u; id -G | grep -cw 65132")); out != "0\n0\n" {
		t.Errorf("the next one under the same shim is %q", out)
	}
}

// Such a worker reaches neither server, nor shim, nor the workers of others, even
// where it kills everybody.
func TestUserCannotKillOthers(t *testing.T) {
	needRoot(t)
	host := open(t)
	other := start(t, host, as(bob, "exec "+sleep))
	spec := python(t, fmt.Sprintf(`import resource
resource.setrlimit(resource.RLIMIT_NPROC, (50, 50))
for pid in os.getppid(), %d, %d, %d:
 try:
  os.kill(pid, 9)
  os._exit(1)
 except PermissionError: pass
os.kill(-1, 9)
os._exit(7)
`, os.Getpid(), other.ShimPid(), other.Pid()))
	spec.User, spec.Dir = alice, "/"
	tree := start(t, host, spec)
	ended(t, tree)
	if status := tree.Status(); status.Exit != 7 {
		t.Errorf("status %+v, want exit 7", status)
	}
	select {
	case <-other.Exited():
		t.Error("the worker of another was killed")
	default:
	}
	if out := output(t, host, as(alice, "cat /proc/$PPID/environ 2>&1 | grep -c denied")); out != "1\n" {
		t.Errorf("it can look into its shim: %q", out)
	}
}

// The shim ends all of it.
func TestUserIsKilled(t *testing.T) {
	needRoot(t)
	host := open(t)
	tree := start(t, host, as(alice, hundred))
	grown(t, tree, 101)
	tree.Kill()
	ended(t, tree)
}

func TestUserLimits(t *testing.T) {
	needRoot(t)
	spec := python(t, several)
	host := open(t)
	spec.User, spec.Dir, spec.Limits.Memory = alice, "/", 100<<20
	tree := start(t, host, spec)
	ended(t, tree)
	if status := tree.Status(); status.Limit != "memory" {
		t.Errorf("status %+v, want the limit memory", status)
	}
}

// What the user may not reach is a failure to start, and told as that.
func TestUserCannotReach(t *testing.T) {
	needRoot(t)
	host := open(t)
	closed := t.TempDir()
	open := filepath.Join(closed, "open")
	program := filepath.Join(closed, "program")
	for _, err := range []error{
		os.Chmod(closed, 0o700), os.Mkdir(open, 0o755), os.WriteFile(program, []byte("#!/bin/sh\n"), 0o755),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct{ dir, program, want string }{
		{closed, "/bin/sh", "cannot start /bin/sh: its directory " + closed + ": permission denied: user alice (uid 65131) may not enter it, or one above it"},
		{open, "/bin/sh", "cannot start /bin/sh: its directory " + open + ": permission denied: user alice (uid 65131) may not enter it, or one above it"},
		{"/", program, "cannot start " + program + ": permission denied: user alice (uid 65131) may not run " + program + ", or not reach it"},
		{"/", "/no/such", "cannot start /no/such: as user alice (uid 65131): no such file or directory"},
	} {
		_, err := host.Start(t.Context(), proc.Spec{Argv: []string{test.program}, Dir: test.dir, User: alice})
		if err == nil || err.Error() != test.want {
			t.Errorf("error %v\n want %s", err, test.want)
		}
	}
	ended(t, start(t, host, sh("exit 0"))) // the shim is none the worse for it
}

func init() {
	if os.Geteuid() == 0 {
		proctest.Program("contained", contained)
	}
}

// contained is a server that is root in a container: without CAP_SYS_RESOURCE, and
// without CAP_SYS_PTRACE. It says what limit its worker got, and why another ended.
//
//	args: shim
func contained(args []string) {
	host, err := proc.Open(proc.Options{Shim: args[0], Patience: proctest.Patience})
	must(err)
	reader, writer, err := os.Pipe()
	must(err)
	spec := as(alice, "read x; ulimit -n; ulimit -Hn")
	spec.Files, spec.MaxFiles = []*os.File{reader, os.Stdout, os.Stderr}, 100
	tree, err := host.Start(context.Background(), spec)
	must(err)
	writer.Close()
	<-tree.Done()
	spec = proc.Spec{Argv: []string{"python3", "-c", shared}, Env: proctest.Env(), Dir: "/", User: alice, Files: []*os.File{nil, os.Stdout, os.Stderr}}
	spec.Limits.Memory = 150 << 20
	tree, err = host.Start(context.Background(), spec)
	must(err)
	<-tree.Done()
	fmt.Println(tree.Status().Exit)
	must(host.Close())
}

// shared is more than the limit when all is added up, and less when what is shared
// counts once.
const shared = `import os, time
x = bytearray(b'x') * (60 << 20)
for i in range(4):
 if os.fork() == 0: time.sleep(1000)
time.sleep(1)
os._exit(4)
`

func TestUserInContainer(t *testing.T) {
	needRoot(t)
	proctest.Need(t, "python3", "python3")
	setpriv := proctest.Need(t, "setpriv", "util-linux")
	shim := proctest.Shim(t)
	proctest.Check(t)
	argv, env := proctest.Command("contained", shim)
	cmd := exec.Command(setpriv, append([]string{"--bounding-set=-sys_resource,-sys_ptrace"}, argv...)...)
	cmd.Env = env
	out, err := cmd.CombinedOutput()
	if want := "100\n100\n4\n"; err != nil || string(out) != want {
		t.Errorf("%v: %q, want %q", err, out, want)
	}
}
