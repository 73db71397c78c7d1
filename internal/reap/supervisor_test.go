//go:build linux

package reap

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"example.com/hangup/internal/proctest"
)

// deaf is a server that answers each signal with its name and goes on.
func deaf([]string) {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, append(forwarded, EndNow)...)
	fmt.Println("ready", os.Getpid())
	for sig := range signals {
		fmt.Println(sig)
	}
}

func supervise(t testing.TB, argv, env []string) *exec.Cmd {
	cmd := exec.Command(proctest.Shim(t), append([]string{"supervise", "--"}, argv...)...)
	cmd.Env, cmd.Stderr = env, os.Stderr
	return cmd
}

func TestSupervisorHandsOnTheStatus(t *testing.T) {
	tests := []struct {
		name string
		argv []string
		want int
	}{
		{"exit 0", []string{"/bin/sh", "-c", "exit 0"}, 0},
		{"exit 7", []string{"/bin/sh", "-c", "exit 7"}, 7},
		{"SIGTERM", []string{"/bin/sh", "-c", "kill -TERM $$"}, 128 + 15},
		{"SIGKILL", []string{"/bin/sh", "-c", "kill -KILL $$"}, 128 + 9},
		{"leaves orphans", []string{"/bin/sh", "-c", "setsid sleep 1000 & (sleep 1000 &) ; exit 5"}, 5},
		{"no such program", []string{"/no/such"}, 127},
		{"no program", []string{"/dev/null"}, 126},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			cmd := supervise(t, test.argv, proctest.Env())
			cmd.Stderr = nil
			proctest.Check(t)
			cmd.Run()
			if got := cmd.ProcessState.ExitCode(); got != test.want {
				t.Errorf("exit code %d, want %d", got, test.want)
			}
		})
	}
}

// Each signal to the supervisor reaches the server once, and so do signals to the
// process group of the supervisor, as a terminal sends them. What ends the server
// reaches it as such only the first time.
func TestSupervisorForwardsSignals(t *testing.T) {
	argv, env := proctest.Command("deaf")
	cmd := supervise(t, argv, env)
	proctest.Check(t)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	if !lines.Scan() {
		t.Fatal("the server says nothing")
	}
	server, _ := strconv.Atoi(strings.TrimPrefix(lines.Text(), "ready "))
	ending := false
	for _, to := range []int{cmd.Process.Pid, -cmd.Process.Pid} {
		for _, sig := range forwarded {
			if err := syscall.Kill(to, sig.(syscall.Signal)); err != nil {
				t.Fatal(err)
			}
			want := sig
			if sig == syscall.SIGTERM || sig == syscall.SIGINT {
				if ending {
					want = EndNow
				}
				ending = true
			}
			if !lines.Scan() || lines.Text() != want.String() {
				t.Fatalf("the server has %q, want %q", lines.Text(), want)
			}
		}
	}
	proctest.Kill(server, syscall.SIGKILL)
	if lines.Scan() {
		t.Errorf("the server has another signal: %q", lines.Text())
	}
	cmd.Wait()
}

// Strangers that rise to the supervisor are killed and reaped while the server
// lives; here it is PID 1, and a thousand orphans rise.
func TestSupervisorAsPID1(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root may make a PID namespace here")
	}
	unshare := proctest.Need(t, "unshare", "util-linux")
	const server = `i=0; while [ $i -lt 500 ]; do i=$((i+1)); (sleep 1000 &) ; (setsid sleep 1000 &) ; done
	[ $PPID = 1 ] || exit 1
	i=0; while [ $i -lt 600 ]; do i=$((i+1))
		left=0; for p in /proc/[0-9]*; do [ $p = /proc/1 ] || [ $p = /proc/$$ ] || left=$((left+1)); done
		[ $left = 0 ] && exit 42
		read x < /proc/uptime; sleep 0.01
	done; echo $left left; exit 2`
	shim := proctest.Shim(t)
	proctest.Check(t)
	cmd := exec.Command(unshare, "--pid", "--fork", "--kill-child", "--mount-proc", shim, "supervise", "--", "/bin/sh", "-c", server)
	cmd.Env, cmd.Stdout, cmd.Stderr = proctest.Env(), os.Stdout, os.Stderr
	begun := time.Now()
	cmd.Run()
	if got := cmd.ProcessState.ExitCode(); got != 42 {
		t.Errorf("exit code %d, want 42: all gone", got)
	}
	t.Logf("%v", time.Since(begun).Round(time.Millisecond))
}

// A supervisor answers a server that asks for a sweep.
func TestSupervisorSweeps(t *testing.T) {
	argv, env := proctest.Command("asker")
	cmd := supervise(t, argv, env)
	proctest.Check(t)
	out, err := cmd.Output()
	if err != nil || !strings.HasPrefix(string(out), "hello 3 empty ") {
		t.Errorf("the server says %q (%v)", out, err)
	}
}

func init() { proctest.Program("asker", asker) }

// asker is a server that leaves three orphans and has them swept.
func asker([]string) {
	fd, err := strconv.Atoi(os.Getenv(SupervisorEnv))
	check(err)
	conn, err := NewConn(fd, MaxReport)
	check(err)
	m, _, err := conn.Receive()
	check(err)
	hello := m.(Hello)
	keep, err := os.StartProcess("/bin/sleep", []string{"sleep", "1000"}, &os.ProcAttr{Env: proctest.Env()})
	check(err)
	script, err := os.StartProcess("/bin/sh", []string{"sh", "-c", "for i in 1 2 3; do (setsid sleep 1000 &) ; done"}, &os.ProcAttr{Env: proctest.Env()})
	check(err)
	script.Wait()
	check(conn.Send(Sweep{1}))
	m, _, err = conn.Receive()
	check(err)
	empty := m.(Empty)
	if left := proctest.Descendants(os.Getppid()); len(left) != 2 { // this process and its own child
		fmt.Println("left", left)
	}
	if err := keep.Signal(syscall.Signal(0)); err != nil {
		fmt.Println("the server's own child is gone:", err)
	}
	fmt.Println("hello", hello.Version, "empty", empty.Reaped)
	keep.Kill()
	keep.Wait()
}
