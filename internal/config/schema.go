package config

import (
	"encoding/hex"
	"fmt"
	"math"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/goccy/go-yaml/ast"
)

// Default is a config file that says nothing, and so lacks the workloads.
func Default() Config {
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

// schema is everything a file may say. Each row reads its key, and the JSON Schema and
// the reference page are made of the same rows; its default is what the field holds.
func schema(c *Config) value {
	return object(
		key{
			"listen", "Where the server listens: host:port, or unix:/path for a socket that only the server's own user may use. A relative path starts at the folder of the config file. Without auth.tokens only loopback addresses and sockets are taken, unless `auth: none` is written.",
			set(&c.Listen, some(list(address), "give at least one address, or leave the key out")),
		},
		key{"tls", "The server's certificate, for the addresses that are host:port. HTTP/2 comes with it.", object(
			key{"cert", "PEM file of the certificate, followed by those between it and its root. A relative path starts at the folder of the config file.", must(&c.TLS.Cert, file)},
			key{"key", "PEM file of the certificate's private key, without a passphrase.", must(&c.TLS.Key, file)},
		)},
		key{"hosts", "Names that a Host header may have beside loopback names and the listen addresses, without a port.", set(&c.Hosts, list(host))},
		key{
			"trusted_proxies", "Addresses and networks (CIDR) of the proxies in front, whose X-Forwarded-For names the caller. Who can reach the server from one of them can claim to be anyone.",
			set(&c.TrustedProxies, list(network)),
		},
		key{"auth", "Who may call: `none` for anyone who can connect, or tokens.", auth(&c.Auth)},
		key{"limits", "Bounds of the whole server.", object(
			key{"body", "The input of one call, in bytes; a larger one gets 413.", set(&c.Limits.Body, size(1))},
			key{"body_timeout", "How long a whole input may take to arrive; then 408.", set(&c.Limits.BodyTimeout, duration(true))},
			key{"connections", "Connections open at once. Beyond that the one that has waited longest without a request makes room for a new one; where none waits, the new one is closed.", set(&c.Limits.Connections, whole(1, MaxConnections))},
			key{"streams", "Requests under way at once on one HTTP/2 connection.", set(&c.Limits.Streams, whole(1, MaxStreams))},
			key{"hangups", "What each caller may hang up on: a hang-up costs a worker. Who does it more often gets 429 until its budget has grown again.", object(
				key{"burst", "Hang-ups at once; 0: without limit.", set(&c.Limits.Hangups.Burst, whole(0, MaxHangups))},
				key{"per_minute", "Hang-ups a minute, on and on.", set(&c.Limits.Hangups.PerMinute, whole(1, MaxHangups))},
			)},
		)},
		key{"spool", "Where inputs of more than 64 KiB wait for their worker.", object(
			key{"dir", "The directory of the spool files, which must exist; \"\" is the system's temporary directory.", set(&c.Spool.Dir, optional(folder))},
			key{"max", "Bytes for all calls together; 0: nothing is spooled, and larger inputs get 507.", set(&c.Spool.Max, size(0))},
		)},
		key{"drain", "How long running calls may go on after SIGTERM, before the stop sequence ends them.", set(&c.Drain, duration(false))},
		key{"containment", "How surely the process trees of the workers must be held.", object(
			key{
				"minimum", "The weakest level that will do; serve does not start below it, and says what is missing. subreaper needs nothing of the host, cgroup what hangup doctor tells.",
				set(&c.Containment.Minimum, oneOf("process-group", "subreaper", "cgroup")),
			},
			key{"cgroup", "Whether cgroups (v2) are used where the host gives them: auto tries them out at the start, never does without.", set(&c.Containment.Cgroup, oneOf("auto", "never"))},
		)},
		key{"log", "The server's own log, on stderr.", object(
			key{"format", "json: one object a line; text: for people.", set(&c.Log.Format, oneOf("json", "text"))},
			key{"level", "The least that is logged.", set(&c.Log.Level, oneOf("debug", "info", "warn", "error"))},
		)},
		key{"workloads", "The kinds of work, by name: up to 63 of a-z, 0-9, _ and -, and first a letter or a digit. At least one; nothing else can be run.", workloads(&c.Workloads)},
	)
}

// workload is everything a file may say about one.
func workload(w *Workload) value {
	return object(
		key{
			"kind", "How the program is driven. worker: a long-lived program that speaks the worker protocol. http, command and terminal are not available in this version.",
			set(&w.Kind, without(oneOf("worker", "http", "command", "terminal"), ": only worker is", "http", "command", "terminal")),
		},
		key{"command", "The argv that starts a worker; there is no shell unless you write one. A program that is not there is told by check and in the log.", must(&w.Command, command)},
		key{"dir", "The worker's working directory, which must exist. A relative path starts at the folder of the config file.", set(&w.Dir, folder)},
		key{"env", "Variables of the worker's environment, which has nothing else but PATH, HOME, LANG, TZ, HANGUP_* and what pass_env names.", env(&w.Env)},
		key{"pass_env", "Names of variables that are taken from the server's own environment. One that is not there is left out, with a warning by check and in the log.", set(&w.PassEnv, unique(list(variable)))},
		key{"user", "The user that the workers run as.", later("")},
		key{"new_privileges", "true lets sudo, su and other set-user-ID programs work in a worker.", set(&w.NewPrivileges, boolean)},
		key{"workers", "Calls that run at once; 0: one a CPU.", set(&w.Workers, whole(0, MaxWorkers))},
		key{"spares", "Idle workers beyond that, so that a kill costs the next caller nothing.", set(&w.Spares, whole(0, MaxWorkers))},
		key{"queue", "Where calls wait for a worker.", object(
			key{"length", "Calls that may wait beyond those that run; one more gets 503. 0: none, but as many as workers while these start.", set(&w.Queue.Length, whole(0, MaxQueue))},
			key{"wait", "How long one call may wait; then 503.", set(&w.Queue.Wait, duration(false))},
		)},
		key{"timeout", "How long a call may run, from its start; then the stop sequence, and 504. 0: no limit.", set(&w.Timeout, duration(false))},
		key{"start_timeout", "How long a worker may take from its start until it is ready.", set(&w.StartTimeout, duration(true))},
		key{"stop", "The stop sequence: how a call that runs is ended. After the last step, everything left of the process tree is killed.", object(
			key{"cooperative", "How long the worker has to give the call up when asked; one that does stays warm. 0: it is not asked.", set(&w.Stop.Cooperative, duration(false))},
			key{"signal", "The signal to the worker's main process.", set(&w.Stop.Signal, signal)},
			key{"grace", "How long the main process then has to exit.", set(&w.Stop.Grace, duration(false))},
		)},
		key{"on_hangup", "What a caller may ask for when it goes away.", object(
			key{
				"allow", "The values of the header On-Hangup that are allowed. linger and detach are not available in this version.",
				set(&w.OnHangup.Allow, some(list(without(oneOf("cancel", "linger", "detach"), ": only cancel is", "linger", "detach")), "a caller must be allowed at least cancel")),
			},
			key{"result_ttl", "How long the result of a call without an owner is kept.", later(writeDuration(w.OnHangup.ResultTTL))},
		)},
		key{"recycle", "When an idle worker is replaced by a new one; never in the middle of a call.", object(
			key{"calls", "After so many calls; 0: never.", later(0)},
			key{"age", "At this age; 0: never.", later("0s", 0)},
			key{"memory", "Above so many bytes of memory; 0: never.", later(0)},
		)},
		key{"limits", "Bounds of one worker or one call.", object(
			key{"memory", "Bytes of memory of one worker's process tree; 0: no limit.", later(0)},
			key{"pids", "Processes and threads of one worker's process tree; 0: no limit.", later(0)},
			key{"cpus", "Processors that one worker's process tree may use; 0: no limit.", later(0)},
			key{"output", "Bytes of one call's result; then 500. 0: no limit.", set(&w.Limits.Output, size(0))},
			key{"files", "Descriptors open in one process, and never more than the server's own hard limit; 0: that one.", set(&w.Limits.Files, files)},
		)},
		key{"input", "What an input must be.", object(
			key{"schema", "File of a JSON Schema; an input that does not fulfil it gets 422.", later()},
		)},
		key{"ready", "Of kind http: the request that a program answers once it is ready.", later()},
		key{"stdin", "Of kind command: what the program gets on its stdin.", later()},
		key{"script", "Of kind terminal: what is sent to the program and expected from it.", later()},
	)
}

const workloadSyntax = `^[a-z0-9][a-z0-9_-]{0,62}$`

var workloadName = regexp.MustCompile(workloadSyntax)

func workloads(dst *[]Workload) value {
	usual := defaultWorkload("", ".")
	s := fragment{
		Type: "object", MinProperties: 1, AdditionalProperties: false,
		PatternProperties: map[string]fragment{workloadSyntax: workload(&usual).schema},
	}
	return value{must: true, schema: s, take: func(d *decoder, path string, n ast.Node) {
		for name, e := range d.entries(path, n) {
			if !workloadName.MatchString(name) {
				d.fault(e.key, "%s: cannot name a workload %s: up to 63 of a-z, 0-9, _ and -, and first a letter or a digit", path, quote(name))
			}
			w := defaultWorkload(name, d.dir)
			workload(&w).take(d, join(path, name), e.value)
			if w.Workers == 0 {
				w.Workers = runtime.NumCPU()
			}
			*dst = append(*dst, w)
		}
	}}
}

var command = func() parser[[]string] {
	p := some(list(text), "name a program")
	p.schema.PrefixItems = []fragment{{Type: "string", MinLength: 1}}
	parse := p.parse
	p.parse = func(d *decoder, path string, n ast.Node) ([]string, bool) {
		argv, ok := parse(d, path, n)
		if ok && argv[0] == "" {
			d.faultAt(path+"[0]", "the program has no name")
			return nil, false
		}
		return argv, ok
	}
	return p
}()

// optional lets "" stand for what the default means.
func optional(p parser[string]) parser[string] {
	parse := p.parse
	p.parse = func(d *decoder, path string, n ast.Node) (string, bool) {
		if s, ok := n.(*ast.StringNode); ok && s.Value == "" {
			return "", true
		}
		return parse(d, path, n)
	}
	return p
}

// unique is a list that check refuses when something comes twice.
func unique[T any](p parser[[]T]) parser[[]T] {
	p.schema.UniqueItems = true
	return p
}

// files reads how many descriptors a process may have.
var files = parser[int]{
	schema: fragment{
		Type: "integer", AnyOf: []fragment{{Const: 0}, {Minimum: bound(MinFiles)}},
		form: fmt.Sprintf("whole number: 0, or %d and up", MinFiles),
	},
	parse: func(d *decoder, path string, n ast.Node) (int, bool) {
		v, ok := whole(0, math.MaxInt).parse(d, path, n)
		if ok && v != 0 && v < MinFiles {
			d.fault(n, "%s: must be %d or more, or 0 for no limit, not %d: a program needs some to start", path, MinFiles, v)
			return 0, false
		}
		return v, ok
	},
}

const variableSyntax = `^[A-Za-z_][A-Za-z0-9_]*$`

var (
	variableName   = regexp.MustCompile(variableSyntax)
	variableSchema = fragment{Pattern: variableSyntax, Not: &fragment{Pattern: "^HANGUP_"}, form: "name of a variable"}
)

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
	s := fragment{Type: "object", PropertyNames: &variableSchema, AdditionalProperties: text.schema, Default: map[string]any{}, form: "names with texts"}
	return value{schema: s, take: func(d *decoder, path string, n ast.Node) {
		vars := map[string]string{}
		for name, e := range d.entries(path, n) {
			if wrong := checkVariable(name); wrong != "" {
				d.fault(e.key, "%s: %s", path, wrong)
			}
			if s, ok := text.parse(d, join(path, name), e.value); ok {
				vars[name] = s
			}
		}
		if len(vars) > 0 {
			*dst = vars
		}
	}}
}

