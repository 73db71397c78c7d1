//go:build linux

package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"example.com/hangup/internal/proctest"
)

const oneWorker = "  py: {command: [python3, worker.py], workers: 1, spares: 1, stop: {grace: 200ms}}\n"

// manager is what starts a service: it has opened its sockets, and hears how it stands.
type manager struct {
	tcp    net.Listener
	unix   net.Listener
	notify *net.UnixConn
	dir    string
}

// newManager opens sockets. They are short, whatever the test's directory is called.
func newManager(t *testing.T) *manager {
	t.Helper()
	dir, err := os.MkdirTemp("", "m")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	m := &manager{dir: dir}
	if m.tcp, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	if m.unix, err = net.Listen("unix", filepath.Join(dir, "s")); err != nil {
		t.Fatal(err)
	}
	m.notify, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: filepath.Join(dir, "n")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.tcp.Close(); m.unix.Close(); m.notify.Close() })
	return m
}

// start has a server begin as a service manager would: with the pid that the sockets
// are meant for, which is known only to the process itself.
func (m *manager) start(t *testing.T, s *server, meantFor string) {
	t.Helper()
	s.cmd.Args = append([]string{"sh", "-c", `LISTEN_PID=` + meantFor + ` exec "$0" "$@"`, s.cmd.Path}, s.cmd.Args[1:]...)
	s.cmd.Path = "/bin/sh"
	s.cmd.Env = append(s.cmd.Env, "LISTEN_FDS=2", "LISTEN_FDNAMES=web:local", "NOTIFY_SOCKET="+filepath.Join(m.dir, "n"))
	for _, l := range []net.Listener{m.tcp, m.unix} {
		f, err := l.(interface{ File() (*os.File, error) }).File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		s.cmd.ExtraFiles = append(s.cmd.ExtraFiles, f)
	}
	s.run()
}

// hears reads the next notification, which must begin so.
func (m *manager) hears(t *testing.T, want string) {
	t.Helper()
	m.notify.SetReadDeadline(time.Now().Add(proctest.Patience))
	b := make([]byte, 1024)
	n, err := m.notify.Read(b)
	if err != nil || !strings.HasPrefix(string(b[:n]), want) {
		t.Errorf("told %q, %v; want %q", b[:n], err, want)
	}
}

// TestSocketActivation: sockets that a service manager has opened go through the
// supervisor to the server, and no further; it hears how the service stands; and a restart
// costs a caller nothing but time.
func TestSocketActivation(t *testing.T) {
	m := newManager(t)
	for _, round := range []string{"first", "after a restart"} {
		s := prepare(t, oneWorker, "listen: [127.0.0.1:1]") // which no user but root may open
		m.start(t, s, "$$")
		m.hears(t, "READY=1")
		if len(s.listen) != 2 || s.addr != m.tcp.Addr().String() || s.listen[1] != "unix:"+filepath.Join(m.dir, "s") {
			t.Fatalf("listening on %v", s.listen)
		}
		s.eventually("ready", func() bool { code, _ := s.get("/readyz"); return code == http.StatusOK })
		s.base = s.settled()
		c, err := net.Dial("unix", filepath.Join(m.dir, "s"))
		if err != nil {
			t.Fatal(err)
		}
		p := &patient{c, bufio.NewReader(c)}
		if err := errors.Join(p.send(0, answers("py", "", round, 0)), p.expect(round)); err != nil {
			t.Error(err)
		}
		leaver := s.dial()
		io.WriteString(leaver, request("/execute/py/tree", "Content-Length: 0\r\n", ""))
		call := s.newest("running", func(c callRecord) bool { return c.State == "running" })
		tree := s.family(call.WorkerPid)
		m.apart(t, call.WorkerPid)
		leaver.Close()
		s.eventually("the evidence", func() bool {
			s.fetch("/calls/"+call.ID, &call)
			return call.Cancel != nil
		})
		checkKill(t, call, len(tree))
		p.Close()
		s.hangup("reloaded")
		m.hears(t, "RELOADING=1\nMONOTONIC_USEC=")
		m.hears(t, "READY=1")
		s.check()
		m.hears(t, "STOPPING=1")
	}
	// Between two servers, the sockets are there.
	if c, err := net.Dial("tcp", m.tcp.Addr().String()); err != nil {
		t.Error(err)
	} else {
		c.Close()
	}
}

