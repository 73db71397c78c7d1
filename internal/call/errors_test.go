package call

import (
	"errors"
	"strings"
	"testing"
)

// How a worker died is told in one line, and a want of memory only where there was one.
func TestDiedError(t *testing.T) {
	for want, err := range map[string]*DiedError{
		"the worker exited with code 3":                                              {Exit: 3},
		"the worker was ended by SIGSEGV":                                            {Exit: -1, Signal: "SIGSEGV"},
		"the worker was ended by SIGKILL, probably by the kernel for want of memory": {Exit: -1, Signal: "SIGKILL", OOM: true},
	} {
		if got := err.Error(); !strings.HasPrefix(got, want) || !err.OOM && got != want {
			t.Errorf("%+v: %q, want %q", err, got, want)
		}
		if !errors.Is(err, ErrDied) {
			t.Errorf("%+v is no ErrDied", err)
		}
	}
}
