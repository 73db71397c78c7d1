//go:build linux

package reap

import (
	"encoding/binary"
	"errors"
	"syscall"
	"time"
)

// Message is one message between a server and its shim or supervisor. On the
// wire it is a frame: length of the rest (4 bytes, big endian), kind (1 byte),
// fields. Numbers are 8 bytes, strings and lists carry their length before them.
type Message interface {
	kind() byte
	append(b []byte) []byte
}

// Orders, from the server.
type (
	// Start asks a shim for a worker. The descriptors that become its 0, 1, 2 …
	// travel with the message. A shim takes it only when its last tree is empty.
	Start struct {
		Path          string   // the program's file, absolute or relative to Dir
		Argv, Env     []string // as execve takes them
		Dir           string   // "" is the shim's own
		NewPrivileges bool     // false sets no_new_privs
		Scoped        bool     // keeps signals in, which needs no_new_privs
		Nofile        int      // RLIMIT_NOFILE, soft and hard; no more than the hard one of the shim; 0: as it is
		User          User     // whom the worker runs as
		Limits        Limits   // of the whole tree
		Files         int      // how many descriptors travel with it
	}
	// Signal asks for a signal to the main process, and to nobody else.
	Signal struct{ Signal syscall.Signal }
	// Kill asks a shim for the end of its whole tree.
	Kill struct{}
	// Base tells the supervisor of the cgroup that all trees will be in, so that it
	// can end them by it, and remove it, when the server has died.
	Base struct{ Path string }
	// Sweep asks the supervisor for the end of all its children but the server.
	// It answers with Empty or NotEmpty, which carry the same number: the answer to an
	// older one may come late.
	Sweep struct{ Number int }
)

// Reports, to the server.
type (
	// Hello comes first, from shim and supervisor.
	Hello struct {
		Version int
		Build   string
		Group   syscall.Errno // why a shim has no cgroup that was to have one; 0: it has
	}
	// Started answers a Start.
	Started struct{ Pid int }
	// StartFailed answers a Start; nothing was left behind. After StageFiles
	// that is yet to come: the program runs, its tree is being ended, and Exited
	// and Empty follow as after a Kill.
	StartFailed struct {
		Stage Stage
		Errno syscall.Errno
	}
	// Exited says that the main process has ended.
	Exited struct {
		Status syscall.WaitStatus
		CPU    time.Duration // user and system time of it and of all it had waited for
		MaxRSS int64         // bytes, the largest of those
		Limit  string        // the limit over which the tree was when it was ended: LimitMemory, LimitPids, or ""
		OOM    bool          // the kernel may have ended it, for want of memory that no limit here withheld
	}
	// Sweeping is a sign of life while a stop goes on.
	Sweeping struct{}
	// NotEmpty is the verdict after VerdictAfter; the killing goes on.
	NotEmpty struct {
		Reaped    int
		Sweep     int        // of a supervisor: the number of the sweep
		Survivors []Survivor // at most 64 of them
	}
	// Empty is the proof: no process of the tree is left.
	Empty struct {
		Reaped int // since the stop began, the main process included
		Sweep  int // of a supervisor: the number of the sweep
	}
)

// User is whom a worker runs as. Where Set is false that is who the shim is.
type User struct {
	Set      bool
	UID, GID int
	Groups   []int // the supplementary ones
}

// Limits bound a tree; a 0 is none.
type Limits struct {
	Memory int64 // bytes of the whole tree
	Pids   int64 // processes and threads of the whole tree
	CPUs   int64 // processors that the whole tree may use, in thousandths
	First  int   // the place of the first processor, where the tree is bound to some of them
	Nproc  int   // RLIMIT_NPROC of each process, soft and hard; no more than the hard one of the shim
}

// The limits that a tree can go over.
const (
	LimitMemory = "memory"
	LimitPids   = "pids"
)

// Stage is where a start failed.
type Stage byte

