package stamp

import (
	"testing"
	"time"
)

// TestTime checks that the time of a line is as package time formats it, whatever was formatted before.
func TestTime(t *testing.T) {
	var c Clock
	at := time.Date(2026, 3, 29, 0, 59, 58, 999_999_999, time.UTC)
	for _, step := range []time.Duration{0, 1, time.Microsecond, 123_456 * time.Microsecond, time.Second, -time.Second, time.Hour, 24 * time.Hour} {
		at = at.Add(step)
		for _, zone := range []*time.Location{time.UTC, time.Local, time.FixedZone("x", 5*3600+1800), time.UTC} {
			if got, want := string(c.Append(nil, at.In(zone))), at.In(zone).Format(Layout); got != want {
				t.Errorf("%q, want %q", got, want)
			}
		}
	}
}
