package call

import (
	"errors"
	"fmt"
	"time"

	"example.com/hangup/internal/event"
)

// The causes for which a call ends without a result. They are tested with
// errors.Is; what a caller gets to see of each is one row of a table in api.
var (
	// Rejected: no work was started.
	ErrBadRequest     = errors.New("bad request")
	ErrUnauthorized   = errors.New("no valid token")
	ErrForbidden      = errors.New("forbidden")
	ErrNoSuchWorkload = errors.New("no such workload")
	ErrNoSuchTask     = errors.New("no such task")
	ErrTooManyCalls   = errors.New("too many calls were given up before their end")
	ErrBodyTimeout    = errors.New("the body did not arrive in time")
	ErrBodyTooLarge   = errors.New("the body is too large")
	ErrInvalidInput   = errors.New("invalid input")
	ErrSpoolFull      = errors.New("the spool is full")
	ErrNoScratch      = errors.New("the call can have no scratch directory")
	ErrQueueFull      = errors.New("the queue is full")
	ErrQueueTimeout   = errors.New("no worker became free in time")
	ErrDown           = errors.New("the workload is down")
	ErrDraining       = errors.New("the server is draining")

	// Cancelled.
	ErrHungUp    = errors.New("the caller hung up")
	ErrCancelled = errors.New("cancelled by an operator")
	ErrDrained   = errors.New("cancelled at the end of the drain")

	// Timed out.
	ErrTimedOut = errors.New("the time limit is over")

	// Failed.
	ErrFailed = errors.New("the work failed")
	ErrLimit  = errors.New("a limit was exceeded")

	// Crashed.
	ErrDied      = errors.New("the worker died")
	ErrBadWorker = errors.New("the worker broke the protocol")
)

var refusals = []error{
	ErrBadRequest, ErrUnauthorized, ErrForbidden, ErrNoSuchWorkload, ErrNoSuchTask, ErrTooManyCalls, ErrBodyTimeout,
	ErrBodyTooLarge, ErrInvalidInput, ErrSpoolFull, ErrNoScratch, ErrQueueFull, ErrQueueTimeout, ErrDown, ErrDraining,
}

// RetryError is a refusal with a hint when to come back.
type RetryError struct {
	Err   error
	After time.Duration
}

func (e *RetryError) Error() string { return e.Err.Error() }
func (e *RetryError) Unwrap() error { return e.Err }

// FailureError is an ErrFailed in the words of the work itself.
type FailureError struct {
	Class   string         // the class of the error, or ""
	Message string         // one line for the caller
	Tail    string         // the last it wrote to stderr during the call
	Members map[string]any // what the work added to the problem document
}

func (e *FailureError) Error() string {
	if e.Class == "" {
		return e.Message
	}
	return e.Class + ": " + e.Message
}

func (e *FailureError) Unwrap() error { return ErrFailed }

// StartError is why a worker did not become ready. What it said last is for the
// operator; callers get Why.
type StartError struct {
	Why  string
	Last string // the last line of its stderr, or ""
}

func (e *StartError) Error() string {
	if e.Last == "" {
		return "cannot start a worker: " + e.Why
	}
	return "cannot start a worker: " + e.Why + "; the last line of its stderr: " + e.Last
}

// DiedError is an ErrDied with the way the main process ended.
type DiedError struct {
	Exit   int    // the exit code; -1 when a signal ended it
	Signal string // the signal's name, or ""
	OOM    bool   // nobody here sent the signal, and the kernel has killed for want of memory since the worker was started
	Tail   string // the last of its stderr
}

func (e *DiedError) Error() string {
	if e.OOM {
		return fmt.Sprintf("the worker was ended by %s, probably by the kernel for want of memory: it has killed for that since the worker was started", e.Signal)
	}
	if e.Signal != "" {
		return fmt.Sprintf("the worker was ended by %s", e.Signal)
	}
	return fmt.Sprintf("the worker exited with code %d", e.Exit)
}

func (e *DiedError) Unwrap() error { return ErrDied }

// Outcome tells in which outcome a call ends whose Do returned err.
func Outcome(err error) event.Outcome {
	switch {
	case err == nil:
		return event.Done
	case errors.Is(err, ErrHungUp), errors.Is(err, ErrCancelled), errors.Is(err, ErrDrained):
		return event.Cancelled
	case errors.Is(err, ErrTimedOut):
		return event.TimedOut
	case errors.Is(err, ErrFailed), errors.Is(err, ErrLimit):
		return event.Failed
	case errors.Is(err, ErrDied), errors.Is(err, ErrBadWorker):
		return event.Crashed
	default:
		for _, refusal := range refusals {
			if errors.Is(err, refusal) {
				return event.Rejected
			}
		}
		return event.Failed
	}
}

// Orderly tells whether a Do that returned err leaves its worker as it was: the work
// said of itself how it ended, or that its input was malformed; or it was not begun.
func Orderly(err error) bool {
	return err == nil || errors.Is(err, ErrFailed) || errors.Is(err, ErrBadRequest) || errors.Is(err, ErrNoScratch)
}

// CancelledBy names who ended a call whose context ended with cause: caller,
// operator, timeout or drain.
func CancelledBy(cause error) string {
	switch {
	case errors.Is(cause, ErrCancelled):
		return "operator"
	case errors.Is(cause, ErrTimedOut):
		return "timeout"
	case errors.Is(cause, ErrDrained):
		return "drain"
	default:
		return "caller"
	}
}
