package e2e

import (
	"bufio"
	"bytes"
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
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"example.com/hangup/internal/proctest"
	"golang.org/x/net/http2"
)

// transport is a way to reach a server.
type transport struct {
	name   string
	secure bool // only of a server with a certificate
	h2     bool
	local  bool // a unix socket, which knows no RST
	dial   func(*server) (net.Conn, error)
}

var (
	plainTCP  = transport{name: "TCP", dial: (*server).dialTCP}
	plainUnix = transport{name: "unix socket", local: true, dial: (*server).dialUnix}
	plainH2   = transport{name: "h2c", h2: true, dial: (*server).dialTCP}
	secureTCP = transport{name: "TLS", secure: true, dial: func(s *server) (net.Conn, error) { return s.dialTLS("http/1.1") }}
	secureH2  = transport{name: "h2", secure: true, h2: true, dial: func(s *server) (net.Conn, error) { return s.dialTLS("h2") }}

	transports = []transport{plainTCP, plainUnix, plainH2, secureTCP, secureH2}
)

// everywhere has a server listen on a unix socket, too; withTLS gives it a certificate.
const (
	everywhere = "listen: [127.0.0.1:0, unix:s]"
	withTLS    = "tls: {cert: cert.pem, key: key.pem}"
)

func (s *server) dialTCP() (net.Conn, error) { return net.Dial("tcp", s.addr) }

// dialUnix goes by way of the directory: a test's own may be too long for the kernel.
func (s *server) dialUnix() (net.Conn, error) {
	dir, err := os.Open(s.dir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return net.Dial("unix", filepath.Join("/proc/self/fd", strconv.Itoa(int(dir.Fd())), "s"))
}

func (s *server) dialTLS(protocol string) (net.Conn, error) {
	config := trust()
	config.NextProtos = []string{protocol}
	c, err := tls.Dial("tcp", s.addr, config)
	if err != nil {
		return nil, err
	}
	if got := c.ConnectionState().NegotiatedProtocol; got != protocol {
		c.Close()
		return nil, fmt.Errorf("the server speaks %q, not %s", got, protocol)
	}
	return c, nil
}

// certificate is one for 127.0.0.1, and its key, as PEM.
var certificate = sync.OnceValues(func() (cert, key string) {
	secret, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "hangup's tests"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	public, err := x509.CreateCertificate(rand.Reader, template, template, &secret.PublicKey, secret)
	if err != nil {
		panic(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(secret)
	if err != nil {
		panic(err)
	}
	block := func(kind string, b []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}))
	}
	return block("CERTIFICATE", public), block("PRIVATE KEY", private)
})

// trust is what a client needs to trust it.
func trust() *tls.Config {
	cert, _ := certificate()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(cert))
	return &tls.Config{RootCAs: pool, ServerName: "127.0.0.1"}
}

// socket is the connection below TLS, or c itself.
func socket(c net.Conn) net.Conn {
	if secure, ok := c.(*tls.Conn); ok {
		return secure.NetConn()
	}
	return c
}

// manner is how a caller leaves.
type manner struct {
	name  string
	leave func(net.Conn)
	reset func(*h2stream) // in place of leave: the connection stays
	away  func(*h2conn)   // in place of leave: says so before
	reads bool            // it can still read what comes, to the end of the connection
	loses bool            // it takes along what the server has not read
}

var (
	fin       = manner{name: "FIN", leave: func(c net.Conn) { c.Close() }}
	rst       = manner{name: "RST", leave: func(c net.Conn) { socket(c).(*net.TCPConn).SetLinger(0); socket(c).Close() }, loses: true}
	halfClose = manner{name: "half-close", leave: func(c net.Conn) { socket(c).(interface{ CloseWrite() error }).CloseWrite() }, reads: true}
	stays     = manner{name: "stays", leave: func(net.Conn) {}, reads: true} // to break the bound is enough
	rstStream = manner{name: "RST_STREAM", reset: func(s *h2stream) { s.cancel() }}
	goAway    = manner{name: "GOAWAY and FIN", away: func(h *h2conn) {
		h.frame(func() error { return h.out.WriteGoAway(0, http2.ErrCodeNo, nil) })
		h.Close()
	}}

	manners = []manner{fin, rst, halfClose}
)

// manners are the ways to leave by this transport.
func (tr transport) manners() []manner {
	switch {
	case tr.h2:
		return []manner{rstStream, fin, rst, halfClose, goAway}
	case tr.local:
		return []manner{fin, halfClose} // it has no other
	default:
		return manners
	}
}

