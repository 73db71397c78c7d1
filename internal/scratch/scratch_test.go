//go:build linux

package scratch

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"example.com/hangup/internal/event"
	"example.com/hangup/internal/proctest"
)

func TestMain(m *testing.M) { proctest.Main(m) }

// base is a Base under test, in a directory of its own, with what it told.
type base struct {
	*Base
	t   *testing.T
	dir string

	mu   sync.Mutex
	told []event.Trouble
}

func (b *base) sink(e event.Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.told = append(b.told, e.(event.Trouble))
}

func (b *base) troubles() []event.Trouble {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]event.Trouble(nil), b.told...)
}

// open opens a base; the test's end closes it, and nothing of it may be left then.
func open(t *testing.T) *base {
	t.Helper()
	return openIn(t, t.TempDir())
}

func openIn(t *testing.T, dir string) *base {
	t.Helper()
	proctest.Check(t)
	b := &base{t: t, dir: dir}
	var err error
	if b.Base, err = Open(dir, b.sink); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		b.Close(true)
		if _, err := os.Lstat(b.Path()); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the base is left: %v, %v", names(t, b.Path()), b.troubles())
		}
	})
	return b
}

// begin makes the directory of a call.
func (b *base) begin(h *Holder, id string) string {
	b.t.Helper()
	path, err := h.Begin(b.t.Context(), id)
	if err != nil {
		b.t.Fatal(err)
	}
	return path
}

// emptied waits until nothing is in the base.
func (b *base) emptied() {
	b.t.Helper()
	if !proctest.Eventually(func() bool { return len(names(b.t, b.Path())) == 0 }) {
		b.t.Fatalf("not removed: %v; told: %v", names(b.t, b.Path()), b.troubles())
	}
}

// quiet makes sure that nothing was told.
func (b *base) quiet() {
	b.t.Helper()
	if told := b.troubles(); len(told) > 0 {
		b.t.Errorf("told: %v", told)
	}
}

func names(t testing.TB, dir string) (list []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// must fails the test on an error of what it prepares.
func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func write(path string) error { return os.WriteFile(path, []byte("x"), 0o600) }

// canary is a directory outside that nothing may touch.
func canary(t *testing.T) (dir string, unharmed func()) {
	t.Helper()
	dir = t.TempDir()
	must(t, os.Mkdir(dir+"/in", 0o500), write(dir+"/file"), os.Chmod(dir, 0o500))
	return dir, func() {
		t.Helper()
		for path, mode := range map[string]fs.FileMode{"": 0o500, "/in": 0o500, "/file": 0o600} {
			info, err := os.Stat(dir + path)
			if err != nil || info.Mode().Perm() != mode {
				t.Errorf("what lies outside was touched: %v, %v", info, err)
			}
		}
		os.Chmod(dir, 0o700)
	}
}

func TestDirectoryOfACall(t *testing.T) {
	b := open(t)
	h := b.Holder(nil)
	path := b.begin(h, "call-1")
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != fs.ModeDir|0o700 || !filepath.IsAbs(path) || filepath.Dir(path) != b.Path() {
		t.Errorf("%s: %v, %v", path, info, err)
	}
	if info, err := os.Lstat(b.Path()); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the base: %v, %v", info, err)
	}
	h.End()
	if left := names(t, b.Path()); len(left) > 0 {
		t.Errorf("an empty directory is not removed at once: %v", left)
	}
	path = b.begin(h, "call-2")
	must(t, write(path+"/file"))
	h.End()
	b.emptied()
	path = b.begin(h, "call-3")
	must(t, write(path+"/file"))
	h.Close()
	b.emptied()
	h.End() // there is none
	b.quiet()
}

func TestNamesThatAreNone(t *testing.T) {
	h := open(t).Holder(nil)
	for _, id := range []string{"", ".", "..", "a/b", "../x", "a\x00b"} {
		if path, err := h.Begin(t.Context(), id); err == nil {
			t.Errorf("%q: made %s", id, path)
		}
	}
}

func TestOneNameTwice(t *testing.T) {
	b := open(t)
	one, other := b.Holder(nil), b.Holder(nil)
	path := b.begin(one, "call")
	if _, err := other.Begin(t.Context(), "call"); !errors.Is(err, unix.EEXIST) {
		t.Errorf("a second directory of the name: %v", err)
	}
	other.End()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the first: %v", err)
	}
	one.End()
}

