package daemon

import (
	"fmt"
	"os"
	"slices"

	"example.com/hangup/internal/config"
	"example.com/hangup/internal/event"
	"example.com/hangup/internal/kind"
	"example.com/hangup/internal/proc"
)

// Unfit says why a config cannot be served here. To start again does not mend that.
type Unfit struct{ why string }

func (u *Unfit) Error() string { return u.why }

// Enough is nil where the trees are held as surely as the config demands. Otherwise
// it says in three lines what is missing, why, and what would change that.
func Enough(held event.Containment, minimum string) error {
	if held.Meets(minimum) {
		return nil
	}
	why, remedy := "", ""
	for _, layer := range held.Layers {
		if layer.Name == minimum && !layer.On {
			why = "\n  why: " + layer.Detail
			if layer.Remedy != "" {
				remedy = layer.Remedy + "; "
			}
		}
	}
	return &Unfit{fmt.Sprintf("cannot hold process trees as containment.minimum demands: it is %s, and %s is what there is%s"+
		"\n  what to do: %sor accept that by containment: {minimum: %[2]s} in the config", minimum, held.Level, why, remedy)}
}

// Allowed is nil where a server of this process may run the workers of a workload as
// its config says.
func Allowed(w config.Workload) error {
	switch {
	case !proc.Supervised && w.User != nil:
		return &Unfit{fmt.Sprintf("workloads.%s.user: needs Linux: leave it out here", w.Name)}
	case !proc.Supervised && kind.Limits(w) != (proc.Limits{}):
		return &Unfit{fmt.Sprintf("workloads.%s.limits: memory, pids and cpus need Linux: leave them out here", w.Name)}
	case w.User != nil && os.Geteuid() != 0:
		return &Unfit{fmt.Sprintf("workloads.%s.user: only root can run workers as %s, and this is uid %d: run hangup as root, or leave user out",
			w.Name, w.User.Name, os.Geteuid())}
	}
	return nil
}

// Isolation is what keeps the workers of a workload from the rest. With new privileges
// they may become anybody, and root without a user of their own is anybody.
func Isolation(held event.Containment, w config.Workload) string {
	switch {
	case w.NewPrivileges || !proc.Supervised:
		return event.NoIsolation
	case w.User != nil:
		return event.UID
	case os.Geteuid() == 0:
		return event.NoIsolation
	}
	return held.Isolation
}

func (s *server) isolation(w config.Workload) string { return Isolation(s.held, w) }

// weakest is the isolation of the server: that of its weakest workload.
func (s *server) weakest() string {
	return event.WeakestOf(s.pools.snapshots())
}

// logLayers tells of each layer that is missing. It is no warning where no workload of
// the config is the worse for it.
func (s *server) logLayers(c *config.Config) {
	limited := slices.ContainsFunc(c.Workloads, func(w config.Workload) bool { return len(s.enforced(w)) > 0 })
	for _, layer := range s.held.Layers {
		log := s.log.Warn
		if layer.Name == event.Controllers && !limited {
			log = s.log.Info
		}
		if !layer.On {
			log("weaker containment", "layer", layer.Name, "detail", layer.Detail, "remedy", layer.Remedy)
		}
	}
}

// logIsolation tells of each workload that is kept in less than others are, because
// its config says so.
func (s *server) logIsolation(c *config.Config) {
	for _, w := range c.Workloads {
		var detail, remedy string
		switch {
		case w.NewPrivileges:
			detail = "new_privileges: its workers may become who they are not, whom the shim may not kill, and signal others"
			remedy = "leave new_privileges out"
		case w.User == nil && os.Geteuid() == 0 && proc.Supervised:
			detail = "its workers are root: nothing keeps them from the rest of the machine"
			remedy = "give it a user, or run hangup as an ordinary user"
		default:
			continue
		}
		s.log.Warn("weaker isolation", "workload", w.Name, "isolation", s.isolation(w), "detail", detail, "remedy", remedy)
	}
}

// logLimits tells how the limits of each workload are enforced.
func (s *server) logLimits(c *config.Config) {
	for _, w := range c.Workloads {
		if how := s.enforced(w); len(how) > 0 {
			s.log.Info("limits of a workload", "workload", w.Name, "enforced", how)
		}
	}
}
