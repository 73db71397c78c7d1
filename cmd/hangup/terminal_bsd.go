//go:build !linux

package main

import "golang.org/x/sys/unix"

// getTerminal is the request that only a terminal answers.
const getTerminal = unix.TIOCGETA
