package e2e

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"example.com/hangup/internal/proc"
	"example.com/hangup/internal/proctest"
)

// other is a workload that no reload of these tests changes.
const other = "  other: {command: [python3, worker.py], workers: 1, spares: 0, stop: {grace: 200ms}}\n"

// version is the workload py, as changed as its number.
func version(n int) string {
	return fmt.Sprintf("  py: {command: [python3, worker.py], workers: 2, spares: 1, stop: {grace: 200ms}, env: {VERSION: %q}}\n", fmt.Sprint(n))
}

// configure writes a config without having it read.
func (s *server) configure(workloads string, settings ...string) {
	s.t.Helper()
	rest := strings.Join(settings, "\n") + "\nworkloads:\n" + workloads
	if slices.ContainsFunc(settings, func(s string) bool { return strings.HasPrefix(s, "listen:") }) {
		s.write("hangup.yaml", rest)
		return
	}
	s.config(rest)
}

// hangup has the server read its config, and returns the record of what came of it.
func (s *server) hangup(msg string) map[string]any {
	s.t.Helper()
	s.mu.Lock()
	before := len(s.log)
	s.mu.Unlock()
	if err := s.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		s.t.Fatal(err)
	}
	var found map[string]any
	s.eventually(msg, func() bool { // looks at what is new alone: there may be thousands
		s.mu.Lock()
		defer s.mu.Unlock()
		for ; before < len(s.log) && found == nil; before++ {
			if s.log[before]["msg"] == msg {
				found = s.log[before]
			}
		}
		return found != nil
	})
	return found
}

// reload gives the server a config that it takes, and checks what it says of it:
// "added", "removed", "changed" and "keys", with the names that are not none.
func (s *server) reload(want map[string]string, workloads string, settings ...string) {
	s.t.Helper()
	s.configure(workloads, settings...)
	got := s.hangup("reloaded")
	for _, member := range []string{"added", "removed", "changed", "keys"} {
		if names := strings.Trim(fmt.Sprint(got[member]), "[]"); names != want[member] {
			s.t.Errorf("%s: [%s], want [%s]", member, names, want[member])
		}
	}
}

// refuse gives the server a config that it does not take, and returns its faults.
func (s *server) refuse(content string) string {
	s.t.Helper()
	s.write("hangup.yaml", content)
	var lines []string
	for _, fault := range s.hangup("reload refused")["faults"].([]any) {
		lines = append(lines, fault.(string))
	}
	return strings.Join(lines, "\n")
}

// pids are the workers of a pool.
func (s *server) pids(pool string) (pids []int) {
	for _, w := range s.pool(pool).Workers {
		pids = append(pids, w.Pid)
	}
	slices.Sort(pids)
	return pids
}

// retiring names the pools that are on their way out.
func (s *server) retiring() (names []string) {
	var all struct{ Retiring []workload }
	s.fetch("/workloads", &all)
	for _, w := range all.Retiring {
		names = append(names, w.Name)
	}
	return names
}

