// Package sched decides what to attempt next and when: state and time go in, decisions come out.
//
// The work is cut into units: some recipients of one message that go to one destination. A destination belongs to a site, the set of
// hosts that really takes the mail; attempts are limited, slowed down and probed by site, so that a slow or dead one delays nobody else.
// Within a site, messages take turns, so that a list with many recipients does not delay a single mail, and first attempts go before
// repeated ones. A million waiting units cost some 30 bytes each and hold no pointers.
//
// A Schedule does no I/O, starts nothing and reads no clock. It is not safe for concurrent use: its owner has a lock.
package sched

import (
	"math"
	"time"
)

// Key names one unit of a schedule. The zero Key names none. Keys of removed units are used again.
type Key uint32

// Dest names one destination of a schedule.
type Dest uint32

// Config bounds a schedule. Zero values mean the defaults.
type Config struct {
	Workers int // remote attempts at once, all sites together; default 256
	PerSite int // upper bound of the adaptive number of attempts at once for one remote site; default 20
	Initial int // where that number starts; default 5
	Local   int // local deliveries at once; default 20
	Pipe    int // commands at once; default 10
}

func (c Config) withDefaults() Config {
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&c.Workers, 256)
	def(&c.PerSite, 20)
	def(&c.Initial, min(5, c.PerSite))
	def(&c.Local, 20)
	def(&c.Pipe, 10)
	return c
}

// state is where a unit stands.
type state uint8

const (
	free    state = iota
	waiting       // for its time, in the heap
	ready         // for a slot of its site, in one of the site's lists
	running       // being attempted
	claimed       // taken by the owner, who will Defer, Hold or Remove it
	held          // until released
)

// String returns the name used on pages.
func (s state) String() string {
	return [...]string{"free", "waiting", "ready", "running", "claimed", "held"}[s]
}

// unit is one unit: 24 bytes, no pointers.
type unit struct {
	due      uint32 // seconds since 1970, rounded up
	link     uint32 // the next unit of the list it stands in
	place    uint32 // in the heap, while waiting
	dest     Dest
	group    uint32
	attempts uint8
	state    state
	linked   bool // stands in a list; if its state is no longer ready it is skipped there
	solo     bool // the only unit of its group
}

// Units live in chunks so that growing never copies a million of them at once.
const (
	chunkBits = 12
	chunkSize = 1 << chunkBits
)

// Schedule is the state. Make one with New.
type Schedule struct {
	conf Config

	chunks [][]unit
	spare  Key // first of the free units, chained through link
	next   Key // first unit never used
	heap   []Key

	dests  dests
	sites  map[string]*site
	sweep  int // make room among the sites when there are more
	probes probeHeap

	lanes    [numLanes]ring[*site] // sites that have work and a free slot
	turn     int
	remote   int // attempts running at remote sites
	doubtful int // of these, at sites that are not known to be well
	runs     map[Key]run
	flows    map[flowKey]*flow
}

// run is one attempt under way.
type run struct {
	site     *site
	flow     *flow // nil for a unit alone in its group
	started  time.Time
	doubtful bool
}

// New returns an empty schedule.
func New(conf Config) *Schedule {
	return &Schedule{conf: conf.withDefaults(), next: 1, dests: newDests(), sites: map[string]*site{}, sweep: sweepFloor,
		runs: map[Key]run{}, flows: map[flowKey]*flow{}}
}

// Configure replaces the bounds. Attempts under way go on; no new one begins where there are too many.
func (s *Schedule) Configure(conf Config, now time.Time) {
	s.conf = conf.withDefaults()
	for _, st := range s.sites {
		switch st.class {
		case local:
			st.limit = float64(s.conf.Local)
		case pipe:
			st.limit = float64(s.conf.Pipe)
		default:
			st.limit = min(st.limit, float64(s.conf.PerSite))
		}
		s.enqueue(st, now)
	}
}

func (s *Schedule) unit(k Key) *unit { return &s.chunks[k>>chunkBits][k&(chunkSize-1)] }

func (s *Schedule) alloc() Key {
	if k := s.spare; k != 0 {
		s.spare = Key(s.unit(k).link)
		return k
	}
	k := s.next
	s.next++
	if int(k>>chunkBits) == len(s.chunks) {
		s.chunks = append(s.chunks, make([]unit, chunkSize))
	}
	return k
}

func (s *Schedule) release(k Key) {
	u := s.unit(k)
	*u = unit{link: uint32(s.spare)}
	s.spare = k
}

// Unit describes a unit to be added.
type Unit struct {
	Dest     Dest
	Group    uint32    // the message; comes back from Group
	Solo     bool      // it is the only unit of its group
	Due      time.Time // not attempted earlier
	Attempts int       // made so far
	Held     bool
}

