package event

import "testing"

func TestContainmentMeets(t *testing.T) {
	levels := []string{"process-group", "subreaper", "cgroup"}
	for i, level := range levels {
		for j, minimum := range levels {
			if got := (Containment{Level: level}).Meets(minimum); got != (i >= j) {
				t.Errorf("%s meets %s: %v", level, minimum, got)
			}
		}
	}
}
