package listen

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"example.com/hangup/internal/config"
	"example.com/hangup/internal/event"
	"example.com/hangup/internal/proctest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a Set that is served, with what it has told.
type rig struct {
	*Set
	t      *testing.T
	server *http.Server
	serve  func(http.ResponseWriter, *http.Request)

	mu   sync.Mutex
	told []event.Event
}

func limits(connections int) config.Limits { return config.Limits{Connections: connections} }

// newRig opens and serves the addresses of c. Requests are answered with "served".
func newRig(t *testing.T, c config.Config) *rig {
	t.Helper()
	g := &rig{t: t, serve: func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "served") }}
	if c.Limits.Connections == 0 {
		c.Limits = limits(100)
	}
	var err error
	if g.Set, err = Open(t.Context(), &c, g.emit); err != nil {
		t.Fatal(err)
	}
	g.server = &http.Server{
		Handler:     g.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { g.serve(w, r) })),
		ConnContext: g.ConnContext, ConnState: g.ConnState,
	}
	failed := g.Serve(g.server)
	t.Cleanup(func() {
		g.server.Close()
		g.Close()
		select {
		case err := <-failed:
			t.Error(err)
		default:
		}
		if !proctest.Eventually(func() bool { return g.guests() == 0 }) {
			t.Errorf("%d connections are still counted", g.guests())
		}
	})
	return g
}

func (g *rig) emit(e event.Event) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.told = append(g.told, e)
}

// troubles are what an operator was told of.
func (g *rig) troubles() (list []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, e := range g.told {
		if trouble, ok := e.(event.Trouble); ok {
			list = append(list, trouble.What)
		}
	}
	return list
}

func (g *rig) guests() int {
	g.gate.mu.Lock()
	defer g.gate.mu.Unlock()
	return len(g.gate.guests)
}

// waiting is how many connections have no request that is being served.
func (g *rig) waiting() int {
	g.gate.mu.Lock()
	defer g.gate.mu.Unlock()
	return g.gate.fresh.Len() + g.gate.idle.Len()
}

func dial(t *testing.T, address string) net.Conn {
	t.Helper()
	network := "tcp"
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		network, address = "unix", path
	}
	c, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

const get = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"

// ask sends a request and returns the status and the body.
func ask(c net.Conn) (string, error) {
	c.SetDeadline(time.Now().Add(proctest.Patience))
	if _, err := io.WriteString(c, get); err != nil {
		return "", err
	}
	reply, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return "", err
	}
	defer reply.Body.Close()
	body, err := io.ReadAll(reply.Body)
	return reply.Status + " " + string(body), err
}

func mustServe(t *testing.T, c net.Conn) {
	t.Helper()
	if got, err := ask(c); got != "200 OK served" {
		t.Fatalf("%q, %v", got, err)
	}
}

func TestUnixSocket(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	mask := syscall.Umask(0)
	g := newRig(t, config.Config{Listen: []string{"unix:" + path}})
	syscall.Umask(mask)
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Fatalf("%v, %v", info.Mode(), err)
	}
	if got := g.Addresses(); len(got) != 1 || got[0] != "unix:"+path {
		t.Errorf("listening on %v", got)
	}
	who := make(chan string, 1)
	g.serve = func(w http.ResponseWriter, r *http.Request) {
		who <- r.RemoteAddr
		io.WriteString(w, "served")
	}
	mustServe(t, dial(t, "unix:"+path))
	if got, want := <-who, fmt.Sprintf("uid:%d", os.Getuid()); got != want {
		t.Errorf("the caller is %s, want %s", got, want)
	}
	_, err = Open(t.Context(), &config.Config{Listen: []string{"unix:" + path}, Limits: limits(1)}, g.emit)
	if err == nil || !strings.Contains(err.Error(), "another program does") {
		t.Errorf("a second server: %v", err)
	}
	mustServe(t, dial(t, "unix:"+path))
	g.Close()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left behind: %v", err)
	}
}

// A path longer than the kernel takes works, because it is reached from its directory.
func TestUnixSocketWithALongPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 100))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	newRig(t, config.Config{Listen: []string{"unix:" + filepath.Join(dir, "s")}})
	t.Chdir(dir)
	mustServe(t, dial(t, "unix:s"))
}

