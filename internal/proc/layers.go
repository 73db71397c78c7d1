//go:build linux && !portable

package proc

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"example.com/hangup/internal/cgroup"
	"example.com/hangup/internal/event"
	"example.com/hangup/internal/reap"
)

// Containment tells how the trees are held, layer by layer, as Open has found it out.
// The isolation is that of a worker who runs as the server's own user.
func (h *Host) Containment() event.Containment { return h.held }

func (h *Host) layers() event.Containment {
	c := event.Containment{Level: event.Subreaper, Isolation: event.NoIsolation}
	supervisor := event.Layer{Name: "supervisor", On: true, Detail: "ends what loses its shim or its server"}
	if h.supervisor == nil {
		supervisor.On, supervisor.Detail, supervisor.Remedy = false, "none: what loses its shim is not ended", "start the server by hangup serve"
	}
	if h.base != nil {
		c.Level = event.Cgroup
	}
	signals := h.signalLayer()
	if signals.On && os.Geteuid() != 0 {
		c.Isolation = event.Signals
	}
	c.Layers = append(c.Layers, supervisor,
		event.Layer{Name: "subreaper", On: true, Detail: "no process leaves the tree below its shim"},
		h.cgroupLayer(), h.controllersLayer(),
		event.Layer{Name: "no_new_privs", On: true, Detail: "sudo, su and the like give a worker nothing, unless it has new_privileges"},
		signals,
		event.Layer{Name: "private", On: true, Detail: "no worker of an ordinary user can read or trace supervisor, server and shims; none leaves a core"})
	return c
}

func (h *Host) cgroupLayer() event.Layer {
	if h.base == nil {
		slower := ": a fork bomb takes longer to end"
		if h.scoped() {
			slower = ": only the signal scope kills a tree in one step, and that not where new_privileges is on"
		}
		return event.Layer{Name: "cgroup", Detail: h.noCgroup.Reason + slower, Remedy: h.noCgroup.Remedy}
	}
	return event.Layer{Name: "cgroup", On: true, Detail: "a tree is killed in one step, below " + h.base.Path()}
}

// controllersLayer is for what the cgroups of the trees can be limited in.
func (h *Host) controllersLayer() event.Layer {
	layer := event.Layer{Name: event.Controllers, Detail: "there is no cgroup to limit", Remedy: "see cgroup"}
	var given []string
	if h.base != nil {
		var missing *cgroup.Missing
		if given, missing = h.base.Controllers(); missing == nil {
			layer.On, layer.Detail, layer.Remedy = true, "limits.memory, pids and cpus are kept by the kernel for the whole tree", ""
			return layer
		}
		layer.Detail, layer.Remedy = missing.Reason, missing.Remedy
	}
	var looked, instead []string
	for _, name := range []string{"memory", "pids"} {
		if !slices.Contains(given, name) {
			looked = append(looked, name)
		}
	}
	if looked != nil {
		instead = append(instead, strings.Join(looked, " and ")+" of a tree are looked at ten times a second instead")
	}
	if !slices.Contains(given, "cpu") {
		instead = append(instead, "cpus are kept by affinity")
	}
	layer.Detail += ": " + strings.Join(instead, ", ")
	return layer
}

func (h *Host) signalLayer() event.Layer {
	if h.scoped() {
		return event.Layer{Name: "signals", On: true, Detail: "Landlock: a tree can be killed in one step, a worker can signal and trace nobody outside it, and by seccomp limit nobody else, unless new_privileges is on"}
	}
	l := event.Layer{Name: "signals", Remedy: "Linux 6.12 or later with landlock among its security modules (lsm=), and no sandbox that forbids it"}
	switch abi, err := reap.LandlockABI(); {
	case err != nil:
		l.Detail = "the kernel has no Landlock (" + err.Error() + ")"
	case abi < reap.ScopeABI:
		l.Detail = fmt.Sprintf("the kernel's Landlock has version %d, which keeps no signals in; %d does", abi, reap.ScopeABI)
	default:
		l.Detail = "Landlock cannot be used (" + h.noScope.Error() + ")"
	}
	l.Detail += ": a worker can signal other processes of its user, the server among them"
	return l
}