// Add takes a unit into the schedule and returns its name.
func (s *Schedule) Add(n Unit, now time.Time) Key {
	k := s.alloc()
	u := s.unit(k)
	*u = unit{dest: n.Dest, group: n.Group, solo: n.Solo, attempts: uint8(min(n.Attempts, math.MaxUint8)), state: claimed}
	s.dests.take(n.Dest)
	if n.Held {
		u.state = held
		u.due = seconds(n.Due)
		return k
	}
	s.Defer(k, n.Due, now)
	return k
}

// Defer makes a claimed unit wait until due; if that has come, it is ready at once.
func (s *Schedule) Defer(k Key, due, now time.Time) {
	u := s.unit(k)
	if due.After(now) {
		u.state = waiting
		u.due = seconds(due)
		s.push(k)
		return
	}
	u.due = seconds(now)
	s.ready(k, now)
}

// Claim takes a unit out of the schedule's hands, if it is not running, claimed or gone; its owner will Defer, Hold or Remove it.
func (s *Schedule) Claim(k Key) bool {
	u := s.unit(k)
	switch u.state {
	case waiting:
		s.remove(int(u.place))
	case ready, held:
	default:
		return false
	}
	u.state = claimed
	return true
}

// Hold sets a claimed unit aside until it is claimed again.
func (s *Schedule) Hold(k Key) { s.unit(k).state = held }

// Remove forgets a claimed unit.
func (s *Schedule) Remove(k Key) {
	u := s.unit(k)
	s.dests.drop(u.dest)
	u.state = free
	if !u.linked {
		s.release(k)
	} // else its place is given back when the list comes to it
}

// Attempted counts one more attempt of the unit and returns the number.
func (s *Schedule) Attempted(k Key) int {
	u := s.unit(k)
	if u.attempts < math.MaxUint8 {
		u.attempts++
	}
	return int(u.attempts)
}

// SetSolo says whether the unit is the only one of its group. The unit must be claimed or running.
func (s *Schedule) SetSolo(k Key, solo bool) {
	if u := s.unit(k); !u.linked {
		u.solo = solo
	}
}

// Info is what is known of one unit.
type Info struct {
	State    string
	Due      time.Time // when it is to be attempted, or became ready
	Group    uint32
	Dest     Dest
	Attempts int
	Running  bool
	Held     bool
}

// Info tells about a unit. The zero value stands for one that is not there.
func (s *Schedule) Info(k Key) Info {
	u := s.unit(k)
	if u.state == free {
		return Info{}
	}
	return Info{State: u.state.String(), Due: fromSeconds(u.due), Group: u.group, Dest: u.dest, Attempts: int(u.attempts),
		Running: u.state == running, Held: u.state == held}
}

// Group returns the group of a unit.
func (s *Schedule) Group(k Key) uint32 { return s.unit(k).group }

// DestOf returns the destination of a unit.
func (s *Schedule) DestOf(k Key) Dest { return s.unit(k).dest }

// seconds rounds up, so that nothing is attempted before its time.
func seconds(t time.Time) uint32 {
	n := t.Unix()
	if t.Nanosecond() > 0 {
		n++
	}
	return uint32(max(0, min(n, math.MaxUint32)))
}

func fromSeconds(n uint32) time.Time { return time.Unix(int64(n), 0) }

// retryTable is the time after the first, second, … failed attempt (beyond S-4; RFC 5321 section 4.5.4.1 asks for half an hour and
// more after the first few).
var retryTable = [...]time.Duration{1 * time.Minute, 5 * time.Minute, 10 * time.Minute, 20 * time.Minute, 40 * time.Minute, 60 * time.Minute}

// jitterShare is how much of a delay the jitter may add or take.
const jitterShare = 0.1

// Delay is how long to wait after the attempt with the given number, from 1, failed: as the table says, or as long as the other side
// asked for if that is longer. jitter is in [-1, 1] and moves it by up to 10 %, but not below what was asked for.
func Delay(attempt int, asked time.Duration, jitter float64) time.Duration {
	share := jitterShare * max(-1, min(jitter, 1))
	d := retryTable[max(0, min(attempt-1, len(retryTable)-1))]
	d += time.Duration(float64(d) * share)
	if asked > 0 {
		d = max(d, asked+time.Duration(float64(asked)*max(share, -share)))
	}
	return d
}

// WaitsForSlot reports whether the unit's time has come but it is not running.
func (s *Schedule) WaitsForSlot(k Key) bool { return s.unit(k).state == ready }
