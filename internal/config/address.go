package config

import (
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"
)

// MaxSocketPath is how long the path of a unix socket may be: the kernel keeps 108
// bytes with the NUL behind it.
const MaxSocketPath = 107

// address reads host:port, or unix: and a path, which becomes absolute.
var address = parser[string]{
	schema: fragment{Type: "string", form: "host:port or unix:/path", AnyOf: []fragment{
		{Pattern: `^([A-Za-z0-9_.-]*|\[[^\[\]]*\]):(0|[1-9][0-9]{0,4})$`},
		{Pattern: `^unix:[^@]`},
	}},
	parse: func(d *decoder, path string, n ast.Node) (string, bool) {
		s, ok := n.(*ast.StringNode)
		if !ok {
			d.fault(n, "%s: must be host:port, not %s: as 127.0.0.1:8080, or unix:/path for a socket", path, describe(n))
			return "", false
		}
		var addr, wrong string
		if socket, isSocket := strings.CutPrefix(s.Value, "unix:"); isSocket {
			addr, wrong = d.socket(socket)
		} else {
			addr, wrong = s.Value, checkHostPort(s.Value)
		}
		if wrong != "" {
			d.fault(n, "%s: %s", path, wrong)
		}
		return addr, wrong == ""
	},
}

func checkHostPort(s string) string {
	name, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Sprintf("cannot read %s as host:port: write it as 127.0.0.1:8080 or \"[::1]:8080\"", quote(s))
	}
	if p, err := strconv.ParseUint(port, 10, 16); err != nil || strconv.FormatUint(p, 10) != port {
		return fmt.Sprintf("cannot use %s as a port: it must be a number up to 65535", quote(port))
	}
	if _, err := netip.ParseAddr(name); err != nil && name != "" && !hostName.MatchString(name) {
		return quote(name) + " is neither an address nor a host name"
	}
	return ""
}

// socket returns the address of the unix socket at path, or says what is wrong. A socket
// that is there already is left to serve, which can tell a live one from a stale one.
func (d *decoder) socket(path string) (addr, wrong string) {
	switch {
	case path == "":
		return "", "the socket has no path: write unix:/path"
	case strings.HasPrefix(path, "@"):
		return "", "a socket without a file is open to every user of the machine: write unix:/path"
	case strings.ContainsRune(path, 0):
		return "", "holds a NUL character: remove it"
	}
	full := d.absolute(path)
	if len(full) > MaxSocketPath {
		return "", fmt.Sprintf("the path %s has %d bytes, and the kernel takes %d: write a shorter one", quote(full), len(full), MaxSocketPath)
	}
	parent := filepath.Dir(full)
	info, err := os.Stat(parent)
	switch {
	case err != nil:
		return "", fmt.Sprintf("cannot find the directory %s for the socket: %v", quote(parent), reason(err))
	case !info.IsDir():
		return "", quote(parent) + " is not a directory, and the socket cannot be in it"
	}
	info, err = os.Lstat(full)
	if err == nil && info.Mode().Type() != fs.ModeSocket {
		return "", quote(full) + " is there already and is no socket: remove it, or write another path"
	}
	return "unix:" + full, ""
}

// local tells whether only this machine can reach addr: a unix socket, or the host:port
// of a loopback address.
func local(addr string) bool {
	if strings.HasPrefix(addr, "unix:") {
		return true
	}
	name, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	if strings.EqualFold(name, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(name)
	return err == nil && ip.Unmap().IsLoopback()
}

// Exposes is an error where to serve address, as it would stand in Listen, lets anyone
// on another machine run work: it can be reached from there, and there are no tokens. A
// config does not pass with such an address in Listen; a server may be handed one by a
// service manager.
func (c *Config) Exposes(address string) error {
	if c.Auth.Off || len(c.Auth.Tokens) > 0 || local(address) {
		return nil
	}
	return fmt.Errorf("%s can be reached from other machines, and anyone could run work: add auth.tokens, or write `auth: none` if that is meant", address)
}

const (
	labelSyntax    = `[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?`
	hostNameSyntax = `^` + labelSyntax + `([.]` + labelSyntax + `)*$`
)

var hostName = regexp.MustCompile(hostNameSyntax)

// host reads a name as a Host header has it, less the port.
var host = textAs(fragment{form: "host name", AnyOf: []fragment{{Pattern: hostNameSyntax}, {Pattern: `^[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*(%.+)?$`}}}, func(_ *decoder, s string) (string, string) {
	if _, err := netip.ParseAddr(s); err != nil && !hostName.MatchString(s) {
		return "", quote(s) + " is no host name: write it without scheme, port, path and wildcard, as app.example.com"
	}
	return s, ""
})

// network reads a network in CIDR form, or one address.
var network = parser[netip.Prefix]{
	schema: fragment{Type: "string", Pattern: `^[0-9A-Fa-f:.]+(/[0-9]{1,3})?$`, form: "network or address"},
	write:  func(p netip.Prefix) any { return p.String() },
	parse: func(d *decoder, path string, n ast.Node) (netip.Prefix, bool) {
		p, wrong := netip.Prefix{}, ""
		if s, ok := n.(*ast.StringNode); ok {
			p, wrong = readNetwork(s.Value)
		} else {
			wrong = "must be a network or an address, not " + describe(n) + ": as 10.0.0.0/8 or 192.0.2.7"
		}
		if wrong != "" {
			d.fault(n, "%s: %s", path, wrong)
		}
		return p, wrong == ""
	},
}

// readNetwork reads s, and says what is wrong with it. An IPv4 network that is written
// as a part of IPv6 becomes what it is.
func readNetwork(s string) (p netip.Prefix, wrong string) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		a, err := netip.ParseAddr(s)
		switch {
		case err != nil:
			return p, fmt.Sprintf("cannot read %s as a network or an address: write it as 10.0.0.0/8 or 192.0.2.7", quote(s))
		case a.Zone() != "":
			return p, fmt.Sprintf("the zone of %s cannot be told apart: write the address without %%%s", quote(s), clip(a.Zone()))
		}
		return netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()), ""
	}
	if p != p.Masked() {
		return p, fmt.Sprintf("%s is an address inside a network: write %s for the network, or %s for the one address", quote(s), p.Masked(), p.Addr())
	}
	if bits := p.Bits() - 96; p.Addr().Is4In6() && bits >= 0 {
		p = netip.PrefixFrom(p.Addr().Unmap(), bits)
	}
	return p, ""
}
