//go:build linux && !portable

package proc

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"example.com/hangup/internal/proctest"
)

func init() { proctest.Program("room", tellRoom) }

// tellRoom says what bounds it, after it has bounded itself, or gone to a cgroup.
//
//	args: "rlimit" or the file cgroup.procs of a cgroup
func tellRoom(args []string) {
	var err error
	if args[0] == "rlimit" {
		err = unix.Setrlimit(unix.RLIMIT_NPROC, &unix.Rlimit{Cur: 300, Max: 300})
	} else {
		err = os.WriteFile(args[0], fmt.Append(nil, os.Getpid()), 0)
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	json.NewEncoder(os.Stdout).Encode(Processes()) //nolint:errcheck
}

func room(t *testing.T, arg string) (r Room) {
	t.Helper()
	proctest.Check(t)
	argv, env := proctest.Command("room", arg)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = env
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return r
}

func TestProcessesByRlimit(t *testing.T) {
	got, before := room(t, "rlimit"), Processes()
	want := Room{300, "RLIMIT_NPROC", 300 - HeadRoom}
	if os.Geteuid() == 0 || before.Most != 0 && before.Most < 300 {
		want = before // it is nothing to root
	}
	if got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestProcessesByCgroup(t *testing.T) {
	dir := proctest.OldGroup(t, "pids")
	inner := filepath.Join(dir, "inner")
	if err := os.Mkdir(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(inner)
	for dir, text := range map[string]string{dir: "100", inner: "5000"} { // the least counts, wherever it is
		if err := os.WriteFile(filepath.Join(dir, "pids.max"), []byte(text), 0); err != nil {
			t.Fatal(err)
		}
	}
	got := room(t, filepath.Join(inner, "cgroup.procs"))
	if want := (Room{100, "pids.max of " + dir, Processes().Limit}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestPidsGroups(t *testing.T) {
	const (
		unified = "24 1 0:22 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
		host    = "31 30 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n38 30 0:35 / /sys/fs/cgroup/pids rw shared:9 - cgroup cgroup rw,pids\n"
		inside  = "38 30 0:35 /docker/abc /sys/fs/cgroup/pids ro - cgroup cgroup rw,pids\n"
	)
	for _, test := range []struct {
		name, cgroup, mounts string
		want                 []string
	}{
		{"v2", "0::/system.slice/hangup.service\n", unified, []string{"/sys/fs/cgroup/system.slice/hangup.service", "/sys/fs/cgroup/system.slice", "/sys/fs/cgroup"}},
		{"v2 in a namespace", "0::/\n", unified, []string{"/sys/fs/cgroup"}},
		{"v1", "8:pids:/a/b\n1:cpu:/x\n", host, []string{"/sys/fs/cgroup/pids/a/b", "/sys/fs/cgroup/pids/a", "/sys/fs/cgroup/pids"}},
		{"v1 in a container", "8:pids:/docker/abc/d\n", inside, []string{"/sys/fs/cgroup/pids/d", "/sys/fs/cgroup/pids"}},
		{"outside of what is mounted", "8:pids:/elsewhere\n", inside, []string{"/sys/fs/cgroup/pids"}},
		{"not mounted", "8:pids:/a\n0::/b\n", "", nil},
		{"nothing", "", unified, nil},
	} {
		if got := pidsGroups(test.cgroup, test.mounts); !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}
