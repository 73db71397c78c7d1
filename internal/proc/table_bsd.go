//go:build !linux && !darwin

package proc

// table lists no process: this system tells them to nobody who would be quick.
func table() []Process { return nil }
