package vitals

import "time"

// What counts failures of the last minutes would go on about a trouble long after its end. These are the times for seeing the end.
const (
	settled    = 2 * Step         // without failure, and with success, until a trouble is over
	relapsing  = 10 * time.Minute // how long one is remembered
	maxRelapse = 4                // doublings of settled
)

// end is the end of a trouble.
type end struct {
	at       time.Duration // when it was seen, 0 if it goes on
	relapses int
}

// over reports whether what failed last at bad and went well last at good is over. What comes back soon has to stay away for twice as long the
// next time, so that a trouble that comes and goes does not blink.
func (s *Sampler) over(name string, bad, good time.Duration) bool {
	e := s.ends[name]
	if e == nil {
		e = &end{}
		s.ends[name] = e
	}
	switch {
	case s.mono-bad >= relapsing:
		*e = end{}
		return true
	case e.at > 0 && bad > e.at:
		e.at, e.relapses = 0, min(e.relapses+1, maxRelapse)
	}
	quiet := settled << e.relapses
	if good == bad { // between the same two samples: who knows which was the last
		quiet *= 2
	}
	if good < bad || good == 0 || s.mono-bad < quiet {
		return false
	}
	if e.at == 0 {
		e.at = s.mono
	}
	return true
}
