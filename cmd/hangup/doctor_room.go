//go:build linux && !portable

package main

import (
	"fmt"

	"example.com/hangup/internal/config"
	"example.com/hangup/internal/proc"
)

// headRoom looks at how many processes there can be, and what is kept of them for the
// server.
func headRoom(workloads []config.Workload) finding {
	room := proc.Processes()
	f := finding{Check: "processes", Verdict: sound}
	switch kept := room.Most - room.Limit; {
	case room.Most == 0:
		f.Detail = "no bound is known but the machine's own: nothing has to be kept for the server"
		if !asRoot(workloads) {
			break
		}
		f.Verdict, f.Detail = weaker, "no bound is known but the machine's own, and nothing bounds the processes of root"
		f.Remedy = "limits.pids for each workload, or a user of its own; TasksMax in the systemd unit"
	case room.Limit == 0 || room.Limit > room.Most:
		f.Verdict = weaker
		f.Detail = fmt.Sprintf("at most %d (%s), of which workers may take all: the server may end for want of a thread", room.Most, room.Bound)
		f.Remedy = "limits.pids for each workload"
	case kept < proc.HeadRoom:
		f.Verdict = weaker
		f.Detail = fmt.Sprintf("at most %d (%s): %d of them are kept for the server, which may need %d", room.Most, room.Bound, kept, proc.HeadRoom)
		f.Remedy = "TasksMax and LimitNPROC in the systemd unit, --pids-limit of the container, ulimit -u"
	default:
		f.Detail = fmt.Sprintf("at most %d (%s): %d of them are kept for the server, whatever a worker forks", room.Most, room.Bound, kept)
	}
	return f
}
