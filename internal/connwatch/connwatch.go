// Package connwatch tells a live caller from one that left.
//
// Its promise: FIN, RST and half-close of a watched connection are noticed
// whatever the state of its request, and a caller who is still there is never
// taken for gone. net/http cannot give that for HTTP/1: a request's context
// learns of a hang-up only while the server reads ahead, which it does not do
// before the handler has read the body to its end, nor after a single byte has
// come behind the request. So the context is not used there; the kernel is asked.
// Over HTTP/2, where a stream can end without its connection, the server reads all
// the time, and the request's context is the one that knows.
//
// One epoll instance holds every connection and asks for EPOLLRDHUP alone,
// edge-triggered: a connection at rest costs nothing and a peer that has gone
// wakes the watcher once. A connection is known to epoll by a token that is
// never used twice, so that an event which comes late, when its descriptor
// already belongs to someone else, finds nobody.
//
// The kernel works through what a peer sends in order. A FIN behind more bytes
// than the receive buffer holds is therefore seen by nobody, neither epoll nor
// TCP_INFO. While a body arrives the server reads it, and nothing stays in
// front of a FIN for long; behind the body nobody reads, so there [Bound] lets
// no more than [MaxBehind] bytes pile up.
//
// A [Watcher] has one goroutine, which ends with [Watcher.Close]. Its epoll
// descriptor sits in Go's own poller, so no thread is blocked in it. Other
// systems than Linux fall back on the request's context, best effort.
//
// The package imports nothing of this module.
package connwatch

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"
)

// MaxBehind is how many bytes may lie unread behind a running request, in
// bytes; one more and the peer counts as gone. Up to 4097 further bytes are not
// seen, because net/http has read them ahead, and over TLS the rest of a record
// or two (16 KiB each). It must stay well below what a
// receive buffer holds (about 90 KiB of small segments at the kernel's default
// of 128 KiB): with a full buffer the kernel takes in no FIN.
const MaxBehind = 64 << 10

// A peer that vanishes without a packet is found by keep-alive probes while
// nothing is on its way to it, after KeepAliveIdle + KeepAliveCount ×
// KeepAliveInterval = 16 s. While something is, the kernel sends no probes: then a
// peer has gone that acknowledged nothing for as long, or for SendTimeout if it
// is a reply that streams.
const (
	KeepAliveIdle     = 4 * time.Second
	KeepAliveInterval = 4 * time.Second
	KeepAliveCount    = 3

	// SendTimeout is how long bytes of a streamed reply may stay
	// unacknowledged, or the peer's window shut, before the kernel gives the
	// connection up. A live reader that pauses as long is given up too.
	SendTimeout = 30 * time.Second

	// silentAfter is what keep-alive comes to.
	silentAfter = KeepAliveIdle + KeepAliveCount*KeepAliveInterval
	// lookEvery is how often it is looked for acknowledgements that do not come.
	lookEvery = 2 * time.Second
)

// AfterHangUp arranges to call f once the peer that sent r has gone: by FIN, RST,
// half-close, by vanishing, by breaking the bound (see [Bound]), or, over HTTP/2,
// by giving up the stream. If it has gone already, f is called at
// once. f is called at most once, in a goroutine of its own. stop, like that of
// [context.AfterFunc], prevents the call if it has not been started, and tells
// whether it did. It is to be called, whatever has happened, when r has been served.
//
// A request whose connection is not watched falls back on its context.
func AfterHangUp(r *http.Request, f func()) (stop func() bool) {
	c := watched(r)
	if c == nil {
		return context.AfterFunc(r.Context(), f)
	}
	ctx := c.gone
	if multiplexed(r) {
		ctx = r.Context()
	}
	unwatch := context.AfterFunc(ctx, f)
	c.serve(1)
	served := sync.OnceFunc(func() { c.serve(-1) })
	return func() bool {
		served()
		return unwatch()
	}
}

// Bound says that the body of r, which is being served, has been read to its end:
// what the peer sends from now on lies behind the request, and more than
// [MaxBehind] unread bytes of it count as a hang-up. The server should then
// close the connection. Over HTTP/2 nothing lies behind a request.
//
// release lifts the bound. It must be called before the last byte of the reply
// is on its way, because from then on the peer may send its next request, body
// and all. It may be called more than once.
func Bound(r *http.Request) (release func()) {
	c := watched(r)
	if c == nil || multiplexed(r) {
		return func() {}
	}
	c.bound(true)
	return func() { c.bound(false) }
}

// Streaming says that the reply to r is being streamed, until done is called: the
// peer then vanishes after [SendTimeout] without an acknowledgement.
//
// each is what the kernel cannot do: where it is above 0, the server must give
// up a peer that does not take a part of the reply within that time. A unix socket
// has no such option, and over HTTP/2 a window of the stream's own can stay shut.
//
// The option is not set for good because TCP_USER_TIMEOUT, where it is set, replaces
// the count of keep-alive probes: a peer that vanished from a waiting request
// would be missed for as long.
func Streaming(r *http.Request) (each time.Duration, done func()) {
	c := watched(r)
	if c == nil {
		return SendTimeout, func() {}
	}
	if set := c.stream(1); !set || multiplexed(r) {
		each = SendTimeout
	}
	return each, func() { c.stream(-1) }
}

// multiplexed tells whether r shares its connection with others at a time.
func multiplexed(r *http.Request) bool { return r.ProtoMajor >= 2 }

// Tune sets keep-alive on an accepted TCP connection, also below TLS, so that a peer
// that vanished is found. It does nothing to connections of other kinds.
// [Watcher.ConnContext] calls it.
func Tune(c net.Conn) error {
	tcp, ok := below(c).(*net.TCPConn)
	if !ok {
		return nil
	}
	err := tcp.SetKeepAliveConfig(net.KeepAliveConfig{
		Enable:   true,
		Idle:     KeepAliveIdle,
		Interval: KeepAliveInterval,
		Count:    KeepAliveCount,
	})
	if err != nil {
		return fmt.Errorf("cannot set keep-alive: %w", err)
	}
	return nil
}

// below is the connection that carries c where c is TLS or wraps another one, else c itself.
func below(c net.Conn) net.Conn {
	for {
		outer, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return c
		}
		c = outer.NetConn()
	}
}

// connKey is the key of the *conn in the context of a watched connection.
type connKey struct{}

func watched(r *http.Request) *conn {
	c, _ := r.Context().Value(connKey{}).(*conn)
	return c
}
