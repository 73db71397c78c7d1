package config

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// work is a workload for the cases that are about something else; it is one
// line, so that what follows it begins in line 2.
const work = "workloads: {w: {command: [a]}}\n"

// inWorkload is a workload that says keys, in line 3 from column 5 on.
func inWorkload(keys string) string {
	return "workloads:\n  w:\n    " + keys + "\n    command: [a]\n"
}

const digestA = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

var faultCases = []struct {
	yaml string
	want []string // each begins a fault's LINE:COL: message, in the order of the file
}{
	// The file as a whole.
	{"", []string{"1:1: the config is empty: it needs at least `workloads:`"}},
	{"# nothing\n", []string{"1:1: the config is empty"}},
	{"---\n", []string{"1:1: the config is empty"}},
	{"null\n", []string{"1:1: the config must be keys with values, not nothing"}},
	{"hello\n", []string{`1:1: the config must be keys with values, not "hello"`}},
	{"- a\n", []string{"1:1: the config must be keys with values, not a list"}},
	{"drain: 1s\n", []string{"1:1: workloads is missing"}},
	{work + "drain: 1s\x00\n", []string{"2:10: control character 0x00: remove it"}},
	{work + "drain: 1s\x1b[2J\n", []string{"2:10: control character 0x1b"}},
	{work + "log: \xff\n", []string{"2:6: byte 0xff is no UTF-8"}},
	{"\ufeff" + work, []string{"1:1: a byte order mark"}},
	{work + "---\nworkloads: {}\n", []string{"3:1: a second document"}},
	{work + strings.Repeat("#", MaxFile), []string{"1:1: the config is longer than 256 KiB"}},

	// Its syntax.
	{work + "log: {format: json\n", []string{"2:6: could not find flow mapping end token '}'"}},
	{work + "limits:\n\tbody: 1\n", []string{"3:1: found character '\t' that cannot start any token; indent with spaces"}},
	{work + "drain: \"8s\n", []string{"2:8: could not find end character of double-quoted text"}},
	{work + "drain: a: b\n", []string{"2:8: mapping value is not allowed in this context"}},
	{"workloads: &x {}\nlog: *x\n", []string{"1:12: anchors and aliases (&) are not read", "2:6: anchors and aliases (*)"}},
	{"a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]\n", []string{"1:4: anchors", "2:4: anchors", "2:8: anchors", "2:12: anchors", "3:5: anchors", "3:9: anchors"}},
	{work + "log: {<<: {format: json}}\n", []string{"2:7: merge keys"}},
	{work + "drain: !!str 8s\n", []string{"2:8: tags (!!str) are not read"}},
	{"%YAML 1.2\n---\n" + work, []string{"1:1: directives"}},
	{work + "? drain\n: 8s\n", []string{"2:1: keys with `?`"}},
	{strings.Repeat("[", 100_000), []string{"1:33: nested more than 32 levels deep"}},
	{strings.Repeat("{a: ", 60_000), []string{"1:129: nested more than 32 levels deep"}},
	{strings.Repeat("- ", 100_000), []string{"1:4001: more than 2000 items on one line"}},

	// Keys.
	{work + "drian: 8s\n", []string{`2:1: unknown key "drian": did you mean drain?`}},
	{work + "zzz: 8s\n", []string{`2:1: unknown key "zzz": it must be listen, tls,`}},
	{inWorkload("wokers: 2"), []string{`3:5: unknown key "wokers" in workloads.w: did you mean workers?`}},
	{"workloads:\n  w: {comand: [a]}\n", []string{`2:7: unknown key "comand" in workloads.w: did you mean command?`}}, // and no word of one that is missing
	{"workloads:\n  w: {zzz: [a]}\n", []string{"2:3: workloads.w: command is missing", `2:7: unknown key "zzz"`}},
	{work + "auth: {tokens: [{nmae: a, sha256: " + digestA + ", allow: [execute]}]}\n", []string{`2:18: unknown key "nmae" in auth.tokens[0]: did you mean name?`}},
	{work + "tls: {cert: a, kye: b}\n", []string{`2:16: unknown key "kye" in tls: did you mean key?`}},
	{inWorkload("startTimeout: 2s"), []string{`3:5: unknown key "startTimeout" in workloads.w: did you mean start_timeout?`}},
	{work + "limits: {bdoy: 1MiB}\n", []string{`2:10: unknown key "bdoy" in limits: did you mean body?`}},
	{work + "drain: 8s\nlog:\n  level: info\ndrain: 9s\n", []string{`5:1: key "drain" stands in line 2 already: remove one`}},
	{"workloads:\n  w: {command: [a]}\n  w: {command: [b]}\n", []string{`3:3: key "w" stands in line 2 already in workloads: remove one`}},
	{work + "drain:\n", []string{"2:1: drain: has no value"}},
	{work + "limits:\n  body: ~\n", []string{"3:3: limits.body: has no value"}},
	{work + "limits: 5\n", []string{"2:9: limits: must be keys with values, not the number 5"}},
	{work + "limits: [body]\n", []string{"2:9: limits: must be keys with values, not a list"}},

	// Durations.
	{work + "drain: 8\n", []string{"2:8: drain: 8 has no unit: write 8s for seconds"}},
	{work + "drain: 1.5\n", []string{"2:8: drain: 1.5 has no unit: write 1.5s"}},
	{work + "drain: -0s\n", []string{"2:8: drain: cannot be negative"}},
	{work + "drain: -8s\n", []string{"2:8: drain: cannot be negative"}},
	{work + "drain: 8 s\n", []string{`2:8: drain: cannot read "8 s" as a duration: write numbers with h, m, s or ms`}},
	{work + "drain: 1d\n", []string{`2:8: drain: cannot read "1d" as a duration`}},
	{work + "drain: true\n", []string{"2:8: drain: must be a duration as 30s, not the truth value true"}},
	{work + "drain: [8s]\n", []string{"2:8: drain: must be a duration as 30s, not a list"}},
	{work + "drain: 9999999999h\n", []string{"2:8: drain: cannot read"}},
	{inWorkload("start_timeout: 0s"), []string{"3:20: workloads.w.start_timeout: must be more than 0"}},
	{work + "limits: {body_timeout: 0}\n", []string{"2:24: limits.body_timeout: must be more than 0"}},

	// Sizes.
	{work + "limits: {body: 16MB}\n", []string{`2:16: limits.body: the unit of "16MB" is not known: write 16MiB (units are binary`}},
	{work + "limits: {body: 16k}\n", []string{`2:16: limits.body: the unit of "16k" is not known: write 16KiB`}},
	{work + "limits: {body: 16x}\n", []string{`2:16: limits.body: the unit of "16x" is not known: write KiB, MiB, GiB or TiB`}},
	{work + "limits: {body: 1.5GiB}\n", []string{`2:16: limits.body: must be a size, not "1.5GiB"`}},
	{work + "limits: {body: 0}\n", []string{"2:16: limits.body: must be 1 bytes or more, not 0"}},
	{work + "spool: {max: -1}\n", []string{"2:14: spool.max: must be 0 bytes or more, not -1"}},
	{work + "spool: {max: 9999999TiB}\n", []string{`2:14: spool.max: "9999999TiB" is too large`}},
	{work + "spool: {max: 99999999999999999999GiB}\n", []string{`2:14: spool.max: "99999999999999999999GiB" is too large`}},

	// Numbers and words.
	{inWorkload("workers: -1"), []string{"3:14: workloads.w.workers: must be 0 or more, not -1"}},
	{inWorkload("workers: 99999"), []string{"3:14: workloads.w.workers: must be 10000 or less, not 99999"}},
	{inWorkload("workers: 18446744073709551615"), []string{"3:14: workloads.w.workers: must be 10000 or less"}},
	{inWorkload("workers: 99999999999999999999999"), []string{"3:14: workloads.w.workers: must be"}},
	{inWorkload("workers: two"), []string{`3:14: workloads.w.workers: must be a whole number, not "two"`}},
	{inWorkload("workers: 1.5"), []string{"3:14: workloads.w.workers: must be a whole number, not the number 1.5"}},
	{inWorkload("spares: .inf"), []string{"3:13: workloads.w.spares: must be a whole number"}},
	{inWorkload("queue: {length: -1}"), []string{"3:21: workloads.w.queue.length: must be 0 or more, not -1"}},
	{work + "limits: {connections: 0}\n", []string{"2:23: limits.connections: must be 1 or more, not 0"}},
	{inWorkload("limits: {files: 15}"), []string{"3:21: workloads.w.limits.files: must be 16 or more, or 0 for no limit, not 15: a program needs some to start"}},
	{inWorkload("limits: {files: -1}"), []string{"3:21: workloads.w.limits.files: must be 0 or more, not -1"}},
	{inWorkload("limits: {files: 1KiB}"), []string{`3:21: workloads.w.limits.files: must be a whole number, not "1KiB"`}},
	{inWorkload("new_privileges: yes"), []string{`3:21: workloads.w.new_privileges: must be true or false, not "yes"`}},
	{work + "log: {level: warning}\n", []string{`2:14: log.level: cannot be "warning": did you mean warn?`}},
	{work + "log: {format: xml}\n", []string{`2:15: log.format: cannot be "xml": it must be json or text`}},
	{work + "log: {format: 7}\n", []string{"2:15: log.format: must be json or text, not the number 7"}},
	{inWorkload("stop: {signal: sigterm}"), []string{`3:20: workloads.w.stop.signal: cannot be "sigterm": did you mean SIGTERM?`}},
	{inWorkload("stop: {signal: TERM}"), []string{`3:20: workloads.w.stop.signal: cannot be "TERM": did you mean SIGTERM?`}},
	{inWorkload("stop: {signal: 15}"), []string{"3:20: workloads.w.stop.signal: must be SIGTERM, SIGINT,"}},
	{inWorkload("stop: {signal: SIGSTOP}"), []string{`3:20: workloads.w.stop.signal: cannot be "SIGSTOP"`}},

	// Listen and auth.
	{work + "listen: 127.0.0.1:8080\n", []string{`2:9: listen: must be a list, not "127.0.0.1:8080": write it as [127.0.0.1:8080]`}},
	{work + "listen: []\n", []string{"2:9: listen: is empty"}},
	{work + "listen: [8080]\n", []string{"2:10: listen[0]: must be host:port, not the number 8080"}},
	{work + "listen: [localhost]\n", []string{`2:10: listen[0]: cannot read "localhost" as host:port`}},
	{work + "listen: [127.0.0.1:http]\n", []string{`2:10: listen[0]: cannot use "http" as a port`}},
	{work + "listen: [127.0.0.1:65536]\n", []string{`2:10: listen[0]: cannot use "65536" as a port`}},
	{work + "listen: [\"a b:80\"]\n", []string{`2:10: listen[0]: "a b" is neither an address nor a host name`}},
	{work + "listen: [\"unix:\"]\n", []string{"2:10: listen[0]: the socket has no path: write unix:/path"}},
	{work + "listen: [\"unix:@hangup\"]\n", []string{"2:10: listen[0]: a socket without a file is open to every user"}},
	{work + "listen: [\"unix:a\\0b\"]\n", []string{"2:10: listen[0]: holds a NUL character"}},
	{work + "listen: [unix:/" + strings.Repeat("x", 107) + "]\n", []string{`2:10: listen[0]: the path "/xxx`}},
	{work + "listen: [unix:nowhere/h.sock]\n", []string{"2:10: listen[0]: cannot find the directory"}},
	{work + "listen: [unix:a-file/h.sock]\n", []string{"2:10: listen[0]: "}},
	{work + "listen: [unix:a-file]\n", []string{"2:10: listen[0]: "}},
	{work + "listen: [unix:.]\n", []string{"2:10: listen[0]: "}},
	{work + "listen: [unix:h.sock, unix:./h.sock]\n", []string{"2:23: listen[1]: unix:/"}},
	{work + "listen:\n  - unix: /run/h.sock\n", []string{"3:5: listen[0]: must be host:port, not keys with values: as 127.0.0.1:8080, or unix:/path"}},
	{work + "listen: [unix:h.sock, \":80\"]\n", []string{"2:23: listen[1]: :80 can be reached from other machines"}},
	{work + "listen: [127.0.0.1:80, 127.0.0.1:80]\n", []string{"2:24: listen[1]: 127.0.0.1:80 stands in the list already"}},
	{work + "listen:\n  - 127.0.0.1:80\n  - 0.0.0.0:80\n", []string{"4:5: listen[1]: 0.0.0.0:80 can be reached from other machines"}},
	{work + "listen: [\":8080\"]\n", []string{"2:10: listen[0]: :8080 can be reached from other machines, and anyone could run work: add auth.tokens, or write `auth: none`"}},
	{work + "listen: [\"[::]:80\"]\nauth: {tokens: []}\n", []string{"2:10: listen[0]: [::]:80 can be reached"}},
	{work + "auth: open\n", []string{`2:7: auth: cannot be "open": it must be none, or tokens`}},
	{work + "auth: {none: true}\n", []string{`2:8: unknown key "none" in auth: it must be tokens`}},
	{work + "listen: [\":80\"]\nauth:\n  tokens:\n    - {name: a, sha256: abc, allow: [execute]}\n", []string{"5:25: auth.tokens[0].sha256: must be the SHA-256 of a token of your own, 64 hex digits"}},
	{work + "auth: {tokens: [{sha256: " + digestA + ", allow: [execute]}]}\n", []string{"2:17: auth.tokens[0]: name is missing"}},
	{work + "auth: {tokens: [{}]}\n", []string{"2:17: auth.tokens[0]: name is missing", "2:17: auth.tokens[0]: sha256 is missing", "2:17: auth.tokens[0]: allow is missing"}},
	{work + "auth: {tokens: [{name: a, sha256: " + digestA + ", allow: [exec]}]}\n", []string{`2:109: auth.tokens[0].allow[0]: cannot be "exec": did you mean execute?`}},
	{work + "auth: {tokens: [{name: a, sha256: " + digestA + ", allow: []}]}\n", []string{"2:108: auth.tokens[0].allow: is empty: allow execute, observe or operate"}},
	{work + "auth: {tokens: [{name: a, sha256: " + digestA + ", allow: [execute], workloads: [v]}]}\n", []string{`2:131: auth.tokens[0].workloads[0]: no workload is named "v": it must be w or "*"`}},
	{work + "auth:\n  tokens:\n    - {name: a, sha256: " + digestA + ", allow: [execute]}\n    - {name: a, sha256: " + digestA + ", allow: [observe]}\n", []string{
		`5:14: auth.tokens[1].name: "a" names another token already`,
		`5:25: auth.tokens[1].sha256: this is the token of "a" already`,
	}},
	{work + "auth: {tokens: [{name: \"a\\nb\", sha256: " + digestA + ", allow: [execute]}]}\n", []string{`2:24: auth.tokens[0].name: "a\nb" is not a name`}},
	{work + "hosts: [\"https://a.example\"]\n", []string{`2:9: hosts[0]: "https://a.example" is no host name`}},
	{work + "hosts: [\"*.example\", a.example:80]\n", []string{"2:9: hosts[0]:", "2:22: hosts[1]:"}},

	// Certificates and proxies; what is in the files, see TestCertificate.
	{work + "tls: {}\n", []string{"2:6: tls: cert is missing: a certificate and its key are given together"}},
	{work + "tls: {cert: a}\n", []string{"2:6: tls: key is missing"}},
	{work + "tls: {key: a}\n", []string{"2:6: tls: cert is missing"}},
	{work + "tls: on\n", []string{`2:6: tls: must be keys with values, not "on"`}},
	{work + "tls: {cert: \"\", key: b}\n", []string{"2:13: tls.cert: names no file"}},
	{work + "tls: {cert: a, key: b}\n", []string{"2:13: tls.cert: cannot read the certificate", "2:21: tls.key: cannot read the key"}},
	{work + "tls: {cert: /dev/zero, key: .}\n", []string{`2:13: tls.cert: cannot read the certificate "/dev/zero": it is no regular file`, `2:29: tls.key: cannot read the key "`}},
	{work + "trusted_proxies: 10.0.0.0/8\n", []string{`2:18: trusted_proxies: must be a list, not "10.0.0.0/8"`}},
	{work + "trusted_proxies: [proxy.example, 10.0.0.0/33, 10.0.0.0/08]\n", []string{
		`2:19: trusted_proxies[0]: cannot read "proxy.example" as a network or an address: write it as 10.0.0.0/8`, "2:34: trusted_proxies[1]: cannot read", "2:47: trusted_proxies[2]: cannot read",
	}},
	{work + "trusted_proxies: [10.0.0.1/8]\n", []string{`2:19: trusted_proxies[0]: "10.0.0.1/8" is an address inside a network: write 10.0.0.0/8 for the network, or 10.0.0.1 for the one address`}},
	{work + "trusted_proxies: [\"fe80::1%eth0\"]\n", []string{`2:19: trusted_proxies[0]: the zone of "fe80::1%eth0" cannot be told apart`}},
	{work + "trusted_proxies: [10.0]\n", []string{"2:19: trusted_proxies[0]: must be a network or an address, not the number 10.0"}},
	{work + "limits: {streams: 0}\n", []string{"2:19: limits.streams: must be 1 or more, not 0"}},
	{work + "limits: {streams: 10001}\n", []string{"2:19: limits.streams: must be 10000 or less"}},
	{work + "limits: {hangups: 5}\n", []string{"2:19: limits.hangups: must be keys with values, not the number 5"}},
	{work + "limits: {hangups: {burst: -1, per_minute: 0}}\n", []string{"2:27: limits.hangups.burst: must be 0 or more", "2:43: limits.hangups.per_minute: must be 1 or more"}},

	// Workloads.
	{"workloads: {}\n", []string{"1:12: workloads: is empty: declare at least one"}},
	{"workloads:\n", []string{"1:1: workloads: has no value"}},
	{"workloads: [w]\n", []string{"1:12: workloads: must be keys with values, not a list"}},
	{"workloads:\n  w:\n", []string{"2:3: workloads.w: has no value"}},
	{"workloads:\n  w: {}\n", []string{"2:3: workloads.w: command is missing"}},
	{"workloads:\n  W: {command: [a]}\n", []string{`2:3: workloads: cannot name a workload "W"`}},
	{"workloads:\n  a/b: {command: [a]}\n", []string{`2:3: workloads: cannot name a workload "a/b"`}},
	{"workloads:\n  w: {command: python3 w.py}\n", []string{`2:16: workloads.w.command: must be a list, not "python3 w.py": write it as [python3, w.py]`}},
	{"workloads:\n  w: {command: []}\n", []string{"2:16: workloads.w.command: is empty: name a program"}},
	{"workloads:\n  w: {command: [\"\"]}\n", []string{"2:17: workloads.w.command[0]: the program has no name"}},
	{"workloads:\n  w: {command: [sleep, 5]}\n", []string{`2:24: workloads.w.command[1]: must be text, not the number 5: write "5" with its quotes`}},
	{"workloads:\n  w: {command: [\"a\\0b\"]}\n", []string{"2:17: workloads.w.command[0]: holds a NUL character"}},
	{inWorkload("dir: nowhere"), []string{"3:10: workloads.w.dir: cannot find the directory"}},
	{inWorkload("dir: a-file"), []string{"3:10: workloads.w.dir: "}},
	{inWorkload("env: {A-B: x}"), []string{`3:11: workloads.w.env: "A-B" is no name of a variable`}},
	{inWorkload("env: {HANGUP_IN: x}"), []string{`3:11: workloads.w.env: "HANGUP_IN" is set by hangup itself`}},
	{inWorkload("env: {PORT: 8080}"), []string{`3:17: workloads.w.env.PORT: must be text, not a number or a truth value: write it with quotes`}},
	{inWorkload("env: {DEBUG: true}"), []string{`3:18: workloads.w.env.DEBUG: must be text, not a number or a truth value: write it with quotes`}},
	{inWorkload("env: [A=b]"), []string{"3:10: workloads.w.env: must be keys with values, not a list"}},
	{inWorkload("pass_env: [1A]"), []string{`3:16: workloads.w.pass_env[0]: "1A" is no name of a variable`}},
	{inWorkload("pass_env: [A, A]"), []string{"3:19: workloads.w.pass_env[1]: A stands in the list already"}},
	{inWorkload("env: {A: x}\n    pass_env: [A]"), []string{"4:16: workloads.w.pass_env[0]: A is set in env already"}},

	// What is planned and not built: refused, never ignored.
	{work + "containment: {minimum: cgroup, cgroup: never}\n", []string{"2:40: containment.cgroup: never cannot be with containment.minimum: cgroup"}},
	{inWorkload("kind: http"), []string{"3:11: workloads.w.kind: http is not available in this version: only worker is"}},
	{inWorkload("kind: wroker"), []string{`3:11: workloads.w.kind: cannot be "wroker": did you mean worker?`}},
	{inWorkload("user: nobody"), []string{"3:11: workloads.w.user: not available in this version"}},
	{inWorkload("recycle: {calls: 5}"), []string{"3:22: workloads.w.recycle.calls: not available in this version"}},
	{inWorkload("recycle: {age: 1h, memory: 1GiB}"), []string{"3:20: workloads.w.recycle.age: not available", "3:32: workloads.w.recycle.memory: not available"}},
	{inWorkload("limits: {memory: 1GiB, pids: 9, cpus: 0.5}"), []string{
		"3:22: workloads.w.limits.memory: not", "3:34: workloads.w.limits.pids: not", "3:43: workloads.w.limits.cpus: not",
	}},
	{inWorkload("input: {schema: a.json}"), []string{"3:21: workloads.w.input.schema: not available in this version"}},
	{inWorkload("on_hangup: {allow: [cancel, linger]}"), []string{"3:33: workloads.w.on_hangup.allow[1]: linger is not available in this version: only cancel is"}},
	{inWorkload("on_hangup: {result_ttl: 6m}"), []string{"3:29: workloads.w.on_hangup.result_ttl: not available in this version: leave it out"}},
	{inWorkload("on_hangup: {result_ttl: 0s}"), []string{"3:29: workloads.w.on_hangup.result_ttl: not available in this version"}},
	{inWorkload("recycle: {calls: \"0\", age: 0, memory: 0KiB}"), []string{"3:22: workloads.w.recycle.calls: not", "3:43: workloads.w.recycle.memory: not"}},
	{inWorkload("on_hangup: {allow: []}"), []string{"3:24: workloads.w.on_hangup.allow: is empty"}},
	{inWorkload("ready: {path: /}"), []string{"3:12: workloads.w.ready: not available in this version"}},
	{inWorkload("stdin: body"), []string{"3:12: workloads.w.stdin: not available in this version"}},
	{inWorkload("script: []"), []string{"3:13: workloads.w.script: not available in this version"}},

	// All of them at once, in the order of the file.
	{"drian: 8s\nlog: {level: loud}\nworkloads:\n  w:\n    workers: x\n    stop: {grace: 1}\n", []string{
		`1:1: unknown key "drian"`, `2:14: log.level: cannot be "loud"`, "4:3: workloads.w: command is missing",
		"5:14: workloads.w.workers: must be", "6:19: workloads.w.stop.grace: 1 has no unit",
	}},
	// Columns are characters, whatever stands before and however lines end.
	{"hosts: [ä, ö]\nworkloads: {w: {command: [a], env: {ß: x}}}\n", []string{"1:9: hosts[0]", "1:12: hosts[1]", "2:37: workloads.w.env"}},
	{"drain: 8s\r\nlog:\r\n  level: loud\r\nworkloads: {w: {command: [a]}}\r\n", []string{"3:10: log.level"}},
}

