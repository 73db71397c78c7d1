//go:build !portable

package connwatch

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// patience is what no test may wait longer for; the promise itself, 100 ms, is
// logged and not asserted, because a busy machine is no bug of ours.
const patience = 2 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve runs an http.Server under a Watcher until the test ends.
func serve(t testing.TB, network string, h http.HandlerFunc) (addr string) {
	t.Helper()
	w, err := New()
	if err != nil {
		t.Fatal(err)
	}
	addr, secure := "127.0.0.1:0", network == "tls"
	switch network {
	case "unix":
		addr = filepath.Join(t.TempDir(), "s")
	case "tls":
		network = "tcp"
	}
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	if secure {
		l = tls.NewListener(l, certificate())
	}
	server := &http.Server{Handler: h, ConnContext: w.ConnContext, ConnState: w.ConnState}
	served := make(chan struct{})
	go func() { defer close(served); server.Serve(l) }()
	t.Cleanup(func() {
		server.Close()
		<-served
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

// certificate is that of net/http/httptest, for a server that speaks HTTP/1.1.
var certificate = sync.OnceValue(func() *tls.Config {
	s := httptest.NewTLSServer(nil)
	defer s.Close()
	return &tls.Config{Certificates: s.TLS.Certificates}
})

func dial(t testing.TB, network, addr string) net.Conn {
	t.Helper()
	var c net.Conn
	var err error
	if network == "tls" {
		c, err = tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true}) // the test's own
	} else {
		c, err = net.Dial(network, addr)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func send(t testing.TB, c net.Conn, s string) {
	t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		t.Fatal(err)
	}
}

func receive[T any](t testing.TB, what string, from <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-from:
	case <-time.After(patience):
		t.Fatalf("%s: not within %v", what, patience)
	}
	return v
}

// waysToLeave are how a caller hangs up.
var waysToLeave = []struct {
	name  string
	leave func(net.Conn)
}{
	{"FIN", func(c net.Conn) { c.Close() }},
	{"RST", func(c net.Conn) { below(c).(*net.TCPConn).SetLinger(0); below(c).Close() }},
	{"half-close", func(c net.Conn) { below(c).(interface{ CloseWrite() error }).CloseWrite() }},
}

// requestStates are how far a request may have come when its caller leaves.
var requestStates = []struct {
	name   string
	head   string // sent before the handler runs, or while it begins
	read   int64  // how much of the body the handler reads
	bound  bool   // the handler takes the body for ended
	behind string // sent once the handler has come so far
}{
	{name: "no body", head: get, bound: true},
	{name: "body unread", head: post(5) + "hello"},
	{name: "long body unread", head: post(100_000) + strings.Repeat("x", 100_000)},
	{name: "body half sent", head: post(300_000) + strings.Repeat("x", 2_000)},
	{name: "body half sent and read", head: post(300_000) + strings.Repeat("x", 2_000), read: 2_000},
	{name: "chunked half sent", head: chunked + "3e8\r\n" + strings.Repeat("x", 500)},
	{name: "chunked half sent and read", head: chunked + "3e8\r\n" + strings.Repeat("x", 500), read: 500},
	{name: "body fully read", head: post(5) + "hello", read: 5, bound: true},
	{name: "expect pending", head: "POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"},
	{name: "stray byte behind", head: get, bound: true, behind: "x"},
	{name: "pipelined behind", head: get, bound: true, behind: get + get},
	{name: "pipelined with it", head: get + get + get, bound: true},
	{name: "pipelined behind a body", head: post(5) + "hello", read: 5, bound: true, behind: post(9) + "hello"},
	{name: "64 KiB behind", head: get, bound: true, behind: strings.Repeat("x", MaxBehind)},
	{name: "more than 64 KiB behind", head: get, bound: true, behind: strings.Repeat("x", MaxBehind+8<<10)},
	{name: "more than 1 MiB behind", head: get, bound: true, behind: strings.Repeat("x", 1<<20+1<<17)},
}

const (
	get     = "GET / HTTP/1.1\r\nHost: h\r\n\r\n"
	chunked = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
)

func post(n int) string {
	return fmt.Sprintf("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n", n)
}

func TestHangUpIsNoticedWhateverTheStateOfTheRequest(t *testing.T) {
	for _, network := range []string{"tcp", "unix", "tls"} {
		for _, way := range waysToLeave {
			if network == "unix" && way.name == "RST" {
				continue // unix sockets have none
			}
			for _, state := range requestStates {
				t.Run(network+"/"+way.name+"/"+state.name, func(t *testing.T) {
					running, gone := make(chan struct{}), make(chan time.Time, 1)
					addr := serve(t, network, func(_ http.ResponseWriter, r *http.Request) {
						noticed := make(chan struct{})
						defer AfterHangUp(r, func() { gone <- time.Now(); close(noticed) })()
						io.CopyN(io.Discard, r.Body, state.read)
						if state.bound {
							defer Bound(r)()
						}
						running <- struct{}{}
						receive(t, "hang-up", noticed)
						panic(http.ErrAbortHandler)
					})
					var took []time.Duration
					for range 10 {
						c := dial(t, network, addr)
						send(t, c, state.head)
						receive(t, "handler", running)
						io.WriteString(c, state.behind) // fails when it is too much
						left := time.Now()
						way.leave(c)
						took = append(took, receive(t, "hang-up", gone).Sub(left))
						c.Close()
					}
					slices.Sort(took)
					t.Logf("p50 %v, max %v", took[len(took)/2], took[len(took)-1])
				})
			}
		}
	}
}

func TestMoreThanMaxBehindIsAHangUp(t *testing.T) {
	// net/http reads a byte and a buffer of 4 KiB ahead; those do not count.
	const readAhead = 1 + 4<<10
	for _, test := range []struct {
		name  string
		sent  int
		gone  bool
		early bool // sent before the bound is set
	}{
		{"at the bound", MaxBehind, false, false},
		{"over it", MaxBehind + readAhead + 1, true, false},
		{"over it before it was set", MaxBehind + readAhead + 1, true, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			running, sent, gone, checked := make(chan struct{}), make(chan struct{}), make(chan struct{}), make(chan *conn)
			addr := serve(t, "tcp", func(_ http.ResponseWriter, r *http.Request) {
				defer AfterHangUp(r, func() { close(gone) })()
				running <- struct{}{}
				if test.early {
					<-sent
					defer Bound(r)()
				} else {
					defer Bound(r)()
					<-sent
				}
				checked <- watched(r)
				if test.gone {
					receive(t, "hang-up", gone)
				}
				panic(http.ErrAbortHandler)
			})
			c := dial(t, "tcp", addr)
			send(t, c, get)
			receive(t, "handler", running)
			send(t, c, strings.Repeat("x", test.sent))
			close(sent)
			watched := receive(t, "handler", checked)
			if test.gone {
				receive(t, "hang-up", gone)
				return
			}
			// What the watcher would do at an edge that is yet to come.
			watched.happened(unix.EPOLLIN)
			if watched.gone.Err() != nil {
				t.Error("taken for gone within the bound")
			}
		})
	}
}

