//go:build !linux || portable

package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"example.com/hangup/internal/config"
	"example.com/hangup/internal/proc"
)

// examineHost looks at this host.
func examineHost(ctx context.Context, c config.Config) []finding {
	list := []finding{system()}
	list = append(list, group(ctx, c)...)
	list = append(list, users(c.Workloads)...)
	return append(list, descriptors(c.Limits.Connections), spoolDir(c.Spool.Dir), scratchDir(ctx, c.Spool.Dir))
}

func system() finding {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return finding{"system", missing, "cannot ask for its version: " + err.Error(), ""}
	}
	return finding{
		Check: "system", Verdict: weaker,
		Detail: unix.ByteSliceToString(name.Sysname[:]) + " " + unix.ByteSliceToString(name.Release[:]) + ": served best effort",
		Remedy: "docs/other-unix.md says what is lost",
	}
}

// group starts a process group as the server would, ends it, and says what holds it.
func group(ctx context.Context, c config.Config) []finding {
	failed := func(err error) []finding { return []finding{{"containment", missing, err.Error(), ""}} }
	host, err := proc.Open(proc.Options{})
	if err != nil {
		return failed(err)
	}
	defer host.Close()
	self, err := os.Executable()
	if err != nil {
		return failed(err)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	tree, err := host.Start(ctx, proc.Spec{Argv: []string{self, "doctor", "--tree", "1"}, Env: os.Environ(), Files: []*os.File{nil, nil, nil}})
	if err != nil {
		return failed(err)
	}
	tree.Kill()
	v := tree.Wait(ctx)
	if !v.Empty {
		return failed(fmt.Errorf("a process group was not ended: %s", v.Reason))
	}
	held := host.Containment()
	f := finding{"containment", weaker, fmt.Sprintf("%s, isolation %s: a process group was ended in %s (%s)", held.Level, isolation(held, c.Workloads), ms(v.Took), v.Proof), ""}
	if minimum := c.Containment.Minimum; !held.Meets(minimum) {
		f.Verdict = missing
		f.Detail += fmt.Sprintf("; containment.minimum is %s: serve would not start", minimum)
		f.Remedy = "write containment: {minimum: " + held.Level + "} into the config if that will do"
	}
	list := []finding{f}
	for _, layer := range held.Layers {
		if !layer.On {
			list = append(list, finding{layer.Name, weaker, layer.Detail, layer.Remedy})
		}
	}
	return list
}
