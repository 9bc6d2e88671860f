package trace

import "sync/atomic"

// Place is one line of code that logs for every message. It keeps what the process log found out about it, as looking at the stack takes
// longer than writing the line. The zero value is ready; a Place belongs to a single call.
type Place struct{ known atomic.Value }

// Known returns what Keep was given, nil before that and for a nil Place.
func (p *Place) Known() any {
	if p == nil {
		return nil
	}
	return p.known.Load()
}

// Keep keeps what is known of the place. The type is always the same.
func (p *Place) Keep(known any) {
	if p != nil {
		p.known.Store(known)
	}
}