func TestFaults(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a-file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "hangup.yaml")
	for _, c := range faultCases {
		name := c.yaml[:min(len(c.yaml), 60)]
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			got, err := Parse(file, []byte(c.yaml))
			var faults Faults
			if !errors.As(err, &faults) {
				t.Fatalf("Parse gave %+v, %v; want faults %q", got, err, c.want)
			}
			lines := strings.Split(faults.Error(), "\n")
			if len(lines) != len(c.want) {
				t.Fatalf("got %d faults, want %d:\n%v", len(lines), len(c.want), faults)
			}
			for i, line := range lines {
				if want := file + ":" + c.want[i]; !strings.HasPrefix(line, want) {
					t.Errorf("fault %d:\ngot  %s\nwant %s…", i, line, want)
				}
			}
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

func TestDefaults(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "hangup.yaml")
	got, err := Parse(file, []byte("workloads:\n  resize:\n    command: [python3, resize.py]\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := &Config{
		Listen:      []string{"127.0.0.1:8080"},
		Limits:      Limits{Body: 16777216, BodyTimeout: 30 * time.Second, Connections: 10000, Streams: 100, Hangups: Hangups{Burst: 2000, PerMinute: 600}},
		Spool:       Spool{Dir: "", Max: 1073741824},
		Drain:       8 * time.Second,
		Containment: Containment{Minimum: "subreaper", Cgroup: "auto"},
		Log:         Log{Format: "json", Level: "info"},
		Workloads: []Workload{{
			Name: "resize", Kind: "worker", Command: []string{"python3", "resize.py"}, Dir: dir,
			Workers: runtime.NumCPU(), Spares: 1,
			Queue:   Queue{Length: 100, Wait: 30 * time.Second},
			Timeout: 5 * time.Minute, StartTimeout: 30 * time.Second,
			Stop:     Stop{Cooperative: 0, Signal: syscall.SIGTERM, Grace: time.Second},
			OnHangup: OnHangup{Allow: []string{"cancel"}, ResultTTL: 5 * time.Minute},
			Limits:   WorkLimits{Output: 67108864, Files: 1024},
		}},
		File: file, Dir: dir,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("defaults (-want +got):\n%s", diff)
	}
}

// A file may say every default; it is then as if it said nothing.
func TestDefaultsSaid(t *testing.T) {
	file := filepath.Join(t.TempDir(), "hangup.yaml")
	want, err := Parse(file, []byte("workloads: {resize: {command: [python3, resize.py]}}\n"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse(file, []byte(`
listen: [127.0.0.1:8080]
hosts: []
trusted_proxies: []
auth: {tokens: []}
limits: {body: 16MiB, body_timeout: 30s, connections: 10000, streams: 100, hangups: {burst: 2000, per_minute: 600}}
spool: {dir: "", max: 1GiB}
drain: 8s
containment: {minimum: subreaper, cgroup: auto}
log: {format: json, level: info}
workloads:
  resize:
    kind: worker
    command: [python3, resize.py]
    dir: .
    env: {}
    pass_env: []
    user: ""
    new_privileges: false
    workers: 0
    spares: 1
    queue: {length: 100, wait: 30s}
    timeout: 5m
    start_timeout: 30s
    stop: {cooperative: 0s, signal: SIGTERM, grace: 1s}
    on_hangup: {allow: [cancel], result_ttl: 5m}
    recycle: {calls: 0, age: 0s, memory: 0}
    limits: {memory: 0, pids: 0, cpus: 0, output: 64MiB, files: 1024}
`))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("said or not (-not +said):\n%s", diff)
	}
}

func TestFilesUnlimited(t *testing.T) {
	c, err := Parse("hangup.yaml", []byte(inWorkload("limits: {files: 0}")))
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Workloads[0].Limits.Files; got != 0 {
		t.Errorf("files: 0 gave %d", got)
	}
}

func TestEveryKey(t *testing.T) {
	t.Setenv("DATABASE_URL", "there")
	dir := t.TempDir()
	writePair(t, dir, "server", time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	for _, sub := range []string{"spool", "work"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, "hangup.yaml")
	got, err := Parse(file, []byte(`# every key of this version, none at its default where there is a choice
listen: [0.0.0.0:0, "[::1]:8443", "localhost:9", unix:work/../h.sock, unix:/tmp/h.sock]
tls: {cert: server.pem, key: ./server.key}
trusted_proxies: [10.0.0.0/8, 192.0.2.7, "2001:db8::/32", "::1", "::ffff:172.16.0.0/108", "::ffff:192.0.2.8", 0.0.0.0/0]
hosts: [app.example.com, 10.0.0.1, "fe80::1"]
auth:
  tokens:
    - {name: ci, sha256: "`+digestA+`", allow: [execute, observe, operate], workloads: ["*"]}
    - {name: ops@home, sha256: "`+strings.Repeat("B", 64)+`", allow: [operate], workloads: [b, a]}
limits: {body: 64KiB, body_timeout: 1m30s, connections: 1, streams: 10000, hangups: {burst: 0, per_minute: 1}}
spool: {dir: spool, max: 0}
drain: 0
containment: {minimum: process-group, cgroup: never}
log: {format: text, level: debug}
workloads:
  b:
    kind: worker
    command:
      - sh
      - -c
      - |
        exec worker
    dir: work
    env: {MODE: fast, EMPTY: ""}
    pass_env: [DATABASE_URL]
    user: ""
    new_privileges: true
    workers: 3
    spares: 0
    queue: {length: 0, wait: 0s}
    timeout: 0s
    start_timeout: 1ms
    stop: {cooperative: 2s, signal: SIGINT, grace: 0s}
    on_hangup: {allow: [cancel], result_ttl: 5m}
    recycle: {calls: 0, age: 0s, memory: 0}
    limits: {memory: 0, pids: 0, cpus: 0, output: 1_000, files: 16}
  a: {command: [/bin/sh, "5"]}
`))
	if err != nil {
		t.Fatal(err)
	}
	want := &Config{
		Listen: []string{"0.0.0.0:0", "[::1]:8443", "localhost:9", "unix:" + filepath.Join(dir, "h.sock"), "unix:/tmp/h.sock"},
		TLS:    TLS{Cert: filepath.Join(dir, "server.pem"), Key: filepath.Join(dir, "server.key")},
		Hosts:  []string{"app.example.com", "10.0.0.1", "fe80::1"},
		TrustedProxies: []netip.Prefix{
			netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.0.2.7/32"), netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("::1/128"),
			netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.0.2.8/32"), netip.MustParsePrefix("0.0.0.0/0"),
		},
		Auth: Auth{Tokens: []Token{
			{Name: "ci", Allow: []string{"execute", "observe", "operate"}, Workloads: []string{"*"}},
			{Name: "ops@home", Allow: []string{"operate"}, Workloads: []string{"b", "a"}},
		}},
		Limits:      Limits{Body: 65536, BodyTimeout: 90 * time.Second, Connections: 1, Streams: 10000, Hangups: Hangups{Burst: 0, PerMinute: 1}},
		Spool:       Spool{Dir: filepath.Join(dir, "spool"), Max: 0},
		Containment: Containment{Minimum: "process-group", Cgroup: "never"},
		Log:         Log{Format: "text", Level: "debug"},
		File:        file, Dir: dir,
	}
	for i := range 32 {
		want.Auth.Tokens[0].SHA256[i], want.Auth.Tokens[1].SHA256[i] = 0xaa, 0xbb
	}
	a := defaultWorkload("a", dir)
	a.Command, a.Workers = []string{"/bin/sh", "5"}, runtime.NumCPU()
	want.Workloads = []Workload{{
		Name: "b", Kind: "worker", Command: []string{"sh", "-c", "exec worker\n"}, Dir: filepath.Join(dir, "work"),
		Env: map[string]string{"MODE": "fast", "EMPTY": ""}, PassEnv: []string{"DATABASE_URL"},
		NewPrivileges: true, Workers: 3, StartTimeout: time.Millisecond,
		Stop:     Stop{Cooperative: 2 * time.Second, Signal: syscall.SIGINT},
		OnHangup: OnHangup{Allow: []string{"cancel"}, ResultTTL: 5 * time.Minute},
		Limits:   WorkLimits{Output: 1000, Files: 16},
	}, a}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A variable that is not there is told of, and no fault: serve may have it.
func TestPassEnvAbsent(t *testing.T) {
	t.Setenv("HERE", "")
	c, err := Parse("hangup.yaml", []byte("workloads:\n  w:\n    pass_env: [HERE, CONFIG_TEST_ABSENT]\n    command: [sh]\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := "hangup.yaml:3:22: workloads.w.pass_env[1]: CONFIG_TEST_ABSENT is not in the environment of this process: workers start without it"
	if len(c.Warnings) != 1 || c.Warnings[0].Error() != want {
		t.Errorf("got %v, want %s", c.Warnings, want)
	}
}

// So is a program that is not where the workers will look for it.
func TestProgramAbsent(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"work/run": 0o755, "work/plain": 0o644, "bin/tool": 0o755} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte("#!/bin/sh\n"), mode)); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", filepath.Join(dir, "bin"))
	for _, tt := range []struct{ command, more, want string }{
		{"tool", "", ""},
		{"nosuchprog", "", `cannot find the program "nosuchprog" in the PATH of the workers, which is "` + filepath.Join(dir, "bin") + `": no worker can start`},
		{"plain", "env: {PATH: .}", `cannot find the program "plain" in the PATH of the workers, which is "."`},
		{"run", "env: {PATH: \"/nowhere:.\"}", ""},
		{"tool", "env: {PATH: /nowhere}", `cannot find the program "tool" in the PATH of the workers, which is "/nowhere"`},
		{"./run", "", ""},
		{filepath.Join(dir, "bin/tool"), "", ""},
		{"./tool", "", `cannot find the program "` + filepath.Join(dir, "work/tool") + `" (no such file or directory): no worker can start`},
		{"../work/plain", "", `"` + filepath.Join(dir, "work/plain") + `" is not executable`},
		{"./", "", `"` + filepath.Join(dir, "work") + `" is a directory`},
	} {
		c, err := Parse(filepath.Join(dir, "hangup.yaml"), []byte("workloads:\n  w:\n    dir: work\n    command: ["+tt.command+"]\n    "+tt.more+"\n"))
		if err != nil {
			t.Fatal(err)
		}
		var got string
		for _, w := range c.Warnings {
			got += w.Error()
		}
		if before := filepath.Join(dir, "hangup.yaml") + ":4:15: workloads.w.command[0]: "; tt.want == "" && got != "" || tt.want != "" && !strings.HasPrefix(got, before+tt.want) {
			t.Errorf("%s, %s: %q, want %q", tt.command, tt.more, got, tt.want)
		}
	}
}

func TestAuthNone(t *testing.T) {
	c, err := Parse("hangup.yaml", []byte("listen: [\":8080\"]\nauth: none\n"+work))
	if err != nil {
		t.Fatal(err)
	}
	if !c.Auth.Off || len(c.Auth.Tokens) != 0 {
		t.Errorf("auth: none gave %+v", c.Auth)
	}
}

func TestExcerpt(t *testing.T) {
	for _, c := range []struct{ line, want string }{
		{"log: {level: loud}", "log: {level: loud}\n             ^"},
		{"\tlog: {level: loud}", "\tlog: {level: loud}\n\t             ^"},
		{strings.Repeat("x", 200) + "loud", strings.Repeat("x", 50) + "loud\n" + strings.Repeat(" ", 50) + "^"},
		{"loud" + strings.Repeat("x", 200), "loud" + strings.Repeat("x", 96) + "\n^"},
		{"a\x1bb loud", "a\ufffdb loud\n    ^"},
	} {
		col := len([]rune(c.line[:strings.Index(c.line, "loud")])) + 1
		if got := excerpt(c.line, col); got != c.want {
			t.Errorf("excerpt(%q, %d):\n%s\nwant:\n%s", c.line, col, got, c.want)
		}
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	write := func(name, data string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, c := range []struct{ path, want string }{
		{filepath.Join(dir, "missing.yaml"), "missing.yaml: cannot read the config: no such file; `hangup init` writes a starter"},
		{dir, ": cannot read the config: it is a directory"},
		{"/dev/zero", "/dev/zero:1:1: the config is longer than 256 KiB"},
		{write("bad.yaml", work+"drain: 8\n"), "bad.yaml:2:8: drain: 8 has no unit"},
	} {
		_, err := Load(c.path)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Load(%s): %v; want %s", c.path, err, c.want)
		}
	}
	c, err := Load(write("good.yaml", work))
	if err != nil {
		t.Fatal(err)
	}
	if c.Dir != dir || c.Workloads[0].Dir != dir {
		t.Errorf("Dir is %q, the workload's %q, want %q", c.Dir, c.Workloads[0].Dir, dir)
	}
}

func FuzzParse(f *testing.F) {
	for _, c := range faultCases {
		if len(c.yaml) < 4096 {
			f.Add([]byte(c.yaml))
		}
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse(filepath.Join(dir, "hangup.yaml"), data)
		if err == nil {
			if len(c.Workloads) == 0 || len(c.Listen) == 0 {
				t.Fatalf("%q gave a config without work: %+v", data, c)
			}
			return
		}
		var faults Faults
		if !errors.As(err, &faults) || len(faults) == 0 {
			t.Fatalf("%q gave %v, want faults", data, err)
		}
		lines := strings.Split(string(data), "\n")
		for _, fault := range faults {
			if fault.Line < 1 || fault.Line > len(lines) || fault.Col < 1 || fault.Col > len(lines[fault.Line-1])+1 {
				t.Errorf("%q: the place of %v lies outside the file", data, fault)
			}
			if strings.ContainsAny(fault.Msg, "\n\x00\x1b") || strings.Count(fault.Excerpt, "\n") != 1 {
				t.Errorf("%q: %q with the excerpt %q is not one line", data, fault.Msg, fault.Excerpt)
			}
		}
	})
}
