package sched

import (
	"fmt"
	"time"
)

// SiteStat describes one site to people.
type SiteStat struct {
	Site     string
	Limit    int // attempts at once now
	Why      string
	Running  int
	Waiting  int // units that would start if there were a slot
	Fails    int // failures in a row
	Dead     bool
	ProbeAt  time.Time // zero unless Dead
	LastErr  string
	LastFail time.Time
}

func (st *site) stat() SiteStat {
	r := SiteStat{Site: st.key, Limit: st.slots(), Running: st.running, Waiting: st.waiting(), Fails: st.fails, Dead: st.open,
		LastErr: st.lastErr, LastFail: st.lastAt}
	switch {
	case st.class == local || st.class == pipe:
		r.Why = "fixed by configuration"
	case st.open:
		r.ProbeAt = st.probeAt
		r.Why = fmt.Sprintf("left alone after %d failures in a row, until a probe", st.fails)
	case st.probing:
		r.Why = "being probed, one attempt at a time"
	case st.well && !st.cutAt.IsZero():
		r.Why = "growing again after a failure"
	case st.well:
		r.Why = "growing with each success"
	case st.fails > 0:
		r.Why = fmt.Sprintf("halved after %d failures in a row", st.fails)
	default:
		r.Why = "not known yet"
	}
	return r
}

func (st *site) waiting() int {
	return st.fresh.n + st.retry.n + st.inFlows
}

// Site tells about the site of a destination; ok is false if nothing is remembered of it.
func (s *Schedule) Site(d Dest) (st SiteStat, ok bool) {
	e := s.dests.at(d)
	if x := s.sites[e.siteKey]; x != nil {
		return x.stat(), true
	}
	return SiteStat{Site: e.siteKey}, false
}

// DestStat describes one destination to people.
type DestStat struct {
	Name  string
	Units int // all of them, whatever their state
	SiteStat
}

// Dests calls f for the destinations in use with places from up to n more, and returns the place to go on from, 0 at the end. It is made
// for walking many of them without keeping the owner's lock.
func (s *Schedule) Dests(from, n int, f func(DestStat)) (next int) {
	from = max(1, from)
	end := min(len(s.dests.list), from+n)
	for i := from; i < end; i++ {
		e := &s.dests.list[i]
		if e.refs == 0 {
			continue
		}
		st, _ := s.Site(Dest(i))
		f(DestStat{Name: e.name, Units: int(e.refs), SiteStat: st})
	}
	if end == len(s.dests.list) {
		return 0
	}
	return end
}

// Running returns how many attempts run now.
func (s *Schedule) Running() int { return len(s.runs) }