// What a call leaves may be of any shape.
func TestHostileTrees(t *testing.T) {
	outside, unharmed := canary(t)
	for name, make := range map[string]func(t *testing.T, dir string){
		"many files": func(t *testing.T, dir string) {
			for i := range 100_000 {
				fd, err := unix.Open(dir+"/"+string(rune('a'+i%26))+strings.Repeat("x", i%7)+time.Duration(i).String(), unix.O_CREAT|unix.O_WRONLY, 0o600)
				must(t, err, unix.Close(fd))
			}
		},
		"many directories": func(t *testing.T, dir string) {
			for i := range 2 * remembered {
				must(t, os.MkdirAll(dir+"/d/"+time.Duration(i).String()+"/in/in", 0o700))
			}
		},
		"deep": func(t *testing.T, dir string) {
			fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
			must(t, err)
			for range 10_000 {
				must(t, unix.Mkdirat(fd, "d", 0o700))
				in, err := unix.Openat(fd, "d", unix.O_RDONLY|unix.O_DIRECTORY, 0)
				must(t, err, unix.Close(fd))
				fd = in
			}
			must(t, unix.Close(fd))
		},
		"forbidden": func(t *testing.T, dir string) {
			must(t, os.MkdirAll(dir+"/a/b/c", 0o700), write(dir+"/a/b/c/file"), write(dir+"/a/file"))
			for _, path := range []string{"/a/b/c", "/a/b", "/a", ""} {
				must(t, os.Chmod(dir+path, 0))
			}
		},
		"links": func(t *testing.T, dir string) {
			must(t, os.Symlink(outside, dir+"/link"), os.Mkdir(dir+"/d", 0o700), os.Symlink(outside, dir+"/d/link"),
				os.Symlink("..", dir+"/d/up"), os.Symlink(".", dir+"/self"), os.Link(outside+"/file", dir+"/d/hard"))
		},
		"names and kinds": func(t *testing.T, dir string) {
			must(t, write(dir+"/a\nb"), write(dir+"/-rf *"), write(dir+"/\xff\xfe"), os.Mkdir(dir+"/ \n", 0o700), write(dir+"/ \n/x"),
				unix.Mkfifo(dir+"/fifo", 0o600), unix.Mknod(dir+"/socket", unix.S_IFSOCK|0o600, 0), write(dir+"/"+strings.Repeat("n", 255)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := open(t)
			h := b.Holder(nil)
			make(t, b.begin(h, "call"))
			h.End()
			b.emptied()
			b.quiet()
		})
	}
	unharmed()
}

// A tree that is deeper than there are descriptors.
func TestFewDescriptors(t *testing.T) {
	b := open(t)
	h := b.Holder(nil)
	must(t, os.MkdirAll(b.begin(h, "call")+strings.Repeat("/d", 500), 0o700))
	var limit unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	fd, err := unix.Dup(0) // the lowest that is free
	must(t, err, unix.Close(fd))
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(fd) + 20, Max: limit.Max}))
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
	h.End()
	b.emptied()
	b.quiet()
}

// While a directory is removed somebody swaps what is in it for symlinks that lead
// outside. Nothing outside is touched.
func TestSwappedForSymlinks(t *testing.T) {
	outside, unharmed := canary(t)
	b := open(t)
	h := b.Holder(nil)
	for round := range 30 {
		dir := b.begin(h, "call-"+time.Duration(round).String())
		var swapping sync.WaitGroup
		over := make(chan struct{})
		must(t, os.MkdirAll(dir+"/d/e/f", 0o700))
		places := []string{dir + "/d", dir + "/d/e", dir}
		for _, one := range places {
			must(t, os.Symlink(outside, one+".link"))
		}
		for _, one := range places {
			swapping.Go(func() {
				for {
					select {
					case <-over:
						os.Remove(one + ".link")
						return
					default:
					}
					os.MkdirAll(dir+"/d/e/f", 0)
					unix.Renameat2(unix.AT_FDCWD, one, unix.AT_FDCWD, one+".link", unix.RENAME_EXCHANGE)
				}
			})
		}
		h.End()
		for range 20 { // and the looks that follow
			h.Close()
		}
		close(over)
		swapping.Wait()
		h.Close()
	}
	b.emptied()
	unharmed()
}

// A helper that the call has left running fills its directory again and again, and makes
// it anew. It is not waited for; when it has gone, nothing is left.
func TestHelperThatGoesOnWriting(t *testing.T) {
	b := open(t)
	h := b.Holder(nil)
	dir := b.begin(h, "call")
	over, wrote := make(chan struct{}), make(chan struct{})
	var helper sync.WaitGroup
	helper.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-over:
				return
			default:
			}
			os.MkdirAll(dir+"/d", 0o700)
			write(dir + "/d/" + time.Duration(i).String())
			if i == 100 {
				close(wrote)
			}
		}
	})
	<-wrote
	h.End()
	b.begin(h, "next") // nobody waits for it
	h.End()
	again := func() bool { _, err := os.Lstat(dir); return err == nil }
	if !proctest.Eventually(again) {
		t.Error("the helper did not make it again")
	}
	close(over)
	helper.Wait()
	h.Close() // its tree is empty
	b.emptied()
	b.quiet()
}

