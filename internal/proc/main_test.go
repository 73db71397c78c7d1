//go:build linux && !portable

package proc_test

import (
	"context"
	"os"
	"testing"
	"time"

	"example.com/hangup/internal/proc"
	"example.com/hangup/internal/proctest"
)

func TestMain(m *testing.M) { proctest.Main(m) }

// open opens a host that ends with the test, which leaves nothing behind.
func open(t testing.TB) *proc.Host {
	t.Helper()
	return openWith(t, best)
}

// openWith does, with trees that are held in a certain way.
func openWith(t testing.TB, c containment) *proc.Host {
	t.Helper()
	return openStock(t, c, proc.DefaultStock)
}

// openStock does, with so many idle shims at rest.
func openStock(t testing.TB, c containment, stock int) *proc.Host {
	t.Helper()
	shim := proctest.Shim(t)
	proctest.Check(t)
	host, err := proc.Open(proc.Options{Shim: shim, Cgroup: c.cgroup, NoScope: c.noScope, Stock: stock, Patience: proctest.Patience})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := host.Close(); err != nil {
			t.Error(err)
		}
	})
	return host
}

// A containment is how trees are held.
type containment struct {
	name    string
	cgroup  string
	noScope bool
}

// The containments there are, as far as they can be had; best is that of a host which
// is told nothing.
var (
	best         = containment{"cgroup", proc.CgroupAuto, false}
	containments = []containment{best, {"scope", proc.CgroupNever, false}, {"neither", proc.CgroupNever, true}}
)

func sh(script string) proc.Spec {
	return proc.Spec{Argv: []string{"sh", "-c", script}, Env: proctest.Env(), Files: []*os.File{nil, nil, os.Stderr}}
}

func start(t testing.TB, host *proc.Host, spec proc.Spec) *proc.Tree {
	t.Helper()
	tree, err := host.Start(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// grown waits until a tree has so many processes.
func grown(t testing.TB, tree *proc.Tree, want int) {
	t.Helper()
	if !proctest.Eventually(func() bool { return len(proctest.Descendants(tree.ShimPid())) == want }) {
		t.Fatalf("the tree has %d processes, want %d", len(proctest.Descendants(tree.ShimPid())), want)
	}
}

// ended waits for the verdict and makes sure that it is true.
func ended(t testing.TB, tree *proc.Tree) proc.Verdict {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), proctest.Patience)
	defer cancel()
	verdict := tree.Wait(ctx)
	if !verdict.Empty || verdict.Proof != proc.ProofECHILD || verdict.Took <= 0 || verdict.Took > proctest.Patience {
		t.Fatalf("verdict %+v, want empty by ECHILD", verdict)
	}
	select {
	case <-tree.Done():
	default:
		t.Error("the tree is empty, and Done is not closed")
	}
	if left := proctest.Descendants(tree.ShimPid()); len(left) > 0 {
		t.Errorf("verdict empty, but there are %v", left)
	}
	return verdict
}

// output starts a program and returns what it wrote to its stdout.
func output(t testing.TB, host *proc.Host, spec proc.Spec) string {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	spec.Files[1] = w
	tree := start(t, host, spec)
	w.Close()
	out := make([]byte, 0, 4096)
	r.SetReadDeadline(time.Now().Add(proctest.Patience))
	for {
		n, err := r.Read(out[len(out):cap(out)])
		if out = out[:len(out)+n]; err != nil || len(out) == cap(out) {
			break
		}
	}
	ended(t, tree)
	return string(out)
}