var variable = textAs(variableSchema, func(_ *decoder, s string) (string, string) {
	return s, checkVariable(s)
})

// auth reads `none`, or tokens.
func auth(a *Auth) value {
	given := object(key{"tokens", "The tokens; none by default.", set(&a.Tokens, tokens)})
	s := fragment{AnyOf: []fragment{{Const: "none"}, given.schema}, form: "none, or tokens"}
	return value{schema: s, take: func(d *decoder, path string, n ast.Node) {
		if s, ok := n.(*ast.StringNode); ok {
			if s.Value != "none" {
				d.fault(n, "%s: cannot be %s: it must be none, or tokens", path, quote(s.Value))
			}
			a.Off = s.Value == "none"
			return
		}
		given.take(d, path, n)
	}}
}

var tokenName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@-]{0,62}$`)

// tokens reads what lets callers in.
var tokens = func() parser[[]Token] {
	row := func(t *Token) value {
		return object(
			key{"name", "Names the bearer in the log; unique.", must(&t.Name, matching(tokenName, "a name: up to 63 letters, digits and . _ @ -, and first a letter or a digit"))},
			key{"sha256", "The SHA-256 of the token, in hex: `printf %s \"$TOKEN\" | sha256sum`.", must(&t.SHA256, digest)},
			key{
				"allow", "What its bearer may do: execute makes calls, observe reads calls and workloads (and metrics, with all workloads), operate cancels calls.",
				must(&t.Allow, some(list(oneOf("execute", "observe", "operate")), "allow execute, observe or operate")),
			},
			key{"workloads", "The workloads it is for, or \"*\" for all.", set(&t.Workloads, some(list(text), `name a workload, or write ["*"] for all`))},
		)
	}
	fresh := func() Token { return Token{Workloads: []string{"*"}} }
	sample := fresh()
	return list(parser[Token]{
		schema: row(&sample).schema,
		parse: func(d *decoder, path string, n ast.Node) (Token, bool) {
			before := len(d.faults)
			t := fresh()
			r := row(&t)
			r.take(d, path, n)
			for _, name := range r.schema.Required {
				if d.missing(join(path, name)) {
					d.fault(n, "%s: %s is missing: a token needs name, sha256 and allow", path, name)
				}
			}
			return t, len(d.faults) == before
		},
	})
}()

var digest = textAs(fragment{Pattern: "^[0-9A-Fa-f]{64}$", form: "64 hex digits"}, func(_ *decoder, s string) (sum [32]byte, wrong string) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(sum) {
		return sum, fmt.Sprintf("must be the SHA-256 of a token of your own, %d hex digits: printf %%s \"$TOKEN\" | sha256sum", 2*len(sum))
	}
	return [32]byte(b), ""
})