// send is a call with headers of its own.
func (s *server) send(path, body string, header ...string) int {
	s.t.Helper()
	r, err := http.NewRequest("POST", s.url+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	r.Host = r.Header.Get("Host")
	reply, err := s.client.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	io.Copy(io.Discard, reply.Body)
	reply.Body.Close()
	return reply.StatusCode
}

// tokens is a setting by which each of these secrets may call.
func tokens(secrets ...string) string {
	var list []string
	for _, secret := range secrets {
		list = append(list, fmt.Sprintf("{name: %s, sha256: %x, allow: [execute]}", secret, sha256.Sum256([]byte(secret))))
	}
	return "auth: {tokens: [" + strings.Join(list, ", ") + "]}"
}

type lists = map[string]string

// TestReload: each kind of change once. What changes is in force when the record
// is there; what does not change is not touched.
func TestReload(t *testing.T) {
	s := start(t, version(1)+other)
	untouched := s.pids("other")
	check := func(step string) {
		t.Helper()
		if now := s.pids("other"); !slices.Equal(now, untouched) {
			t.Errorf("%s: the workers of a workload that has not changed are %v, were %v", step, now, untouched)
		}
		if code, _ := s.get("/readyz"); code != http.StatusOK {
			t.Errorf("%s: /readyz is %d", step, code)
		}
	}

	was := s.pids("py")
	s.reload(nil, version(1)+other)
	check("nothing")
	if now := s.pids("py"); !slices.Equal(now, was) {
		t.Errorf("without a change the workers are %v, were %v", now, was)
	}

	// A changed workload: who is in goes on, who comes is the new pool's.
	running := s.later("/execute/py/until", `"first"`)
	old := s.running("until").WorkerPid
	s.reload(lists{"changed": "py"}, version(2)+other)
	if w := s.pool("py"); w.State != "up" {
		t.Errorf("a new pool takes calls and is %s", w.State)
	}
	check("changed")
	if got := <-s.later("/execute/py/pid", "null"); got.status != http.StatusOK || slices.Contains(was, atoi(got.body)) {
		t.Errorf("a call after the reload got %+v; the workers before it were %v", got, was)
	}
	if names := s.retiring(); !slices.Equal(names, []string{"py"}) {
		t.Errorf("on their way out are %v", names)
	}
	s.eventually("one worker of the old pool", func() bool { return s.metric(`hangup_workers{state="busy",workload="py"}`) == 1 })
	s.write("first", "")
	if got := <-running; got.status != http.StatusOK || got.body != `"came"` {
		t.Errorf("the call that was running got %+v", got)
	}
	if c := s.find("ended", func(c callRecord) bool { return c.Task == "until" && c.State == "ended" }); c.WorkerPid != old || c.Outcome != "done" {
		t.Errorf("it was done by %d, and began in %d: %+v", c.WorkerPid, old, c)
	}
	s.eventually("gone", func() bool { return len(s.retiring()) == 0 })

	// One that waits for a worker of the old pool gets one of it.
	for range 2 {
		s.later("/execute/py/until", `"second"`)
	}
	s.eventually("two running", func() bool { return s.metric(`hangup_workers{state="busy",workload="py"}`) == 2 })
	before := s.pids("py")
	queued := s.later("/execute/py/pid", "null")
	s.eventually("queued", func() bool { return s.pool("py").Queued == 1 })
	s.reload(lists{"changed": "py"}, version(3)+other)
	s.write("second", "")
	if got := <-queued; got.status != http.StatusOK || !slices.Contains(before, atoi(got.body)) {
		t.Errorf("the call that was queued got %+v, and the workers of its pool were %v", got, before)
	}
	check("changed with a queue")

	// A new workload, and its end.
	extra := strings.Replace(other, "other", "extra", 1)
	s.reload(lists{"added": "extra"}, version(3)+other+extra)
	check("added")
	if n := s.metric(`hangup_calls_total{outcome="done",workload="extra"}`); n != 0 || !s.has(`hangup_calls_total{outcome="done",workload="extra"} 0`) {
		t.Errorf("the series of a new workload: %v", n)
	}
	if got := <-s.later("/execute/extra/echo", "1"); got.status != http.StatusOK {
		t.Errorf("a call to a new workload got %+v", got)
	}
	running = s.later("/execute/extra/until", `"third"`)
	s.eventually("busy", func() bool { return s.metric(`hangup_workers{state="busy",workload="extra"}`) == 1 })
	s.reload(lists{"removed": "extra"}, version(3)+other)
	if got := <-s.later("/execute/extra/echo", "1"); got.status != http.StatusNotFound || got.slug != "no-such-workload" {
		t.Errorf("a call to a removed workload got %+v", got)
	}
	s.write("third", "")
	if got := <-running; got.status != http.StatusOK || got.body != `"came"` {
		t.Errorf("the call that was running in it got %+v", got)
	}
	if !s.has(`hangup_calls_total{outcome="done",workload="extra"} 2`) {
		t.Error("the counters of a removed workload are not what they were")
	}
	check("removed")

	// What is no workload.
	if code := s.send("/execute/other/echo", "1", "Host", "app.example.com"); code != http.StatusForbidden {
		t.Errorf("a foreign Host: %d", code)
	}
	s.reload(lists{"keys": "hosts"}, version(3)+other, "hosts: [app.example.com]")
	if code := s.send("/execute/other/echo", "1", "Host", "app.example.com"); code != http.StatusOK {
		t.Errorf("a Host that is served now: %d", code)
	}
	large := string(bytes.Repeat([]byte("1"), 100<<10))
	for _, step := range []struct {
		setting, keys string
		code          int
	}{
		{"limits: {body: 64KiB}", "hosts limits", http.StatusRequestEntityTooLarge},
		{"spool: {max: 16KiB}", "limits spool", http.StatusInsufficientStorage},
		{"spool: {dir: " + t.TempDir() + "}", "spool", http.StatusOK},
		{"drain: 20s", "spool drain", http.StatusOK},
	} {
		s.reload(lists{"keys": step.keys}, version(3)+other, step.setting)
		if code := s.send("/execute/other/echo", large); code != step.code {
			t.Errorf("%s: a body of 100 KiB got %d, want %d", step.setting, code, step.code)
		}
	}

	// The next token is another, and the one before it is none.
	s.reload(lists{"keys": "auth drain"}, version(3)+other, tokens("first"))
	for range 2 { // the same connection, most likely
		for secret, code := range map[string]int{"first": http.StatusOK, "second": http.StatusUnauthorized} {
			if got := s.send("/execute/other/echo", "1", "Authorization", "Bearer "+secret); got != code {
				t.Errorf("the token %q: %d, want %d", secret, got, code)
			}
		}
	}
	s.reload(lists{"keys": "auth"}, version(3)+other, tokens("second"))
	for secret, code := range map[string]int{"first": http.StatusUnauthorized, "second": http.StatusOK} {
		if got := s.send("/execute/other/echo", "1", "Authorization", "Bearer "+secret); got != code {
			t.Errorf("the token %q: %d, want %d", secret, got, code)
		}
	}

	s.reload(lists{"keys": "auth log"}, version(3)+other, "log: {level: debug}")
	check("no tokens")
	s.post("/execute/other/echo", "1")
	s.eventually("a record for each change of a worker", func() bool { return len(s.records("worker changed")) > 0 })
	s.configure(version(3)+other, "log: {format: text}")
	if err := s.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	s.eventually("a log in text", func() bool { return strings.Contains(s.logText(), "msg=reloaded") })
	s.reload(lists{"changed": "py", "keys": "log"}, version(1)+other)
	check("at the end")
}

// has tells whether /metrics has that line.
func (s *server) has(sample string) bool {
	_, body := s.get("/metrics")
	return slices.Contains(strings.Split(string(body), "\n"), sample)
}

func atoi(text string) (n int) {
	fmt.Sscan(text, &n)
	return n
}

// TestReloadRefused: a config with a fault changes nothing, and the record names
// every fault with its place.
func TestReloadRefused(t *testing.T) {
	s := start(t, version(1)+other)
	file := filepath.Join(s.dir, "hangup.yaml")
	pids := slices.Concat(s.pids("py"), s.pids("other"))
	running := s.later("/execute/py/until", `"refused"`)
	s.running("until")
	for _, test := range []struct {
		name, content string
		want          []string // of each line of the faults
	}{
		{"two faults, and a change", "listen: [127.0.0.1:0]\nworkloads:\n" + version(2) + "  new: {comand: [x]}\nlimts: {}\n", []string{
			file + ":4:9: ", file + ":5:1: ",
		}},
		{"no YAML", "workloads: [\n", []string{file + ":"}},
		{"empty", "", []string{file + ":1:1: "}},
		{"what needs a restart", "listen: [127.0.0.1:0]\nlimits: {streams: 7}\ncontainment: {minimum: process-group}\nworkloads:\n" + version(2), []string{
			file + ": limits.streams: cannot be changed while the server runs: restart it",
			file + ": containment: cannot be changed while the server runs: restart it",
		}},
		{"addresses and certificates that cannot be had", "listen: [127.0.0.1:0, 192.0.2.1:1]\nauth: none\nworkloads:\n" + version(2), []string{
			file + ": cannot listen on 192.0.2.1:1: this machine has no such address",
		}},
		{"a worker that does not start", "listen: [127.0.0.1:0]\nworkloads:\n" + version(2) + "  a: {command: [./nothing]}\n  b: {command: [sh, -c, 'echo no luck today >&2; exit 3']}\n", []string{
			file + ": workloads.a: cannot start ./nothing: no such file",
			file + ": workloads.b: cannot start a worker: the worker exited with code 3",
		}},
		{"a spool that takes nothing", "listen: [127.0.0.1:0]\nspool: {dir: /proc}\nworkloads:\n" + version(2), []string{file + ": spool: cannot use spool directory /proc: "}},
	} {
		got := strings.Split(s.refuse(test.content), "\n")
		for i, want := range test.want {
			if len(got) != len(test.want) || !strings.HasPrefix(got[i], want) {
				t.Errorf("%s: the faults are\n\t%s\nand are to begin with\n\t%s", test.name, strings.Join(got, "\n\t"), strings.Join(test.want, "\n\t"))
				break
			}
		}
	}
	if now := slices.Concat(s.pids("py"), s.pids("other")); !slices.Equal(now, pids) {
		t.Errorf("the workers are %v, were %v", now, pids)
	}
	s.write("refused", "")
	if got := <-running; got.status != http.StatusOK {
		t.Errorf("the running call got %+v", got)
	}
	if n := len(s.records("reloaded")); n != 0 {
		t.Errorf("%d reloads are said to have been", n)
	}
	s.reload(lists{"changed": "py"}, version(2)+other) // what was refused was not taken for the config
}

// TestDrainDuringReload: SIGTERM is heard while a reload reads its file, however
// long that takes, and with a reload at the same instant.
func TestDrainDuringReload(t *testing.T) {
	t.Run("a file that never ends", func(t *testing.T) {
		s := launch(t, version(1))
		pipe := filepath.Join(s.dir, "pipe")
		if err := syscall.Mkfifo(pipe, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Rename(pipe, filepath.Join(s.dir, "hangup.yaml")); err != nil {
			t.Fatal(err)
		}
		if err := s.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		// The writer's end can be opened as soon as the server reads.
		s.eventually("reading", func() bool {
			fd, err := syscall.Open(filepath.Join(s.dir, "hangup.yaml"), syscall.O_WRONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
			if err == nil {
				t.Cleanup(func() { syscall.Close(fd) })
			}
			return err == nil
		})
		for range 20 { // more of them leave room for the other
			s.cmd.Process.Signal(syscall.SIGHUP)
		}
		if r, body := s.post("/execute/py/echo", "1"); r.StatusCode != http.StatusOK {
			t.Errorf("a call meanwhile: %s %s", r.Status, body)
		}
		s.end(syscall.SIGTERM, 0)
	})
	t.Run("a worker that is never ready", func(t *testing.T) {
		s := launch(t, version(1))
		s.configure(version(2) + "  never: {command: [sleep, \"1000\"], workers: 1}\n")
		if err := s.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		s.eventually("it starts", func() bool {
			return slices.ContainsFunc(proc.Look(s.cmd.Process.Pid), func(p proc.Process) bool { return strings.Contains(p.Command, "sleep") })
		})
		if r, body := s.post("/execute/py/echo", "1"); r.StatusCode != http.StatusOK {
			t.Errorf("a call meanwhile: %s %s", r.Status, body)
		}
		began := time.Now()
		s.end(syscall.SIGTERM, 0)
		if took := time.Since(began); took > 8*time.Second {
			t.Errorf("gone after %v", took)
		}
		if len(s.records("reloaded"))+len(s.records("left behind")) > 0 {
			t.Errorf("the log:\n%s", s.logText())
		}
		if left := s.atWork(); len(left) > 0 {
			t.Errorf("left behind: %s", left)
		}
	})
	t.Run("at once", func(t *testing.T) {
		for i := range rounds {
			s := launch(t, version(1))
			running := s.later("/execute/py/until", `"signalled"`)
			s.running("until")
			all := proc.Look(s.cmd.Process.Pid)
			s.configure(version(2) + other)
			signals := []syscall.Signal{syscall.SIGHUP, syscall.SIGTERM}
			for _, sig := range []syscall.Signal{signals[i%2], signals[1-i%2]} {
				if err := s.cmd.Process.Signal(sig); err != nil {
					t.Fatal(err)
				}
			}
			s.write("signalled", "")
			if got := <-running; got.status != http.StatusOK {
				t.Errorf("the running call got %+v", got)
			}
			s.gone(all, 0)
			if left := s.atWork(); len(left) > 0 {
				t.Errorf("left behind: %s", left)
			}
		}
	})
	t.Run("a pool on its way out", func(t *testing.T) {
		s := launch(t, strings.Replace(version(1), "200ms", "1s", 1), "drain: 1m")
		call := s.later("/execute/py/stubborn", "null")
		s.running("stubborn")
		s.reload(lists{"changed": "py", "keys": "drain"}, version(2), "drain: 200ms")
		began := time.Now()
		s.end(syscall.SIGTERM, 0)
		if got := <-call; got.status != http.StatusServiceUnavailable || got.slug != "draining" {
			t.Errorf("the call in it got %+v", got)
		}
		// Its grace is its own, and the drain is that of the new config.
		if took := time.Since(began); took < 200*time.Millisecond+time.Second {
			t.Errorf("gone after %v", took)
		}
	})
}

// TestReloadUnderLoad reloads a thousand times, with good and broken configs at
// random, while callers call: none of them notices, and at the end nothing is more
// than it was.
func TestReloadUnderLoad(t *testing.T) {
	reloads := 1000
	if testing.Short() || proctest.SecondLane() {
		reloads = 100
	}
	s := start(t, version(1)+other)
	untouched := s.pids("other")

	enough := make(chan struct{})
	var callers sync.WaitGroup
	var made [3]int
	for i := range made {
		callers.Go(func() {
			pool := []string{"py", "py", "other"}[i]
			for ; ; made[i]++ {
				select {
				case <-enough:
					return
				default:
				}
				nonce := fmt.Sprintf(`"%d-%d"`, i, made[i])
				reply, body, err := s.tryAs("second", "/execute/"+pool+"/late_echo", nonce)
				if err != nil || reply.StatusCode != http.StatusOK || body != nonce {
					t.Errorf("call %s to %s: %v %q %v", nonce, pool, reply, body, err)
					return
				}
			}
		})
	}
	broken := []string{"", "workloads: {}\n", "\x00", "workloads:\n" + version(7) + "  x: {}\n", "listen: [192.0.2.1:1]\nauth: none\nworkloads:\n" + version(8), "spool: {dir: /nowhere}\nworkloads:\n" + version(9)}
	// The address and the token of the callers are in all of them.
	settings := [][]string{
		{"", everywhere},
		{"", "hosts: [a.example]", "hosts: [b.example, c.example]"},
		{"", "trusted_proxies: [192.0.2.1]"},
		{"", tokens("first", "second"), tokens("second", "third")},
		{"", "limits: {body: 1MiB}"},
		{"", "spool: {max: 1MiB}"},
		{"", "drain: 9s"},
	}
	good, workloads := 0, version(1)+other
	for range reloads {
		if rand.IntN(3) > 0 {
			s.refuse(broken[rand.IntN(len(broken))])
			continue
		}
		if rand.IntN(8) == 0 { // workers are dear
			workloads = version(1+rand.IntN(3)) + other
			if rand.IntN(2) == 0 {
				workloads += strings.Replace(other, "other", "extra", 1)
			}
		}
		var some []string
		for _, choice := range settings {
			some = append(some, choice[rand.IntN(len(choice))])
		}
		s.configure(workloads, some...)
		good++
		s.hangup("reloaded")
	}
	close(enough)
	callers.Wait()
	s.configure(version(1) + other)
	s.hangup("reloaded")
	t.Logf("%d reloads, %d of them good, and %d calls meanwhile", reloads, good, made[0]+made[1]+made[2])
	if now := s.pids("other"); !slices.Equal(now, untouched) {
		t.Errorf("the workers of a workload that has not changed are %v, were %v", now, untouched)
	}
	for i, n := range made {
		if n == 0 {
			t.Errorf("caller %d made no call", i)
		}
	}
}
