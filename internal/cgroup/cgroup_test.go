//go:build linux

package cgroup

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"example.com/hangup/internal/proctest"
)

func TestMain(m *testing.M) { proctest.Main(m) }

func TestWhereACgroupIsShown(t *testing.T) {
	for _, test := range []struct{ name, membership, info, want string }{
		{"v2 alone", "0::/a.slice/b.service\n", "30 22 0:27 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw\n", "/sys/fs/cgroup/a.slice/b.service"},
		{"hybrid", "1:cpu:/\n0::/a\n", "31 30 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n40 30 0:37 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n", "/sys/fs/cgroup/unified/a"},
		{"only a part is mounted", "0::/docker/1/x\n", "40 30 0:37 /docker/1 /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "/sys/fs/cgroup/x"},
		{"another part is", "0::/docker/12\n", "40 30 0:37 /docker/1 /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", ""},
		{"a namespace of its own", "0::/\n", "40 30 0:37 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "/sys/fs/cgroup"},
		{"a mount from outside of it", "0::/\n", "40 30 0:37 /../.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", ""},
		{"outside of the namespace", "0::/../x\n", "40 30 0:37 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", ""},
		{"a name with a blank", "0::/a b\n", `40 30 0:37 / /c\040d rw - cgroup2 cgroup2 rw` + "\n", "/c d/a b"},
		{"v1 alone", "1:cpu:/\n", "31 30 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := ""
			if own, ok := ownPath(test.membership); ok {
				for _, m := range mountsOf(test.info) {
					got, _ = m.dir(own)
				}
			}
			if got != test.want {
				t.Errorf("%q, want %q", got, test.want)
			}
		})
	}
}

// TestLeaf: processes go to the leaf and come back, and stay where others are, too.
func TestLeaf(t *testing.T) {
	proctest.Check(t)
	own := proctest.Group()
	if _, err := os.Stat(filepath.Join(own, "cgroup.type")); own == "" || err != nil || unix.Access(own, unix.W_OK) != nil {
		proctest.Lack(t, "no cgroup v2 of our own")
	}
	other := exec.Command("sleep", "1000")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	b := &Base{own: own}
	if why := b.vacate([]int{os.Getpid()}); why == nil || !strings.HasSuffix(why.Reason, "is in "+own+", too") || proctest.Group() != own {
		t.Errorf("with another process: %v, and now in %s", why, proctest.Group())
	}
	other.Process.Kill()
	other.Wait()
	for range 2 { // the second finds a leaf that was left behind
		if why := b.vacate([]int{os.Getpid()}); why != nil {
			t.Fatal(why)
		}
		if in := proctest.Group(); in != filepath.Join(own, leafName) {
			t.Errorf("now in %s", in)
		}
		b.restore()
		if in := proctest.Group(); in != own || b.leaf != "" {
			t.Errorf("back in %s, leaf %q", in, b.leaf)
		}
		if err := os.Mkdir(filepath.Join(own, leafName), 0o755); err != nil {
			t.Error(err)
		}
	}
	os.Remove(filepath.Join(own, leafName))
}
