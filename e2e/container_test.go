//go:build linux

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"example.com/hangup/internal/proc"
	"example.com/hangup/internal/proctest"
)

// image is what deploy/Containerfile makes, as far as it can be had without an
// engine: the last stage's files, user and entry point.
type image struct {
	Files map[string]string // where each is in the image → where it comes from in the build
	User  int
	Argv  []string
}

// readImage reads the last stage of a container file.
func readImage(t *testing.T, file string) image {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var i image
	for line := range strings.Lines(string(data)) {
		instruction, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		words := strings.Fields(rest)
		switch instruction {
		case "FROM":
			i = image{Files: map[string]string{}}
		case "COPY":
			if words[0] == "--from=build" {
				words = words[1:]
			}
			to := words[len(words)-1]
			for _, from := range words[:len(words)-1] {
				path := to
				if strings.HasSuffix(to, "/") {
					path += filepath.Base(from)
				}
				i.Files[path] = strings.TrimPrefix(from, "/src/")
			}
		case "USER":
			user, _, _ := strings.Cut(rest, ":")
			if i.User, err = strconv.Atoi(user); err != nil {
				t.Fatalf("%s: USER %s: %v", file, rest, err)
			}
		case "ENTRYPOINT":
			if err := json.Unmarshal([]byte(rest), &i.Argv); err != nil {
				t.Fatalf("%s: %s: %v", file, line, err)
			}
		}
	}
	return i
}

// engine is what a container engine does, in the process that is to become PID 1 of
// the container: a root of its own that cannot be written, its own /proc, a /tmp in memory,
// a user without any capability, and no way to get one. Its arguments are the
// root, the user, and the command.
func engine(args []string) {
	runtime.LockOSThread() // credentials are a thread's
	root := args[0]
	uid, err := strconv.Atoi(args[1])
	fail := func(what string, err error) {
		if err != nil {
			fmt.Fprintf(os.Stderr, "engine: cannot %s: %v\n", what, err)
			os.Exit(1)
		}
	}
	fail("read the user", err)
	fail("have mounts of its own", unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	fail("mount the root", unix.Mount(root, root, "", unix.MS_BIND, ""))
	fail("enter the root", unix.Chdir(root))
	const safe = unix.MS_NOSUID | unix.MS_NODEV
	fail("mount proc", unix.Mount("proc", "proc", "proc", safe|unix.MS_NOEXEC, ""))
	fail("mount tmp", unix.Mount("tmpfs", "tmp", "tmpfs", safe, "mode=1777,size=64m"))
	fail("mount null", unix.Mount("/dev/null", "dev/null", "", unix.MS_BIND, ""))
	fail("protect the root", unix.Mount("", root, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""))
	fail("change the root", unix.PivotRoot(".", "."))
	fail("leave the old root", unix.Unmount(".", unix.MNT_DETACH))
	for c := uintptr(0); unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0) == nil; c++ { // until there is no such capability
	}
	fail("forget groups", unix.Setgroups(nil))
	fail("change the group", unix.Setresgid(uid, uid, uid))
	fail("change the user", unix.Setresuid(uid, uid, uid))
	fail("give up privileges", unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
	fail("run "+args[2], syscall.Exec(args[2], args[2:], proctest.Env()))
}

// maySeparate tells whether this process may make namespaces and mounts: it is
// root, and not inside a container that keeps that from root.
func maySeparate() bool {
	status, _ := os.ReadFile("/proc/self/status")
	for line := range bytes.Lines(status) {
		if mask, ok := bytes.CutPrefix(line, []byte("CapEff:\t")); ok {
			effective, err := strconv.ParseUint(string(bytes.TrimSpace(mask)), 16, 64)
			return err == nil && effective&(1<<unix.CAP_SYS_ADMIN) != 0
		}
	}
	return false
}

func init() {
	if maySeparate() { // elsewhere nobody uses it
		proctest.Program("engine", engine)
	}
}

// contain runs a server as deploy/Containerfile says, with a worker for tests.
func contain(t *testing.T) *server {
	t.Helper()
	i := readImage(t, "../deploy/Containerfile")
	t.Setenv("CGO_ENABLED", "0")                                         // static: there is nothing to link with
	if _, err := os.ReadFile("testdata/container/main.go"); err != nil { // so that the cache of results knows it
		t.Fatal(err)
	}
	root := t.TempDir()
	for to, from := range i.Files {
		switch from {
		case "bin/hangup":
			copyFile(t, root+to, proctest.Build(t, "static-hangup", "./cmd/hangup"))
		case "bin/hangup-shim":
			copyFile(t, root+to, proctest.Build(t, "static-shim", "./cmd/hangup-shim"))
		case "bin/primes":
			copyFile(t, root+filepath.Dir(to)+"/worker", proctest.Build(t, "static-worker", "./e2e/testdata/container"))
		case "deploy/hangup.yaml":
			write(t, root+to, "listen: [127.0.0.1:0]\nworkloads:\n  go: {command: [/app/worker], dir: /tmp, workers: 2, stop: {grace: 100ms}}\n")
		default:
			t.Fatalf("deploy/Containerfile copies %s, which this test does not know", from)
		}
	}
	for _, dir := range []string{"proc", "tmp", "dev"} { // an engine makes them where they are missing
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, root+"/dev/null", "")

	s := &server{t: t, dir: root, client: &http.Client{Transport: &http.Transport{}}, exit: make(chan error, 1)}
	argv, env := proctest.Command("engine", append([]string{root, strconv.Itoa(i.User)}, i.Argv...)...)
	s.cmd = exec.Command(argv[0], argv[1:]...)
	s.cmd.Env = env
	s.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
	}
	s.run()
	s.eventually("ready", func() bool { code, _ := s.get("/readyz"); return code == http.StatusOK })
	return s
}

