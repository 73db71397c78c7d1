// Package client talks to a server for the verbs of the command line.
//
// Its promises: whatever goes wrong becomes an error that says what happened, why
// and what to do, in words for a person; the token is in no error and in no URL;
// and a request whose context ends has its connection closed at once, which is
// how a client hangs up. That is why it speaks HTTP/1 only, a connection a
// request that is under way.
//
// The package has no goroutine that outlives a call of it, beside those net/http
// keeps for idle connections until [Client.Close]. It imports nothing of this
// module: what it knows of the server is what docs/http.md says.
package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"
)

// askTimeout bounds requests that are answered at once by a server that is well.
const askTimeout = 10 * time.Second

// most is how large a reply may be that is read whole, in bytes. /calls with all
// it remembers is far below.
const most = 64 << 20

// Options say which server to talk to.
type Options struct {
	URL    string // http://…, https://… or unix:/path/of/socket
	Token  string // "" is none
	CACert string // a PEM file with the authorities to trust instead of the system's; "" is none
}

// Client is a server to talk to.
type Client struct {
	shown  string // as the user wrote it, for errors
	base   *url.URL
	socket string // the path of a unix socket, or ""
	token  string // "" is none
	http   http.Client
}

// New makes a client. It connects to nobody yet; an error is about the options.
func New(o Options) (*Client, error) {
	c := &Client{shown: o.URL, token: o.Token}
	if strings.ContainsFunc(o.Token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, errors.New("cannot use the token: it has a space, a line break or another character that no token has; was it copied whole?")
	}
	if err := c.parse(o.URL); err != nil {
		return nil, err
	}
	transport := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         c.dial,
		TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: askTimeout,
		Protocols:           new(http.Protocols),
	}
	transport.Protocols.SetHTTP1(true)
	if c.socket != "" {
		transport.Proxy = nil
	}
	if o.CACert != "" {
		pem, err := os.ReadFile(o.CACert)
		if err != nil {
			return nil, fmt.Errorf("cannot read --cacert: %w", err)
		}
		transport.TLSClientConfig.RootCAs = x509.NewCertPool()
		if !transport.TLSClientConfig.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("cannot use --cacert %s: it holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)", o.CACert)
		}
	}
	c.http.Transport = transport
	c.http.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return c, nil
}

// parse takes in --url.
func (c *Client) parse(raw string) error {
	if path, ok := strings.CutPrefix(raw, "unix:"); ok {
		if strings.HasPrefix(path, "///") {
			path = path[2:]
		}
		if !strings.HasPrefix(path, "/") {
			return fmt.Errorf("cannot use the URL %q: the path of the socket must begin with a slash: unix:/run/hangup.sock", raw)
		}
		c.socket, c.base = path, &url.URL{Scheme: "http", Host: "localhost"}
		return nil
	}
	u, err := url.Parse(raw)
	switch {
	case err == nil && u.User != nil:
		c.shown = u.Redacted()
		return fmt.Errorf("cannot use the URL %q: it has a name or a password in it; who you are is told by --token or HANGUP_TOKEN", c.shown)
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		return fmt.Errorf("cannot use the URL %q: it must begin with http://, https:// or unix:/, such as http://127.0.0.1:8080", raw)
	case u.RawQuery != "" || u.Fragment != "":
		return fmt.Errorf("cannot use the URL %q: nothing may follow its path", raw)
	}
	c.base = u
	return nil
}

func (c *Client) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if c.socket != "" {
		network, address = "unix", c.socket
	}
	d := net.Dialer{Timeout: askTimeout}
	return d.DialContext(ctx, network, address)
}

// Close gives idle connections back.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// send sends a request and returns the reply, whatever its status. The segments
// of the path are escaped.
func (c *Client) send(ctx context.Context, method string, segments []string, query string, header http.Header, body io.Reader, size int64) (*http.Response, error) {
	u := *c.base
	escaped := strings.TrimSuffix(u.EscapedPath(), "/")
	for _, s := range segments {
		escaped += "/" + url.PathEscape(s)
	}
	path, err := url.PathUnescape(escaped)
	if err != nil {
		return nil, err
	}
	u.Path, u.RawPath, u.RawQuery = path, escaped, query
	r, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, fmt.Errorf("cannot ask %s: %w", c.shown, err)
	}
	if body != nil {
		r.ContentLength = size
		r.GetBody = nil // nothing is sent twice
	}
	for name, values := range header {
		r.Header[name] = values
	}
	r.Header.Set("User-Agent", "hangup")
	if c.token != "" {
		r.Header.Set("Authorization", "Bearer "+c.token)
	}
	reply, err := c.http.Do(r)
	if err != nil {
		return nil, c.explain(ctx, err)
	}
	return reply, nil
}

