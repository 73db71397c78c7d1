package daemon

import (
	"fmt"
	"os"

	"example.com/hangup/internal/config"
	"example.com/hangup/internal/event"
)

// enough is nil where the trees are held as surely as the config demands. Otherwise
// it says what is missing, why, and what would change that.
func enough(held event.Containment, minimum string) error {
	if held.Meets(minimum) {
		return nil
	}
	why := ""
	for _, layer := range held.Layers {
		if layer.Name == minimum && !layer.On {
			why = ": " + layer.Detail
			if layer.Remedy != "" {
				why += ": " + layer.Remedy
			}
		}
	}
	return fmt.Errorf("cannot hold process trees as containment.minimum demands: it is %s, and %s is what there is%s; "+
		"or write the lower minimum into the config", minimum, held.Level, why)
}

// isolation is what keeps the workers of a workload from the rest. no_new_privs is
// where it begins, and root can undo all of it.
func (s *server) isolation(w config.Workload) string {
	if w.NewPrivileges || os.Geteuid() == 0 {
		return event.NoIsolation
	}
	return s.held.Isolation
}

// weakest is the isolation of the server: that of its weakest workload.
func (s *server) weakest() string {
	return event.WeakestOf(s.pools.snapshots())
}

// logLayers tells of each layer that is missing.
func (s *server) logLayers() {
	for _, layer := range s.held.Layers {
		if !layer.On {
			s.log.Warn("weaker containment", "layer", layer.Name, "detail", layer.Detail, "remedy", layer.Remedy)
		}
	}
}

// logIsolation tells of each workload that is kept in less than others are, because
// its config says so.
func (s *server) logIsolation(c *config.Config) {
	for _, w := range c.Workloads {
		if w.NewPrivileges {
			s.log.Warn("weaker isolation", "workload", w.Name, "isolation", s.isolation(w),
				"detail", "new_privileges: its workers may become who they are not, whom the shim may not kill, and signal others", "remedy", "leave new_privileges out")
		}
	}
}
