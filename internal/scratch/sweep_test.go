//go:build linux

package scratch

import (
	"bufio"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"example.com/hangup/internal/event"
	"example.com/hangup/internal/proctest"
)

// A server that has a call under way, until it is killed.
func init() {
	proctest.Program("server", func(args []string) {
		b, err := Open(args[0], func(event.Event) {})
		if err != nil {
			panic(err)
		}
		path, err := b.Holder(nil).Begin(context.Background(), "call")
		if err != nil || write(path+"/file") != nil {
			panic(path)
		}
		os.Stdout.WriteString(b.Path() + "\n")
		select {}
	})
}

// server starts one and returns the path of its base.
func server(t *testing.T, dir string) (path string, kill func()) {
	t.Helper()
	argv, env := proctest.Command("server", dir)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env, cmd.Stderr = env, os.Stderr
	out, err := cmd.StdoutPipe()
	must(t, err, cmd.Start())
	kill = sync.OnceFunc(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	t.Cleanup(kill)
	path, err = bufio.NewReader(out).ReadString('\n')
	must(t, err)
	return strings.TrimSpace(path), kill
}

func there(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// A base is swept when its server is gone, and not before; what only looks like one stays.
func TestSweep(t *testing.T) {
	dir := t.TempDir()
	proctest.Check(t)
	outside, unharmed := canary(t)
	killed, kill := server(t, dir)
	must(t, os.Chmod(killed+"/call", 0), os.Chmod(killed, 0))
	alive, end := server(t, dir)
	kill()
	must(t, os.Symlink(outside, dir+"/"+prefix+"link"), write(dir+"/"+prefix+"file"), os.Mkdir(dir+"/other", 0o700))
	stay := []string{alive + "/call/file", dir + "/" + prefix + "link", dir + "/" + prefix + "file", dir + "/other"}
	if os.Geteuid() == 0 {
		theirs := dir + "/" + prefix + "theirs"
		must(t, os.Mkdir(theirs, 0), os.Chown(theirs, proctest.Neighbour, proctest.Neighbour))
		stay = append(stay, theirs)
	}
	for range 2 {
		b := openIn(t, dir)
		b.Sweep()
		b.going.Wait()
		b.quiet()
	}
	if there(killed) {
		t.Errorf("not swept: %s", killed)
	}
	for _, path := range stay {
		if !there(path) {
			t.Errorf("swept: %s", path)
		}
	}
	unharmed()
	end()
}

// Servers that start at once take nothing from each other.
func TestStartsAtOnce(t *testing.T) {
	dir := t.TempDir()
	proctest.Check(t)
	for range 20 {
		var all sync.WaitGroup
		var mu sync.Mutex
		var bases []*Base
		for range 8 {
			all.Go(func() {
				b, err := Open(dir, func(e event.Event) { t.Error(e) })
				if err != nil {
					t.Error(err)
					return
				}
				b.Sweep()
				mu.Lock()
				bases = append(bases, b)
				mu.Unlock()
			})
		}
		all.Wait()
		for i, b := range bases {
			b.going.Wait()
			before := b.Path()
			h := b.Holder(nil)
			if _, err := h.Begin(t.Context(), "call-"+strconv.Itoa(i)); err != nil || b.Path() != before {
				t.Errorf("the base of a server was removed: %v", err)
			}
			h.End()
		}
		for _, b := range bases {
			b.Close(true)
		}
		if left := names(t, dir); len(left) > 0 {
			t.Fatalf("left: %v", left)
		}
	}
}

// In a mount namespace of its own: a file system that is full, and one that is mounted
// inside of a scratch directory.
func init() {
	proctest.Program("mounts", func(args []string) {
		must := func(err error) {
			if err != nil {
				panic(err)
			}
		}
		var told []event.Trouble
		must(unix.Mount("tmpfs", args[0], "tmpfs", 0, "nr_inodes=10,size=1m"))
		b, err := Open(args[0], func(e event.Event) { told = append(told, e.(event.Trouble)) })
		must(err)
		h := b.Holder(nil)
		path, err := h.Begin(context.Background(), "call")
		must(err)
		full := error(nil)
		for i := 0; full == nil; i++ {
			full = os.Mkdir(path+"/"+strconv.Itoa(i), 0o700)
		}
		if _, err := b.Holder(nil).Begin(context.Background(), "other"); !errors.Is(err, syscall.ENOSPC) {
			panic(err)
		}
		must(unix.Mount(args[1], path+"/1", "", unix.MS_BIND, ""))
		h.End()
		b.going.Wait()
		h.Close() // and once more
		b.going.Wait()
		left, err := os.ReadDir(path)
		must(err)
		if len(left) != 1 || left[0].Name() != "1" || len(told) != 1 || !errors.Is(told[0].Err, unix.EBUSY) || told[0].Remedy == "" {
			panic(told)
		}
		must(unix.Unmount(path+"/1", 0))
		b.Close(true)
		if left, err := os.ReadDir(args[0]); err != nil || len(left) > 0 {
			panic(left)
		}
		os.Stdout.WriteString("fine\n")
	})
}

func TestMounts(t *testing.T) {
	outside, unharmed := canary(t)
	argv, env := proctest.Command("mounts", t.TempDir(), outside)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = env
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if uid := os.Geteuid(); uid != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	var forbidden *os.PathError
	if errors.As(err, &forbidden) {
		proctest.Lack(t, "cannot make a mount namespace: %v", err)
	}
	if err != nil || string(out) != "fine\n" {
		t.Errorf("%v: %s", err, out)
	}
	unharmed()
}

// What nobody can remove is told once, and all else goes.
func TestImmutable(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root makes files immutable")
	}
	b := open(t)
	h := b.Holder(nil)
	path := b.begin(h, "call")
	must(t, os.MkdirAll(path+"/d/e", 0o700), write(path+"/d/e/file"), write(path+"/d/stays"), write(path+"/file"))
	f, err := os.Open(path + "/d/stays")
	must(t, err)
	defer f.Close()
	const immutable = 0x10 // FS_IMMUTABLE_FL
	flag := func(flags int) error { return unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags) }
	if err := flag(immutable); err != nil {
		proctest.Lack(t, "cannot make a file immutable: %v", err)
	}
	defer flag(0)
	h.End()
	h.Close()
	b.Base.going.Wait()
	h.Close()
	b.Base.going.Wait()
	told := b.troubles()
	if len(told) != 1 || !errors.Is(told[0].Err, unix.EPERM) || !strings.Contains(told[0].Err.Error(), path) {
		t.Errorf("told: %v", told)
	}
	if left := names(t, path); !slices.Equal(left, []string{"d"}) || !slices.Equal(names(t, path+"/d"), []string{"stays"}) {
		t.Errorf("left: %v", left)
	}
	must(t, flag(0))
}