func TestWhatIsInTheWayOfAUnixSocket(t *testing.T) {
	for _, test := range []struct {
		name string
		make func(path string) error
		want string // in the error; "" where the way is cleared
	}{
		{"a socket left behind", func(path string) error {
			l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
			if err == nil {
				l.SetUnlinkOnClose(false)
				l.Close()
			}
			return err
		}, ""},
		{"a file", func(path string) error { return os.WriteFile(path, []byte("precious"), 0o600) }, "no socket"},
		{"a directory", func(path string) error { return os.Mkdir(path, 0o700) }, "no socket"},
		{"a link to nothing", func(path string) error { return os.Symlink("nothing", path) }, "symbolic link"},
		{"a link to a socket left behind", func(path string) error {
			l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path + ".real"})
			if err == nil {
				l.SetUnlinkOnClose(false)
				l.Close()
			}
			return errors.Join(err, os.Symlink(path+".real", path))
		}, "symbolic link"},
		{"no directory", func(path string) error { return os.Remove(filepath.Dir(path)) }, "make the directory first"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "d")
			path := filepath.Join(dir, "s")
			if err := errors.Join(os.Mkdir(dir, 0o700), test.make(path)); err != nil {
				t.Fatal(err)
			}
			before, _ := os.Lstat(path)
			c := &config.Config{Listen: []string{"unix:" + path}, Limits: limits(1)}
			s, err := Open(t.Context(), c, func(event.Event) {})
			if err == nil {
				defer s.Close()
			}
			if test.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("%v, want %q", err, test.want)
			}
			if after, _ := os.Lstat(path); before != nil && !os.SameFile(before, after) {
				t.Error("what was there is not any more")
			}
		})
	}
}

// The file of a socket that has been replaced is somebody else's.
func TestUnixSocketOfAnotherIsNotRemoved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	s, err := Open(t.Context(), &config.Config{Listen: []string{"unix:" + path}, Limits: limits(1)}, func(event.Event) {})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(path), os.WriteFile(path, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Error(err)
	}
}

