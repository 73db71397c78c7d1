package listen

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// Who is shown out and takes no notice still costs:
// over HTTP/2, net/http goes on to read and decode what comes as fast as it comes, for
// a second, and then there is the next connection. So from then on that connection is
// read slowly, and for a while so are new connections from its address, until they have
// brought a request. Connections that serve others from that address are not.
const (
	pacedFor   = time.Second
	pacedReads = 200                    // a second, of all those connections of an address together; and as many at once
	pacedPause = 100 * time.Millisecond // before each read beyond; no longer, so that they do not pile up
	pacedBytes = 256                    // of each read
	maxPaced   = 10_000
	// paceLooks is how many addresses are looked at for each new one, so that those
	// whose time is over go.
	paceLooks = 8
)

// pacer knows the addresses that are read slowly.
type pacer struct {
	mu    sync.Mutex
	paces map[string]*pace
}

// pace is that of one address.
type pace struct {
	reads *rate.Limiter
	until time.Time // guarded by pacer.mu
}

// slow has what comes from an address read slowly, from now on for pacedFor.
func (p *pacer) slow(from string) *pace {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	one := p.paces[from]
	if one == nil {
		one = &pace{reads: rate.NewLimiter(pacedReads, pacedReads)}
		if p.makeRoom(now); len(p.paces) < maxPaced {
			p.paces[from] = one
		}
	}
	one.until = now.Add(pacedFor)
	return one
}

// of is how an address is read; nil: as fast as it comes.
func (p *pacer) of(from string) *pace {
	p.mu.Lock()
	defer p.mu.Unlock()
	if one := p.paces[from]; one != nil && time.Now().Before(one.until) {
		return one
	}
	return nil
}

func (p *pacer) makeRoom(now time.Time) {
	looked := 0
	for from, one := range p.paces {
		if now.After(one.until) {
			delete(p.paces, from)
		}
		if looked++; looked == paceLooks {
			return
		}
	}
}

// conn is an accepted connection, below TLS, that can be read slowly.
type conn struct {
	net.Conn
	pacer *pacer
	from  string
	known atomic.Bool          // it has brought a request
	shown atomic.Pointer[pace] // out; nil: it was not
	woken chan struct{}        // has room for one: ends a pause
}

func (p *pacer) conn(c net.Conn) *conn {
	return &conn{Conn: c, pacer: p, from: source(c.RemoteAddr()), woken: make(chan struct{}, 1)}
}

// source is whom an address belongs to. One who has an IPv6 address has a network full
// of them.
func source(a net.Addr) string {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return a.String()
	}
	ip := tcp.AddrPort().Addr().Unmap().WithZone("")
	if ip.Is6() {
		return netip.PrefixFrom(ip, 64).Masked().String()
	}
	return ip.String()
}

// Read reads; after a pause, where its peer or others at its address are to be slow.
func (c *conn) Read(b []byte) (int, error) {
	pace := c.shown.Load()
	if pace == nil && !c.known.Load() {
		pace = c.pacer.of(c.from)
	}
	if pace != nil {
		b = b[:min(len(b), pacedBytes)]
		if !pace.reads.Allow() {
			pause := time.NewTimer(pacedPause)
			defer pause.Stop()
			select {
			case <-pause.C:
			case <-c.woken:
			}
		}
	}
	return c.Conn.Read(b)
}

// showOut says that its peer was told to go.
func (c *conn) showOut() { c.shown.Store(c.pacer.slow(c.from)) }

// SetReadDeadline is how net/http takes back a Read that it has begun.
func (c *conn) SetReadDeadline(t time.Time) error {
	err := c.Conn.SetReadDeadline(t)
	if !t.IsZero() && !t.After(time.Now()) {
		c.wake()
	}
	return err
}

// Close closes the connection, and ends a Read.
func (c *conn) Close() error {
	err := c.Conn.Close()
	c.wake()
	return err
}

// wake ends the pause of a Read. Where there is none, it takes away the next one, which
// is no harm.
func (c *conn) wake() {
	select {
	case c.woken <- struct{}{}:
	default:
	}
}

// CloseWrite is for net/http, which lets a peer read the last reply before it closes.
func (c *conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// NetConn is the connection itself, for those who need its socket.
func (c *conn) NetConn() net.Conn { return c.Conn }
