// Package config knows the config file: what it may say, the defaults, and how
// to refuse the rest with file, line, column and a remedy. It is the one place
// that knows YAML. A [Config] is validated once and immutable from then on.
//
// A file goes through three steps, each of which reports every fault it can
// find: source.go turns bytes into a tree, schema.go walks the tree with one row
// a key, check.go looks at what only makes sense together. The rows say as well what
// they take: [Schema] and docs/config.md are made of them.
//
// The package has no goroutine and imports nothing of this module.
package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// Bounds on what a file may ask for. They are far from any real use: they turn a
// slip of the finger into a message instead of a machine that is out of memory.
const (
	MaxFile        = 256 << 10 // bytes of the file itself
	MaxWorkers     = 10_000    // workers, and as many spares, of one workload
	MaxQueue       = 1_000_000 // calls in one queue
	MaxConnections = 1_000_000
	MaxStreams     = 10_000    // on one HTTP/2 connection
	MaxHangups     = 1_000_000 // of one caller, at once or in a minute
	MaxCPUs        = 10_000    // of one worker

	MinFiles  = 16      // descriptors of one process, where there is a limit: fewer, and hardly a program starts
	MinMemory = 1 << 20 // bytes of a worker's tree, where there is a limit: less is a forgotten unit
	MinCPUs   = 0.01    // processors of a worker's tree, where there is a limit: the kernel takes no less
)

// Config is a whole config file, with every default filled in.
type Config struct {
	Listen         []string       // "host:port" or "unix:" and an absolute path; default 127.0.0.1:8080
	TLS            TLS            // of the addresses that are host:port; none
	Hosts          []string       // Host names served beside loopback names and the listen addresses; none
	TrustedProxies []netip.Prefix // whose X-Forwarded-For names the caller; none
	Auth           Auth
	Limits         Limits
	Spool          Spool
	Drain          time.Duration // what running calls get after SIGTERM; 8s
	Containment    Containment
	Log            Log
	Workloads      []Workload // in the order of the file; at least one

	// Warnings are what is odd in the file and no fault, in its order: whoever reads the
	// file tells them once.
	Warnings []Fault

	// File is the path the config was read from; Dir is its folder, absolute.
	File, Dir string
}

// TLS is the server's certificate and its key, as absolute paths of PEM files: both
// are given or none.
type TLS struct{ Cert, Key string }

// On tells whether there is a certificate.
func (t TLS) On() bool { return t.Cert != "" }

// Auth is who may call. Off is true where the file says `auth: none`. By default
// it is false and there are no tokens: then every address is a loopback one.
type Auth struct {
	Off    bool
	Tokens []Token
}

// Token lets its bearer do some things to some workloads.
type Token struct {
	Name      string   // unique
	SHA256    [32]byte // of the token
	Allow     []string // execute, observe, operate; at least one
	Workloads []string // names, or "*"; default "*"
}

// Limits hold for the whole server.
type Limits struct {
	Body        int64         // bytes of one call's input, at least 1; 16 MiB
	BodyTimeout time.Duration // for a whole body to arrive, above 0; 30s
	Connections int           // open at once, at least 1; 10000
	Streams     int           // requests under way at once on one HTTP/2 connection, at least 1; 100
	Hangups     Hangups
}

// Hangups is what each caller may hang up on. A hang-up costs a worker, so who does
// nothing else is refused further calls for a while.
type Hangups struct {
	Burst     int // at once; 2000; 0: without limit
	PerMinute int // on and on, at least 1; 600
}

// Spool is where inputs too large for memory wait.
type Spool struct {
	Dir string // absolute; "", the default, is the system's temporary directory
	Max int64  // bytes, for all calls together; 1 GiB; 0: nothing is spooled
}

// Containment is how surely the trees must be held.
type Containment struct {
	Minimum string // process-group or subreaper, the default
	Cgroup  string // auto, the default, or never
}

// Log is the server's own log on stderr.
type Log struct {
	Format string // json, the default, or text
	Level  string // debug, info, the default, warn or error
}

