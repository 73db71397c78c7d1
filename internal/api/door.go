package api

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"example.com/hangup/internal/call"
	"example.com/hangup/internal/config"
)

// door decides who is let in.
type door struct {
	hosts   map[string]bool // names and addresses served, as hostOf returns them
	tokens  []config.Token
	proxies []netip.Prefix
}

func newDoor(c *config.Config) door {
	d := door{hosts: map[string]bool{"localhost": true}, proxies: c.TrustedProxies}
	if !c.Auth.Off {
		d.tokens = c.Auth.Tokens
	}
	for _, listen := range c.Listen {
		if !strings.HasPrefix(listen, "unix:") {
			d.hosts[hostOf(listen)] = true
		}
	}
	for _, host := range c.Hosts {
		d.hosts[hostOf(host)] = true
	}
	for _, anyone := range []string{"", "0.0.0.0", "::"} { // hostOf's error, and wildcards
		delete(d.hosts, anyone)
	}
	return d
}

// check keeps web pages out that a browser here has open: those whose name was
// rebound to this address, and those of other sites. It does so whatever the
// method and path, because a GET can be read and a DELETE needs no form.
func (d *door) check(r *http.Request) error {
	if !d.serves(r) {
		return fmt.Errorf("%w: this server does not serve the host %q: name it under hosts in the config", call.ErrForbidden, clip(r.Host))
	}
	if crossSite(r) {
		return fmt.Errorf("%w: the request comes from another site", call.ErrForbidden)
	}
	return nil
}

func (d *door) serves(r *http.Request) bool {
	if r.Host == "" && !r.ProtoAtLeast(1, 1) {
		return true // HTTP/1.0 has no Host, and no browser sends it
	}
	host := hostOf(r.Host)
	if d.hosts[host] {
		return true
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return false
	}
	if ip.IsLoopback() {
		return true
	}
	// The address that the connection came in on cannot be a name rebound to it.
	local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	return ok && local.AddrPort().Addr().Unmap().WithZone("") == ip
}

// hostOf is the host of a host and an optional port, in one spelling: lower
// case, an address without its brackets. It is "" where that is malformed.
func hostOf(hostport string) string {
	host, port := hostport, ""
	if rest, ok := strings.CutPrefix(hostport, "["); ok {
		host, port, ok = strings.Cut(rest, "]")
		if _, err := netip.ParseAddr(host); !ok || err != nil {
			return ""
		}
	} else if i := strings.IndexByte(hostport, ':'); i >= 0 {
		host, port = hostport[:i], hostport[i:]
	}
	if port != "" && (port[0] != ':' || strings.Trim(port[1:], "0123456789") != "") {
		return ""
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.Unmap().WithZone("").String()
	}
	return host
}

// crossSite tells whether a browser sent the request for a page of another
// origin. Sec-Fetch-Site says it; before it was there, Origin did.
func crossSite(r *http.Request) bool {
	if sites := r.Header.Values("Sec-Fetch-Site"); len(sites) > 0 {
		return slices.ContainsFunc(sites, func(site string) bool { return site != "same-origin" && site != "none" })
	}
	return slices.ContainsFunc(r.Header.Values("Origin"), func(origin string) bool {
		u, err := url.Parse(origin)
		return err != nil || !strings.EqualFold(u.Host, r.Host)
	})
}

// caller is who asks.
type caller struct {
	name    string        // for records: the token's, the address, or the user on a unix socket
	token   *config.Token // nil where none are configured: everything is allowed
	from    netip.Addr    // the zero Addr is local, on a unix socket
	proxied bool          // the connection is a trusted proxy's
}

// arrive is who asks as far as the connection tells, before a token is looked at.
func (d *door) arrive(r *http.Request) caller {
	from, proxied := d.origin(r)
	who := caller{name: from.String(), from: from, proxied: proxied}
	if !from.IsValid() {
		who.name = local(r)
	}
	return who
}

// payer is whose hang-ups are counted together with this caller's.
func (c caller) payer() payer {
	if c.token != nil {
		return payer{token: c.token.Name}
	}
	if !c.from.IsValid() {
		return payer{local: c.name}
	}
	bits := c.from.BitLen()
	if c.from.Is6() {
		bits = 64
	}
	network, _ := c.from.Prefix(bits) // it cannot have too many
	return payer{network: network}
}

// local names who is on a unix socket: its user, as internal/listen says it for the
// address of the other end.
func local(r *http.Request) string {
	if strings.HasPrefix(r.RemoteAddr, "uid:") {
		return r.RemoteAddr
	}
	return "local"
}

// identify finds out whose token r bears, and whether it allows what needs the scope.
func (d *door) identify(r *http.Request, who caller, needs scope) (caller, error) {
	if len(d.tokens) == 0 || needs == open {
		return who, nil
	}
	token := d.token(r)
	if token == nil {
		return who, call.ErrUnauthorized
	}
	who.name, who.token = token.Name, token
	if !slices.Contains(token.Allow, string(needs)) {
		return who, fmt.Errorf("%w: the token %q does not allow %s", call.ErrForbidden, token.Name, needs)
	}
	return who, nil
}

// token returns the token that r bears. It takes the same time for each that
// is configured, whether it is the one or not.
func (d *door) token(r *http.Request) *config.Token {
	values := r.Header.Values("Authorization")
	if len(values) != 1 {
		return nil
	}
	scheme, secret, ok := strings.Cut(values[0], " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return nil
	}
	sum := sha256.Sum256([]byte(strings.TrimSpace(secret)))
	var found *config.Token
	for i := range d.tokens {
		if subtle.ConstantTimeCompare(sum[:], d.tokens[i].SHA256[:]) == 1 {
			found = &d.tokens[i]
		}
	}
	return found
}

// may tells whether the caller may have to do with a workload. The empty name
// stands for whatever belongs to none.
func (c caller) may(workload string) bool {
	return c.everything() || slices.Contains(c.token.Workloads, workload)
}

// everything tells whether no workload is kept from the caller.
func (c caller) everything() bool {
	return c.token == nil || slices.Contains(c.token.Workloads, "*")
}
