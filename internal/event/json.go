package event

import (
	"encoding/json"
	"time"
)

// MarshalJSON gives the evidence the members it has in GET /calls. Its lists are
// never null.
func (c Cancel) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		By        string     `json:"by"`
		NoticedAt time.Time  `json:"noticed_at"`
		Steps     []Step     `json:"steps"`
		Killed    int        `json:"killed"`
		EmptyMs   float64    `json:"empty_ms"`
		Empty     bool       `json:"empty"`
		Proof     string     `json:"proof,omitempty"`
		Survivors []Survivor `json:"survivors"`
	}{
		c.By, c.NoticedAt, append([]Step{}, c.Stop.Steps...), c.Stop.Killed, Milliseconds(c.Stop.Took),
		c.Stop.Empty, c.Stop.Proof, append([]Survivor{}, c.Stop.Survivors...),
	})
}

// MarshalJSON gives the step's time in milliseconds.
func (s Step) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Step string  `json:"step"`
		AtMs float64 `json:"at_ms"`
	}{s.Name, Milliseconds(s.At)})
}

// Milliseconds is d in milliseconds, to the microsecond: the unit of every
// duration that is shown.
func Milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