// form is what a caller has sent by the time it leaves.
type form struct {
	name    string
	length  int    // of the body, as announced; -1: it is not
	expect  bool   // 100 Continue, before any of the body
	body    string // what of it is sent
	late    string // the rest of the body: it is still on its way when the caller leaves
	behind  string // what it sends behind its request
	partial bool   // the body never gets complete, so that no worker is ever due
}

// caller is one that makes one call.
type caller interface {
	begin(path string, f form) error
	proceed(f form) // to what is late or lies behind
	head(status string) error
	drain() // reads on, until it has left
	leave(m manner)
	// rest reads what still comes and tells how much that is of a reply, and whether it
	// came to its end.
	rest() (size int64, whole bool, err error)
}

// caller connects.
func (tr transport) caller(s *server) (caller, error) {
	c, err := tr.dial(s)
	if err != nil {
		return nil, err
	}
	s.t.Cleanup(func() { c.Close() })
	if tr.h2 {
		h, err := newH2(c)
		return &h2caller{conn: h}, err
	}
	return &h1caller{conn: c, in: bufio.NewReader(c)}, nil
}

// h1caller speaks HTTP/1.1.
type h1caller struct {
	conn net.Conn
	in   *bufio.Reader
}

func (c *h1caller) begin(path string, f form) error {
	headers, body := fmt.Sprintf("Content-Length: %d\r\n", f.length), f.body
	if f.length < 0 { // the second chunk is half sent
		headers, body = "Transfer-Encoding: chunked\r\n", fmt.Sprintf("%x\r\n%s\r\n10000\r\n%s", len(body), body, body)
	}
	if f.expect {
		headers += "Expect: 100-continue\r\n"
	}
	_, err := io.WriteString(c.conn, request(path, headers, body))
	return err
}

func (c *h1caller) proceed(f form) {
	io.WriteString(c.conn, f.late)
	io.WriteString(c.conn, f.behind) // it may fail: the bound may be broken before its end
}

func (c *h1caller) head(status string) error {
	for first := true; ; first = false {
		line, err := c.in.ReadString('\n')
		if err != nil || first && !strings.HasPrefix(line, "HTTP/1.1 "+status+" ") {
			return fmt.Errorf("%q, %v; want %s", line, err, status)
		}
		if line == "\r\n" {
			return nil
		}
	}
}

func (c *h1caller) drain()         { go io.Copy(io.Discard, c.conn) } // ends with the connection
func (c *h1caller) leave(m manner) { m.leave(c.conn) }

func (c *h1caller) rest() (size int64, whole bool, err error) {
	c.conn.SetReadDeadline(time.Now().Add(proctest.Patience))
	rest, err := io.ReadAll(c.in)
	if errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	return int64(len(rest)), bytes.HasSuffix(rest, []byte("\r\n0\r\n\r\n")), err
}

// h2caller speaks HTTP/2.
type h2caller struct {
	conn   *h2conn
	stream *h2stream
}

func (c *h2caller) begin(path string, f form) (err error) {
	var headers []string
	if f.length >= 0 {
		headers = append(headers, "content-length", strconv.Itoa(f.length))
	}
	if f.expect {
		headers = append(headers, "expect", "100-continue")
	}
	if c.stream, err = c.conn.request("POST", path, f.length == 0, headers...); err != nil || f.body == "" {
		return err
	}
	return c.stream.send(f.body, len(f.body) == f.length)
}

func (c *h2caller) proceed(f form) {
	if f.late != "" {
		c.stream.send(f.late, false)
	}
}

func (c *h2caller) head(status string) error {
	return c.stream.await(func() bool { return c.stream.status == status || status == "100" && c.stream.continues })
}

func (c *h2caller) drain() {}

func (c *h2caller) leave(m manner) {
	switch {
	case m.reset != nil:
		m.reset(c.stream)
	case m.away != nil:
		m.away(c.conn)
	default:
		m.leave(c.conn.Conn)
	}
}

func (c *h2caller) rest() (size int64, whole bool, err error) {
	err = c.stream.await(func() bool { return c.stream.ended || c.stream.reset })
	c.conn.mu.Lock()
	defer c.conn.mu.Unlock()
	if err == io.EOF || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, net.ErrClosed) {
		err = nil
	}
	return c.stream.size, c.stream.ended && !c.stream.reset, err
}
