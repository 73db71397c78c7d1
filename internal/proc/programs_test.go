//go:build linux && !portable

package proc_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"example.com/hangup/internal/proc"
	"example.com/hangup/internal/proctest"
)

func init() {
	proctest.Program("server", server)
	proctest.Program("neglect", neglect)
	switch os.Geteuid() {
	case 0, proctest.Begrudger: // root starts it
		proctest.Program("begrudger", begrudger)
		proctest.Program("begrudger-limited", begrudgerLimited)
	default:
		proctest.Program("forker", forker)
	}
}

// neglect starts children that end, and never waits for them.
func neglect([]string) {
	for range neglected {
		_, err := syscall.ForkExec("/bin/true", []string{"true"}, nil)
		must(err)
	}
	select {}
}

const neglected = 20

// forker starts sessions from eight threads, as fast as it can and up to a bound.
func forker([]string) {
	const threads, each, limit = 8, 500, 400
	if err := unix.Setrlimit(unix.RLIMIT_NPROC, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
		panic(err)
	}
	var all sync.WaitGroup
	for range threads {
		all.Go(func() {
			runtime.LockOSThread()
			for range each {
				syscall.ForkExec("/bin/sh", []string{"sh", "-c", "(setsid sleep 1000 &) ; exec sleep 1000"},
					&syscall.ProcAttr{Sys: &syscall.SysProcAttr{Setsid: true}})
			}
		})
	}
	all.Wait()
	select {}
}

// server is a server with two trees. It says on stdout what they are, does what
// it is told by the lines of its stdin, and gives the verdicts.
//
//	args: shim patience
func server(args []string) {
	patience, err := time.ParseDuration(args[1])
	must(err)
	socket, err := proc.SupervisorFromEnv()
	must(err)
	host, err := proc.Open(proc.Options{Shim: args[0], Supervisor: socket, Patience: patience})
	must(err)
	var trees []*proc.Tree
	for range 2 {
		spec := proc.Spec{Argv: []string{"sh", "-c", ten}, Env: proctest.Env(), Files: []*os.File{nil, nil, os.Stderr}}
		tree, err := host.Start(context.Background(), spec)
		must(err)
		proctest.Eventually(func() bool { return len(proctest.Descendants(tree.ShimPid())) == 10 })
		trees = append(trees, tree)
	}
	tree, other := trees[0], trees[1]
	fmt.Println("server", os.Getpid())
	fmt.Println("shim", tree.ShimPid())
	fmt.Println("worker", tree.Pid())

	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		switch lines.Text() {
		case "kill":
			tree.Kill()
		case "verdict":
			v := tree.Wait(context.Background())
			fmt.Printf("empty=%v proof=%q reason=%q\n", v.Empty, v.Proof, v.Reason)
		case "other": // is not to be touched
			fmt.Println(len(proctest.Descendants(other.ShimPid())))
		case "start":
			next, err := host.Start(context.Background(), proc.Spec{Argv: []string{"sh", "-c", "exit 6"}, Env: proctest.Env()})
			must(err)
			fmt.Println(next.Status().Exit, next.Wait(context.Background()).Proof)
		case "close":
			fmt.Println(host.Close())
			os.Exit(3)
		}
	}
	select {}
}

// begrudger is a server whose worker becomes root by a setuid program, so that its
// shim may not kill it.
//
//	args: shim, program…
func begrudger(args []string) {
	host, err := proc.Open(proc.Options{Shim: args[0]})
	must(err)
	tree, err := host.Start(context.Background(), proc.Spec{Argv: args[1:], Env: proctest.Env(), NewPrivileges: true})
	must(err)
	proctest.Eventually(func() bool { return name(tree.Pid()) == "sleep" })
	tree.Kill()
	for verdict := (proc.Verdict{}); !verdict.Empty; {
		verdict = tree.Wait(context.Background())
		fmt.Printf("empty=%v in %v: %+v\n", verdict.Empty, verdict.Took.Round(time.Second), verdict.Survivors)
		fmt.Println(tree.Pid())
	}
	must(host.Close())
}

// begrudgerLimited is a server whose worker is a setuid program, to which its shim
// may give no limits.
//
//	args: shim, program…
func begrudgerLimited(args []string) {
	host, err := proc.Open(proc.Options{Shim: args[0]})
	must(err)
	_, err = host.Start(context.Background(), proc.Spec{Argv: args[1:], Env: proctest.Env(), NewPrivileges: true, MaxFiles: 100})
	fmt.Println(err)
	next, err := host.Start(context.Background(), proc.Spec{Argv: []string{"sh", "-c", "exit 6"}, Env: proctest.Env(), MaxFiles: 100})
	must(err)
	fmt.Println(next.Status().Exit, next.Wait(context.Background()).Proof)
	fmt.Println(host.Close())
}

// ten is a tree of ten processes.
const ten = `for i in 1 2 3; do sleep 1000 & setsid sleep 1000 & (setsid sleep 1000 &) ; done; exec sleep 1000`

func must(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(9)
	}
}
