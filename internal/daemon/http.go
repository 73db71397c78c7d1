package daemon

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"example.com/hangup/internal/connwatch"
)

// The limits of a connection that no key of the config sets.
const (
	// HeaderTimeout is how long a caller may take for the headers of a request, and
	// for the handshake of TLS.
	HeaderTimeout = 10 * time.Second
	// IdleTimeout is how long a connection may be kept between two requests.
	IdleTimeout = 2 * time.Minute
	// HeaderMax is how large the headers of a request may be, in bytes.
	HeaderMax = 64 << 10
	// UploadWindow is how many bytes of bodies a connection of HTTP/2 may send ahead
	// of their readers, for all its streams together and for each.
	UploadWindow = 256 << 10
	// FrameMax is how long a frame of HTTP/2 may be, in bytes: the least that there is.
	// A connection keeps a buffer for the longest one that has come.
	FrameMax = 16 << 10
)

// newHTTP makes the http.Server, which speaks HTTP/1.1 and HTTP/2 alike, over TLS and
// without.
func (s *server) newHTTP() *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler: s.doors.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			(*s.handler.Load()).ServeHTTP(w, r)
		})),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return s.doors.ConnContext(s.watch.ConnContext(ctx, c), c)
		},
		ConnState: func(c net.Conn, state http.ConnState) {
			s.watch.ConnState(c, state)
			s.doors.ConnState(c, state)
		},
		ReadHeaderTimeout: HeaderTimeout, IdleTimeout: IdleTimeout, MaxHeaderBytes: HeaderMax,
		DisableGeneralOptionsHandler: true, // "OPTIONS *" has to pass the door, too
		Protocols:                    protocols,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:          s.o.Config.Limits.Streams,
			MaxReadFrameSize:              FrameMax,
			MaxReceiveBufferPerConnection: UploadWindow,
			MaxReceiveBufferPerStream:     UploadWindow,
			WriteByteTimeout:              connwatch.SendTimeout,
		},
		ErrorLog: log.New(httpLog{s.log.Logger}, "", 0),
	}
}

// httpLog takes what net/http has to say.
type httpLog struct{ log *slog.Logger }

func (h httpLog) Write(p []byte) (int, error) {
	level := slog.LevelDebug
	if bytes.HasPrefix(p, []byte("http: panic")) || bytes.HasPrefix(p, []byte("http2: panic")) {
		level = slog.LevelError // a defect of hangup; all else is what callers do
	}
	h.log.Log(context.Background(), level, "http", "message", string(p))
	return len(p), nil
}

// notify tells the service manager, if there is one, how the service stands:
// sd_notify(3).
func (s *server) notify(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		s.log.Warn("cannot tell the service manager", "state", state, "error", err,
			"remedy", "NotifyAccess=all in the unit: the server runs below the process that systemd started")
	}
}

// reloading is the state in which a reload is under way. It wants the time by the clock
// that systemd compares it with.
func reloading() string {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return daemon.SdNotifyReloading
	}
	return fmt.Sprintf("%s\nMONOTONIC_USEC=%d", daemon.SdNotifyReloading, now.Nano()/int64(time.Microsecond))
}
