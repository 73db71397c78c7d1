//go:build !portable

package connwatch

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// atRest is what epoll reports of every connection; HUP and ERR come unasked.
	atRest = unix.EPOLLRDHUP | unix.EPOLLET
	// hungUp are the events after which nothing comes back: each is sticky.
	hungUp = unix.EPOLLRDHUP | unix.EPOLLHUP | unix.EPOLLERR
)

// Watcher watches the connections of an [http.Server], whose ConnContext and
// ConnState it provides.
type Watcher struct {
	file  *os.File        // the epoll instance, in Go's poller
	epoll syscall.RawConn // of file; safe against its Close
	ended chan struct{}   // closed when run has returned

	mu      sync.Mutex
	last    uint64           // the last token given
	byToken map[uint64]*conn // guarded by mu, as is byConn: the same set
	byConn  map[net.Conn]*conn
}

// New returns a running Watcher. It must be closed.
func New() (*Watcher, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("cannot create an epoll instance: %w", err)
	}
	// os.NewFile hands a descriptor to Go's poller only when it does not block.
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("cannot make epoll non-blocking: %w", err)
	}
	file := os.NewFile(uintptr(fd), "epoll")
	epoll, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("cannot poll epoll: %w", err)
	}
	w := &Watcher{
		file:    file,
		epoll:   epoll,
		ended:   make(chan struct{}),
		byToken: make(map[uint64]*conn),
		byConn:  make(map[net.Conn]*conn),
	}
	go w.run()
	return w, nil
}

// Close ends the watching and returns when the Watcher's goroutine has ended.
// Hang-ups are no longer noticed, so the server comes first.
func (w *Watcher) Close() error {
	err := w.file.Close()
	<-w.ended
	return err
}

// run hands out the events until the epoll instance is closed.
func (w *Watcher) run() {
	defer close(w.ended)
	var events [128]unix.EpollEvent
	n := 0
	wait := func(fd uintptr) bool {
		n, _ = unix.EpollWait(int(fd), events[:], 0)
		return n > 0
	}
	for w.epoll.Read(wait) == nil {
		for _, e := range events[:n] {
			if c := w.find(token(e)); c != nil {
				c.happened(e.Events)
			}
		}
	}
}

func (w *Watcher) find(token uint64) *conn {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.byToken[token]
}

// ConnContext is for [http.Server.ConnContext]: it begins to watch c, tunes it
// (see [Tune]), and returns the context in which the requests of c find it. A
// connection that has no descriptor to watch is left to the request's context;
// a listener that wraps its connections must hand through SyscallConn, or NetConn as
// [crypto/tls.Conn] does.
func (w *Watcher) ConnContext(ctx context.Context, nc net.Conn) context.Context {
	_ = Tune(nc) // a peer that vanishes is then found later; all else works

	socket := rawConn(nc)
	if socket == nil {
		return ctx
	}
	c := &conn{epoll: w.epoll, socket: socket}
	c.gone, c.hangUp = context.WithCancel(context.Background())

	// Known before it is watched: an edge comes only once.
	w.mu.Lock()
	w.last++
	c.token = w.last
	w.byToken[c.token] = c
	w.byConn[nc] = c
	w.mu.Unlock()

	if err := c.control(unix.EPOLL_CTL_ADD, atRest); err != nil {
		w.forget(nc)
		return ctx
	}
	return context.WithValue(ctx, connKey{}, c)
}

// ConnState is for [http.Server.ConnState]: it forgets c when it is closed or
// hijacked. A close from this side is no hang-up.
func (w *Watcher) ConnState(nc net.Conn, state http.ConnState) {
	switch state {
	case http.StateHijacked:
		if c := w.forget(nc); c != nil {
			_ = c.control(unix.EPOLL_CTL_DEL, 0) // forgotten in any case
		}
	case http.StateClosed: // and with it out of epoll
		w.forget(nc)
	}
}

func (w *Watcher) forget(nc net.Conn) *conn {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.byConn[nc]
	if c != nil {
		delete(w.byConn, nc)
		delete(w.byToken, c.token)
	}
	return c
}

