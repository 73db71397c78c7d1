package daemon

import (
	"os"
	"testing"

	"example.com/hangup/internal/config"
	"example.com/hangup/internal/event"
	"example.com/hangup/internal/proc"
)

// TestIsolation: none is claimed where it does not hold.
func TestIsolation(t *testing.T) {
	own, as := event.Signals, event.UID
	if os.Geteuid() == 0 {
		own = event.NoIsolation
	}
	if !proc.Supervised {
		own, as = event.NoIsolation, event.NoIsolation
	}
	user := &config.User{Name: "app", UID: 65141, GID: 65141}
	for _, c := range []struct {
		workload config.Workload
		want     string
	}{
		{config.Workload{}, own},
		{config.Workload{User: user}, as},
		{config.Workload{NewPrivileges: true}, event.NoIsolation},
		{config.Workload{NewPrivileges: true, User: user}, event.NoIsolation},
	} {
		if got := Isolation(event.Containment{Isolation: event.Signals}, c.workload); got != c.want {
			t.Errorf("user %v, new_privileges %v: %s, want %s", c.workload.User, c.workload.NewPrivileges, got, c.want)
		}
	}
}

// TestAllowed: what this process cannot give to workers is refused.
func TestAllowed(t *testing.T) {
	w := config.Workload{Name: "w"}
	if err := Allowed(w); err != nil {
		t.Errorf("nothing is asked for: %v", err)
	}
	w.Limits.Pids = 10
	if err := Allowed(w); (err != nil) == proc.Supervised {
		t.Errorf("a limit of the tree: %v", err)
	}
	w = config.Workload{Name: "w", User: &config.User{Name: "app", UID: 65141}}
	if err := Allowed(w); (err == nil) != (proc.Supervised && os.Geteuid() == 0) {
		t.Errorf("a user: %v", err)
	}
}

// TestEnough: a refusal says what is wanted and what there is, why, and what to do.
func TestEnough(t *testing.T) {
	held := event.Containment{Level: event.Subreaper, Layers: []event.Layer{{Name: "cgroup", Detail: "is read-only", Remedy: "write"}}}
	if err := Enough(held, event.Subreaper); err != nil {
		t.Errorf("it is enough, and refused: %v", err)
	}
	want := `cannot hold process trees as containment.minimum demands: it is cgroup, and subreaper is what there is
  why: is read-only
  what to do: write; or accept that by containment: {minimum: subreaper} in the config`
	if err := Enough(held, event.Cgroup); err == nil || err.Error() != want {
		t.Errorf("%v\nwant %s", err, want)
	}
}
