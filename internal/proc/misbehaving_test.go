//go:build linux && !portable

package proc_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"example.com/hangup/internal/proc"
	"example.com/hangup/internal/proctest"
)

// A misbehaving program at work.
type misbehaving struct {
	t         *testing.T
	behaviour behaviour
	tree      *proc.Tree
	stdin     *os.File // of the main process
	stdout    *os.File // of all that does not close it
	heart     string   // the file they write into
	seen      []proc.Process
	last      beats
}

func misbehave(t *testing.T, host *proc.Host, program string, b behaviour, leave bool) *misbehaving {
	t.Helper()
	m := &misbehaving{t: t, behaviour: b, heart: filepath.Join(t.TempDir(), "heartbeat")}
	stdin, stdinWriter := pipe(t)
	stdout, stdoutWriter := pipe(t)
	defer stdin.Close()
	defer stdoutWriter.Close()
	m.stdin, m.stdout = stdinWriter, stdout
	if err := os.WriteFile(m.heart, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	spec := proc.Spec{Argv: []string{program, b.name, m.heart}, Env: proctest.Env(), Files: []*os.File{stdin, stdoutWriter, os.Stderr}}
	if leave {
		spec.Argv = append(spec.Argv, "leave")
	}
	if b.with != nil {
		b.with(t, &spec)
	}
	m.tree = start(t, host, spec)
	return m
}

// pipe makes a pipe that is closed with the test at the latest.
func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.Close()
		w.Close()
	})
	return r, w
}

// inPlace waits until all of it is as bad as it gets.
func (m *misbehaving) inPlace() {
	m.t.Helper()
	m.stdout.SetReadDeadline(time.Now().Add(proctest.Patience))
	dots := make([]byte, m.behaviour.dots)
	n, err := io.ReadFull(m.stdout, dots)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		<-m.tree.Done()
		if m.tree.Status().Exit == 77 {
			proctest.Lack(m.t, "the program says that this is not allowed here")
		}
		m.t.Fatalf("it has ended: %+v", m.tree.Status())
	}
	if err != nil {
		m.t.Fatalf("%d of %d processes are in place: %v", n, len(dots), err)
	}
	m.seen = proc.Look(m.tree.ShimPid())[1:]
}

// over waits for the verdict and makes sure of it: nobody who was seen is there any
// more, and nobody holds what was given to the tree.
func (m *misbehaving) over() {
	m.t.Helper()
	// On a busy machine a thousand may take longer than the first verdict.
	for !m.tree.Wait(m.t.Context()).Empty && m.t.Context().Err() == nil {
		m.t.Log("not empty at the first verdict")
	}
	verdict := ended(m.t, m.tree)
	m.t.Logf("%d reaped in %v", verdict.Reaped, verdict.Took.Round(time.Microsecond))
	m.last = read(m.t, m.heart)
	for _, p := range m.seen {
		if p.There() {
			m.t.Errorf("verdict empty, but there is %+v", p)
		}
	}
	m.stdin.Close()
	m.stdout.SetReadDeadline(time.Now().Add(proctest.Patience))
	if _, err := io.Copy(io.Discard, m.stdout); err != nil {
		m.t.Errorf("stdout is still open somewhere: %v", err)
	}
	m.stdout.Close()
	alone(m.t, m.heart)
	m.unchanged()
}

// unchanged makes sure that the heart has not beaten since the verdict.
func (m *misbehaving) unchanged() {
	m.t.Helper()
	if now := read(m.t, m.heart); now != m.last {
		m.t.Errorf("the file was written after the verdict: %+v, then %+v", m.last, now)
	}
}

// beats is what a heartbeat has left in its file.
type beats struct {
	size    int64
	changed time.Time
	first   string // the bytes at its beginning
}

func read(t *testing.T, heart string) beats {
	t.Helper()
	file, err := os.Open(heart)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	first := make([]byte, 64)
	n, _ := file.Read(first)
	return beats{info.Size(), info.ModTime(), string(first[:n])}
}

// alone makes sure that nobody has the file open: the kernel gives a lease for
// writing to none but the only one who has.
func alone(t *testing.T, path string) {
	t.Helper()
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	// A shim that is just being started may hold what this process has open.
	if !proctest.Eventually(func() bool {
		_, err = unix.FcntlInt(file.Fd(), unix.F_SETLEASE, unix.F_WRLCK)
		return err == nil
	}) {
		t.Errorf("somebody has %s open: %v", path, err)
	}
}
