// Command careful is a server that does with a Host what servers do: it starts
// trees and ends them, some of which end by themselves. What fails it tells, and
// tries once more; what then fails ends it. It tells, too, what a Host that was
// closed has left open, and whom a verdict has overlooked.
//
//	careful SHIM
package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"time"

	"example.com/hangup/internal/proc"
)

// family is a tree of four.
const family = `sleep 1000 & setsid sleep 1000 & (setsid sleep 1000 &) ; echo up; exec sleep 1000`

func main() {
	socket, err := proc.SupervisorFromEnv()
	must(err)
	r, w, err := again(os.Pipe) // what the runtime opens for its poller is open from now on
	must(err)
	r.Close()
	w.Close()
	before := open()
	host, err := proc.Open(proc.Options{Shim: os.Args[1], Supervisor: socket})
	must(err)
	for _, loses := range []bool{false, true} {
		r, w, err := again(os.Pipe)
		must(err)
		long, err := start(host, family, w)
		must(err)
		w.Close()
		short, err := start(host, "exit 3", nil)
		must(err)
		empty(short)
		bound, err := startSpec(host, proc.Spec{ // it ends by itself, but not before its limits were looked after
			Argv: []string{"sh", "-c", "sleep 0.2"}, Limits: proc.Limits{Memory: 1 << 40, Pids: 1000, CPUs: 1}, User: user(),
		})
		must(err)
		empty(bound)
		bufio.NewReader(r).ReadString('\n') // it is up, or has ended
		if loses {
			for syscall.Kill(long.ShimPid(), syscall.SIGKILL) != nil {
			}
		} else {
			long.Signal(syscall.SIGCONT)
			long.Kill()
		}
		empty(long)
		if held(r) {
			fmt.Println("overlooked: somebody of an empty tree is alive")
		}
		r.Close()
	}
	say(host.Close())
	before.descriptors-- // the supervisor's socket, which a Host takes over
	for deadline := time.Now().Add(5 * time.Second); open() != before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			fmt.Println("leaked: before", before, "after", open())
			break
		}
	}
	fmt.Println("end")
}

// user is somebody else, whom only root can have work for it.
func user() *proc.User {
	if os.Geteuid() != 0 {
		return nil
	}
	return &proc.User{Name: "nobody", UID: 65534, GID: 65534, Groups: []int{65534}}
}

func start(host *proc.Host, script string, out *os.File) (tree *proc.Tree, err error) {
	return startSpec(host, proc.Spec{Argv: []string{"sh", "-c", script}, Files: []*os.File{nil, out, os.Stderr}})
}

func startSpec(host *proc.Host, spec proc.Spec) (tree *proc.Tree, err error) {
	spec.Env, spec.Dir, spec.MaxFiles = os.Environ(), "/", 100
	for range 2 {
		tree, err = host.Start(context.Background(), spec)
		if err == nil {
			return tree, nil
		}
		say(err)
	}
	return nil, err
}

func again(pipe func() (r, w *os.File, err error)) (r, w *os.File, err error) {
	if r, w, err = pipe(); err != nil {
		return pipe()
	}
	return r, w, nil
}

// empty waits until the tree is.
func empty(tree *proc.Tree) {
	for {
		verdict := tree.Wait(context.Background())
		if verdict.Empty {
			return
		}
		fmt.Printf("cannot say that it is empty: %+v\n", verdict)
	}
}

// held tells whether a process has the other end of the pipe, as the whole family has.
func held(r *os.File) (held bool) {
	conn, err := r.SyscallConn()
	must(err)
	conn.Read(func(fd uintptr) bool {
		n, err := syscall.Read(int(fd), make([]byte, 1))
		for err != nil && err != syscall.EAGAIN {
			n, err = syscall.Read(int(fd), make([]byte, 1))
		}
		held = n != 0
		return true
	})
	return held
}

type counts struct{ goroutines, descriptors int }

// open is what this process has open now.
func open() counts {
	c := counts{goroutines: runtime.NumGoroutine()}
	names, _ := os.ReadDir("/proc/self/fd")
	c.descriptors = len(names)
	return c
}

func say(err error) {
	if err != nil {
		fmt.Println(err)
	}
}

func must(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(9)
	}
}
