package api

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"example.com/hangup/internal/call"
	"example.com/hangup/internal/connwatch"
)

// healthy answers GET /healthz: the process answers, and that is all it says.
func (s *server) healthy(v *visit) {
	s.writeJSON(v, http.StatusOK, map[string]string{"status": "ok"})
}

// ready answers GET /readyz: 503 says why no calls should be sent here.
func (s *server) ready(v *visit) {
	err := s.o.Ready()
	switch {
	case err == nil:
		s.writeJSON(v, http.StatusOK, map[string]string{"status": "ok"})
	case errors.Is(err, call.ErrDraining), errors.Is(err, call.ErrDown):
		s.fail(v, nil, err)
	default:
		s.fail(v, nil, fmt.Errorf("%w: %w", call.ErrDown, err))
	}
}

// metrics answers GET /metrics. The counts of all workloads are in it, so a token
// must be for all of them.
func (s *server) metrics(v *visit) {
	if !v.caller.everything() {
		s.fail(v, nil, fmt.Errorf("%w: the token %q is not for all workloads", call.ErrForbidden, v.caller.name))
		return
	}
	_ = v.body.conn.SetWriteDeadline(time.Now().Add(connwatch.SendTimeout))
	s.o.Metrics.ServeHTTP(v.w, v.r)
}
