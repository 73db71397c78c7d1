//go:build linux

package reap

import (
	"testing"

	"example.com/hangup/internal/proctest"
)

func TestMain(m *testing.M) { proctest.Main(m) }
