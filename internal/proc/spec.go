package proc

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"example.com/hangup/internal/event"
)

// The values of Options.Cgroup.
const (
	CgroupAuto  = "auto"
	CgroupNever = "never"
)

// Options say how a Host works. Only Shim must be given. Where there are no shims,
// none of them has a meaning.
type Options struct {
	Shim       string        // path of hangup-shim, see [FindShim]
	Supervisor *os.File      // the socket to the supervisor, see [SupervisorFromEnv]; the Host closes it; nil: none
	Stock      int           // idle shims kept for the next Start; 0: DefaultStock
	Cgroup     string        // CgroupNever: no cgroups, even where they could be; "" is CgroupAuto
	NoScope    bool          // no signal scopes, even where they could be: as on Linux before 6.12
	Patience   time.Duration // how long a shim may be silent during a stop before it is given up; 0: 250 ms
}

// Spec says what to start.
type Spec struct {
	// Argv is the program and its arguments. A name without a slash is looked
	// for in the PATH of Env; what is relative is relative to Dir.
	Argv []string
	Env  []string // the whole environment
	Dir  string   // "" is the server's own
	// Files become the descriptors 0, 1, 2 … of the program, in blocking mode;
	// nil stands for /dev/null. The caller keeps his own.
	Files []*os.File
	// NewPrivileges lets setuid programs work; it is always on where there are no shims. A tree that uses it may hold
	// processes that the shim is not allowed to kill.
	NewPrivileges bool
	// MaxFiles is how many descriptors each process of the tree may have open:
	// RLIMIT_NOFILE, soft and hard. It only lowers: where the server's own hard
	// limit is less, that holds. 0 leaves both as the server was started with.
	// The limit is set just after the program has begun, and before Start
	// returns. A set-user-ID program cannot be given one by an ordinary user.
	MaxFiles int
	User     *User // nil: the server's own
	Limits   Limits
}

// User is whom a program runs as. Only root can start it as somebody else.
type User struct {
	Name     string // for messages
	UID, GID int
	Groups   []int // the supplementary ones
}

func (u *User) String() string { return fmt.Sprintf("%s (uid %d)", u.Name, u.UID) }

// Limits bound a whole tree; a 0 is none. How they are enforced tells
// [Host.Enforcement].
type Limits struct {
	Memory int64   // bytes
	Pids   int     // processes and threads
	CPUs   float64 // processors, in steps of a thousandth
}

// Verdict is what became of a tree that was stopped.
type Verdict struct {
	Empty     bool
	Proof     string // one of the proofs; "" when not Empty
	Reaped    int    // processes reaped since the stop began, the main process included
	Survivors []event.Survivor
	Reason    string        // why it is not Empty
	Took      time.Duration // since the stop began: by Kill, or by the end of the main process
}

// Status is how the main process ended.
type Status struct {
	Exit   int            // the exit code; -1 when a signal ended it
	Signal syscall.Signal // 0 when it exited
	CPU    time.Duration  // user and system time of it, and of what it had waited for
	MaxRSS int64          // bytes, of the largest of those
	Limit  string         // the limit for which the tree was ended: memory or pids; "" when for none
	OOM    bool           // SIGKILL that nobody here sent, and the kernel has killed for want of memory meanwhile
}

// ErrExited is what Signal returns when the main process has ended.
var ErrExited = errors.New("the process has ended")
