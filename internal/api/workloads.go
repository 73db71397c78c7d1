package api

import (
	"net/http"
	"time"

	"example.com/hangup/internal/event"
)

// The members of GET /workloads.
type (
	standing struct {
		ServerPid     int        `json:"server_pid"`
		SupervisorPid int        `json:"supervisor_pid"`
		Containment   string     `json:"containment"`
		Isolation     string     `json:"isolation"` // of the weakest workload
		Layers        []layer    `json:"layers"`
		Workloads     []workload `json:"workloads"`
		Retiring      []workload `json:"retiring"` // pools that a reload has removed or replaced, until they are gone
	}
	layer struct {
		Name   string `json:"name"`
		On     bool   `json:"on"`
		Detail string `json:"detail"`
		Remedy string `json:"remedy"`
	}
	workload struct {
		Name    string   `json:"name"`
		Kind    string   `json:"kind"`
		Limit   int      `json:"limit"`
		Spares  int      `json:"spares"`
		Queued  int      `json:"queued"`
		Tasks   []string `json:"tasks"` // empty until a first worker has said them
		Workers []worker `json:"workers"`
		State   string   `json:"state"`
		Reason  string   `json:"reason"`
		// Isolation is what keeps its workers from the rest.
		Isolation string `json:"isolation"`
	}
	worker struct {
		Pid     int               `json:"pid"`
		ShimPid int               `json:"shim_pid"`
		State   event.WorkerState `json:"state"`
		Calls   int               `json:"calls"`
		Age     float64           `json:"age_s"` // seconds since it was started
		RSS     int64             `json:"rss"`   // bytes
	}
)

// listWorkloads answers GET /workloads with what the caller may see.
func (s *server) listWorkloads(v *visit) {
	pools := s.o.Workloads()
	all := standing{
		ServerPid: s.o.ServerPid, SupervisorPid: s.o.SupervisorPid,
		Containment: s.o.Containment.Level, Isolation: event.WeakestOf(pools), Layers: []layer{}, Workloads: []workload{}, Retiring: []workload{},
	}
	for _, one := range s.o.Containment.Layers {
		all.Layers = append(all.Layers, layer(one))
	}
	for _, p := range pools {
		switch {
		case !v.caller.may(p.Name):
		case p.Retiring:
			all.Retiring = append(all.Retiring, view(p))
		default:
			all.Workloads = append(all.Workloads, view(p))
		}
	}
	s.writeJSON(v, http.StatusOK, all)
}

func view(p event.Pool) workload {
	w := workload{
		Name: p.Name, Kind: p.Kind, Limit: p.Limit, Spares: p.Spares, Queued: p.Queued,
		Tasks: append([]string{}, p.Tasks...), Workers: make([]worker, 0, len(p.Workers)), State: p.State, Reason: p.Reason, Isolation: p.Isolation,
	}
	for _, one := range p.Workers {
		w.Workers = append(w.Workers, worker{
			Pid: one.Pid, ShimPid: one.ShimPid, State: one.State, Calls: one.Calls,
			Age: time.Since(one.Since).Round(time.Millisecond).Seconds(), RSS: one.RSS,
		})
	}
	return w
}
