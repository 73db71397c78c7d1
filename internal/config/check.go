package config

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// check looks at what each key cannot see by itself.
func (d *decoder) check(c *Config) {
	d.checkListen(c)
	d.checkTLS(c)
	d.checkTokens(c)
	if c.Containment.Minimum == "cgroup" && c.Containment.Cgroup == "never" {
		d.faultAt("containment.cgroup", "never cannot be with containment.minimum: cgroup: write auto, or a lower minimum")
	}
	if _, given := d.given["workloads"]; !given && len(d.faults) == 0 {
		d.faults = append(d.faults, d.src.fault(1, 1, "workloads is missing: a server without work has nothing to serve; `hangup init` writes a starter"))
	} else if given && len(c.Workloads) == 0 && len(d.faults) == 0 {
		d.faultAt("workloads", "is empty: declare at least one")
	}
	for _, w := range c.Workloads {
		d.checkWorkload(&w)
	}
}

func (d *decoder) checkListen(c *Config) {
	_, tokensGiven := d.given["auth.tokens"]
	faultyTokens := tokensGiven && len(d.faults) > 0 // they are told of, and will be there
	first := map[string]bool{}
	for i, addr := range c.Listen {
		at := fmt.Sprintf("listen[%d]", i)
		if _, given := d.given[at]; !given {
			continue // the default
		}
		if first[addr] {
			d.faultAt(at, "%s stands in the list already: remove one", addr)
		}
		first[addr] = true
		if err := c.Exposes(addr); err != nil && !faultyTokens {
			d.faultAt(at, "%v", err)
		}
	}
	if c.TLS.On() && !slices.ContainsFunc(c.Listen, func(a string) bool { return !strings.HasPrefix(a, "unix:") }) {
		d.warnAt("tls", "is used by no address of listen: a unix socket never has TLS")
	}
}

func (d *decoder) checkTokens(c *Config) {
	for i, t := range c.Auth.Tokens {
		at := fmt.Sprintf("auth.tokens[%d]", i)
		for _, other := range c.Auth.Tokens[:i] {
			if t.Name == other.Name {
				d.faultAt(at+".name", "%s names another token already", quote(t.Name))
			}
			if t.SHA256 == other.SHA256 {
				d.faultAt(at+".sha256", "this is the token of %s already: who of the two called could not be told", quote(other.Name))
			}
		}
		for j, name := range t.Workloads {
			known := slices.ContainsFunc(c.Workloads, func(w Workload) bool { return w.Name == name })
			if _, given := d.given[at+".workloads"]; given && name != "*" && !known {
				d.faultAt(fmt.Sprintf("%s.workloads[%d]", at, j), "no workload is named %s: %s", quote(name), remedy(name, append(names(c.Workloads), `"*"`)))
			}
		}
	}
}

func names(ws []Workload) []string {
	all := make([]string, len(ws))
	for i, w := range ws {
		all[i] = w.Name
	}
	return all
}

func (d *decoder) checkWorkload(w *Workload) {
	path := join("workloads", w.Name)
	if d.missing(join(path, "command")) {
		d.fault(d.given[path].key, "%s: command is missing: write the argv that starts a worker, as [python3, worker.py]", path)
	}
	if len(w.Command) > 0 {
		if wrong := w.lookProgram(); wrong != "" {
			d.warnAt(path+".command[0]", "%s", wrong)
		}
	}
	for i, name := range w.PassEnv {
		at := fmt.Sprintf("%s.pass_env[%d]", path, i)
		if _, both := w.Env[name]; both {
			d.faultAt(at, "%s is set in env already: remove one", name)
		} else if slices.Contains(w.PassEnv[:i], name) {
			d.faultAt(at, "%s stands in the list already: remove one", name)
		} else if _, there := os.LookupEnv(name); !there {
			d.warnAt(at, "%s is not in the environment of this process: workers start without it", name)
		}
	}
}