// Callers that stay: keep-alive, pipelining below the bound, bodies far above
// it, bodies in pieces, and each next request on its way the moment the reply
// to the one before is complete.
func TestNobodyWhoStaysIsTakenForGone(t *testing.T) {
	const connections, rounds, each = 200, 4, 6
	var falsely atomic.Int64
	var handlers sync.WaitGroup
	handlers.Add(connections * rounds * each)
	var halfway [connections]chan struct{}
	for i := range halfway {
		halfway[i] = make(chan struct{}, 1)
	}
	addr := serve(t, "tcp", func(w http.ResponseWriter, r *http.Request) {
		defer handlers.Done()
		stop := AfterHangUp(r, func() { falsely.Add(1) })
		if r.Header.Get("Slow") != "" {
			var i int
			fmt.Sscan(r.Header.Get("Slow"), &i)
			io.CopyN(io.Discard, r.Body, 10)
			halfway[i] <- struct{}{}
		}
		io.Copy(io.Discard, r.Body)
		release := Bound(r)
		runtime.Gosched() // let what lies behind arrive
		release()
		w.Header().Set("Content-Length", "2")
		io.WriteString(w, "ok")
		w.(http.Flusher).Flush() // complete, as far as the caller can tell
		runtime.Gosched()
		stop()
	})
	var callers sync.WaitGroup
	for i := range connections {
		c := dial(t, "tcp", addr) // closed only when every handler has ended
		callers.Go(func() {
			replies := bufio.NewReader(c)
			reply := func(n int) {
				for range n {
					r, err := http.ReadResponse(replies, nil)
					if err != nil {
						t.Error(err)
						return
					}
					io.Copy(io.Discard, r.Body)
				}
			}
			for range rounds {
				io.WriteString(c, get)
				reply(1)
				io.WriteString(c, post(4*MaxBehind)+strings.Repeat("x", 4*MaxBehind))
				reply(1)
				io.WriteString(c, get+post(30_000)+strings.Repeat("x", 30_000)+get)
				reply(3)
				io.WriteString(c, fmt.Sprintf("POST / HTTP/1.1\r\nHost: h\r\nSlow: %d\r\nContent-Length: 20\r\n\r\n0123456789", i))
				<-halfway[i]
				io.WriteString(c, "0123456789")
				reply(1)
			}
		})
	}
	callers.Wait()
	if t.Failed() {
		return // some handlers may never run
	}
	handlers.Wait()
	if n := falsely.Load(); n != 0 {
		t.Errorf("%d of %d were taken for gone", n, connections*rounds*each)
	}
}

