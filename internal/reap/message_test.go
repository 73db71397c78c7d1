//go:build linux

package reap

import (
	"bytes"
	"errors"
	"io"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"example.com/hangup/internal/proctest"
)

var messages = []Message{
	Start{Path: "/bin/sh", Argv: []string{"sh", "-c", ""}, Env: []string{"A=1", "B="}, Dir: "/tmp", NewPrivileges: true, Scoped: true, Nofile: 1024, Files: 3},
	Start{Argv: []string{}, Env: []string{}},
	Start{
		Argv: []string{}, Env: []string{}, User: User{Set: true, UID: 1000, GID: 100, Groups: []int{4, 1 << 31}},
		Limits: Limits{Memory: 1 << 40, Pids: 100, CPUs: 500, First: 3, Nproc: 4096},
	},
	Signal{unix.SIGTERM},
	Kill{},
	Sweep{3},
	Base{"/sys/fs/cgroup/hangup.1"},
	Hello{Version: ProtocolVersion, Build: "v1.2.3", Group: unix.EACCES},
	Started{4711},
	StartFailed{StageDir, unix.ENOENT},
	Exited{Status: 0x0700, CPU: 3 * time.Millisecond, MaxRSS: 1 << 40},
	Exited{Status: 9, Limit: LimitMemory, OOM: true},
	Sweeping{},
	NotEmpty{Reaped: 5, Sweep: 3, Survivors: []Survivor{{7, 'D', 1000, "io_schedule"}, {8, 'Z', -1, ""}}},
	NotEmpty{},
	Empty{12, 3},
}

func TestMessagesComeBack(t *testing.T) {
	for _, m := range messages {
		got, err := decode(encode(m)[4:])
		if err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%#v came back as %#v (%v)", m, got, err)
		}
	}
}

// Every message that was cut short or has something behind it is refused.
func TestDecodeRefuses(t *testing.T) {
	for _, m := range messages {
		frame := encode(m)[4:]
		for n := range frame {
			if got, err := decode(frame[:n]); err == nil {
				t.Errorf("%d bytes of %#v passed as %#v", n, m, got)
			}
		}
		if _, err := decode(append(frame, 0)); err == nil {
			t.Errorf("%#v passed with a byte behind it", m)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, m := range messages {
		f.Add(encode(m)[4:])
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		m, err := decode(frame)
		if err != nil {
			return
		}
		again, err := decode(encode(m)[4:])
		if err != nil || !reflect.DeepEqual(m, again) {
			t.Errorf("%#v came back as %#v (%v)", m, again, err)
		}
	})
}

func connect(t *testing.T, limit int) (a, b *Conn) {
	t.Helper()
	proctest.Check(t)
	pair, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	for i, conn := range []**Conn{&a, &b} {
		if *conn, err = NewConn(pair[i], limit); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { (*conn).Close() })
	}
	return a, b
}

func TestConnCarriesMessagesAndDescriptors(t *testing.T) {
	a, b := connect(t, MaxOrder)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	large := Start{Path: "/x", Argv: []string{strings.Repeat("a", 3<<20)}, Env: []string{}, Files: 2}
	failed := make(chan error, 1)
	go func() {
		failed <- errors.Join(
			a.Send(Signal{unix.SIGHUP}),
			a.Send(large, int(r.Fd()), int(w.Fd())), // far more than the socket holds
			a.Send(Start{Argv: []string{}, Env: []string{}}),
			a.Send(Kill{}))
		w.Close()
		a.Close()
	}()
	for _, want := range []Message{Signal{unix.SIGHUP}, large, Start{Argv: []string{}, Env: []string{}}, Kill{}} {
		m, files, err := b.Receive()
		if err != nil || !reflect.DeepEqual(m, want) {
			t.Fatalf("received %.100v (%v), want %.100v", m, err, want)
		}
		if start, ok := want.(Start); ok && len(files) != start.Files {
			t.Fatalf("received %d descriptors, want %d", len(files), start.Files)
		}
		if len(files) == 2 {
			unix.Write(files[1], []byte("through"))
			got := make([]byte, 16)
			if n, _ := r.Read(got); string(got[:n]) != "through" {
				t.Errorf("read %q through the descriptors", got[:n])
			}
			for _, fd := range files {
				if flags, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); flags&unix.FD_CLOEXEC == 0 {
					t.Error("a received descriptor is not closed on exec")
				}
			}
		}
		closeAll(files)
	}
	if _, _, err := b.Receive(); err != io.EOF {
		t.Errorf("at the end: %v, want EOF", err)
	}
	if err := <-failed; err != nil {
		t.Error(err)
	}
}

func TestConnRefuses(t *testing.T) {
	t.Run("a message over the limit, before reading it", func(t *testing.T) {
		a, b := connect(t, 1024)
		unix.Write(int(a.file.Fd()), []byte{0, 0, 4, 1})
		if _, _, err := b.Receive(); err != ErrTooLarge {
			t.Errorf("error %v, want %v", err, ErrTooLarge)
		}
	})
	t.Run("another number of descriptors than announced", func(t *testing.T) {
		a, b := connect(t, 1024)
		a.Send(Start{Files: 2}, 0)
		if _, _, err := b.Receive(); err != errMessage {
			t.Errorf("error %v, want %v", err, errMessage)
		}
	})
	t.Run("more descriptors than allowed", func(t *testing.T) {
		a, b := connect(t, 1024)
		a.Send(Start{Files: MaxFiles + 1}, make([]int, MaxFiles+1)...)
		if _, _, err := b.Receive(); err == nil {
			t.Error("no error")
		}
	})
}

// A peer that does not read costs the offerer nothing but the message.
func TestOfferDoesNotWait(t *testing.T) {
	a, b := connect(t, MaxReport)
	sent := 0
	for a.Offer(Sweeping{}) {
		sent++
	}
	for range sent {
		if m, _, err := b.Receive(); err != nil || m != (Sweeping{}) {
			t.Fatalf("received %v (%v)", m, err)
		}
	}
	if !a.Offer(Empty{Reaped: 1}) {
		t.Fatal("no room after all was read")
	}
	if m, _, err := b.Receive(); err != nil || m != (Empty{Reaped: 1}) {
		t.Errorf("received %v (%v)", m, err)
	}
}

func TestNumbersAndSurvivors(t *testing.T) {
	if !bytes.Contains(read("/proc/self/status"), []byte("Pid:")) {
		t.Error("cannot read /proc")
	}
	s := survivor(os.Getpid())
	if s.UID != os.Getuid() || s.Pid != os.Getpid() || !strings.ContainsRune("RS", rune(s.State)) {
		t.Errorf("this process is %+v", s)
	}
	if parent(os.Getpid()) != os.Getppid() {
		t.Errorf("parent %d, want %d", parent(os.Getpid()), os.Getppid())
	}
}
