// Package worker is the Go side of a workload of kind worker: a long-lived
// program whose tasks hangup calls, one call at a time.
//
//	func main() {
//		err := worker.Serve(worker.Tasks{"resize": resize})
//		if err != nil {
//			log.Fatal(err)
//		}
//	}
//
//	func resize(ctx context.Context, call *worker.Call) (any, error) {
//		var in struct{ Width, Height int }
//		if err := call.Decode(&in); err != nil {
//			return nil, err
//		}
//		…
//		return map[string]any{"ok": true}, nil
//	}
//
// When the caller hangs up, the whole process tree of the worker is killed: a
// task needs to do nothing for that. Only in a workload with a cooperative step
// is the task's context cancelled first; a task that then returns in time keeps
// its worker warm.
//
// What the program prints to stdout and stderr goes to the log. Tasks run on
// the goroutine that called Serve. In a workload with a cooperative step a
// second goroutine reads what the server sends; it ends with Serve, or with the
// process.
package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"syscall"

	"example.com/hangup/internal/wire"
)

// sdk is what READY says of this package.
const sdk = "go/0.1"

// Task does one call. What it returns becomes the result:
//
//   - a []byte as it is, application/octet-stream
//   - a [Reply] as it says
//   - anything else as JSON; nil is null
//
// An error makes the call fail with the error's type and text ([Failure] says
// more), a panic with its text and stack; the worker lives on.
//
// The context is cancelled with the cause [ErrCancelled] when the call is, and
// with [ErrEnded] when the task has returned.
type Task func(ctx context.Context, call *Call) (any, error)

// Tasks are the tasks of a worker by name. A worker with one task is called
// without naming it.
type Tasks map[string]Task

// The causes for which a task's context ends, and with which the methods of a
// Call fail from then on.
var (
	ErrCancelled = errors.New("the call was cancelled")
	ErrEnded     = errors.New("the call has ended")
)

// Serve tells the server that the worker is ready and does the calls that it
// sends, until it asks the worker to exit or is gone: then Serve returns nil. It
// returns an error when the program was not started by hangup, when the server
// speaks another version of the protocol, or when it breaks it.
func Serve(tasks Tasks) error {
	ready, err := readyPayload(tasks)
	if err != nil {
		return err
	}
	in, err := inherited("HANGUP_IN")
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := inherited("HANGUP_OUT")
	if err != nil {
		return err
	}
	defer out.Close()
	spoken, cooperative := os.Getenv("HANGUP_PROTOCOL"), os.Getenv("HANGUP_COOPERATIVE") == "1"
	for _, name := range []string{"HANGUP_IN", "HANGUP_OUT", "HANGUP_PROTOCOL", "HANGUP_COOPERATIVE"} {
		os.Unsetenv(name) // they are this process's, not its children's
	}

	// READY goes out whatever the server speaks: it then can say what does not fit.
	hello := wire.Append(nil, wire.Frame{Type: wire.TypeReady, Payload: ready})
	if _, err := out.Write(hello); err != nil {
		return fmt.Errorf("cannot tell the server that the worker is ready: %w", err)
	}
	if spoken != strconv.Itoa(wire.Version) {
		return fmt.Errorf("cannot serve: the server speaks version %q of the worker protocol, this worker %d",
			spoken, wire.Version)
	}

	s := &session{tasks: tasks, out: out}
	frames := wire.NewReader(in)
	s.next = frames.Next
	if cooperative {
		s.listen(frames)
	}
	return s.serve()
}

func readyPayload(tasks Tasks) ([]byte, error) {
	names := slices.Sorted(maps.Keys(tasks))
	switch {
	case len(names) == 0:
		return nil, errors.New("cannot serve: there are no tasks")
	case names[0] == "":
		return nil, errors.New("cannot serve: a task without a name")
	}
	payload, err := json.Marshal(wire.ReadyInfo{Protocol: wire.Version, SDK: sdk, Tasks: names})
	if err != nil {
		return nil, err
	}
	if len(payload) > wire.MaxPayload {
		return nil, errors.New("cannot serve: the names of the tasks are longer than 1 MiB")
	}
	return payload, nil
}

// inherited opens the descriptor whose number is in the environment, so that
// nothing the worker starts inherits it.
func inherited(name string) (*os.File, error) {
	value, ok := os.LookupEnv(name)
	if !ok {
		return nil, fmt.Errorf("cannot serve: %s is not set. This program is a worker: name it as the command of a "+
			"workload of kind worker in hangup.yaml, and run \"hangup serve\"", name)
	}
	fd, err := strconv.ParseUint(value, 10, 31)
	if err != nil {
		return nil, fmt.Errorf("cannot serve: %s=%q is not the number of a descriptor", name, value)
	}
	if err := syscall.SetNonblock(int(fd), false); err != nil {
		return nil, fmt.Errorf("cannot serve: descriptor %d of %s: %w", fd, name, err)
	}
	syscall.CloseOnExec(int(fd))
	return os.NewFile(uintptr(fd), name), nil
}
