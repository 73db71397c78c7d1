// Package reap holds process trees: it is the inside of hangup-shim, the small
// program in its two roles, and the only code that may wait for strangers.
//
//	supervisor ── server ── shim ── worker ── whatever it spawns
//
// A shim stands above one worker at a time. It is a child subreaper, so that no
// setsid, double fork or terminal leads out of the tree below it; the proof that
// the tree is empty is ECHILD from wait4, and nothing in /proc. The supervisor
// stands above the server and above every process that lost its shim.
//
// Promises:
//   - When a worker's main process has ended, for whatever reason, everything
//     left of its tree is killed at once.
//   - When the server is gone, every tree is killed, and then its shim ends.
//   - When the supervisor is gone, the kernel kills the server.
//   - No process outside the tree is ever signalled: own children are pinned by
//     being unreaped, everyone else by a pidfd whose parentage was read again.
//
// In both roles one goroutine owns everything: it alone forks, kills and waits.
// The others only hand it news. No wait of the loop is longer than a fork.
//
// The package imports nothing of this module, nor fmt or net: thousands of shims
// may be running, and each must start within a few milliseconds.
package reap

import (
	"syscall"
	"time"
)

// ProtocolVersion is the version of the messages in this package. It changes
// with any change of their form or meaning.
const ProtocolVersion = 3

// Build names the build that a program belongs to. The linker sets it in the
// server and in hangup-shim alike; the two refuse each other when it differs.
var Build = "dev"

// SupervisorEnv names the environment variable that carries the number of the
// descriptor on which a server may ask its supervisor for a sweep.
const SupervisorEnv = "HANGUP_SUPERVISOR_FD"

// EndNow is what the server gets from its supervisor in place of the second SIGTERM
// or SIGINT. The server cannot count by itself: a service manager may signal both,
// and then has it two of one. It is a real-time signal (SIGRTMIN+6 in C), which
// nobody else sends.
const EndNow = syscall.Signal(40)

// The descriptors a shim is started with, beside the standard three.
const (
	ControlFD = 3 // a stream socket to the server
	ServerFD  = 4 // a pidfd of the server
)

// Limits of the messages.
const (
	MaxOrder  = 8 << 20  // bytes of one message to a shim; more than the kernel takes as argv and environment
	MaxReport = 64 << 10 // bytes of one message from a shim or supervisor
	MaxFiles  = 64       // descriptors that one start may hand over

	maxSurvivors = 64  // survivors named in one report
	maxText      = 256 // bytes of a build or wait channel
)

// The times by which a stop is measured.
const (
	BeatEvery    = 50 * time.Millisecond // between two signs of life while killing; promised: at most twice that
	VerdictAfter = 2 * time.Second       // then the verdict is: not empty; again after each such time

	minPause = 5 * time.Millisecond  // between two steps of a stop when nobody has died
	maxPause = 50 * time.Millisecond // the same, after a while without success

	strangersEvery = time.Second // between two looks of the supervisor for orphans that rose to it
)