func TestHangUpOfALaterRequestIsItsOwn(t *testing.T) {
	running, gone, late := make(chan struct{}), make(chan string, 2), make(chan struct{})
	addr := serve(t, "tcp", func(w http.ResponseWriter, r *http.Request) {
		noticed := make(chan struct{})
		stop := AfterHangUp(r, func() { gone <- r.URL.Path; close(noticed) })
		if r.URL.Path == "/first" {
			if !stop() {
				t.Error("the first was taken for gone")
			}
			return
		}
		running <- struct{}{}
		<-noticed
		AfterHangUp(r, func() { close(late) })
	})
	c := dial(t, "tcp", addr)
	send(t, c, "GET /first HTTP/1.1\r\nHost: h\r\n\r\n")
	if _, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil {
		t.Fatal(err)
	}
	send(t, c, "GET /second HTTP/1.1\r\nHost: h\r\n\r\n")
	receive(t, "handler", running)
	c.Close()
	if got := receive(t, "hang-up", gone); got != "/second" {
		t.Errorf("the hang-up of %s was noticed", got)
	}
	receive(t, "a hang-up that came before", late)
}

// request is one of HTTP/1.1 with that context.
func request(ctx context.Context) *http.Request {
	return (&http.Request{ProtoMajor: 1, ProtoMinor: 1}).WithContext(ctx)
}

// accepted returns a request on a watched connection of a bare listener, the
// connection, and its peer.
func accepted(t testing.TB, w *Watcher, l net.Listener) (r *http.Request, c, peer net.Conn) {
	t.Helper()
	peer, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if c, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	r = request(w.ConnContext(context.Background(), c))
	if watched(r) == nil {
		t.Fatal("the connection is not watched")
	}
	return r, c, peer
}

func newWatcher(t testing.TB) (*Watcher, net.Listener) {
	t.Helper()
	w, err := New()
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); w.Close() })
	return w, l
}

func TestStopAndHangUpAtOnce(t *testing.T) {
	w, l := newWatcher(t)
	const rounds = 10_000
	stops := 0
	for range rounds {
		r, c, peer := accepted(t, w, l)
		var calls atomic.Int32
		called := make(chan struct{}, 2)
		stop := AfterHangUp(r, func() { calls.Add(1); called <- struct{}{} })
		peer.(*net.TCPConn).SetLinger(0)
		peer.Close()
		if stop() {
			stops++
		} else {
			receive(t, "hang-up", called)
		}
		if stop() {
			t.Fatal("stopped twice")
		}
		c.Close()
		w.ConnState(c, http.StateClosed)
		if len(called) != 0 {
			t.Fatal("called again, or although stopped")
		}
	}
	t.Logf("stop won %d of %d", stops, rounds)
}

// Descriptors are closed and used again as fast as can be, half of them by
// callers who leave, half by callers who stay.
func TestReusedDescriptorsAreNotMixedUp(t *testing.T) {
	w, l := newWatcher(t)
	var accept sync.Mutex // one Accept belongs to one Dial
	var storm sync.WaitGroup
	for range 8 {
		storm.Go(func() {
			for range 200 {
				accept.Lock()
				leaving, leaver, leaverPeer := accepted(t, w, l)
				staying, stayer, stayerPeer := accepted(t, w, l)
				accept.Unlock()

				gone := make(chan struct{})
				AfterHangUp(leaving, func() { close(gone) })
				stop := AfterHangUp(staying, func() { t.Error("one who stays was taken for gone") })
				leaverPeer.Close()
				leaver.Close() // at once: the event, if it comes, finds nobody or its own
				w.ConnState(leaver, http.StateClosed)
				release := Bound(staying)
				release()
				if !stop() {
					t.Error("one who stays was taken for gone")
				}
				stayer.Close()
				stayerPeer.Close()
				w.ConnState(stayer, http.StateClosed)
			}
		})
	}
	storm.Wait()
	if len(w.byConn) != 0 || len(w.byToken) != 0 {
		t.Errorf("%d connections are not forgotten", len(w.byConn))
	}
}

