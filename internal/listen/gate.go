package listen

import (
	"container/list"
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"example.com/hangup/internal/config"
	"example.com/hangup/internal/event"
)

// What is kept of the process's descriptors for others than connections.
const (
	reserve          = 64 // files, spool, timers, epoll, the supervisor
	reservePerWorker = 8  // pipes and sockets of a worker and its shim
)

// tellEvery is how often an operator hears that there are too many connections.
const tellEvery = 10 * time.Second

// room is how many connections may be open: limits.connections, or as many as there
// are descriptors for. Then it tells why.
func room(c *config.Config) (int, *event.Trouble) {
	var files unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &files) != nil {
		return c.Limits.Connections, nil
	}
	kept := reserve
	for _, w := range c.Workloads {
		kept += reservePerWorker * (w.Workers + w.Spares)
	}
	left := max(int(min(files.Cur, 1<<30))-kept, 1)
	if left >= c.Limits.Connections {
		return c.Limits.Connections, nil
	}
	return left, &event.Trouble{
		What: "fewer connections are let in than limits.connections says",
		Err: fmt.Errorf("this process may have %d descriptors, of which %d are kept for its workers: that leaves %d connections of %d",
			files.Cur, kept, left, c.Limits.Connections),
		Remedy: "raise the limit of open files (ulimit -n, or LimitNOFILE in systemd), or lower limits.connections",
		At:     time.Now(),
	}
}

// gate counts the connections and knows which of them wait: have no request that is
// being served, and no reply that is still on its way. Those make room when there are
// too many.
type gate struct {
	emit  event.Sink
	pacer *pacer

	mu     sync.Mutex
	limit  int
	guests map[net.Conn]*guest
	fresh  list.List // of *guest: waiting, no request so far; the longest first
	idle   list.List // the same, between two requests
	told   time.Time // when an operator was told last
}

// guest is one connection.
type guest struct {
	gate  *gate
	conn  net.Conn // what the http.Server has
	raw   *conn    // below TLS: closing it does not wait for the peer
	calls int      // requests in their handlers; over HTTP/2 there may be several
	rests bool     // net/http says that nothing is under way, no reply either
	queue *list.List
	place *list.Element // in queue; nil while calls > 0
}

func newGate(emit event.Sink) *gate {
	return &gate{emit: emit, pacer: &pacer{paces: map[string]*pace{}}, guests: map[net.Conn]*guest{}}
}

func (g *gate) setLimit(limit int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.limit = limit
}

// enter lets a connection in, for which another one may have to go. Where all others
// are being served, it is closed instead.
func (g *gate) enter(conn net.Conn, raw *conn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.guests) >= g.limit {
		g.tell("closing connections that wait: limits.connections is reached", fmt.Errorf("%d are open", len(g.guests)),
			"raise limits.connections if these are callers, not a flood")
		if !g.shed() {
			raw.Close()
			return false
		}
	}
	one := &guest{gate: g, conn: conn, raw: raw}
	g.guests[conn] = one
	one.wait(&g.fresh)
	return true
}

// makeRoom closes a waiting connection because the system has no room for another.
func (g *gate) makeRoom(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.tell("cannot accept a connection", err, "raise the limit of open files, or lower limits.connections")
	g.shed()
}

// tell tells an operator, but not of each one in a crowd.
func (g *gate) tell(what string, err error, remedy string) {
	if now := time.Now(); now.Sub(g.told) > tellEvery {
		g.told = now
		g.emit(event.Trouble{What: what, Err: err, Remedy: remedy, At: now})
	}
}

// shed closes the connection that has waited longest, among the larger group of those
// that never sent a request and those between two. So neither slow headers nor idle
// connections in great number keep others out, or cost them theirs.
func (g *gate) shed() bool {
	from := &g.fresh
	if g.idle.Len() >= g.fresh.Len() {
		from = &g.idle
	}
	first := from.Front()
	if first == nil {
		return false
	}
	one := first.Value.(*guest)
	one.unqueue()
	delete(g.guests, one.conn)
	one.raw.Close()
	return true
}

// wait puts the guest at the end of a queue.
func (o *guest) wait(queue *list.List) {
	o.queue, o.place = queue, queue.PushBack(o)
}

// unqueue takes the guest out of its queue.
func (o *guest) unqueue() {
	if o.place != nil {
		o.queue.Remove(o.place)
		o.place = nil
	}
}

// guestKey is the key of the *guest in the context of a connection.
type guestKey struct{}

// ConnContext is for [http.Server.ConnContext]: it makes c known to its requests.
func (s *Set) ConnContext(ctx context.Context, c net.Conn) context.Context {
	g := s.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	if one := g.guests[c]; one != nil {
		return context.WithValue(ctx, guestKey{}, one)
	}
	return ctx // closed already
}

// ConnState is for [http.Server.ConnState]: it forgets c when it is closed, and learns
// when the last of a reply is out.
func (s *Set) ConnState(c net.Conn, state http.ConnState) {
	g := s.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	one := g.guests[c]
	if one == nil {
		return
	}
	switch state {
	case http.StateActive: // perhaps no more than the first byte of a request
		one.rests = false
	case http.StateIdle:
		one.rests = true
		one.waitAgain()
	case http.StateClosed, http.StateHijacked:
		one.unqueue()
		delete(g.guests, c)
	}
}

// Handler is h for requests of the Set's connections, which do not wait meanwhile.
func (s *Set) Handler(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if one, ok := r.Context().Value(guestKey{}).(*guest); ok {
			one.begin()
			defer one.end()
		}
		h.ServeHTTP(w, r)
	})
}

// ShowOut says that the peer that sent r is told to go. If it takes no notice, it is read
// slowly (pace.go).
func ShowOut(r *http.Request) {
	if one, ok := r.Context().Value(guestKey{}).(*guest); ok {
		one.raw.showOut()
	}
}

func (o *guest) begin() {
	o.raw.known.Store(true)
	o.gate.mu.Lock()
	defer o.gate.mu.Unlock()
	o.calls++
	o.unqueue()
}

func (o *guest) end() {
	o.gate.mu.Lock()
	defer o.gate.mu.Unlock()
	o.calls--
	o.waitAgain()
}

// waitAgain has a guest wait that has been served to the end.
func (o *guest) waitAgain() {
	if o.calls == 0 && o.rests && o.place == nil && o.gate.guests[o.conn] == o {
		o.wait(&o.gate.idle)
	}
}