// Whoever tidies up in the temporary directory does not break the calls to come.
func TestBaseThatIsRemoved(t *testing.T) {
	b := open(t)
	h, late := b.Holder(nil), b.Holder(nil)
	b.begin(late, "late")
	must(t, os.RemoveAll(b.Path()))
	before := b.Path()
	path := b.begin(h, "call")
	if filepath.Dir(path) == before || filepath.Dir(path) != b.Path() {
		t.Errorf("%s, in %s", path, b.Path())
	}
	late.End()
	h.End()
	b.emptied()
	b.quiet()
}

// Calls wait while too much is to be removed, as long as they have time to.
func TestBacklog(t *testing.T) {
	b := open(t)
	b.Base.mu.Lock()
	b.Base.room = make(chan struct{})
	b.Base.mu.Unlock()
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("gone")
	cancel(gone)
	if _, err := b.Holder(nil).Begin(ctx, "impatient"); !errors.Is(err, gone) {
		t.Errorf("a call that cannot wait: %v", err)
	}
	h := b.Holder(nil)
	begun := make(chan error)
	go func() { _, err := h.Begin(t.Context(), "patient"); begun <- err }()
	b.queue(strays) // the remover that takes it finds that there is room
	if err := <-begun; err != nil {
		t.Error(err)
	}
	h.End()
}

func TestClose(t *testing.T) {
	proctest.Check(t)
	dir := t.TempDir()
	told := 0
	b, err := Open(dir, func(event.Event) { told++ })
	must(t, err)
	used, h := b.Holder(nil), b.Holder(nil)
	path, err := used.Begin(t.Context(), "used")
	must(t, err, write(path+"/file"))
	b.Close(false)
	if left := names(t, b.Path()); len(left) != 1 || told != 1 {
		t.Errorf("left %v, told %d times; want what is in use, told once", left, told)
	}
	if _, err := h.Begin(t.Context(), "late"); !errors.Is(err, errClosed) {
		t.Errorf("after Close: %v", err)
	}
	used.End() // somebody was slow: nothing happens
	h.Close()
	if left := names(t, b.Path()); len(left) != 1 {
		t.Errorf("left %v", left)
	}
}

// The directory of a worker with a user of its own is that user's.
func TestOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root gives directories away")
	}
	const uid = proctest.Stranger
	b := open(t)
	h := b.Holder(&Owner{uid, uid + 1})
	path := b.begin(h, "call")
	info, err := os.Lstat(path)
	must(t, err)
	if stat := info.Sys().(*syscall.Stat_t); info.Mode() != fs.ModeDir|0o700 || stat.Uid != uid || stat.Gid != uid+1 {
		t.Errorf("%v of %d:%d", info.Mode(), stat.Uid, stat.Gid)
	}
	if info, err := os.Lstat(b.Path()); err != nil || info.Mode().Perm() != 0o711 {
		t.Errorf("the base: %v, %v; others are to pass through it", info, err)
	}
	must(t, write(path+"/file"), os.Chown(path+"/file", uid, uid))
	h.End()
	b.emptied()
	b.quiet()
}

// BenchmarkEmptyCall is what a call pays that uses no scratch: a mkdirat and an unlinkat.
func BenchmarkEmptyCall(b *testing.B) {
	base, err := Open(b.TempDir(), func(event.Event) {})
	must(b, err)
	defer base.Close(true)
	h := base.Holder(nil)
	for b.Loop() {
		if _, err := h.Begin(b.Context(), "0192f1a0-7c31-7d52-9a40-4c1f2b3d5e6f"); err != nil {
			b.Fatal(err)
		}
		h.End()
	}
}

// BenchmarkBare is the same by itself.
func BenchmarkBare(b *testing.B) {
	dir, err := unix.Open(b.TempDir(), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(b, err)
	defer unix.Close(dir)
	for b.Loop() {
		must(b, unix.Mkdirat(dir, "0192f1a0-7c31-7d52-9a40-4c1f2b3d5e6f", 0o700))
		must(b, unix.Unlinkat(dir, "0192f1a0-7c31-7d52-9a40-4c1f2b3d5e6f", unix.AT_REMOVEDIR))
	}
}