// The stages of a start.
const (
	StageOrder      Stage = iota + 1 // the order itself: a tree is still there
	StageDir                         // the directory cannot be entered
	StagePrivileges                  // no_new_privs cannot be set
	StageExec                        // fork or exec
	StageFiles                       // the limits of its processes cannot be set
	StageGroup                       // the cgroup cannot be made
	StageLimits                      // the limits of the tree cannot be set
	StageScope                       // signals cannot be kept in
)

// Survivor is a process that would not die.
type Survivor struct {
	Pid   int
	State byte   // as in /proc/PID/stat
	UID   int    // -1 where it cannot be told
	Wait  string // the kernel's wait channel, where it can be told
}

const (
	kindStart byte = iota + 1
	kindSignal
	kindKill
	kindSweep
	kindHello
	kindStarted
	kindStartFailed
	kindExited
	kindSweeping
	kindNotEmpty
	kindEmpty
	kindBase
)

func (Start) kind() byte       { return kindStart }
func (Signal) kind() byte      { return kindSignal }
func (Kill) kind() byte        { return kindKill }
func (Sweep) kind() byte       { return kindSweep }
func (Base) kind() byte        { return kindBase }
func (Hello) kind() byte       { return kindHello }
func (Started) kind() byte     { return kindStarted }
func (StartFailed) kind() byte { return kindStartFailed }
func (Exited) kind() byte      { return kindExited }
func (Sweeping) kind() byte    { return kindSweeping }
func (NotEmpty) kind() byte    { return kindNotEmpty }
func (Empty) kind() byte       { return kindEmpty }

func (m Start) append(b []byte) []byte {
	b = appendString(b, m.Path)
	b = appendStrings(b, m.Argv)
	b = appendStrings(b, m.Env)
	b = appendString(b, m.Dir)
	b = appendBool(b, m.NewPrivileges)
	b = appendBool(b, m.Scoped)
	b = appendInt(b, m.Nofile)
	b = m.User.append(b)
	b = m.Limits.append(b)
	return appendInt(b, m.Files)
}

func (u User) append(b []byte) []byte {
	return appendInts(appendInt(appendInt(appendBool(b, u.Set), u.UID), u.GID), u.Groups)
}

func (l Limits) append(b []byte) []byte {
	for _, n := range []int{int(l.Memory), int(l.Pids), int(l.CPUs), l.First, l.Nproc} {
		b = appendInt(b, n)
	}
	return b
}

func (m Signal) append(b []byte) []byte { return appendInt(b, int(m.Signal)) }
func (Kill) append(b []byte) []byte     { return b }
func (m Base) append(b []byte) []byte   { return appendString(b, m.Path) }
func (m Sweep) append(b []byte) []byte  { return appendInt(b, m.Number) }

func (m Hello) append(b []byte) []byte {
	return appendInt(appendString(appendInt(b, m.Version), m.Build), int(m.Group))
}

func (m Started) append(b []byte) []byte { return appendInt(b, m.Pid) }

func (m StartFailed) append(b []byte) []byte {
	return appendInt(appendInt(b, int(m.Stage)), int(m.Errno))
}

func (m Exited) append(b []byte) []byte {
	b = appendInt(b, int(m.Status))
	b = appendInt(b, int(m.CPU))
	b = appendInt(b, int(m.MaxRSS))
	return appendBool(appendString(b, m.Limit), m.OOM)
}

func (Sweeping) append(b []byte) []byte { return b }

func (m NotEmpty) append(b []byte) []byte {
	b = appendInt(appendInt(b, m.Reaped), m.Sweep)
	b = appendInt(b, len(m.Survivors))
	for _, s := range m.Survivors {
		b = appendInt(b, s.Pid)
		b = appendInt(b, int(s.State))
		b = appendInt(b, s.UID)
		b = appendString(b, s.Wait)
	}
	return b
}

func (m Empty) append(b []byte) []byte { return appendInt(appendInt(b, m.Reaped), m.Sweep) }

var errMessage = errors.New("malformed message")

