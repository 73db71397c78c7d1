package daemon

import (
	"context"
	"log"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

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
	// FrameMax is how large a frame of HTTP/2 may be, in bytes. A connection keeps room
	// for its largest one, and every client must do with this.
	FrameMax = 16 << 10
)

// newHTTP makes the http.Server, which speaks HTTP/1.1 and HTTP/2 alike, over TLS and
// without.
func (s *server) newHTTP(handler http.Handler) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler: s.doors.Handler(handler),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return s.doors.ConnContext(s.watch.ConnContext(ctx, c), c)
		},
		ConnState: func(c net.Conn, state http.ConnState) {
			s.watch.ConnState(c, state)
			s.doors.ConnState(c, state)
		},
		ReadHeaderTimeout: HeaderTimeout, IdleTimeout: IdleTimeout, MaxHeaderBytes: HeaderMax,
		DisableGeneralOptionsHandler: true, // of which the door knows nothing
		Protocols:                    protocols,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:          s.o.Config.Limits.Streams,
			MaxReceiveBufferPerConnection: UploadWindow,
			MaxReceiveBufferPerStream:     UploadWindow,
			MaxReadFrameSize:              FrameMax,
			WriteByteTimeout:              connwatch.SendTimeout,
		},
		ErrorLog: log.New(httpLog{s.log}, "", 0),
	}
}

// httpLog takes what net/http has to say.
type httpLog struct{ log *slog.Logger }

func (h httpLog) Write(p []byte) (int, error) {
	h.log.Debug("http", "message", string(p))
	return len(p), nil
}

// notify tells the service manager, if there is one, how the service stands:
// sd_notify(3).
func notify(l *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		l.Warn("cannot tell the service manager", "state", state, "error", err,
			"remedy", "NotifyAccess=all in the unit: the server runs below the process that systemd started")
	}
}
