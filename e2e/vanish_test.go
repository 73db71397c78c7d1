//go:build linux

package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"example.com/hangup/internal/proc"
	"example.com/hangup/internal/proctest"
)

// What is promised of a peer that vanishes without a packet: how long after its last
// one its call is decided to end.
const (
	vanishedWithin          = 20 * time.Second // when nothing is sent to it
	vanishedStreamingWithin = 35 * time.Second
)

// TestVanish: callers whose packets stop, both ways and without a last one, are found
// wherever their calls are; those beside them who only wait are never taken for gone.
func TestVanish(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 40 s")
	}
	if os.Geteuid() != 0 {
		t.Skip("only root may make a network, and the kernel that finds out is the same for everybody")
	}
	t.Parallel() // beside TestReaderPauses alone: both do little but wait
	n := newNetwork(t)
	const workloads = `
  py: {command: [python3, worker.py], workers: 11, spares: 0, stop: {grace: 200ms}}
  full: {command: [python3, worker.py], workers: 1, spares: 0, stop: {grace: 200ms}, queue: {wait: 5m}}
`
	var staying, leaving, deaf []*vanishing
	for _, secure := range []bool{false, true} {
		settings := []string{fmt.Sprintf("listen: ['%s:0']", n.server), "auth: none", "limits: {body_timeout: 5m}"}
		if secure {
			settings = append(settings, withTLS)
		}
		s := start(t, workloads, settings...)
		var ways []transport // those of this server, from inside the network
		for _, tr := range transports {
			if tr.secure == secure && tr.name != plainUnix.name {
				ways = append(ways, n.way(tr))
			}
		}
		h1, h2 := ways[0], ways[1]
		if h1.h2 || !h2.h2 {
			t.Fatalf("%s before %s", h1.name, h2.name)
		}
		add := func(to *[]*vanishing, within time.Duration, p parting) *parting {
			p.t, p.s = t, s
			*to = append(*to, &vanishing{parting: &p, within: within})
			return &p
		}

		add(&staying, 0, parting{transport: h1, at: running, task: "full/sleeps"})
		add(&staying, 0, parting{transport: h2, at: running})
		add(&staying, 0, parting{transport: h2, at: replying})
		add(&staying, 0, parting{transport: h1, at: replying, task: "py/drips"})

		for _, tr := range ways {
			add(&leaving, vanishedWithin, parting{transport: tr, at: receiving, form: form{name: "half sent", partial: true, length: 200_000, body: strings.Repeat("x", 100_000)}})
			add(&leaving, vanishedWithin, parting{transport: tr, at: queued})
			add(&leaving, vanishedWithin, parting{transport: tr, at: running})
			stream := add(&leaving, vanishedStreamingWithin, parting{transport: tr, at: replying})
			if tr.h2 { // beside it on one connection
				add(&leaving, vanishedStreamingWithin, parting{transport: tr, at: running}).shares = stream
			}
		}
		// It vanishes just after a byte, so that the next is sent to nobody 9 s later.
		add(&leaving, vanishedStreamingWithin, parting{transport: h1, at: replying, task: "py/drips"})

		// What the server says to these, which is not of a reply, gets lost: 100 Continue, and
		// that there is room for more of a body. It fits into what TCP sends before an answer.
		add(&deaf, vanishedWithin, parting{transport: h1, at: receiving, deaf: true, form: form{name: "100-continue pending", partial: true, length: 5, expect: true}})
		add(&deaf, vanishedWithin, parting{transport: h2, at: running, deaf: true, form: form{name: "body", length: 10_000, body: strings.Repeat("x", 10_000)}})
	}

	n.speakAs(n.stays)
	begin(staying)
	n.speakAs(n.deaf)
	for _, v := range deaf {
		v.connect()
	}
	n.noWayTo(n.deaf)
	begin(deaf)
	n.remove(n.deaf)
	vanished := time.Now()
	for _, v := range deaf {
		v.vanished = vanished
	}
	n.speakAs(n.leaves)
	begin(leaving)
	n.noWayTo(n.leaves)
	n.remove(n.leaves)
	vanished = time.Now()
	for _, v := range leaving {
		v.vanished = vanished
	}

	all := append(deaf, leaving...)
	for left, end := len(all), time.Now().Add(vanishedStreamingWithin+proctest.Patience); left > 0 && time.Now().Before(end); {
		time.Sleep(time.Second) // there is nobody to tell, and to ask costs the others
		left = 0
		for _, v := range all {
			if !v.over() {
				left++
			}
		}
	}
	for _, v := range all {
		v.check()
	}
	for _, v := range staying {
		v.s.fetch("/calls/"+v.call.ID, &v.call)
		if v.call.State != "running" {
			t.Errorf("%s stays, and was taken for gone: %+v", v, v.call)
		}
		v.caller.leave(fin)
	}
}

// vanishing is a call whose caller vanishes, or stays beside those who do.
type vanishing struct {
	*parting
	within   time.Duration
	call     callRecord
	tree     []proc.Process
	vanished time.Time
}

func (v *vanishing) String() string {
	return fmt.Sprintf("%s/%s/%s/%s", v.transport.name, v.at, v.form.name, v.task)
}

// begin makes the calls.
func begin(all []*vanishing) {
	for _, v := range all {
		v.call, v.tree = v.begin()
		if v.at == replying {
			v.caller.drain()
		}
	}
}

// over tells whether the call has ended, with all that is told of it.
func (v *vanishing) over() bool {
	if v.call.State != "ended" || v.call.Cancel == nil {
		v.s.fetch("/calls/"+v.call.ID, &v.call)
	}
	return v.call.State == "ended" && v.call.Cancel != nil
}

// check checks what became of the call.
func (v *vanishing) check() {
	v.t.Helper()
	if !v.over() {
		v.t.Errorf("%s: not noticed: %+v", v, v.call)
		return
	}
	v.checkRecord(v.call, v.tree)
	took := v.call.Cancel.NoticedAt.Sub(v.vanished)
	v.t.Logf("%s: noticed after %v", v, took.Round(time.Millisecond))
	if took < 0 || took > v.within+lateBy {
		v.t.Errorf("%s: noticed after %v, want %v", v, took, v.within)
	}
}

// network is a namespace with one link to where the tests run. In it are the
// callers' addresses, at the other end of the link is the server's.
type network struct {
	t                           *testing.T
	namespace                   *os.File
	link                        string
	server, stays, leaves, deaf string
}

// newNetwork makes a network that is removed when the test ends.
func newNetwork(t *testing.T) *network {
	t.Helper()
	proctest.Need(t, "ip", "iproute2")
	// Addresses meant for such tests (RFC 2544), other ones in each run: several may go on here.
	address := func(i int) string {
		pid := os.Getpid()
		return net.IPv4(198, 18, byte(pid>>5), byte(pid<<3|i)).String()
	}
	n := &network{t: t, link: fmt.Sprintf("hangup%d", os.Getpid()), server: address(1), stays: address(2), leaves: address(3), deaf: address(4)}
	err := onThread(func() (err error) {
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			n.namespace, err = os.Open("/proc/thread-self/ns/net")
		}
		return err
	})
	if err != nil {
		proctest.Lack(t, "a network: %v", err)
	}
	t.Cleanup(n.close)
	if err := ip("link", "add", n.link, "type", "veth", "peer", "name", "server", "netns", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.namespace.Fd())); err != nil {
		proctest.Lack(t, "a link: %v", err)
	}
	n.must(ip("address", "add", n.server+"/29", "dev", n.link))
	n.must(ip("link", "set", n.link, "up"))
	n.inside(func() error { return ip("link", "set", "server", "up") })
	for _, addr := range []string{n.stays, n.leaves, n.deaf} { // to remove the first would be to remove the others
		n.inside(func() error { return ip("address", "add", addr+"/29", "dev", "server") })
	}
	return n
}

// close removes the network and makes sure that nothing of it is left.
func (n *network) close() {
	n.must(ip("link", "delete", n.link))
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", n.namespace.Fd()))
	n.must(err)
	n.namespace.Close()
	if !proctest.Eventually(func() bool { return !inUse(name) }) {
		n.t.Errorf("%s is left", name)
	}
	if _, err := net.InterfaceByName(n.link); err == nil {
		n.t.Errorf("%s is left", n.link)
	}
}

// inUse tells whether a thread of the test is in a namespace.
func inUse(name string) bool {
	threads, _ := filepath.Glob("/proc/self/task/*/ns/net")
	for _, thread := range threads {
		if there, _ := os.Readlink(thread); there == name {
			return true
		}
	}
	return false
}

// inside has f done in the network: sockets that it makes and programs that it
// starts are there.
func (n *network) inside(f func() error) {
	n.t.Helper()
	n.must(n.try(f))
}

func (n *network) try(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(n.namespace.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f()
	})
}

// onThread calls f on a thread that ends with it.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()            // and never unlocked, so that the thread ends
		if unix.Gettid() == os.Getpid() { // but the main thread cannot
			done <- onThread(f)
			runtime.UnlockOSThread()
			return
		}
		done <- f()
	}()
	return <-done
}

func (n *network) must(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

// ip is ip(8).
func ip(args ...string) error {
	out, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// way is a transport from inside the network.
func (n *network) way(tr transport) transport {
	dial := tr.dial
	tr.dial = func(s *server) (c net.Conn, err error) {
		err = n.try(func() error { c, err = dial(s); return err })
		return c, err
	}
	return tr
}

// speakAs has new connections come from that address.
func (n *network) speakAs(addr string) {
	n.t.Helper()
	n.inside(func() error { return ip("route", "replace", n.server, "dev", "server", "src", addr) })
}

// noWayTo has all packets to that address get lost on the link: they are for another
// machine than the one there. Who sends them is not told.
func (n *network) noWayTo(addr string) {
	n.t.Helper()
	n.must(ip("neighbour", "replace", addr, "lladdr", "02:00:00:00:00:00", "nud", "permanent", "dev", n.link))
}

// remove takes the address away. Nothing is sent from it any more; its connections
// are not told either.
func (n *network) remove(addr string) {
	n.t.Helper()
	n.inside(func() error { return ip("address", "delete", addr+"/29", "dev", "server") })
}