// ask sends a request without a body and decodes the JSON that answers it.
func (c *Client) ask(ctx context.Context, method string, to any, segments ...string) (http.Header, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, askTimeout, fmt.Errorf("cannot wait for %s any longer: it did not answer within %s", c.shown, askTimeout))
	defer cancel()
	reply, err := c.send(ctx, method, segments, "", nil, nil, 0)
	if err != nil {
		return nil, err
	}
	defer reply.Body.Close()
	if reply.StatusCode/100 != 2 {
		return reply.Header, c.problem(reply)
	}
	body, err := io.ReadAll(io.LimitReader(reply.Body, most))
	if err != nil {
		return reply.Header, c.explain(ctx, err)
	}
	if err := json.Unmarshal(body, to); err != nil {
		return reply.Header, fmt.Errorf("cannot understand %s: it answered with what is no JSON of hangup's: does another program listen there?", c.shown)
	}
	return reply.Header, nil
}

// explain puts a failure to reach the server, or to read its reply, into words.
func (c *Client) explain(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var (
		record    tls.RecordHeaderError
		authority x509.UnknownAuthorityError
		hostname  x509.HostnameError
		invalid   x509.CertificateInvalidError
		lookup    *net.DNSError
		network   net.Error
	)
	cannot := func(format string, args ...any) error {
		return fmt.Errorf("cannot reach %s: %s", c.shown, Plain(fmt.Sprintf(format, args...))) // a certificate is a stranger's text
	}
	switch {
	case c.socket != "" && errors.Is(err, os.ErrNotExist):
		return cannot("there is no such socket: is `hangup serve` running, with that path under listen?")
	case errors.Is(err, os.ErrPermission):
		return cannot("this user may not open the socket (permission denied): become the user that the server runs as")
	case errors.Is(err, syscall.ECONNREFUSED):
		return cannot("nobody listens there (connection refused): is `hangup serve` running, and at that address? --url or HANGUP_URL names another")
	case errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch):
		return cannot("the server there speaks no TLS: write http:// instead of https://")
	case errors.As(err, &authority):
		return cannot("its certificate is signed by nobody this machine trusts: name the authority's certificate with --cacert FILE")
	case errors.As(err, &hostname):
		return cannot("its certificate is for another name: %v", hostname)
	case errors.As(err, &invalid):
		return cannot("its certificate is not valid: %v", invalid)
	case errors.As(err, &lookup):
		return cannot("the name %s cannot be resolved (%s)", lookup.Name, lookup.Err)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return fmt.Errorf("cannot get a reply from %s: it closed the connection. The server may have been ended; its log tells", c.shown)
	case strings.Contains(err.Error(), "malformed HTTP"):
		return cannot("what answers there speaks no HTTP: is it the right port, and is it a TLS port (https://)?")
	case errors.As(err, &network) && network.Timeout():
		return cannot("it does not answer (time-out): is the address right, and does a firewall stand in between?")
	}
	var outer *url.Error // says method and URL once more
	if errors.As(err, &outer) {
		err = outer.Err
	}
	return cannot("%v", err)
}

// tlsWanted is what a Go server says on its TLS port to who speaks none.
var tlsWanted = []byte("HTTP request to an HTTPS server")

// stranger is the error for a reply that is not hangup's.
func (c *Client) stranger(reply *http.Response, body []byte) error {
	where := reply.Header.Get("Location")
	switch {
	case bytes.Contains(body, tlsWanted), bytes.Contains(body, []byte("plain HTTP request was sent to HTTPS port")):
		return fmt.Errorf("cannot reach %s: the server there speaks TLS: write https:// instead of http://", c.shown)
	case reply.StatusCode/100 == 3 && where != "":
		return fmt.Errorf("cannot use %s: it redirects to %s: give that address with --url", c.shown, Plain(where))
	}
	who := "something in between, or another program at that address,"
	if name := reply.Header.Get("Server"); name != "" {
		who = Plain(name) + ", and not hangup,"
	}
	return fmt.Errorf("cannot use the answer of %s: %s answered %s; is the address right, and is the server behind it running?",
		c.shown, who, Plain(reply.Status))
}

// Plain is text without what would move a terminal's cursor or colour it: it
// comes from a server, and there from whoever wrote it. Line breaks and tabs stay.
func Plain(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' || r >= 0x7f && r < 0xa0 || r == 0x2028 || r == 0x2029 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
			return '�'
		}
		return r
	}, strings.ToValidUTF8(text, "�"))
}