// Workload is one named kind of work.
type Workload struct {
	Name          string            // [a-z0-9][a-z0-9_-]{0,62}
	Kind          string            // worker
	Command       []string          // an argv, at least one element; no default
	Dir           string            // absolute; default: the config file's folder
	Env           map[string]string // none
	PassEnv       []string          // names, taken from the server's own environment; none
	User          *User             // whom the workers run as, which is not root; nil, the default: the server's own user
	NewPrivileges bool              // lets set-user-ID programs work; false
	Workers       int               // calls that run at once; the default, and 0 in the file, is one a CPU; never 0 here
	Spares        int               // idle workers beyond that; 1
	Queue         Queue
	Timeout       time.Duration // of one call, from its start; 5m; 0: none
	StartTimeout  time.Duration // from the start of a worker until it is ready, above 0; 30s
	Stop          Stop
	OnHangup      OnHangup
	Limits        WorkLimits
}

// User is a user of this machine, as it was when the file was read.
type User struct {
	Name     string // or the uid in digits where it has none
	UID, GID int
	Groups   []int // the supplementary ones
	Home     string
}

// Queue is where calls wait for a worker.
type Queue struct {
	Length int           // calls beyond those that may run at once; 100; 0: none, but as many as Workers may wait while workers start
	Wait   time.Duration // of one call; 30s
}

// Stop is the stop sequence.
type Stop struct {
	Cooperative time.Duration  // for the acknowledgement; 0, the default: the step is left out
	Signal      syscall.Signal // to the main process; SIGTERM
	Grace       time.Duration  // for the main process to exit; 1s
}

// OnHangup is what a caller may ask for when it goes away.
type OnHangup struct {
	Allow     []string      // cancel, and nothing else in this version
	ResultTTL time.Duration // how long the result of a call without an owner is kept; 5m, and nothing else in this version
}

// WorkLimits bound one worker or one call.
type WorkLimits struct {
	Memory int64   // bytes of a worker's process tree, at least MinMemory; 0, the default: none
	Pids   int     // processes and threads of a worker's process tree; 0, the default: none
	CPUs   float64 // processors that a worker's process tree may use, at least MinCPUs; 0, the default: none
	Output int64   // bytes of one call's result; 64 MiB; 0: none
	Files  int     // descriptors open in one process, and never more than the server's own hard limit; 1024; 0: that one
}

// Load reads and checks the config file at path. An error is of type [Faults].
func Load(path string) (*Config, error) {
	data, err := read(path)
	if err != nil {
		return nil, Faults{{File: path, Msg: err.Error()}}
	}
	return Parse(path, data)
}

// read returns at most MaxFile+1 bytes, so that Parse can tell a file that is
// too long and /dev/zero ends.
func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, readError(err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxFile+1))
	if err != nil {
		return nil, readError(err)
	}
	return data, nil
}

func readError(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err // the path stands before the message already
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return errors.New("cannot read the config: no such file; `hangup init` writes a starter, --config names another file")
	case errors.Is(err, syscall.EISDIR):
		return errors.New("cannot read the config: it is a directory; name the file in it")
	default:
		return fmt.Errorf("cannot read the config: %v", err)
	}
}

// Parse checks the config data, which was read from file: relative paths in it
// start at the folder of file. An error is of type [Faults].
func Parse(file string, data []byte) (*Config, error) {
	abs, err := filepath.Abs(file)
	if err != nil {
		return nil, Faults{{File: file, Msg: fmt.Sprintf("cannot find its folder: %v", err)}}
	}
	src := newSource(file, data)
	root, faults := src.parse()
	if len(faults) > 0 {
		return nil, faults
	}
	c := Default()
	c.File, c.Dir = file, filepath.Dir(abs)

	d := &decoder{src: src, dir: c.Dir, given: map[string]entry{}, meant: map[string]bool{}}
	schema(&c).take(d, "", root)
	d.check(&c)
	if len(d.faults) > 0 {
		d.faults.sort()
		return nil, d.faults
	}
	d.odd.sort()
	c.Warnings = d.odd
	return &c, nil
}
