// Package proctest is for tests that start processes. The test binary itself is
// the program that misbehaves, every package runs once more as an ordinary user
// when the first run was root's, and an oracle tells what a test left behind.
//
// A package uses it by one line:
//
//	func TestMain(m *testing.M) { proctest.Main(m) }
//
// The package has no goroutine that outlives a call. It imports nothing of this
// module, and only tests import it.
package proctest

import (
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// The environment by which a test binary knows what it is to be.
const (
	programEnv = "HANGUP_TEST_PROGRAM" // the misbehaving program to run instead of the tests
	usedEnv    = "HANGUP_TEST_USED"    // a directory with an empty file for every program that ran
	laneEnv    = "HANGUP_TEST_UID"     // set in the lane of the ordinary user
	buildEnv   = "HANGUP_TEST_BUILT_"  // with a program's name: where it was built
	runEnv     = "HANGUP_TEST_RUN"     // marks every process that a lane started
)

var programs = map[string]func(args []string){}

// Program registers what the test binary does when it is started by the command
// that [Command] returns for name. It is called from the init of a test file. The
// process exits with code 0 when run returns.
//
// A whole run of a package's tests fails when a program was never used.
func Program(name string, run func(args []string)) {
	if programs[name] != nil {
		panic("proctest: two programs named " + name)
	}
	programs[name] = run
}

// Command returns argv and environment of the program registered by that name.
func Command(name string, args ...string) (argv, env []string) {
	if programs[name] == nil {
		panic("proctest: no program named " + name)
	}
	return append([]string{executable(), "-test.run=none"}, args...), append(Env(), programEnv+"="+name)
}

// Env returns a small environment for programs under test. The oracle finds them
// by it, whoever has become their parent.
func Env() []string {
	env := []string{"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/", "LANG=C.UTF-8", "GOTRACEBACK=single", "GORACE=atexit_sleep_ms=0"}
	for _, entry := range os.Environ() {
		name, _, _ := strings.Cut(entry, "=")
		if strings.HasPrefix(name, buildEnv) || slices.Contains([]string{usedEnv, laneEnv, runEnv, "TMPDIR"}, name) {
			env = append(env, entry)
		}
	}
	return env
}

// Main runs the tests of a package, as root first and then as an ordinary user;
// without being root, only as the user it is. It does not return.
func Main(m *testing.M) {
	if name := os.Getenv(programEnv); name != "" {
		runProgram(name)
	}
	flag.Parse()
	os.Exit(runTests(m))
}

func runProgram(name string) {
	run := programs[name]
	if run == nil {
		fmt.Fprintln(os.Stderr, "proctest: no program named", name)
		os.Exit(2)
	}
	os.WriteFile(filepath.Join(os.Getenv(usedEnv), name), nil, 0o666)
	run(os.Args[2:]) // after -test.run=none, which keeps tests from running by mistake
	os.Exit(0)
}

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "proctest-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "proctest:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	os.Chmod(dir, 0o755)
	used := filepath.Join(dir, "used")
	os.Mkdir(used, 0o777)
	os.Chmod(used, 0o777) // programs may run as anybody
	os.Setenv(usedEnv, used)
	os.Setenv(runEnv, filepath.Base(dir))
	runDir = dir
	if !SecondLane() {
		defer enterGroup()()
	}
	warmUp()

	announce(fmt.Sprintf("as uid %d", os.Geteuid()))
	code := m.Run()
	if code == 0 && wholeRun() {
		code = checkUsed(used)
	}
	if os.Geteuid() != 0 || SecondLane() {
		return code
	}
	if why := onlyOneLane(); why != "" {
		announce("not as an ordinary user: " + why)
		return code
	}
	return max(code, runAsUser(dir))
}

func announce(lane string) { fmt.Println("=== LANE", lane) }

// SecondLane tells whether this is the run as an ordinary user that follows root's, for
// the few tests to which the user makes no difference, and which take long.
func SecondLane() bool { return os.Getenv(laneEnv) != "" }

// OneLane leaves such a test out of the second lane; why says what is the same there.
func OneLane(t testing.TB, why string) {
	t.Helper()
	if SecondLane() {
		t.Skip("left to the lane of root: " + why)
	}
}

// checkUsed tells which programs no test has started.
func checkUsed(used string) int {
	code := 0
	for name := range programs {
		if _, err := os.Stat(filepath.Join(used, name)); err != nil {
			fmt.Fprintf(os.Stderr, "proctest: no test used the program %s\n", name)
			code = 1
		}
	}
	return code
}

// wholeRun says whether every test of the package was to run.
func wholeRun() bool {
	return value("run") == "" && value("skip") == "" && value("list") == "" && value("short") == "false" && value("fuzz") == ""
}

func onlyOneLane() string {
	for _, name := range []string{"bench", "fuzz", "list"} {
		if value(name) != "" {
			return "-" + name
		}
	}
	return ""
}

func value(name string) string {
	if f := flag.Lookup("test." + name); f != nil {
		return f.Value.String()
	}
	return ""
}

// runAsUser runs this test binary again as an ordinary user, with a copy of it
// and a temporary directory that this user can reach.
func runAsUser(dir string) int {
	uid := firstLane + os.Getpid()%1000 // so that packages tested side by side have limits of their own
	home, err := os.MkdirTemp(dir, "uid-")
	if err == nil {
		err = os.Chown(home, uid, uid)
	}
	binary := filepath.Join(dir, "binary.test")
	if err == nil {
		err = copyProgram(binary, executable())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "proctest: cannot prepare the run as an ordinary user:", err)
		return 1
	}
	// The lane must not outlive this process, and the kernel goes by threads.
	runtime.LockOSThread()
	cmd := exec.Command(binary, laneArgs(os.Args[1:])...)
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", laneEnv, uid), "TMPDIR="+home, "HOME="+home)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = nil, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)},
	}
	dieWithParent(cmd.SysProcAttr)
	defer startIn(cmd.SysProcAttr, uid)()
	if err := cmd.Run(); err != nil {
		fmt.Fprintf(os.Stderr, "proctest: as uid %d: %v\n", uid, err)
		return 1
	}
	return 0
}

// laneArgs leaves out the flags by which the go command collects results in files:
// there is one place for each.
func laneArgs(args []string) []string {
	collected := []string{"testlogfile", "coverprofile", "gocoverdir", "outputdir", "cpuprofile", "memprofile", "blockprofile", "mutexprofile", "trace", "test.paniconexit0"}
	return slices.DeleteFunc(slices.Clone(args), func(arg string) bool {
		name, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimLeft(arg, "-"), "test."), "=")
		return slices.Contains(collected, name)
	})
}

func copyProgram(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if closed := out.Close(); err == nil {
		err = closed
	}
	os.Chmod(to, 0o755)
	return err
}

func executable() string {
	path, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return path
}
