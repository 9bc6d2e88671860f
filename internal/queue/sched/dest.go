package sched

import (
	"time"

	"blitiri.com.ar/go/chasquid/internal/mail"
)

// dest is one destination: what a unit goes to.
type dest struct {
	name      string
	siteKey   string // of the site it belongs to as far as known; its own name at first
	site      *site  // cached look-up of siteKey
	refs      uint32 // units, and references not yet released
	asked     uint32 // when the owner was last told to find out the site, seconds since 1970
	class     class
	transport mail.Transport
}

// dests interns destinations. Unused ones are kept for a while, so that what was found out about a busy one is not lost between two
// messages.
type dests struct {
	byName map[string]Dest
	list   []dest
	spare  []Dest
	used   int
}

func newDests() dests { return dests{byName: map[string]Dest{}, list: make([]dest, 1)} }

func (ds *dests) at(d Dest) *dest { return &ds.list[d] }

func (ds *dests) take(d Dest) {
	if ds.list[d].refs == 0 {
		ds.used++
	}
	ds.list[d].refs++
}

func (ds *dests) drop(d Dest) {
	ds.list[d].refs--
	if ds.list[d].refs == 0 {
		ds.used--
	}
}

// idleDests is how many unused destinations are remembered at least.
const idleDests = 4096

func (ds *dests) sweep() {
	if len(ds.byName) < 2*ds.used+idleDests {
		return
	}
	for name, d := range ds.byName {
		if ds.list[d].refs == 0 {
			delete(ds.byName, name)
			ds.list[d] = dest{}
			ds.spare = append(ds.spare, d)
		}
	}
}

// siteTTL is how long the site of a destination is believed.
const siteTTL = time.Hour

// Intern returns the destination of that name, with a reference that the caller gives back with Release. Names are chosen by the caller,
// one for each thing a transaction can go to; site is the name of the site it belongs to, for what the caller knows beforehand ("" makes
// it a site of its own). ask tells that the site of a remote destination is unknown or was found out long ago: whoever can should, and call
// SetSite.
func (s *Schedule) Intern(name, site string, t mail.Transport, now time.Time) (d Dest, ask bool) {
	d, ok := s.dests.byName[name]
	if !ok {
		s.dests.sweep()
		if n := len(s.dests.spare); n > 0 {
			d, s.dests.spare = s.dests.spare[n-1], s.dests.spare[:n-1]
		} else {
			d = Dest(len(s.dests.list))
			s.dests.list = append(s.dests.list, dest{})
		}
		if site == "" {
			site = name
		}
		*s.dests.at(d) = dest{name: name, siteKey: site, class: classOf(t), transport: t}
		s.dests.byName[name] = d
	}
	s.dests.take(d)
	if e := s.dests.at(d); t == mail.SMTP && now.Unix()-int64(e.asked) >= int64(siteTTL/time.Second) {
		e.asked = uint32(now.Unix())
		ask = true
	}
	return d, ask
}

// Lookup returns the destination of that name without a reference, 0 if there is none.
func (s *Schedule) Lookup(name string) Dest { return s.dests.byName[name] }

// Release gives back the reference that Intern gave.
func (s *Schedule) Release(d Dest) { s.dests.drop(d) }

// SetSite says which site the destination belongs to. Units that already wait for a slot stay where they are; later ones go there.
func (s *Schedule) SetSite(name, key string) {
	if d := s.dests.byName[name]; d != 0 && key != "" {
		e := s.dests.at(d)
		e.siteKey, e.site = key, nil
	}
}

// Name returns the name of a destination.
func (s *Schedule) Name(d Dest) string { return s.dests.at(d).name }

// Transport returns how a destination is reached.
func (s *Schedule) Transport(d Dest) mail.Transport { return s.dests.at(d).transport }