// decode reads the message in a frame, which begins after the length.
func decode(frame []byte) (Message, error) {
	if len(frame) == 0 {
		return nil, errMessage
	}
	d := decoder{rest: frame[1:]}
	var m Message
	switch frame[0] {
	case kindStart:
		m = Start{
			Path: d.str(), Argv: d.strs(), Env: d.strs(), Dir: d.str(),
			NewPrivileges: d.bool(), Scoped: d.bool(), Nofile: d.int(),
			User:   User{Set: d.bool(), UID: d.int(), GID: d.int(), Groups: d.ints()},
			Limits: Limits{Memory: int64(d.int()), Pids: int64(d.int()), CPUs: int64(d.int()), First: d.int(), Nproc: d.int()},
			Files:  d.int(),
		}
	case kindSignal:
		m = Signal{syscall.Signal(d.int())}
	case kindKill:
		m = Kill{}
	case kindBase:
		m = Base{d.str()}
	case kindSweep:
		m = Sweep{d.int()}
	case kindHello:
		m = Hello{Version: d.int(), Build: d.str(), Group: syscall.Errno(d.int())}
	case kindStarted:
		m = Started{d.int()}
	case kindStartFailed:
		m = StartFailed{Stage: Stage(d.int()), Errno: syscall.Errno(d.int())}
	case kindExited:
		m = Exited{
			Status: syscall.WaitStatus(d.int()), CPU: time.Duration(d.int()), MaxRSS: int64(d.int()),
			Limit: d.str(), OOM: d.bool(),
		}
	case kindSweeping:
		m = Sweeping{}
	case kindNotEmpty:
		v := NotEmpty{Reaped: d.int(), Sweep: d.int()}
		for range d.count() {
			v.Survivors = append(v.Survivors, Survivor{Pid: d.int(), State: byte(d.int()), UID: d.int(), Wait: d.str()})
		}
		m = v
	case kindEmpty:
		m = Empty{Reaped: d.int(), Sweep: d.int()}
	default:
		return nil, errMessage
	}
	if d.bad || len(d.rest) > 0 {
		return nil, errMessage
	}
	return m, nil
}

func appendInt(b []byte, n int) []byte { return binary.BigEndian.AppendUint64(b, uint64(n)) }

func appendString(b []byte, s string) []byte { return append(appendInt(b, len(s)), s...) }

func appendBool(b []byte, v bool) []byte {
	if v {
		return appendInt(b, 1)
	}
	return appendInt(b, 0)
}

func appendStrings(b []byte, list []string) []byte {
	b = appendInt(b, len(list))
	for _, s := range list {
		b = appendString(b, s)
	}
	return b
}

func appendInts(b []byte, list []int) []byte {
	b = appendInt(b, len(list))
	for _, n := range list {
		b = appendInt(b, n)
	}
	return b
}

// A decoder takes fields off a frame. After the first bad one it returns zeros.
type decoder struct {
	rest []byte
	bad  bool
}

func (d *decoder) int() int {
	if len(d.rest) < 8 {
		d.rest, d.bad = nil, true
		return 0
	}
	n := binary.BigEndian.Uint64(d.rest)
	d.rest = d.rest[8:]
	return int(n)
}

func (d *decoder) bool() bool { return d.int() != 0 }

// count is an int that announces so many items of at least 8 bytes each: never
// more than the frame has room for, so that no length is believed unseen.
func (d *decoder) count() int {
	n := d.int()
	if n < 0 || n > len(d.rest)/8 {
		d.rest, d.bad = nil, true
		return 0
	}
	return n
}

func (d *decoder) str() string {
	n := d.int()
	if n < 0 || n > len(d.rest) {
		d.rest, d.bad = nil, true
		return ""
	}
	s := string(d.rest[:n])
	d.rest = d.rest[n:]
	return s
}

func (d *decoder) strs() []string {
	list := make([]string, 0, d.count())
	for range cap(list) {
		list = append(list, d.str())
	}
	return list
}

func (d *decoder) ints() (list []int) {
	for range d.count() {
		list = append(list, d.int())
	}
	return list
}