// apart makes sure that a worker knows nothing of the service manager.
func (m *manager) apart(t *testing.T, pid int) {
	t.Helper()
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"LISTEN_", "NOTIFY_SOCKET"} {
		if strings.Contains(string(env), name) {
			t.Errorf("%s is in the environment of a worker: %q", name, env)
		}
	}
	listening := map[string]bool{}
	for _, l := range []net.Listener{m.tcp, m.unix} {
		raw, err := l.(syscall.Conn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		raw.Control(func(fd uintptr) {
			target, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
			listening[target] = true
		})
	}
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil || len(links) == 0 {
		t.Fatalf("no descriptors of %d: %v", pid, err)
	}
	for _, link := range links {
		if target, _ := os.Readlink(link); listening[target] {
			t.Errorf("%s is %s", link, target)
		}
	}
}

// TestSocketsOfAnother: what is meant for another process is not served, nor handed on.
func TestSocketsOfAnother(t *testing.T) {
	m := newManager(t)
	s := prepare(t, oneWorker)
	m.start(t, s, "1")
	if len(s.listen) != 1 || s.addr == m.tcp.Addr().String() {
		t.Errorf("listening on %v", s.listen)
	}
	s.eventually("ready", func() bool { code, _ := s.get("/readyz"); return code == http.StatusOK })
	s.base = s.settled()
	s.check()
}

// TestReloadOfListeners: addresses come and go without a call lost, TLS is turned on and
// off, and what cannot be had changes nothing.
func TestReloadOfListeners(t *testing.T) {
	s := start(t, oneWorker)
	p, err := plainTCP.patient(s)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.send(0, answers("py", "", "through it all", 1)); err != nil {
		t.Fatal(err)
	}
	listen := func(settings string) {
		t.Helper()
		s.write("hangup.yaml", settings+"\nworkloads:\n"+oneWorker)
		s.hangup("reloaded")
	}
	serves := func(tr transport) {
		t.Helper()
		c, err := tr.patient(s)
		if err != nil {
			t.Fatalf("%s: %v", tr.name, err)
		}
		defer c.Close()
		if err := errors.Join(c.send(0, answers("py", "", tr.name, 0)), c.expect(tr.name)); err != nil {
			t.Errorf("%s: %v", tr.name, err)
		}
	}
	listen("listen: [127.0.0.1:0, unix:s]")
	serves(plainTCP)
	serves(plainUnix)
	file := filepath.Join(s.dir, "hangup.yaml")
	if got := s.refuse("listen: [unix:s, unix:hangup.yaml]\nworkloads:\n" + oneWorker); !strings.Contains(got, "is no socket") {
		t.Errorf("a file in the way: %s", got)
	}
	os.WriteFile(filepath.Join(s.dir, "not.pem"), []byte("nothing"), 0o600)
	if got := s.refuse("tls: {cert: cert.pem, key: not.pem}\nworkloads:\n" + oneWorker); !strings.HasPrefix(got, file+":1:") {
		t.Errorf("a certificate that is none: %s", got)
	}
	serves(plainUnix)
	listen("listen: [127.0.0.1:0, unix:s]\ntls: {cert: cert.pem, key: key.pem}")
	serves(secureTCP)
	serves(plainUnix)
	listen("listen: [127.0.0.1:0]")
	serves(plainTCP)
	if _, err := s.dialUnix(); err == nil {
		t.Error("the unix socket is still there")
	}
	if err := p.expect("through it all"); err != nil {
		t.Error(err)
	}
}

// TestOutOfDescriptors: a server that may open no more files goes on with what it has,
// tells of it, and is as before when it may again.
func TestOutOfDescriptors(t *testing.T) {
	s := start(t, oneWorker)
	busy := s.dial()
	io.WriteString(busy, answers("py", "", "kept", 2))
	s.running("answers")
	var before unix.Rlimit
	few := unix.Rlimit{Cur: uint64(s.metric("process_open_fds"))}
	if err := unix.Prlimit(s.pid, unix.RLIMIT_NOFILE, nil, &before); err != nil {
		t.Fatal(err)
	}
	few.Max = before.Max
	if err := unix.Prlimit(s.pid, unix.RLIMIT_NOFILE, &few, nil); err != nil {
		t.Fatal(err)
	}
	var crowd []net.Conn
	for range 50 {
		crowd = append(crowd, s.dial())
	}
	s.eventually("it is told", func() bool { return len(s.records("cannot accept a connection")) > 0 })
	if err := unix.Prlimit(s.pid, unix.RLIMIT_NOFILE, &before, nil); err != nil {
		t.Fatal(err)
	}
	p := &patient{busy, bufio.NewReader(busy)}
	if err := p.expect("kept"); err != nil {
		t.Errorf("a call that was running: %v", err)
	}
	late, err := newPatient(s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	if err := errors.Join(late.send(0, answers("py", "", "late", 0)), late.expect("late")); err != nil {
		t.Error(err)
	}
	if n := len(s.records("cannot accept a connection")); n > 3 {
		t.Errorf("told %d times", n)
	}
	for _, c := range crowd {
		c.Close()
	}
}
