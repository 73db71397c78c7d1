// Package python carries the Python SDK inside the Go programs, so that
// `hangup init` can lay it beside a starter worker.
package python

import _ "embed"

// SDK is the file hangup.py.
//
//go:embed hangup.py
var SDK []byte
