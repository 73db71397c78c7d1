package reap

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"example.com/hangup/internal/proctest"
)

func init() {
	proctest.Program("reaper", reaperProgram)
	proctest.Program("deaf", deaf)
}

// reaperProgram is a bare reaper: it starts a tree, ends it and says how that
// went. With "scan" it must do without the kernel's children files.
//
//	args: scan|children script processes
func reaperProgram(args []string) {
	r, err := newReaper()
	check(err)
	r.exited = func(int, Exited) {}
	if args[0] == "scan" {
		r.list = func(int) lister { return scan() }
	}
	deaths := make(chan os.Signal, 1)
	signal.Notify(deaths, unix.SIGCHLD)
	_, err = os.StartProcess("/bin/sh", []string{"sh", "-c", args[1]}, &os.ProcAttr{Env: proctest.Env(), Sys: &syscall.SysProcAttr{Setsid: true}})
	check(err)
	var tree []int
	if !proctest.Eventually(func() bool {
		r.reap()
		tree = proctest.Descendants(os.Getpid())
		return fmt.Sprint(len(tree)) == args[2]
	}) {
		fmt.Println("the tree has", len(tree), "processes")
		os.Exit(1)
	}
	for i := range tree {
		if !slices.ContainsFunc(r.survivors(), func(s Survivor) bool { return s.Pid == tree[i] }) {
			fmt.Println("not among the survivors:", tree[i])
		}
	}
	r.begin()
	if len(args) > 3 { // straight to the last resort
		r.rounds = killRounds
	}
	for !r.step() {
		select {
		case <-deaths:
		case <-time.After(r.pause):
		}
	}
	fmt.Println("reaped", r.reaped, "left", len(proctest.Descendants(os.Getpid())))
}

func check(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func TestReaper(t *testing.T) {
	const mixed = `for i in 1 2 3; do sleep 1000 & setsid sleep 1000 & (setsid sleep 1000 &) ; done; setsid sh -c 'setsid sleep 1000 & exec sleep 1000' & exec sleep 1000`
	for _, args := range [][]string{
		{"children", mixed, "12"},
		{"children", mixed, "12", "freeze"},
		{"scan", mixed, "12"},
		{"scan", mixed, "12", "freeze"},
	} {
		t.Run(args[0]+strings.Join(args[3:], ""), func(t *testing.T) {
			proctest.Check(t)
			argv, env := proctest.Command("reaper", args...)
			cmd := exec.Command(argv[0], argv[1:]...)
			cmd.Env = env
			out, err := cmd.CombinedOutput()
			if got := string(out); err != nil || !strings.HasPrefix(got, "reaped 1") || !strings.HasSuffix(got, " left 0\n") {
				t.Errorf("%v: %s", err, got)
			}
		})
	}
}

func TestListersAgree(t *testing.T) {
	proctest.Check(t)
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	for name, list := range map[string]lister{"children files": newLister(os.Getpid()), "scan": scan()} {
		if !slices.Contains(list(os.Getpid()), cmd.Process.Pid) {
			t.Errorf("%s: %v, without %d", name, list(os.Getpid()), cmd.Process.Pid)
		}
	}
}
