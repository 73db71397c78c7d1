// Package listen opens the addresses of the server and lets connections in: TCP with
// or without TLS, unix sockets, and sockets that a service manager has opened.
//
// Its promises: an address is opened or the error says what is in the way, and a
// change of addresses opens all of the new ones before it closes any; no more
// connections are open than limits.connections, and while they are as many, those
// that wait longest without a request make room, never one that is being served;
// being out of descriptors or memory ends nothing and is waited out; who was shown out
// and takes no notice is read slowly (pace.go); and a certificate that is replaced on
// disk is taken up without a restart, one that cannot be used never.
//
// A [Set] has a goroutine for each address, inside [http.Server.Serve], until it is
// closed. It imports config and event.
package listen

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"example.com/hangup/internal/config"
	"example.com/hangup/internal/event"
)

// The wait before the next try when the system has no room for a connection: doubling,
// as in net/http, which knows but one of the errors.
const (
	firstWait = 5 * time.Millisecond
	lastWait  = time.Second
)

// Set is all addresses of a server. Its methods may be called from any goroutine.
type Set struct {
	emit      event.Sink
	gate      *gate
	secure    atomic.Pointer[certificate] // nil: no TLS
	inherited bool                        // a service manager has opened the sockets

	mu      sync.Mutex
	server  *http.Server // once there is one
	open    map[string]*listener
	order   []string // the keys of open, as the config has them
	serving sync.WaitGroup
	failed  chan error
}

// Open opens every address of c, or none. Sockets that were handed over by a service
// manager, as systemd does, stand in place of c.Listen.
func Open(ctx context.Context, c *config.Config, emit event.Sink) (*Set, error) {
	s := &Set{
		emit: emit, gate: newGate(emit), failed: make(chan error, 1),
		open: map[string]*listener{},
	}
	handed, err := inherited()
	if err != nil {
		return nil, err
	}
	for _, l := range handed {
		address := name(l)
		for s.open[address] != nil { // several sockets may share one (SO_REUSEPORT)
			address += " again"
		}
		s.inherited = true
		s.open[address] = s.listener(l)
		s.order = append(s.order, address)
	}
	change, err := s.Prepare(ctx, c)
	if err != nil {
		s.Close()
		return nil, err
	}
	change.Commit()
	return s, nil
}

// Addresses are what is listened on, as bound: host:port, or unix: and a path.
func (s *Set) Addresses() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []string
	for _, key := range s.order {
		list = append(list, name(s.open[key]))
	}
	return list
}

// Inherited tells whether a service manager has opened the sockets.
func (s *Set) Inherited() bool { return s.inherited }

// name is the address that l is bound to, as a config has it.
func name(l net.Listener) string {
	if a := l.Addr(); a.Network() == "unix" {
		return "unix:" + a.String()
	}
	return l.Addr().String()
}

// Change is what a new config makes of the addresses, prepared: everything that can
// fail has been done, and nothing that is served has been touched.
type Change struct {
	set    *Set
	open   map[string]*listener // of the new config
	fresh  []*listener          // those that are new
	order  []string
	secure *certificate
	limit  int
	fewer  *event.Trouble // why limit is below limits.connections; nil: it is not
}

// Prepare opens what c has and the Set has not, and loads the certificate. The Change
// must be committed or discarded. There is one at a time.
func (s *Set) Prepare(ctx context.Context, c *config.Config) (*Change, error) {
	ch := &Change{set: s, open: map[string]*listener{}, order: c.Listen}
	ch.limit, ch.fewer = room(c)
	if c.TLS.On() {
		var err error
		if ch.secure, err = loadCertificate(c.TLS, s.emit); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	now, order := s.open, s.order // replaced as a whole, never changed
	s.mu.Unlock()
	if s.inherited {
		for _, address := range order { // nobody has looked at it with this config
			if err := c.Exposes(address); err != nil {
				return nil, fmt.Errorf("cannot serve the inherited socket: %w", err)
			}
		}
		ch.open, ch.order = now, order
		return ch, nil
	}
	for _, address := range c.Listen {
		l := now[address]
		if l == nil || l.lost() {
			opened, err := open(ctx, address, now)
			if err != nil {
				ch.Discard()
				return nil, err
			}
			l = s.listener(opened)
			ch.fresh = append(ch.fresh, l)
		}
		ch.open[address] = l
	}
	return ch, nil
}

// Discard closes what was opened in vain.
func (ch *Change) Discard() {
	for _, l := range ch.fresh {
		l.Close()
	}
}

// Commit serves the new addresses and closes those that are left over. Connections
// that came in by one of those live on.
func (ch *Change) Commit() {
	s := ch.set
	s.mu.Lock()
	defer s.mu.Unlock()
	s.secure.Store(ch.secure)
	s.gate.setLimit(ch.limit)
	if ch.fewer != nil {
		s.emit(*ch.fewer)
	}
	before := s.open
	s.open, s.order = ch.open, ch.order
	for _, l := range ch.fresh {
		s.serve(l)
	}
	for address, l := range before {
		if s.open[address] != l {
			l.Close()
		}
	}
}

// Serve serves every address, also those to come, by server, whose ConnContext,
// ConnState and Handler must go through the Set. The channel tells when one of
// them fails for good.
func (s *Set) Serve(server *http.Server) (failed <-chan error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.server = server
	for _, l := range s.open {
		s.serve(l)
	}
	return s.failed
}

// serve runs one address until its listener is closed.
func (s *Set) serve(l *listener) {
	if s.server == nil {
		return // Serve will come
	}
	s.serving.Go(func() {
		err := s.server.Serve(l)
		if errors.Is(err, http.ErrServerClosed) || l.isClosed() {
			return
		}
		select {
		case s.failed <- fmt.Errorf("cannot listen on %s any more: %w", name(l), err):
		default: // one is enough
		}
	})
}

// Close stops listening, removes unix sockets, and returns when nothing listens any
// more. Connections are the http.Server's.
func (s *Set) Close() {
	s.mu.Lock()
	for _, l := range s.open {
		l.Close()
	}
	s.mu.Unlock()
	s.serving.Wait()
}

// open opens one address of a config, beside those that are open now.
func open(ctx context.Context, address string, now map[string]*listener) (net.Listener, error) {
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		return openUnix(ctx, path)
	}
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // it refuses the options by which a vanished peer is noticed
	l, err := lc.Listen(ctx, "tcp", address)
	switch {
	case errors.Is(err, unix.EADDRINUSE) && overlaps(address, now) != "":
		return nil, fmt.Errorf("cannot listen on %s while this server listens on %s: restart it, or go by way of another port", address, overlaps(address, now))
	case errors.Is(err, unix.EADDRINUSE):
		return nil, fmt.Errorf("cannot listen on %s: another program does; stop it, or change `listen`", address)
	case errors.Is(err, unix.EACCES):
		return nil, fmt.Errorf("cannot listen on %s: ports below 1024 need CAP_NET_BIND_SERVICE; choose a higher one, or let systemd open the socket", address)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return nil, fmt.Errorf("cannot listen on %s: this machine has no such address; change `listen`", address)
	case err != nil:
		return nil, fmt.Errorf("cannot listen on %s: %w", address, err)
	}
	return l, nil
}

// overlaps names the open address with the same port, or is "".
func overlaps(address string, now map[string]*listener) string {
	_, port, _ := net.SplitHostPort(address)
	for _, l := range now {
		if _, other, err := net.SplitHostPort(name(l)); err == nil && other == port {
			return name(l)
		}
	}
	return ""
}

// listener is one address that is listened on.
type listener struct {
	net.Listener
	set    *Set
	tls    bool // where the server has a certificate
	closed chan struct{}
	once   sync.Once
	err    error
}

func (s *Set) listener(l net.Listener) *listener {
	return &listener{Listener: l, set: s, tls: l.Addr().Network() != "unix", closed: make(chan struct{})}
}

// lost tells whether nobody can reach the address any more: its socket's file is gone.
func (l *listener) lost() bool {
	u, ok := l.Listener.(*unixListener)
	return ok && !u.file.there()
}

// Accept returns the next connection that may stay.
func (l *listener) Accept() (net.Conn, error) {
	wait := firstWait
	for {
		accepted, err := l.Listener.Accept()
		switch {
		case err == nil:
			raw := l.set.gate.pacer.conn(accepted)
			c := net.Conn(raw)
			if secure := l.set.secure.Load(); secure != nil && l.tls {
				c = tls.Server(raw, secure.config)
			}
			if l.set.gate.enter(c, raw) {
				return c, nil
			}
			wait = firstWait
		case l.isClosed() || !passing(err):
			return nil, err
		default:
			if l.pending() { // accept wants a descriptor before it looks
				l.set.gate.makeRoom(err)
			}
			pause := time.NewTimer(wait)
			select {
			case <-pause.C:
			case <-l.closed:
				pause.Stop()
			}
			wait = min(2*wait, lastWait)
		}
	}
}

// pending tells whether a connection waits to be accepted.
func (l *listener) pending() (is bool) {
	socket, ok := l.Listener.(syscall.Conn)
	if !ok {
		return false
	}
	if raw, err := socket.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			is = n > 0 && err == nil
		})
	}
	return is
}

// passing tells whether accept can work later although it fails now: accept(2) gives
// the errors of the network, too, and says to treat them like EAGAIN.
func passing(err error) bool {
	for _, no := range []error{net.ErrClosed, unix.EBADF, unix.EINVAL, unix.ENOTSOCK, unix.EOPNOTSUPP, unix.EFAULT} {
		if errors.Is(err, no) {
			return false
		}
	}
	return true
}

// Close stops listening. It may be called more than once.
func (l *listener) Close() error {
	l.once.Do(func() {
		close(l.closed)
		l.err = l.Listener.Close()
	})
	return l.err
}

func (l *listener) isClosed() bool {
	select {
	case <-l.closed:
		return true
	default:
		return false
	}
}