func TestChange(t *testing.T) {
	dir := t.TempDir()
	first, second := "unix:"+filepath.Join(dir, "1"), "unix:"+filepath.Join(dir, "2")
	g := newRig(t, config.Config{Listen: []string{first, "127.0.0.1:0"}})
	kept := g.Addresses()[1]
	old := dial(t, first)
	mustServe(t, old)

	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	bad := &config.Config{Listen: []string{second, busy.Addr().String()}, Limits: limits(50)}
	if _, err := g.Prepare(t.Context(), bad); err == nil || !strings.Contains(err.Error(), "another program does") {
		t.Errorf("%v", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "2")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("opened in vain, and left: %v", err)
	}
	mustServe(t, dial(t, first))

	good := &config.Config{Listen: []string{"127.0.0.1:0", second}, Limits: limits(50)}
	change, err := g.Prepare(t.Context(), good)
	if err != nil {
		t.Fatal(err)
	}
	change.Discard()
	if _, err := os.Lstat(filepath.Join(dir, "2")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("discarded, and left: %v", err)
	}
	if change, err = g.Prepare(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	change.Commit()
	_, port, _ := net.SplitHostPort(kept)
	_, err = g.Prepare(t.Context(), &config.Config{Listen: []string{"0.0.0.0:" + port}, Limits: limits(50)})
	if err == nil || !strings.Contains(err.Error(), "while this server listens on "+kept) {
		t.Errorf("an address over one that is open: %v", err)
	}
	if got := g.Addresses(); len(got) != 2 || got[0] != kept || got[1] != second {
		t.Errorf("listening on %v, want %s and %s", got, kept, second)
	}
	mustServe(t, dial(t, second))
	mustServe(t, dial(t, kept))
	mustServe(t, old) // came in by an address that is closed
	if _, err := net.Dial("unix", filepath.Join(dir, "1")); err == nil {
		t.Error("the old address is still open")
	}
}

// makePair writes a certificate of that name, and its key.
func makePair(t *testing.T, files config.TLS, name string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(
		os.WriteFile(files.Cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o600),
		os.WriteFile(files.Key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600),
	)
	if err != nil {
		t.Fatal(err)
	}
}

func TestCertificateIsTakenUpWhenItChanges(t *testing.T) {
	dir := t.TempDir()
	files := config.TLS{Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem")}
	makePair(t, files, "first")
	g := newRig(t, config.Config{Listen: []string{"127.0.0.1:0"}, TLS: files})
	look := func() { // at every handshake from now on
		secure := g.secure.Load()
		secure.mu.Lock()
		defer secure.mu.Unlock()
		secure.every, secure.next = 0, time.Time{}
	}
	served := func(protocol string) string {
		t.Helper()
		c, err := tls.Dial("tcp", g.Addresses()[0], &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocol}})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if got := c.ConnectionState().NegotiatedProtocol; got != protocol {
			t.Errorf("speaks %q, want %q", got, protocol)
		}
		return c.ConnectionState().PeerCertificates[0].Subject.CommonName
	}
	if got := served("h2"); got != "first" {
		t.Errorf("the certificate is %s", got)
	}
	makePair(t, files, "second")
	if got := served("http/1.1"); got != "first" {
		t.Errorf("the certificate is %s before it was looked at", got)
	}
	look()
	if got := served("h2"); got != "second" {
		t.Errorf("the certificate is %s after a change", got)
	}
	if err := os.WriteFile(files.Key, []byte("half written"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got := served("h2"); got != "second" {
			t.Errorf("the certificate is %s while its key is broken", got)
		}
	}
	if got := g.troubles(); len(got) != 1 {
		t.Errorf("told %q, want one about the certificate", got)
	}
	if _, err := g.Prepare(t.Context(), &config.Config{Listen: []string{"127.0.0.1:0"}, TLS: files, Limits: limits(1)}); err == nil {
		t.Error("a broken pair was accepted by Prepare")
	}
	makePair(t, files, "third")
	if got := served("h2"); got != "third" {
		t.Errorf("the certificate is %s after it was mended", got)
	}
	change, err := g.Prepare(t.Context(), &config.Config{Listen: []string{"127.0.0.1:0"}, Limits: limits(1)})
	if err != nil {
		t.Fatal(err)
	}
	change.Commit() // without TLS
	mustServe(t, dial(t, g.Addresses()[0]))
}

// While limits.connections is reached, whoever waits longest makes room, and never
// one that is being served.
func TestConnectionsThatWaitMakeRoom(t *testing.T) {
	g := newRig(t, config.Config{Listen: []string{"127.0.0.1:0"}, Limits: limits(4)})
	address := g.Addresses()[0]
	arrived, release := make(chan struct{}, 10), make(chan struct{})
	g.serve = func(w http.ResponseWriter, _ *http.Request) {
		arrived <- struct{}{}
		<-release
		io.WriteString(w, "served")
	}
	// Two are served, two send their headers slowly.
	answers := make(chan error, 10)
	busy := func() {
		c := dial(t, address)
		go func() {
			got, err := ask(c)
			if got != "200 OK served" {
				err = fmt.Errorf("%q, %v", got, err)
			}
			answers <- err
		}()
		<-arrived
	}
	busy()
	busy()
	var slow []net.Conn
	for range 2 {
		c := dial(t, address)
		io.WriteString(c, "GET / HTTP/1.1\r\nHost:")
		slow = append(slow, c)
		if !proctest.Eventually(func() bool { return g.waiting() == len(slow) }) {
			t.Fatalf("%d wait", g.waiting())
		}
	}
	closed := func(c net.Conn) bool {
		c.SetReadDeadline(time.Now().Add(proctest.Patience))
		_, err := c.Read(make([]byte, 1))
		return err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
	}
	busy() // in place of the first slow one
	if !closed(slow[0]) {
		t.Error("the one that has waited longest is still there")
	}
	busy()
	if !closed(slow[1]) {
		t.Error("the other one that waits is still there")
	}
	if late := dial(t, address); !closed(late) { // all are being served
		t.Error("there are more connections than allowed")
	}
	if got := g.troubles(); len(got) != 1 {
		t.Errorf("told %q, want one for the crowd", got)
	}
	close(release)
	for range 4 {
		if err := <-answers; err != nil {
			t.Errorf("one that was served: %v", err)
		}
	}
}

// Accept waits out what the system is short of, and drops a connection to help.
func TestAcceptWithoutDescriptors(t *testing.T) {
	g := newRig(t, config.Config{Listen: []string{"127.0.0.1:0"}})
	address := g.Addresses()[0]
	last := dial(t, address)
	mustServe(t, last)
	waits := func(n int) {
		t.Helper()
		if !proctest.Eventually(func() bool { return g.waiting() == n }) {
			t.Fatalf("%d wait, want %d", g.waiting(), n)
		}
	}
	waits(1)
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	// accept(2) wants a descriptor before it looks for a connection.
	var files []*os.File
	for {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
		if len(files) == 8 { // whatever numbers were free below
			break
		}
	}
	highest := files[len(files)-1].Fd()
	for _, f := range files {
		defer f.Close()
	}
	low := before
	set(&low.Cur, highest+2)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	restore := sync.OnceFunc(func() { unix.Setrlimit(unix.RLIMIT_NOFILE, &before) })
	defer restore()
	for range 3 { // this end takes the last number, so the connection before it has to go for the other
		next := dial(t, address)
		mustServe(t, next)
		waits(1)
		last.Close()
		last = next
	}
	restore()
	if got := g.troubles(); len(got) != 1 || got[0] != "cannot accept a connection" {
		t.Errorf("told %q", got)
	}
	mustServe(t, dial(t, address))
}

func TestOpenTellsWhatIsInTheWay(t *testing.T) {
	for address, want := range map[string]string{
		"192.0.2.1:80": "no such address",
	} {
		_, err := Open(context.Background(), &config.Config{Listen: []string{address}, Limits: limits(1)}, func(event.Event) {})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", address, err, want)
		}
	}
}

// Anyone who may read the directory can hold its lock.
func TestUnixSocketInALockedDirectory(t *testing.T) {
	dir := t.TempDir()
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	path := "unix:" + filepath.Join(dir, "s")
	newRig(t, config.Config{Listen: []string{path}})
	mustServe(t, dial(t, path))
}

// A socket whose file is gone is made again by the next change, though the address is
// the same.
func TestLostUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	c := config.Config{Listen: []string{"unix:" + path}, Limits: limits(10)}
	g := newRig(t, c)
	old := dial(t, "unix:"+path)
	mustServe(t, old)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	change, err := g.Prepare(t.Context(), &c)
	if err != nil {
		t.Fatal(err)
	}
	change.Commit()
	mustServe(t, dial(t, "unix:"+path))
	mustServe(t, old)
}

// Sockets that were handed over are looked at with each config.
func TestInheritedSocketsAreNotExposed(t *testing.T) {
	s := &Set{inherited: true, gate: newGate(func(event.Event) {}), order: []string{"0.0.0.0:80"}}
	open := &config.Config{Limits: limits(1)}
	if _, err := s.Prepare(t.Context(), open); err == nil || !strings.Contains(err.Error(), "add auth.tokens") {
		t.Errorf("%v", err)
	}
	open.Auth.Off = true
	if _, err := s.Prepare(t.Context(), open); err != nil {
		t.Error(err)
	}
}

// A connection waits again when its reply is out, which is after its handler; and a
// stream of HTTP/2 may be over before its handler has begun.
func TestWhenAConnectionWaits(t *testing.T) {
	s := &Set{gate: newGate(func(event.Event) {})}
	s.gate.setLimit(10)
	c, peer := net.Pipe()
	defer c.Close()
	defer peer.Close()
	s.gate.enter(c, s.gate.pacer.conn(c))
	one := s.gate.guests[c]
	check := func(when string, want bool) {
		t.Helper()
		if got := one.place != nil; got != want {
			t.Errorf("%s: it waits: %v, want %v", when, got, want)
		}
	}
	check("new", true)
	s.ConnState(c, http.StateActive)
	check("at the first byte", true)
	one.begin()
	check("in the handler", false)
	one.end()
	check("with the reply on its way", false)
	s.ConnState(c, http.StateIdle)
	check("between two requests", true)
	s.ConnState(c, http.StateActive)
	s.ConnState(c, http.StateIdle)
	one.begin()
	check("in the handler of a stream that is over", false)
	one.end()
	check("behind it", true)
	s.ConnState(c, http.StateClosed)
	check("closed", false)
}

// set sets a limit, whose type is not the same on every system.
func set[Limit int64 | uint64](limit *Limit, n uintptr) { *limit = Limit(n) }
