package api

import (
	"iter"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

const (
	// maxHops is how many trusted proxies a request is believed to have passed.
	maxHops = 16
	// maxHop is how long one entry of X-Forwarded-For may be, in bytes: an IPv6
	// address, its zone and a port fit.
	maxHop = 64
)

// origin is the address that a request comes from, and whether that is said by a
// trusted proxy: then its connection carries the requests of others, too.
//
// X-Forwarded-For grows on the right: the last entry is what the proxy on this
// connection has seen, and it counts as far as the proxy does. So the list is
// walked from there, past trusted proxies, to the first address that is none.
// Whatever is left of that, or of something that is no address, may be made up.
func (d *door) origin(r *http.Request) (from netip.Addr, proxied bool) {
	from = peer(r)
	if !d.trusts(from) {
		return from, false
	}
	hops := 0
	for entry := range fromTheRight(r.Header["X-Forwarded-For"]) {
		hop, ok := parseHop(entry)
		if hops++; !ok || hops > maxHops {
			break
		}
		if from = hop; !d.trusts(from) {
			break
		}
	}
	return from, true
}

// trusts tells whether an address is a trusted proxy's. Who is on a unix socket is
// as near as who is on loopback, and has passed the socket's permissions besides.
func (d *door) trusts(a netip.Addr) bool {
	if !a.IsValid() {
		a = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return slices.ContainsFunc(d.proxies, func(p netip.Prefix) bool { return p.Contains(a) })
}

// fromTheRight goes through the entries of a list header, the last one first.
func fromTheRight(lines []string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, line := range slices.Backward(lines) {
			for more := true; more; {
				comma := strings.LastIndexByte(line, ',')
				if !yield(line[comma+1:]) {
					return
				}
				if more = comma >= 0; more {
					line = line[:comma]
				}
			}
		}
	}
}

// parseHop reads an address with or without a port, an IPv6 one with or without
// brackets.
func parseHop(entry string) (netip.Addr, bool) {
	entry = strings.Trim(entry, " \t")
	if len(entry) > maxHop {
		return netip.Addr{}, false
	}
	if ap, err := netip.ParseAddrPort(entry); err == nil {
		return plain(ap.Addr()), true
	}
	if inside, ok := strings.CutPrefix(entry, "["); ok {
		if entry, ok = strings.CutSuffix(inside, "]"); !ok || !strings.Contains(entry, ":") {
			return netip.Addr{}, false
		}
	}
	a, err := netip.ParseAddr(entry)
	return plain(a), err == nil
}

// peer is the address at the other end of the connection. A unix socket has none:
// then it is the zero Addr.
func peer(r *http.Request) netip.Addr {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return plain(ap.Addr())
}

// plain is an address in its one spelling. A zone is a name of the other host's
// choice: it would make one caller look like many.
func plain(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }
