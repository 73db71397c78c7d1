package config

import (
	"encoding/hex"
	"math"
	"net"
	"net/netip"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/goccy/go-yaml/ast"
)

// defaults is a config file that says nothing.
func defaults() Config {
	return Config{
		Listen:      []string{"127.0.0.1:8080"},
		Limits:      Limits{Body: 16 << 20, BodyTimeout: 30 * time.Second, Connections: 10_000, Streams: 100, Hangups: Hangups{Burst: 2000, PerMinute: 600}},
		Spool:       Spool{Max: 1 << 30},
		Drain:       8 * time.Second,
		Containment: Containment{Minimum: "subreaper", Cgroup: "auto"},
		Log:         Log{Format: "json", Level: "info"},
	}
}

// defaultWorkload is a workload that says only its name.
func defaultWorkload(name, dir string) Workload {
	return Workload{
		Name:         name,
		Kind:         "worker",
		Dir:          dir,
		Spares:       1,
		Queue:        Queue{Length: 100, Wait: 30 * time.Second},
		Timeout:      5 * time.Minute,
		StartTimeout: 30 * time.Second,
		Stop:         Stop{Signal: syscall.SIGTERM, Grace: time.Second},
		OnHangup:     OnHangup{Allow: []string{"cancel"}, ResultTTL: 5 * time.Minute},
		Limits:       WorkLimits{Output: 64 << 20, Files: 1024},
	}
}

// schema is everything a file may say.
func schema(c *Config) value {
	return object(
		key{"listen", set(&c.Listen, some(list(address), "give at least one address, or leave the key out"))},
		key{"tls", later},
		key{"hosts", set(&c.Hosts, list(host))},
		key{"trusted_proxies", later},
		key{"auth", auth(&c.Auth)},
		key{"limits", object(
			key{"body", set(&c.Limits.Body, size(1))},
			key{"body_timeout", set(&c.Limits.BodyTimeout, duration(true))},
			key{"connections", set(&c.Limits.Connections, whole(1, MaxConnections))},
		)},
		key{"spool", object(
			key{"dir", set(&c.Spool.Dir, optional(folder))},
			key{"max", set(&c.Spool.Max, size(0))},
		)},
		key{"drain", set(&c.Drain, duration(false))},
		key{"containment", object(
			key{"minimum", set(&c.Containment.Minimum, minimum)},
			key{"cgroup", set(&c.Containment.Cgroup, oneOf("auto", "never"))},
		)},
		key{"log", object(
			key{"format", set(&c.Log.Format, oneOf("json", "text"))},
			key{"level", set(&c.Log.Level, oneOf("debug", "info", "warn", "error"))},
		)},
		key{"workloads", workloads(&c.Workloads)},
	)
}

// workload is everything a file may say about one.
func workload(w *Workload) value {
	return object(
		key{"kind", set(&w.Kind, kind)},
		key{"command", set(&w.Command, command)},
		key{"dir", set(&w.Dir, folder)},
		key{"env", env(&w.Env)},
		key{"pass_env", set(&w.PassEnv, list(variable))},
		key{"user", laterUnlessZero(text)},
		key{"new_privileges", set(&w.NewPrivileges, boolean)},
		key{"workers", set(&w.Workers, whole(0, MaxWorkers))},
		key{"spares", set(&w.Spares, whole(0, MaxWorkers))},
		key{"queue", object(
			key{"length", set(&w.Queue.Length, whole(0, MaxQueue))},
			key{"wait", set(&w.Queue.Wait, duration(false))},
		)},
		key{"timeout", set(&w.Timeout, duration(false))},
		key{"start_timeout", set(&w.StartTimeout, duration(true))},
		key{"stop", object(
			key{"cooperative", set(&w.Stop.Cooperative, duration(false))},
			key{"signal", set(&w.Stop.Signal, signal)},
			key{"grace", set(&w.Stop.Grace, duration(false))},
		)},
		key{"on_hangup", object(
			key{"allow", set(&w.OnHangup.Allow, some(list(hangupPolicy), "a caller must be allowed at least cancel"))},
			key{"result_ttl", laterUnless(w.OnHangup.ResultTTL, duration(false))},
		)},
		key{"recycle", object(
			key{"calls", laterUnlessZero(whole(0, math.MaxInt))},
			key{"age", laterUnlessZero(duration(false))},
			key{"memory", laterUnlessZero(size(0))},
		)},
		key{"limits", object(
			key{"memory", laterUnlessZero(size(0))},
			key{"pids", laterUnlessZero(whole(0, math.MaxInt))},
			key{"cpus", laterUnlessZero(number)},
			key{"output", set(&w.Limits.Output, size(0))},
			key{"files", set(&w.Limits.Files, files)},
		)},
		key{"input", object(key{"schema", later})},
		key{"ready", later},  // of kind http
		key{"stdin", later},  // of kind command
		key{"script", later}, // of kind terminal
	)
}

var workloadName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}$`)

func workloads(dst *[]Workload) value {
	return func(d *decoder, path string, n ast.Node) {
		for name, e := range d.entries(path, n) {
			if !workloadName.MatchString(name) {
				d.fault(e.key, "%s: cannot name a workload %s: up to 63 of a-z, 0-9, _ and -, and first a letter or a digit", path, quote(name))
			}
			w := defaultWorkload(name, d.dir)
			workload(&w)(d, join(path, name), e.value)
			if w.Workers == 0 {
				w.Workers = runtime.NumCPU()
			}
			*dst = append(*dst, w)
		}
	}
}

// kind accepts the one kind that is built and knows the others by name.
func kind(d *decoder, path string, n ast.Node) (string, bool) {
	k, ok := oneOf("worker", "http", "command", "terminal")(d, path, n)
	if ok && k != "worker" {
		d.fault(n, "%s: %s is not available in this version: only worker is", path, k)
	}
	return k, ok && k == "worker"
}

// minimum refuses a level that no host can give yet, as serve would.
func minimum(d *decoder, path string, n ast.Node) (string, bool) {
	m, ok := oneOf("process-group", "subreaper", "cgroup")(d, path, n)
	if ok && m == "cgroup" {
		d.fault(n, "%s: cgroup is not available in this version and so cannot be met: write subreaper", path)
	}
	return m, ok && m != "cgroup"
}

func hangupPolicy(d *decoder, path string, n ast.Node) (string, bool) {
	p, ok := oneOf("cancel", "linger", "detach")(d, path, n)
	if ok && p != "cancel" {
		d.fault(n, "%s: %s is not available in this version: only cancel is", path, p)
	}
	return p, ok && p == "cancel"
}

func command(d *decoder, path string, n ast.Node) ([]string, bool) {
	argv, ok := some(list(text), "name a program")(d, path, n)
	if ok && argv[0] == "" {
		d.faultAt(path+"[0]", "the program has no name")
		return nil, false
	}
	return argv, ok
}

// optional lets "" stand for what the default means.
func optional(p parser[string]) parser[string] {
	return func(d *decoder, path string, n ast.Node) (string, bool) {
		if s, ok := n.(*ast.StringNode); ok && s.Value == "" {
			return "", true
		}
		return p(d, path, n)
	}
}

// files reads how many descriptors a process may have.
func files(d *decoder, path string, n ast.Node) (int, bool) {
	v, ok := whole(0, math.MaxInt)(d, path, n)
	if ok && v != 0 && v < MinFiles {
		d.fault(n, "%s: must be %d or more, or 0 for no limit, not %d: a program needs some to start", path, MinFiles, v)
		return 0, false
	}
	return v, ok
}

var variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// checkVariable says what is wrong with the name of a variable, or "".
func checkVariable(name string) string {
	switch {
	case !variableName.MatchString(name):
		return quote(name) + " is no name of a variable: letters, digits and _, and no digit first"
	case strings.HasPrefix(name, "HANGUP_"):
		return quote(name) + " is set by hangup itself: names with HANGUP_ are not free"
	}
	return ""
}

func env(dst *map[string]string) value {
	return func(d *decoder, path string, n ast.Node) {
		vars := map[string]string{}
		for name, e := range d.entries(path, n) {
			if wrong := checkVariable(name); wrong != "" {
				d.fault(e.key, "%s: %s", path, wrong)
			}
			if s, ok := text(d, join(path, name), e.value); ok {
				vars[name] = s
			}
		}
		*dst = vars
	}
}

func variable(d *decoder, path string, n ast.Node) (string, bool) {
	name, ok := text(d, path, n)
	if !ok {
		return "", false
	}
	if wrong := checkVariable(name); wrong != "" {
		d.fault(n, "%s: %s", path, wrong)
		return "", false
	}
	return name, true
}

// address reads host:port.
func address(d *decoder, path string, n ast.Node) (string, bool) {
	s, ok := n.(*ast.StringNode)
	if !ok {
		d.fault(n, "%s: must be host:port, not %s: as 127.0.0.1:8080", path, describe(n))
		return "", false
	}
	if strings.HasPrefix(s.Value, "unix:") {
		d.fault(n, "%s: unix sockets are not available in this version: write host:port", path)
		return "", false
	}
	name, port, err := net.SplitHostPort(s.Value)
	if err != nil {
		d.fault(n, "%s: cannot read %s as host:port: write it as 127.0.0.1:8080 or \"[::1]:8080\"", path, quote(s.Value))
		return "", false
	}
	if p, err := strconv.ParseUint(port, 10, 16); err != nil || strconv.FormatUint(p, 10) != port {
		d.fault(n, "%s: cannot use %s as a port: it must be a number up to 65535", path, quote(port))
		return "", false
	}
	if _, err := netip.ParseAddr(name); err != nil && name != "" && !hostName.MatchString(name) {
		d.fault(n, "%s: %s is neither an address nor a host name", path, quote(name))
		return "", false
	}
	return s.Value, true
}

var hostName = regexp.MustCompile(`^(?i)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*$`)

// host reads a name as a Host header has it, less the port.
func host(d *decoder, path string, n ast.Node) (string, bool) {
	s, ok := text(d, path, n)
	if !ok {
		return "", false
	}
	if _, err := netip.ParseAddr(s); err != nil && !hostName.MatchString(s) {
		d.fault(n, "%s: %s is no host name: write it without scheme, port, path and wildcard, as app.example.com", path, quote(s))
		return "", false
	}
	return s, true
}

// auth reads `none`, or tokens.
func auth(a *Auth) value {
	return func(d *decoder, path string, n ast.Node) {
		if s, ok := n.(*ast.StringNode); ok {
			if s.Value != "none" {
				d.fault(n, "%s: cannot be %s: it must be none, or tokens", path, quote(s.Value))
			}
			a.Off = s.Value == "none"
			return
		}
		object(key{"tokens", tokens(&a.Tokens)})(d, path, n)
	}
}

var tokenName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@-]{0,62}$`)

func tokens(dst *[]Token) value {
	one := func(d *decoder, path string, n ast.Node) (Token, bool) {
		before := len(d.faults)
		t := Token{Workloads: []string{"*"}}
		object(
			key{"name", set(&t.Name, matching(tokenName, "a name: up to 63 letters, digits and . _ @ -, and first a letter or a digit"))},
			key{"sha256", set(&t.SHA256, digest)},
			key{"allow", set(&t.Allow, some(list(oneOf("execute", "observe", "operate")), "allow execute, observe or operate"))},
			key{"workloads", set(&t.Workloads, some(list(text), `name a workload, or write ["*"] for all`))},
		)(d, path, n)
		for _, must := range []string{"name", "sha256", "allow"} {
			if _, given := d.given[join(path, must)]; !given {
				d.fault(n, "%s: %s is missing: a token needs name, sha256 and allow", path, must)
			}
		}
		return t, len(d.faults) == before
	}
	return set(dst, list(one))
}

func digest(d *decoder, path string, n ast.Node) (sum [32]byte, ok bool) {
	s, ok := text(d, path, n)
	if !ok {
		return sum, false
	}
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(sum) {
		d.fault(n, "%s: must be the SHA-256 of the token, %d hex digits: printf %%s \"$TOKEN\" | sha256sum", path, 2*len(sum))
		return sum, false
	}
	return [32]byte(b), true
}
