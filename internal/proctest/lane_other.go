//go:build !linux

package proctest

import "syscall"

// dieWithParent can do nothing on this system.
func dieWithParent(*syscall.SysProcAttr) {}

// inGroup is never called: there are no cgroups.
func inGroup(*syscall.SysProcAttr, int) {}
