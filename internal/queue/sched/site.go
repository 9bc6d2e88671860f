package sched

import (
	"time"

	"blitiri.com.ar/go/chasquid/internal/mail"
)

// class separates what must not compete for the same slots.
type class uint8

const (
	local class = iota
	pipe
	remote
)

func classOf(t mail.Transport) class {
	switch t {
	case mail.Local:
		return local
	case mail.Command:
		return pipe
	}
	return remote
}

// Sites with work and a free slot stand in one of these lanes. Each lane has its own bound, so that remote sites never use up what local
// delivery needs, and sites that are new or failing never use up what sites that work need.
const (
	laneLocal = iota
	lanePipe
	laneWell
	laneDoubtful
	numLanes
)

// Tuning of the breaker and the concurrency.
const (
	deadAfter = 3   // failures in a row that close a site
	minLimit  = 1.0 // attempts at once of a struggling site
)

// probeTable is how long a dead site is left alone after the first, second, … failed probe.
var probeTable = [...]time.Duration{1 * time.Minute, 2 * time.Minute, 4 * time.Minute, 8 * time.Minute, 15 * time.Minute}

// site is the memory of one set of hosts.
type site struct {
	key   string
	class class

	limit   float64 // attempts at once
	running int
	cutAt   time.Time // when limit was last cut
	well    bool      // its last answer was good
	fails   int       // failures in a row
	probing bool      // let one attempt through at a time until one is good
	open    bool      // the breaker is open: nothing is attempted before probeAt
	rounds  int       // times the breaker opened in a row
	probeAt time.Time
	place   int    // in the heap of probes, -1 if not there
	lastErr string // of the last failure
	lastAt  time.Time

	fresh, retry list        // ready units alone in their group: never attempted, attempted before
	flows        ring[*flow] // groups of units that may start one
	turn         uint8       // whose turn it is among these three
	flowing      int         // flows that exist here
	inFlows      int         // units in flows
	queued       bool        // stands in a lane
	gone         bool        // no longer in Schedule.sites: destinations look it up again
}

// flow is what one message with several units has at one site. Flows of a site take turns, and none takes the last slot, so that a mail that
// comes later finds one.
type flow struct {
	key     flowKey
	pending list
	running int
	linked  bool // stands in site.flows
}

type flowKey struct {
	site  *site
	group uint32
}

// slots is how many attempts may run at once now.
func (st *site) slots() int {
	if st.probing {
		return 1
	}
	return int(st.limit)
}

func (st *site) work() bool { return st.fresh.n > 0 || st.retry.n > 0 || st.flows.len() > 0 }

func (st *site) idle() bool {
	return st.running == 0 && !st.work() && st.flowing == 0 && !st.queued && st.place < 0
}

// The number of remembered sites is bounded: idle ones in good health go first, beyond siteCap also idle ones that failed.
const (
	sweepFloor = 10_000
	siteCap    = 50_000
)

// siteOf returns the site of a destination, which is made if it is new.
func (s *Schedule) siteOf(d *dest) *site {
	if d.site != nil && !d.site.gone {
		return d.site
	}
	st := s.sites[d.siteKey]
	if st == nil {
		st = &site{key: d.siteKey, class: d.class, place: -1}
		switch d.class {
		case local:
			st.limit = float64(s.conf.Local)
		case pipe:
			st.limit = float64(s.conf.Pipe)
		default:
			st.limit = float64(s.conf.Initial)
		}
		s.sites[d.siteKey] = st
		if len(s.sites) > s.sweep {
			s.sweepSites(st)
		}
	}
	d.site = st
	return st
}

func (s *Schedule) sweepSites(keep *site) {
	over := len(s.sites) > siteCap
	for key, st := range s.sites {
		if st != keep && st.idle() && (st.fails == 0 || over) {
			st.gone = true
			delete(s.sites, key)
		}
	}
	s.sweep = max(sweepFloor, 2*len(s.sites))
	if len(s.sites) <= siteCap {
		s.sweep = min(s.sweep, siteCap)
	}
}

