package api

import (
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"example.com/hangup/internal/config"
)

func TestOrigin(t *testing.T) {
	d := newDoor(&config.Config{TrustedProxies: []netip.Prefix{
		netip.MustParsePrefix("127.0.0.1/32"), netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("fe80::/10"),
	}})
	for _, tt := range []struct {
		peer  string
		lines []string
		want  string
	}{
		{"127.0.0.1:1", nil, "127.0.0.1"},
		{"192.0.2.9:1", []string{"192.0.2.1"}, "192.0.2.9"}, // no proxy of ours
		{"[::1]:1", []string{"192.0.2.1"}, "::1"},
		{"127.0.0.1:1", []string{"192.0.2.1"}, "192.0.2.1"},
		{"@", []string{"192.0.2.1"}, "192.0.2.1"}, // a unix socket
		{"", nil, "local"},
		{"uid:1000", nil, "uid:1000"},
		{"uid:1000", []string{"192.0.2.1"}, "192.0.2.1"},
		{"[::ffff:127.0.0.1]:1", []string{"192.0.2.1"}, "192.0.2.1"},
		{"[fe80::1%eth0]:1", []string{"192.0.2.1"}, "192.0.2.1"},

		// From the right, past proxies of ours.
		{"10.1.1.1:1", []string{"192.0.2.1, 192.0.2.2"}, "192.0.2.2"},
		{"10.1.1.1:1", []string{"192.0.2.1, 192.0.2.2,10.0.0.2 ,\t10.0.0.3"}, "192.0.2.2"},
		{"10.1.1.1:1", []string{"192.0.2.1", "192.0.2.2", "10.0.0.2"}, "192.0.2.2"},
		{"10.1.1.1:1", []string{"192.0.2.1, 10.0.0.4", "10.0.0.2"}, "192.0.2.1"},
		{"10.1.1.1:1", []string{"10.0.0.4, 10.0.0.5"}, "10.0.0.4"},
		{"10.1.1.1:1", []string{"127.0.0.1, 192.0.2.2"}, "192.0.2.2"},

		// What is no address ends the walk.
		{"10.1.1.1:1", []string{"192.0.2.1, unknown"}, "10.1.1.1"},
		{"10.1.1.1:1", []string{"192.0.2.1, unknown, 10.0.0.2"}, "10.0.0.2"},
		{"10.1.1.1:1", []string{"192.0.2.1,"}, "10.1.1.1"},
		{"10.1.1.1:1", []string{""}, "10.1.1.1"},
		{"10.1.1.1:1", []string{"192.0.2.1", ""}, "10.1.1.1"},
		{"10.1.1.1:1", []string{"192.0.2.1, 192.0.2.256"}, "10.1.1.1"},
		{"10.1.1.1:1", []string{"192.0.2.1, 010.0.0.1"}, "10.1.1.1"},
		{"10.1.1.1:1", []string{"192.0.2.1, 192.0.2.2:x"}, "10.1.1.1"},
		{"10.1.1.1:1", []string{"192.0.2.1, 192.0.2.2:99999"}, "10.1.1.1"},
		{"10.1.1.1:1", []string{"[192.0.2.1]"}, "10.1.1.1"},
		{"10.1.1.1:1", []string{"[::2"}, "10.1.1.1"},
		{"10.1.1.1:1", []string{"\"192.0.2.1\""}, "10.1.1.1"},
		{"10.1.1.1:1", []string{"192.0.2.1\x1b[31m"}, "10.1.1.1"},
		{"10.1.1.1:1", []string{"::1%" + strings.Repeat("x", 100)}, "10.1.1.1"},

		// Ports, brackets, zones, and IPv4 in IPv6.
		{"10.1.1.1:1", []string{"192.0.2.1:443"}, "192.0.2.1"},
		{"10.1.1.1:1", []string{"2001:db9::1"}, "2001:db9::1"},
		{"10.1.1.1:1", []string{"[2001:DB9::1]"}, "2001:db9::1"},
		{"10.1.1.1:1", []string{"[2001:db9::1]:443"}, "2001:db9::1"},
		{"10.1.1.1:1", []string{"2001:db9::1, [2001:db8::7]:80"}, "2001:db9::1"},
		{"10.1.1.1:1", []string{"::ffff:192.0.2.1"}, "192.0.2.1"},
		{"10.1.1.1:1", []string{"192.0.2.1, ::ffff:10.0.0.1, [::ffff:10.0.0.2]:9"}, "192.0.2.1"},
		{"10.1.1.1:1", []string{"fd00::1%\x1b[31m"}, "fd00::1"},
		{"10.1.1.1:1", []string{"192.0.2.1, fe80::1%eth0"}, "192.0.2.1"},

		// Nobody is behind that many of ours.
		{"10.1.1.1:1", []string{"192.0.2.1" + strings.Repeat(", 10.0.0.2", maxHops)}, "10.0.0.2"},
		{"10.1.1.1:1", []string{"192.0.2.1" + strings.Repeat(", 10.0.0.2", maxHops-1)}, "192.0.2.1"},
	} {
		r := &http.Request{RemoteAddr: tt.peer, Header: http.Header{"X-Forwarded-For": tt.lines}}
		if who := d.arrive(r); who.name != tt.want {
			t.Errorf("%s with %q: %s, want %s", tt.peer, tt.lines, who.name, tt.want)
		}
	}
	d = newDoor(&config.Config{})
	for _, peer := range []string{"127.0.0.1:1", "@"} {
		r := &http.Request{RemoteAddr: peer, Header: http.Header{"X-Forwarded-For": {"192.0.2.1"}}}
		if who := d.arrive(r); who.name == "192.0.2.1" || who.proxied {
			t.Errorf("without trusted proxies %s is believed", peer)
		}
	}
}