// rawConn returns the socket below nc, or nil.
func rawConn(nc net.Conn) syscall.RawConn {
	s, ok := below(nc).(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}

// conn is one watched connection.
type conn struct {
	epoll  syscall.RawConn
	socket syscall.RawConn // its Control fails once the connection is closed
	token  uint64

	gone   context.Context // ends when the peer has gone; for good
	hangUp context.CancelFunc

	mu        sync.Mutex // also held while counting, so that a lifted bound is never broken
	bounded   bool
	serving   int         // requests under way; over HTTP/2 there may be several
	streaming int         // and replies
	look      *time.Timer // for silence, while there are requests; nil before the first
}

// happened takes in one event of the watcher's goroutine.
func (c *conn) happened(events uint32) {
	if events&hungUp != 0 {
		c.hangUp()
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bounded && c.unread() > MaxBehind {
		c.hangUp()
	}
}

// bound has epoll tell of every arrival of bytes, or no longer. To change what
// epoll reports makes it look at once, so bytes that are there already count.
func (c *conn) bound(on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bounded == on {
		return
	}
	c.bounded = on
	events := uint32(atRest)
	if on {
		events |= unix.EPOLLIN
	}
	_ = c.control(unix.EPOLL_CTL_MOD, events) // fails only when either is closed
}

// unread is the number of bytes that wait in the kernel.
func (c *conn) unread() (n int) {
	_ = c.socket.Control(func(fd uintptr) {
		n, _ = unix.IoctlGetInt(int(fd), unix.SIOCINQ)
	})
	return n
}

// serve counts the requests that are watched, and looks for silence while there are any.
func (c *conn) serve(more int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.serving += more
	switch {
	case c.serving == 0:
		c.look.Stop()
	case c.look == nil:
		c.look = time.AfterFunc(lookEvery, c.listen)
	case c.serving == 1 && more > 0:
		c.look.Reset(lookEvery)
	}
}

// listen finds a peer that vanished while something was on its way to it, which
// need not be a reply: 100 Continue, a session ticket, an update of a window. TCP_USER_TIMEOUT
// is of no use for that. It takes a live peer whose window is shut for silent, and
// measures from the first thing that was not acknowledged: of a stream that says
// something now and then only, that may be long after the last that was.
//
// The connection is shut for reading, so that it ends in the way of all others.
func (c *conn) listen() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.serving == 0 {
		return // stopped a moment too late
	}
	var info *unix.TCPInfo
	_ = c.socket.Control(func(fd uintptr) { info, _ = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
	if info == nil {
		return // closed, or no TCP
	}
	limit := silentAfter
	if c.streaming > 0 {
		limit = SendTimeout
	}
	if silent := time.Duration(info.Last_ack_recv) * time.Millisecond; info.Unacked > 0 && silent >= limit {
		_ = c.socket.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RD) })
		return
	}
	c.look.Reset(lookEvery)
}

// stream counts the replies that are streamed, and has the kernel give a peer up
// after SendTimeout while there are any. It is false where the kernel cannot.
func (c *conn) stream(more int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.streaming += more
	if c.streaming == 0 {
		return c.sendTimeout(0)
	}
	return c.sendTimeout(SendTimeout)
}

// sendTimeout sets TCP_USER_TIMEOUT, 0 for the kernel's own. Sockets that are not
// plain TCP refuse it.
func (c *conn) sendTimeout(d time.Duration) (set bool) {
	_ = c.socket.Control(func(fd uintptr) {
		set = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds())) == nil
	})
	return set
}

// control is epoll_ctl. Both descriptors are held open meanwhile, so that
// neither number can have come to mean another file.
func (c *conn) control(op int, events uint32) error {
	event := unix.EpollEvent{Events: events, Fd: int32(c.token), Pad: int32(c.token >> 32)}
	var err, inner error
	outer := c.epoll.Control(func(ep uintptr) {
		inner = c.socket.Control(func(fd uintptr) {
			err = unix.EpollCtl(int(ep), op, int(fd), &event)
		})
	})
	return cmp.Or(outer, inner, err)
}

// token is the number that control put into the event.
func token(e unix.EpollEvent) uint64 {
	return uint64(uint32(e.Pad))<<32 | uint64(uint32(e.Fd))
}