// ready puts a unit into the lists of its site.
func (s *Schedule) ready(k Key, now time.Time) {
	u := s.unit(k)
	u.state = ready
	if u.linked {
		return
	}
	st := s.siteOf(s.dests.at(u.dest))
	u.linked = true
	switch {
	case !u.solo:
		fk := flowKey{st, u.group}
		f := s.flows[fk]
		if f == nil {
			f = &flow{key: fk}
			s.flows[fk] = f
			st.flowing++
		}
		s.append(&f.pending, k)
		st.inFlows++
		st.linkFlow(f)
	case u.attempts == 0:
		s.append(&st.fresh, k)
	default:
		s.append(&st.retry, k)
	}
	s.enqueue(st, now)
}

func (st *site) linkFlow(f *flow) {
	if !f.linked && f.pending.n > 0 && f.running < max(1, st.slots()-1) {
		f.linked = true
		st.flows.push(f)
	}
}

// enqueue puts a site with work and a free slot into its lane, or, if it is dead, among those to be probed.
func (s *Schedule) enqueue(st *site, now time.Time) {
	if st.queued || !st.work() {
		return
	}
	if st.open {
		if st.probeAt.After(now) {
			if st.place < 0 {
				s.probes.push(st)
			}
			return
		}
		st.open = false
	}
	if st.place >= 0 {
		s.probes.remove(st)
	}
	if st.running >= st.slots() {
		return
	}
	st.queued = true
	s.lanes[st.lane()].push(st)
}

func (st *site) lane() int {
	switch {
	case st.class == local:
		return laneLocal
	case st.class == pipe:
		return lanePipe
	case st.well:
		return laneWell
	}
	return laneDoubtful
}

// hasRoom reports whether the lane's bound lets one more attempt start.
func (s *Schedule) hasRoom(lane int) bool {
	switch lane {
	case laneWell:
		return s.remote < s.conf.Workers
	case laneDoubtful:
		return s.remote < s.conf.Workers && s.doubtful < max(1, s.conf.Workers*3/4)
	}
	return true // the limit of the site is the bound
}

// Ready reports whether Next would return a unit, but for units claimed meanwhile.
func (s *Schedule) Ready() bool {
	for l := range s.lanes {
		if s.lanes[l].len() > 0 && s.hasRoom(l) {
			return true
		}
	}
	return false
}

// Next returns a unit to attempt now; it runs until Done. ok is false if there is none that may start.
func (s *Schedule) Next(now time.Time) (k Key, ok bool) {
	for range numLanes {
		s.turn = (s.turn + 1) % numLanes
		for l := s.turn; s.lanes[l].len() > 0 && s.hasRoom(l); {
			st := s.lanes[l].pop()
			st.queued = false
			if st.running >= st.slots() || st.open {
				s.enqueue(st, now)
				continue
			}
			if k, f := s.pick(st); k != 0 {
				s.start(k, st, f, now)
				s.enqueue(st, now)
				return k, true
			}
		}
	}
	return 0, false
}

func (s *Schedule) start(k Key, st *site, f *flow, now time.Time) {
	u := s.unit(k)
	u.state = running
	st.running++
	r := run{site: st, flow: f, started: now}
	if st.class == remote {
		s.remote++
		if !st.well {
			r.doubtful = true
			s.doubtful++
		}
	}
	s.runs[k] = r
}

// pick takes the next unit out of the site's lists: a turn for flows, a turn for single units; of these, three first attempts to one
// repeated one. Units claimed since they were put there are skipped.
func (s *Schedule) pick(st *site) (Key, *flow) {
	for st.work() {
		st.turn++
		singles := st.fresh.n + st.retry.n
		if st.flows.len() > 0 && (singles == 0 || st.turn&1 == 0) {
			f := st.flows.pop()
			f.linked = false
			n := f.pending.n
			k := s.take(&f.pending)
			st.inFlows -= n - f.pending.n
			if k != 0 {
				f.running++
			}
			st.linkFlow(f)
			s.dropFlow(f)
			if k != 0 {
				return k, f
			}
			continue
		}
		l := &st.fresh
		if st.fresh.n == 0 || st.retry.n > 0 && st.turn>>1&3 == 3 {
			l = &st.retry
		}
		if k := s.take(l); k != 0 {
			return k, nil
		}
	}
	return 0, nil
}

// dropFlow forgets a flow with nothing left.
func (s *Schedule) dropFlow(f *flow) {
	if f.pending.n == 0 && f.running == 0 {
		delete(s.flows, f.key)
		f.key.site.flowing--
	}
}
