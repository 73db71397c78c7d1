//go:build !linux || portable

package main

import "os"

// The program is not needed on this system: it holds processes by means that Linux
// alone has. It is built so that both programs are there everywhere.
func main() {
	os.Stderr.WriteString("hangup-shim: not needed on this system: hangup starts its workers itself here\n")
	os.Exit(2)
}
