package api

import (
	"fmt"
	"net/http"

	"example.com/hangup/internal/calls"
)

// listCalls answers GET /calls with what the caller may see.
func (s *server) listCalls(v *visit) {
	list := []calls.Record{}
	for _, record := range s.o.Calls.List() {
		if v.caller.may(record.Workload) {
			list = append(list, record)
		}
	}
	s.writeJSON(v, http.StatusOK, map[string]any{"calls": list})
}

// showCall answers GET /calls/{id}.
func (s *server) showCall(v *visit) {
	record, err := s.record(v)
	if err != nil {
		s.fail(v, nil, err)
		return
	}
	s.writeJSON(v, http.StatusOK, record)
}

// cancelCall answers DELETE /calls/{id}: 202 and the call as it is, because its
// end is on the way and not yet there.
func (s *server) cancelCall(v *visit) {
	record, err := s.record(v)
	if err == nil && !s.o.Calls.Cancel(record.ID) {
		if record, err = s.record(v); err == nil { // it may have ended only now
			err = fmt.Errorf("%w is queued or running: %s has ended (%s)", errNoSuchCall, record.ID, record.Outcome)
		}
	}
	if err != nil {
		s.fail(v, nil, err)
		return
	}
	if record.State == "running" { // it costs a worker, as a hang-up does
		s.o.Budget.charge(v.caller.payer())
	}
	s.writeJSON(v, http.StatusAccepted, record)
}

// record returns the call that the path names. To a token without its workload it
// does not exist.
func (s *server) record(v *visit) (calls.Record, error) {
	id := v.params[0]
	record, ok := s.o.Calls.Get(id)
	if !ok || !v.caller.may(record.Workload) {
		return calls.Record{}, fmt.Errorf("%w: %q is not known, or no longer", errNoSuchCall, clip(id))
	}
	return record, nil
}
