// Package event holds what happened, as values. A room that learns a fact emits
// it to the [Sink] it was given; it never knows who listens. Facts flow up:
// observe turns them into logs and metrics, calls into the record of a call.
//
// The package has no goroutine and imports nothing of this module.
package event

import "time"

// Sink takes one event. It must be safe for concurrent use, must not block, and
// must not keep Output.Text or CallProgress.JSON, which are used again.
type Sink func(Event)

// Event is one fact. Consumers switch on the concrete type.
type Event interface{ event() }

// Outcome is how a call ended. Every call ends in exactly one.
type Outcome string

// The six outcomes.
const (
	Done      Outcome = "done"      // the result was handed over
	Failed    Outcome = "failed"    // the work raised, or broke one of its limits
	Cancelled Outcome = "cancelled" // hang-up, operator, or drain
	TimedOut  Outcome = "timed-out" // the workload's time limit
	Crashed   Outcome = "crashed"   // the worker died or broke the protocol
	Rejected  Outcome = "rejected"  // refused; no work was started
)

// WorkerState is where a worker stands in its pool.
type WorkerState string

// The five states. A worker leaves Dying only when its tree is proved empty.
const (
	Starting   WorkerState = "starting"
	Idle       WorkerState = "idle"
	Busy       WorkerState = "busy"
	Cancelling WorkerState = "cancelling"
	Dying      WorkerState = "dying"
)

// WorkerStates lists the states in the order of a worker's life.
var WorkerStates = []WorkerState{Starting, Idle, Busy, Cancelling, Dying}

// CallStarted says that a worker has taken a call.
type CallStarted struct {
	Call, Workload string
	Pid            int           // the worker's main process
	Waited         time.Duration // since its headers had been read
	At             time.Time
}

// CallProgress is what the work said of itself.
type CallProgress struct {
	Call, Workload string
	JSON           []byte // one JSON object, as the worker sent it
	At             time.Time
}

// CallEnded says how a call ended. It comes exactly once for each call, also
// for one that was refused.
type CallEnded struct {
	Call, Workload, Task, Caller string
	Outcome                      Outcome
	Cause                        error // nil when Done
	Started                      bool  // a worker took it
	Waited, Ran                  time.Duration
	At                           time.Time
}

// CallCancelled is the evidence of one cancelled or timed-out call (promise
// P15): who ended it, what was done to its worker, and what is left. It comes
// when the verdict on the tree is in, mostly after the call's CallEnded, and
// again if a tree that would not die has died after all.
type CallCancelled struct {
	Call, Workload string
	Cancel         Cancel
}

// Cancel is the way of one cancel, from the decision to the verified end.
type Cancel struct {
	By        string    // caller, operator, timeout or drain
	NoticedAt time.Time // the decision; the steps' zero
	Stop      Stop
}

// Stop is what the stop sequence did to one tree.
type Stop struct {
	Steps     []Step
	Killed    int           // processes reaped from the tree after the sequence began
	Took      time.Duration // from the decision to Empty, or to giving the verdict
	Empty     bool          // no process of the tree is left
	Proof     string        // what Empty rests on: "ECHILD", "supervisor", "acknowledged", "never-started"
	Survivors []Survivor    // who is left when not Empty
}

// Step is one step of the stop sequence: cooperative, signal or kill.
type Step struct {
	Name string
	At   time.Duration // after the decision
}

// Survivor is a process that would not die.
type Survivor struct {
	Pid   int    `json:"pid"`
	State string `json:"state"` // the letter of /proc/PID/stat: D, R, S, T, Z
	UID   int    `json:"uid"`
	Wait  string `json:"wait_channel,omitempty"` // where the kernel tells
}

// Output is a piece of what a worker wrote to its stdout or stderr. One with no
// Text tells only what was left out at the end of a call.
type Output struct {
	Call     string // "" when no call was running
	Workload string
	Pid      int
	Stream   string // "stdout", "stderr", or "failure": what the SDK tells of a failure, such as a traceback
	Text     []byte // one line, or a bounded piece of a long one; raw bytes
	Dropped  int64  // bytes left out before this piece, because of a bound
	At       time.Time
}

// WorkerChanged says that a worker went from one state to another. From is ""
// for a new worker, To is "" for one whose tree is gone.
type WorkerChanged struct {
	Workload string
	Worker   uint64 // the generation: never used twice in a pool, but in another of the same workload
	Pid      int    // 0 while it has none
	From, To WorkerState
	Why      string // the event that moved it
	At       time.Time
}

// TreeStopped is the verdict on one tree that was stopped, for whatever reason.
type TreeStopped struct {
	Workload string
	Worker   uint64
	Pid      int
	Why      string
	Stop     Stop
	At       time.Time
}

// StartFailed says that a worker could not be started.
type StartFailed struct {
	Workload string
	Worker   uint64
	Err      error
	Retry    time.Duration // until the next try
	At       time.Time
}

// Illegal says that a pool's machine was told something that cannot happen: a
// defect of this program. Tests treat it as fatal.
type Illegal struct {
	Workload string
	Err      error
	At       time.Time
}

// Trouble is something that an operator should know of and can do something about,
// and that the server goes on with.
type Trouble struct {
	What   string
	Err    error
	Remedy string
	At     time.Time
}

// CertificateTaken says that a certificate that was replaced on disk is in use.
type CertificateTaken struct {
	File    string
	Expires time.Time
	At      time.Time
}

func (CallStarted) event()      {}
func (CallProgress) event()     {}
func (CallEnded) event()        {}
func (CallCancelled) event()    {}
func (Output) event()           {}
func (WorkerChanged) event()    {}
func (TreeStopped) event()      {}
func (StartFailed) event()      {}
func (Illegal) event()          {}
func (Trouble) event()          {}
func (CertificateTaken) event() {}

// Pool is one pool as it stands: what GET /workloads and the gauges show.
type Pool struct {
	Name string
	Kind string
	// Retiring says that a reload has removed the pool, or put another of the name
	// in its place: it takes no new calls, and goes when those inside have ended.
	Retiring bool
	Limit    int // calls that may run at once
	Spares   int
	Queued   int // calls with a place and no worker yet
	Workers  []Worker
	State    string // up, starting or down
	Reason   string // why it is not up
	Tasks    []string
	// Isolation is what keeps its workers from the rest.
	Isolation string
	// NotEmpty counts the trees whose verdict was not empty and which are still there.
	NotEmpty int
}

// Worker is one worker of a [Pool] as it stands.
type Worker struct {
	ID      uint64
	Pid     int
	ShimPid int
	State   WorkerState
	Calls   int       // calls it has taken
	Since   time.Time // when it was started
	RSS     int64     // bytes resident of its main process; 0 where it cannot be told
}
