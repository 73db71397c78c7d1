//go:build !linux || portable

package connwatch

import (
	"context"
	"net"
	"net/http"
)

// Watcher watches nothing on this system: every request falls back on its context.
type Watcher struct{}

// New returns a Watcher.
func New() (*Watcher, error) { return &Watcher{}, nil }

// Close does nothing.
func (*Watcher) Close() error { return nil }

// ConnContext tunes c (see [Tune]) and returns ctx.
func (*Watcher) ConnContext(ctx context.Context, c net.Conn) context.Context {
	_ = Tune(c) // best effort
	return ctx
}

// ConnState does nothing.
func (*Watcher) ConnState(net.Conn, http.ConnState) {}

// conn is never made on this system.
type conn struct{ gone context.Context }

func (*conn) bound(bool)      {}
func (*conn) serve(int)       {}
func (*conn) stream(int) bool { return false }