func TestHijackedConnectionIsForgotten(t *testing.T) {
	w, l := newWatcher(t)
	r, c, peer := accepted(t, w, l)
	defer c.Close()
	w.ConnState(c, http.StateHijacked)
	if err := watched(r).control(unix.EPOLL_CTL_DEL, 0); err != unix.ENOENT {
		t.Errorf("still in epoll: %v", err)
	}
	peer.Close()
}

func TestCloseLeavesNoDescriptor(t *testing.T) {
	before := openFiles(t)
	for range 3 {
		w, err := New()
		if err != nil {
			t.Fatal(err)
		}
		if openFiles(t) == before {
			t.Fatal("the probe sees no descriptor")
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if after := openFiles(t); after != before {
			t.Fatalf("open before %s, after %s", before, after)
		}
	}
}

// A connection that comes after the end is left to the request's context.
func TestClosedWatcherWatchesNothing(t *testing.T) {
	w, l := newWatcher(t)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	peer := dial(t, "tcp", l.Addr().String())
	defer peer.Close()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if r := request(w.ConnContext(context.Background(), c)); watched(r) != nil {
		t.Error("watched by a closed Watcher")
	}
	if len(w.byConn) != 0 {
		t.Error("not forgotten")
	}
}

func openFiles(t *testing.T) string {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("needs /proc: ", err)
	}
	var open []string
	for _, e := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil { // not ReadDir's own
			open = append(open, e.Name()+"="+target)
		}
	}
	return strings.Join(open, " ")
}

func TestUnwatchedRequestFallsBackOnItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	r := request(ctx)
	gone := make(chan struct{})
	AfterHangUp(r, func() { close(gone) })
	Bound(r)()
	each, done := Streaming(r)
	if each != SendTimeout {
		t.Errorf("nobody gives up a reader who stalls: %v", each)
	}
	done()
	cancel()
	receive(t, "hang-up", gone)

	ctx, cancel = context.WithCancel(context.Background())
	r = request(ctx)
	stop := AfterHangUp(r, func() { t.Error("called although stopped") })
	if !stop() {
		t.Error("not stopped")
	}
	cancel()
}

func TestTimeoutsOfAVanishedPeer(t *testing.T) {
	w, l := newWatcher(t)
	r, c, peer := accepted(t, w, l)
	defer c.Close()
	defer peer.Close()
	option := func(name int) (v int) {
		watched(r).socket.Control(func(fd uintptr) { v, _ = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, name) })
		return v
	}
	check := func(when string, userTimeout int) {
		t.Helper()
		got := [4]int{option(unix.TCP_KEEPIDLE), option(unix.TCP_KEEPINTVL), option(unix.TCP_KEEPCNT), option(unix.TCP_USER_TIMEOUT)}
		if want := [4]int{4, 4, 3, userTimeout}; got != want {
			t.Errorf("%s: keep-alive and user timeout are %v, want %v", when, got, want)
		}
	}
	check("waiting", 0)
	each, done := Streaming(r)
	check("streaming", 30_000)
	if each != 0 {
		t.Errorf("the kernel does it, and the server is to do it too: %v", each)
	}
	stream := r.Clone(r.Context())
	stream.ProtoMajor = 2
	each, alsoDone := Streaming(stream)
	if each != SendTimeout {
		t.Errorf("the window of a stream can stay shut: %v", each)
	}
	done()
	check("one of two streaming", 30_000)
	alsoDone()
	check("waiting again", 0)
}

func BenchmarkCall(b *testing.B) {
	w, l := newWatcher(b)
	r, c, peer := accepted(b, w, l)
	defer c.Close()
	defer peer.Close()
	b.Run("AfterHangUp", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			AfterHangUp(r, func() {})()
		}
	})
	b.Run("AfterHangUp and Bound", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			stop := AfterHangUp(r, func() {})
			Bound(r)()
			stop()
		}
	})
}

// BenchmarkNotice measures from the caller's FIN to the call of f.
func BenchmarkNotice(b *testing.B) {
	w, l := newWatcher(b)
	var took []time.Duration
	for b.Loop() {
		r, c, peer := accepted(b, w, l)
		gone := make(chan time.Time)
		AfterHangUp(r, func() { gone <- time.Now() })
		left := time.Now()
		peer.Close()
		took = append(took, (<-gone).Sub(left))
		c.Close()
		w.ConnState(c, http.StateClosed)
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
}