func copyFile(t *testing.T, to, from string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	write(t, to, string(data))
}

// write makes a file that anybody may read and run.
func write(t *testing.T, path, content string) {
	t.Helper()
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.WriteFile(path, []byte(content), 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestContainer: the tree that deploy/Containerfile makes runs as PID 1 of a
// container, with all that a careful engine takes away taken away.
func TestContainer(t *testing.T) {
	if !maySeparate() {
		t.Skip("needs root: it makes namespaces and mounts")
	}
	s := contain(t)
	if s.pid == s.cmd.Process.Pid {
		t.Errorf("the server sees itself as %d: it is in no namespace", s.pid)
	}
	for _, p := range proc.Look(s.cmd.Process.Pid) {
		checkConfined(t, p)
	}

	if r, body := s.post("/execute/go/echo", strconv.Quote(strings.Repeat("x", 200<<10))); r.StatusCode != http.StatusOK || len(body) != 200<<10+2 {
		t.Errorf("a body that is spooled: %s, %d bytes", r.Status, len(body))
	}
	if _, body := s.post("/execute/go/write", "null"); body != `{"/":false,"/app":false,"/tmp":true}` {
		t.Errorf("a worker may write: %s", body)
	}

	const orphans = 2000
	began := time.Now()
	if r, body := s.post("/execute/go/orphans", strconv.Itoa(orphans)); r.StatusCode != http.StatusOK {
		t.Errorf("orphans: %s %s", r.Status, body)
	}
	s.eventually("all orphans reaped", func() bool {
		return !slices.ContainsFunc(proc.Look(s.cmd.Process.Pid), func(p proc.Process) bool { return p.State == "Z" })
	})
	t.Logf("%d orphans in %v", orphans, time.Since(began).Round(time.Millisecond))

	conn := s.dial()
	io.WriteString(conn, request("/execute/go/tree", "Content-Type: application/json\r\nContent-Length: 4\r\n", "null"))
	call := s.newest("running", func(c callRecord) bool { return c.State == "running" })
	var tree []proc.Process
	s.eventually("its family", func() bool {
		tree = nil
		for _, p := range proc.Look(s.cmd.Process.Pid) {
			if strings.HasSuffix(p.Command, "worker stays") {
				tree = append(tree, p)
			}
		}
		return len(tree) == 2
	})
	fin.leave(conn)
	s.eventually("the evidence", func() bool {
		s.fetch("/calls/"+call.ID, &call)
		return call.Cancel != nil
	})
	if call.Outcome != "cancelled" || !call.Cancel.Empty || call.Cancel.Killed < len(tree)+1 {
		t.Errorf("%+v, %+v", call, *call.Cancel)
	}
	gone(t, tree)
	if r, body := s.post("/execute/go/echo", `"still there"`); r.StatusCode != http.StatusOK {
		t.Errorf("the next call: %s %s", r.Status, body)
	}
	s.end(syscall.SIGTERM, 0)
	if t.Failed() {
		t.Logf("the log:\n%s", s.logText())
	}
}

// TestContainerKilled: kill -9 of PID 1, as an engine does when its patience is
// over, leaves nothing.
func TestContainerKilled(t *testing.T) {
	if !maySeparate() {
		t.Skip("needs root: it makes namespaces and mounts")
	}
	s := contain(t)
	conn := s.dial()
	io.WriteString(conn, request("/execute/go/tree", "Content-Type: application/json\r\nContent-Length: 4\r\n", "null"))
	s.newest("running", func(c callRecord) bool { return c.State == "running" })
	s.end(syscall.SIGKILL, 128+9)
}

// checkConfined checks that a process of a container has what it should, and no more.
func checkConfined(t *testing.T, p proc.Process) {
	t.Helper()
	read := func(name string) string {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.Pid, name))
		if err != nil {
			t.Error(err)
		}
		return string(data)
	}
	status := read("status")
	for _, want := range []string{
		"Uid:\t999\t999\t999\t999\n", "Gid:\t999\t999\t999\t999\n", "NoNewPrivs:\t1\n",
		"CapEff:\t0000000000000000\n", "CapPrm:\t0000000000000000\n", "CapBnd:\t0000000000000000\n",
	} {
		if !strings.Contains(status, want) {
			t.Errorf("%+v has no %q:\n%s", p, want, status)
		}
	}
	first, _, _ := strings.Cut(read("mountinfo"), "\n")
	if fields := strings.Fields(first); len(fields) < 6 || fields[4] != "/" || !strings.HasPrefix(fields[5], "ro") {
		t.Errorf("the root of %+v is %q", p, first)
	}
}
