// Package kind holds what every kind of work does alike: the environment a
// worker gets ([Environ]), how it is started ([Spec]), what becomes of its stdout and stderr ([Output]), and
// the stop sequence ([Sequence]). A kind itself is a folder below this one.
//
// It imports config, event and proc.
package kind

import (
	"os"
	"slices"
	"time"

	"example.com/hangup/internal/config"
	"example.com/hangup/internal/event"
	"example.com/hangup/internal/proc"
)

// passed are the variables of the server's own environment that every worker gets.
var passed = []string{"PATH", "HOME", "LANG", "TZ"}

// Environ is the environment of a workload's workers: PATH, HOME, LANG and TZ,
// what the workload passes and sets, and extra ("NAME=value"), which wins.
// Nothing else of the server's environment gets through. Workers with a user of
// their own have HOME, USER and LOGNAME of that user, unless the workload passes or
// sets others.
func Environ(w config.Workload, extra ...string) []string {
	var env []string
	names := append(slices.Clone(passed), w.PassEnv...)
	if u := w.User; u != nil {
		names = slices.DeleteFunc(names, func(name string) bool { return name == "HOME" && !slices.Contains(w.PassEnv, name) })
		for _, own := range [][2]string{{"HOME", u.Home}, {"USER", u.Name}, {"LOGNAME", u.Name}} {
			if _, set := w.Env[own[0]]; !set && !slices.Contains(w.PassEnv, own[0]) {
				env = append(env, own[0]+"="+own[1])
			}
		}
	}
	for _, name := range names {
		if _, set := w.Env[name]; set {
			continue
		}
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	for name, value := range w.Env {
		env = append(env, name+"="+value)
	}
	env = append(env, "HANGUP_WORKLOAD="+w.Name)
	return append(env, extra...)
}

// Spec is how the program of a workload is started, but for its environment and its
// descriptors.
func Spec(w config.Workload) proc.Spec {
	spec := proc.Spec{
		Argv: w.Command, Dir: w.Dir, NewPrivileges: w.NewPrivileges, MaxFiles: w.Limits.Files,
		Limits: Limits(w),
	}
	if u := w.User; u != nil {
		spec.User = &proc.User{Name: u.Name, UID: u.UID, GID: u.GID, Groups: u.Groups}
	}
	return spec
}

// Limits are those of a worker's process tree.
func Limits(w config.Workload) proc.Limits {
	return proc.Limits{Memory: w.Limits.Memory, Pids: w.Limits.Pids, CPUs: w.Limits.CPUs}
}

// Sequence runs the stop sequence on a tree: its main process is asked to end,
// has so long to do it, and then everything left is killed. It returns when the
// kill has been ordered; how it went is the tree's verdict. The steps, of which
// the first has the given name, are told as times after decided. When ask fails,
// or there is no grace, the kill comes at once.
func Sequence(t *proc.Tree, name string, ask func() error, grace time.Duration, decided time.Time) []event.Step {
	var steps []event.Step
	step := func(name string) { steps = append(steps, event.Step{Name: name, At: time.Since(decided)}) }
	if grace > 0 && ask() == nil {
		step(name)
		over := time.NewTimer(grace)
		select {
		case <-t.Exited():
		case <-over.C:
		}
		over.Stop()
	}
	step("kill")
	t.Kill()
	return steps
}

// Verdict puts the steps and the verdict on a tree together. It is to be called
// when the verdict has come: what it took counts from decided until now.
func Verdict(v proc.Verdict, steps []event.Step, decided time.Time) event.Stop {
	return event.Stop{
		Steps: steps, Killed: v.Reaped, Took: time.Since(decided),
		Empty: v.Empty, Proof: v.Proof, Survivors: v.Survivors,
	}
}
