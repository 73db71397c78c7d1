package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"example.com/hangup/internal/proctest"
)

// headMax is how large the head of a request may be (daemon.HeaderMax), and headSlack what
// net/http lets pass on top of it at most: it reads ahead before it counts, and adds 4 KiB.
const headMax, headSlack = 64 << 10, 8 << 10

// raw is a request with these lines as its head, followed by body.
func raw(body string, lines ...string) string {
	return strings.Join(lines, "\r\n") + "\r\n\r\n" + body
}

const (
	anyLine = "POST /execute/py/pid HTTP/1.1"
	anyHost = "Host: localhost"
	four    = "Content-Length: 4"
	chunked = "Transfer-Encoding: chunked"
)

// chunks is a request with that body, as it is on the wire.
func chunks(body string, more ...string) string {
	return raw(body, append([]string{anyLine, anyHost, chunked}, more...)...)
}

// sized is a request whose head has so many bytes.
func sized(n int) string {
	head := raw("", anyLine, anyHost, four, "X: ")
	return strings.TrimSuffix(head, "\r\n\r\n") + strings.Repeat("x", n-len(head)) + "\r\n\r\nnull"
}

// malformed are requests of HTTP/1.1 that are odd or worse. status is that of the reply;
// with kept, the connection goes on, and what lies behind is another request.
var malformed = []struct {
	name   string
	raw    string
	status int
	kept   bool
}{
	{"all is well", raw("null", anyLine, anyHost, four), 200, true},

	{"HTTP/0.9", "GET /healthz\r\n", 400, false},
	{"HTTP/0.9 with headers", raw("", "GET /healthz", anyHost), 400, false},
	{"HTTP/1.0", raw("null", "POST /execute/py/pid HTTP/1.0", four), 200, false},
	{"HTTP/1.0, kept", raw("null", "POST /execute/py/pid HTTP/1.0", four, "Connection: keep-alive"), 200, true},
	{"HTTP/1.9", raw("null", "POST /execute/py/pid HTTP/1.9", anyHost, four), 200, true},
	{"HTTP/2.0 without its preface", raw("null", "POST /execute/py/pid HTTP/2.0", anyHost, four), 505, false},
	{"HTTP/3.0", raw("null", "POST /execute/py/pid HTTP/3.0", anyHost, four), 505, false},
	{"HTTP/11.1", raw("null", "POST /execute/py/pid HTTP/11.1", anyHost, four), 400, false},
	{"http/1.1", raw("null", "POST /execute/py/pid http/1.1", anyHost, four), 400, false},
	{"no method", raw("null", " /execute/py/pid HTTP/1.1", anyHost, four), 400, false},
	{"odd method", raw("null", "P(ST /execute/py/pid HTTP/1.1", anyHost, four), 400, false},
	{"method in small letters", raw("null", "post /execute/py/pid HTTP/1.1", anyHost, four), 405, true},
	{"two spaces", raw("null", "POST  /execute/py/pid HTTP/1.1", anyHost, four), 400, false},
	{"tabs", raw("null", "POST\t/execute/py/pid\tHTTP/1.1", anyHost, four), 400, false},
	{"space in the target", raw("null", "POST /execute/py/pid x HTTP/1.1", anyHost, four), 400, false},
	{"NUL in the target", raw("null", "POST /execute/py/\x00 HTTP/1.1", anyHost, four), 400, false},
	{"CR in the target", raw("null", "POST /execute/py/\rpid HTTP/1.1", anyHost, four), 400, false},
	{"escapes in the target", raw("null", "POST /execute/py/%00%0d%0apid HTTP/1.1", anyHost, four), 404, true},
	{"broken escape in the target", raw("null", "POST /execute/py/%zz HTTP/1.1", anyHost, four), 400, false},
	{"dots in the target", raw("null", "POST /execute/../execute/py/pid HTTP/1.1", anyHost, four), 404, true},
	{"target without a slash", raw("null", "POST execute/py/pid HTTP/1.1", anyHost, four), 400, false},
	{"target *", raw("null", "POST * HTTP/1.1", anyHost, four), 404, true},
	{"OPTIONS *", raw("", "OPTIONS * HTTP/1.1", anyHost), 404, true},
	{"absolute target", raw("null", "POST http://localhost/execute/py/pid HTTP/1.1", "Host: other.example", four), 200, true},
	{"absolute target elsewhere", raw("null", "POST http://other.example/execute/py/pid HTTP/1.1", anyHost, four), 403, true},
	{"long target", raw("null", "POST /execute/py/"+strings.Repeat("x", 60<<10)+" HTTP/1.1", anyHost, four), 404, true},
	{"longer target", raw("null", "POST /execute/py/"+strings.Repeat("x", 1<<20)+" HTTP/1.1", anyHost, four), 431, false},
	{"empty line before", "\r\n" + raw("null", anyLine, anyHost, four), 400, false},
	{"TRACE", raw("", "TRACE /execute/py/pid HTTP/1.1", anyHost), 405, true},
	{"CONNECT", raw("", "CONNECT localhost:80 HTTP/1.1", anyHost), 404, true},
	{"CONNECT to a path", raw("", "CONNECT /execute/py/pid HTTP/1.1", anyHost), 405, true},
	{"PRI, HTTP/1.1", raw("", "PRI * HTTP/1.1", anyHost), 404, true},
	{"PRI, half of it", raw("SM\r\n\r", "PRI * HTTP/2.0"), 403, false},
	{"TLS", "\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + strings.Repeat("\x00\n", 80), 400, false},

	{"lines that end in LF", strings.ReplaceAll(raw("null", anyLine, anyHost, four), "\r\n", "\n"), 200, true},
	{"header without a colon", raw("null", anyLine, anyHost, four, "garbage"), 400, false},
	{"header without a name", raw("null", anyLine, anyHost, four, ": x"), 400, false},
	{"space before the colon", raw("null", anyLine, anyHost, "Content-Length : 4"), 400, false},
	{"space before the first name", raw("null", anyLine, " "+anyHost, four), 400, false},
	{"space in a name", raw("null", anyLine, anyHost, four, "X Y: 1"), 400, false},
	{"CR in a name", raw("null", anyLine, anyHost, four, "X\rY: 1"), 400, false},
	{"NUL in a name", raw("null", anyLine, anyHost, four, "X\x00: 1"), 400, false},
	{"8 bits in a name", raw("null", anyLine, anyHost, four, "X\xff: 1"), 400, false},
	{"CR in a value", raw("null", anyLine, anyHost, four, "X: a\rb"), 400, false},
	{"NUL in a value", raw("null", anyLine, anyHost, four, "X: a\x00b"), 400, false},
	{"value on two lines", raw("null", anyLine, anyHost, four, "X: a", " b"), 200, true},
	{"length on two lines", raw("null", anyLine, anyHost, "Content-Length:", " 4"), 200, true},
	{"as large as it may be", sized(headMax), 200, true},
	{"larger", sized(headMax + headSlack + 1), 431, false},
	{"10,000 headers", raw("null", anyLine, anyHost, four, strings.Repeat("X: \r\n", 10_000)+"X: "), 200, true},
	{"100,000 headers", raw("null", anyLine, anyHost, four, strings.Repeat("X: \r\n", 100_000)+"X: "), 431, false},

	{"no Host", raw("null", anyLine, four), 400, false},
	{"two Hosts", raw("null", anyLine, anyHost, "Host: other.example", four), 400, false},
	{"the same Host twice", raw("null", anyLine, anyHost, anyHost, four), 400, false},
	{"empty Host", raw("null", anyLine, "Host:", four), 403, true},
	{"odd Host", raw("null", anyLine, "Host: local host", four), 400, false},
	{"foreign Host", raw("null", anyLine, "Host: other.example", four), 403, true},

	{"the same length twice", raw("null", anyLine, anyHost, four, four), 200, true},
	{"two lengths", raw("null", anyLine, anyHost, four, "Content-Length: 5"), 400, false},
	{"list of lengths", raw("null", anyLine, anyHost, "Content-Length: 4, 4"), 400, false},
	{"empty length", raw("null", anyLine, anyHost, "Content-Length:"), 400, false},
	{"negative length", raw("null", anyLine, anyHost, "Content-Length: -4"), 400, false},
	{"signed length", raw("null", anyLine, anyHost, "Content-Length: +4"), 400, false},
	{"hexadecimal length", raw("null", anyLine, anyHost, "Content-Length: 0x4"), 400, false},
	{"length with a space", raw("null", anyLine, anyHost, "Content-Length: 4 4"), 400, false},
	{"largest length", raw("null", anyLine, anyHost, "Content-Length: 9223372036854775807"), 413, false},
	{"larger length", raw("null", anyLine, anyHost, "Content-Length: 9223372036854775808"), 400, false},
	{"huge length", raw("null", anyLine, anyHost, "Content-Length: 1"+strings.Repeat("0", 1000)), 400, false},
	{"length and chunks", chunks("4\r\nnull\r\n0\r\n\r\n", "Content-Length: 3"), 200, true},
	{"chunks in HTTP/1.0", raw("4\r\nnull\r\n0\r\n\r\n", "POST /execute/py/echo HTTP/1.0", chunked), 200, false},

	{"chunked twice", raw("4\r\nnull\r\n0\r\n\r\n", anyLine, anyHost, chunked, chunked), 501, false},
	{"gzip, chunked", raw("4\r\nnull\r\n0\r\n\r\n", anyLine, anyHost, "Transfer-Encoding: gzip, chunked"), 501, false},
	{"not chunked", raw("4\r\nnull\r\n0\r\n\r\n", anyLine, anyHost, "Transfer-Encoding: xchunked"), 501, false},
	{"identity", raw("null", anyLine, anyHost, "Transfer-Encoding: identity", four), 501, false},
	{"VT in chunked", raw("4\r\nnull\r\n0\r\n\r\n", anyLine, anyHost, "Transfer-Encoding: \x0bchunked"), 400, false},

	{"size of a chunk is no number", chunks("zz\r\nnull\r\n0\r\n\r\n"), 400, false},
	{"empty size", chunks("\r\nnull\r\n0\r\n\r\n"), 400, false},
	{"negative size", chunks("-4\r\nnull\r\n0\r\n\r\n"), 400, false},
	{"size with 0x", chunks("0x4\r\nnull\r\n0\r\n\r\n"), 400, false},
	{"size of 17 digits", chunks("10000000000000004\r\nnull\r\n0\r\n\r\n"), 400, false},
	{"size ends in LF", chunks("4\nnull\r\n0\r\n\r\n"), 400, false},
	{"chunk longer than its size", chunks("4\r\nnullx\r\n0\r\n\r\n"), 400, false},
	{"extension", chunks("4;a=b\r\nnull\r\n0\r\n\r\n"), 200, true},
	{"huge extension", chunks("4;a=" + strings.Repeat("x", 1<<20) + "\r\nnull\r\n0\r\n\r\n"), 400, false},
	{"extensions without end", chunks(strings.Repeat("1;a="+strings.Repeat("x", 4000)+"\r\nx\r\n", 100) + "0\r\n\r\n"), 400, false},
	{"trailer", chunks("4\r\nnull\r\n0\r\nX: 1\r\n\r\n"), 200, true},
	{"length in the trailer", chunks("4\r\nnull\r\n0\r\nContent-Length: 100\r\n\r\n"), 200, true},
	{"malformed trailer", chunks("4\r\nnull\r\n0\r\ngarbage\r\n\r\n"), 400, false},
	{"huge trailer", chunks("4\r\nnull\r\n0\r\nX: " + strings.Repeat("x", 1<<20) + "\r\n\r\n"), 400, false},
	{"trailer that may not be one", chunks("4\r\nnull\r\n0\r\n\r\n", "Trailer: Content-Length"), 400, false},

	{"another expectation", raw("null", anyLine, anyHost, four, "Expect: 200-ok"), 417, false},
	{"Upgrade: h2c", raw("null", anyLine, anyHost, four, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA"), 200, true},
	{"Upgrade: websocket", raw("null", anyLine, anyHost, four, "Connection: Upgrade", "Upgrade: websocket"), 200, true},
	{"closes", raw("null", anyLine, anyHost, four, "Connection: close"), 200, false},
}

// malformedH2 are the same of HTTP/2, beside those of h2spec: headers as pairs, and four
// bytes of a body. status "" stands for a reset of the
// stream, or the end of the connection: there is no stream, and so no body may come.
var malformedH2 = []struct {
	name    string
	headers []string
	status  string
}{
	{"CR in a value", calls2("x", "a\rb"), ""},
	{"LF in a value", calls2("x", "a\nb"), ""},
	{"NUL in a value", calls2("x", "a\x00b"), ""},
	{"CR LF in a name", calls2("x\r\ny", "1"), ""},
	{"colon in a name", calls2("x:y", "1"), ""},
	{"space in a name", calls2("x y", "1"), ""},
	{"no name", calls2("", "1"), ""},
	{"capital in a name", calls2("X", "1"), ""},
	{"CR LF in the path", []string{":method", "POST", ":scheme", "http", ":path", "/execute/py/pid\r\nX: 1", ":authority", "localhost"}, ""},
	{"NUL in the path", []string{":method", "POST", ":scheme", "http", ":path", "/execute/py/\x00", ":authority", "localhost"}, ""},
	{"path without a slash", []string{":method", "POST", ":scheme", "http", ":path", "execute/py/pid", ":authority", "localhost"}, ""},
	{"path *", []string{":method", "POST", ":scheme", "http", ":path", "*", ":authority", "localhost"}, "404"},
	{"odd method", []string{":method", "PO ST", ":scheme", "http", ":path", "/execute/py/pid", ":authority", "localhost"}, "405"},
	{"no authority", []string{":method", "POST", ":scheme", "http", ":path", "/execute/py/pid"}, "403"},
	{"foreign authority", []string{":method", "POST", ":scheme", "http", ":path", "/execute/py/pid", ":authority", "other.example"}, "403"},
	{"authority with a user", []string{":method", "POST", ":scheme", "http", ":path", "/execute/py/pid", ":authority", "user@localhost"}, ""},
	{"CONNECT", []string{":method", "CONNECT", ":authority", "localhost"}, "404"},
	{"CONNECT with a path", []string{":method", "CONNECT", ":scheme", "http", ":path", "/execute/py/pid", ":authority", "localhost"}, ""},
	{"extended CONNECT", []string{":method", "CONNECT", ":protocol", "websocket", ":scheme", "http", ":path", "/execute/py/pid", ":authority", "localhost"}, ""},
	{"length is no number", calls2("content-length", "x"), "400"},
	{"negative length", calls2("content-length", "-4"), "400"},
	{"signed length", calls2("content-length", "+4"), "400"},
	{"empty length", calls2("content-length", ""), "400"},
	{"huge length", calls2("content-length", "99999999999999999999"), "400"},
	{"list of lengths", calls2("content-length", "4, 4"), "400"},
	{"two lengths", calls2("content-length", "4", "content-length", "5"), "400"},
	{"shorter than its length", calls2("content-length", "5"), ""},
	{"longer than its length", calls2("content-length", "3"), ""},
	{"chunked", calls2("transfer-encoding", "chunked"), "400"},
}

// calls2 are the headers of a call over HTTP/2, and more of them.
func calls2(more ...string) []string {
	return append([]string{":method", "POST", ":scheme", "http", ":path", "/execute/py/pid", ":authority", "localhost"}, more...)
}

// TestMalformed: whatever is sent in place of a request is answered or cut off, at once and
// not as if the server had failed; work is done only for what is a request; and what lies
// behind is another request, or nothing at all.
func TestMalformed(t *testing.T) {
	proctest.OneLane(t, "requests are the same, whoever serves them")
	s := start(t, python+"  next: {command: [python3, worker.py], workers: 1, spares: 0}\n", telling)
	done, next := 0, 0
	for _, test := range malformed {
		t.Run(test.name, func(t *testing.T) {
			p, err := newPatient(s.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			nonce := "behind " + test.name
			go p.send(0, test.raw+answers("next", "Connection: close\r\n", nonce, 0)) // it may not all be taken
			all, err := io.ReadAll(p)
			if err != nil && !errors.Is(err, syscall.ECONNRESET) { // as with bytes that nobody reads
				t.Fatal(err)
			}
			p.in = bufio.NewReader(bytes.NewReader(all))
			reply, text, err := p.receive()
			if err != nil {
				t.Fatalf("%v in %.300q", err, all)
			}
			if reply.StatusCode != test.status || reply.Close == test.kept {
				t.Errorf("%s, closes: %v, %.300s", reply.Status, reply.Close, text)
			}
			if test.kept {
				if err := p.expect(nonce); err != nil {
					t.Error(err)
				}
				next++
			}
			if rest, err := io.ReadAll(p.in); err != nil || len(rest) > 0 {
				t.Errorf("behind the last reply came %.300q, %v", rest, err)
			}
			if test.status == http.StatusOK {
				done++
			}
		})
	}
	for _, test := range malformedH2 {
		t.Run("HTTP/2, "+test.name, func(t *testing.T) {
			c, err := s.dialTCP()
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			h, err := newH2(c)
			if err != nil {
				t.Fatal(err)
			}
			stream, err := h.requestRaw(false, test.headers...)
			if err != nil {
				t.Fatal(err)
			}
			body := []byte("null")
			if test.status == "400" {
				body = nil // net/http believes in no bytes, and may be faster with a reset if there are some
			}
			h.frame(func() error { return h.out.WriteData(stream.id, true, body) }) // it may have ended
			err = stream.await(func() bool { return stream.ended || stream.reset || h.goAway != nil })
			h.mu.Lock()
			defer h.mu.Unlock()
			if err != nil || stream.status != test.status {
				t.Errorf("%s %s, %v", stream.status, stream.data, err)
			}
		})
	}
	started := map[string]int{}
	for _, c := range s.calls() {
		if c.StartedAt != nil {
			started[c.Workload]++
		}
	}
	if started["py"] != done || started["next"] != next {
		t.Errorf("%v calls were started where %d and %d were asked for", started, done, next)
	}
	s.unhurt()
}

// TestPlainToTLS: a caller who does not know of TLS is told.
func TestPlainToTLS(t *testing.T) {
	proctest.OneLane(t, "requests are the same, whoever serves them")
	s := start(t, python, withTLS, telling)
	for name, sent := range map[string]string{
		"HTTP/1.1": raw("null", anyLine, anyHost, four) + raw("null", anyLine, anyHost, four),
		"HTTP/2":   "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + strings.Repeat("\x00", 100),
		"garbage":  strings.Repeat("\x16\x03\x01\x00", 10_000),
	} {
		c, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(proctest.Patience))
		go io.WriteString(c, sent) // it may not all be taken
		got, err := io.ReadAll(c)
		c.Close()
		if err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: %v", name, err)
		}
		if name == "HTTP/1.1" && !strings.HasPrefix(string(got), "HTTP/1.0 400 ") {
			t.Errorf("%s: %.300q", name, got)
		}
	}
	if n := s.metric("hangup_calls_total"); n != 0 {
		t.Errorf("%v calls", n)
	}
	s.unhurt()
}
