package queue

import (
	"hash/maphash"
	"slices"
	"strings"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/dsn"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/queue/sched"
)

// record is what memory holds of each message: 60 bytes without pointers, so that the garbage collector need not look at a million of them.
type record struct {
	id      idKey
	chain   uint32 // the next record whose id has the same hash
	arrived uint32 // seconds since 1970
	size    uint32 // bytes, at most 4 GiB
	from    uint32 // hash of the sender
	fromDom uint32 // hash of its domain
	rcpt    ref    // the only recipient; of several, index.many has them
	state   msgState
	flags   flags
	stage   uint8 // how many of tellAges have passed
}

// ref is what memory holds of each recipient: 20 bytes.
type ref struct {
	hash      uint32 // of the mailbox; of a pipe, of the address that had it as alias
	dom       uint32 // hash of its domain
	unit      sched.Key
	status    Status
	transport mail.Transport
	reason    mail.Reason // of the last failure
	held      bool
	quiet     bool // there is nothing (more) to tell the sender of it
}

type msgState uint8

const (
	free msgState = iota
	waiting
	sending
	held
	numStates
)

// String returns the name used as a metric label and in filters.
func (s msgState) String() string { return [...]string{"", "waiting", "sending", "held"}[s&3] }

type flags uint8

const (
	isMany    flags = 1 << iota
	isOdd           // the id is longer than an idKey: index.odd has it
	loaded          // it was in the store when Run began
	closing         // nothing is left to attempt; a notice or the removal is to be written
	delayDone       // no delay notice is to be sent, or it was
	dropped         // by an operator: to be removed when the running attempts are over
	returned        // by an operator: to be failed when the running attempts are over
)

// idKey is an id of up to 16 bytes, padded with zeros; of longer ones, which come from imports, a hash.
type idKey [16]byte

// index knows all messages. Records are named by small numbers, which are used again.
type index struct {
	chunks [][]record
	spare  []uint32
	next   uint32
	ids    map[uint32]uint32 // by hash of the id; hashes and chains take a third of what keys would
	odd    map[uint32]mail.ID
	many   map[uint32][]ref
	giveUp map[uint32]uint32 // earliest end, seconds since 1970, of messages that have one of their own
	seed   maphash.Seed

	n      int // messages
	states [numStates]int64
	rcpts  [4][3]int64 // by transport and status
	size   int64
	ages   ages
}

const (
	chunkBits = 12
	chunkSize = 1 << chunkBits
)

func newIndex() index {
	return index{next: 1, ids: map[uint32]uint32{}, odd: map[uint32]mail.ID{}, many: map[uint32][]ref{}, giveUp: map[uint32]uint32{},
		seed: maphash.MakeSeed(), ages: ages{}}
}

func (x *index) at(m uint32) *record { return &x.chunks[m>>chunkBits][m&(chunkSize-1)] }

func (x *index) key(id mail.ID) (k idKey, odd bool) {
	if len(id) <= len(k) {
		copy(k[:], id)
		return k, false
	}
	h := maphash.String(x.seed, string(id))
	for i := range 8 {
		k[i] = byte(h >> (8 * i))
	}
	h = maphash.String(x.seed, "+"+string(id))
	for i := range 8 {
		k[8+i] = byte(h >> (8 * i))
	}
	return k, true
}

// id returns the id of a message.
func (x *index) id(m uint32) mail.ID {
	r := x.at(m)
	if r.flags&isOdd != 0 {
		return x.odd[m]
	}
	n := len(r.id)
	for n > 0 && r.id[n-1] == 0 {
		n--
	}
	return mail.ID(r.id[:n])
}

// find returns the number of the message, 0 if there is none.
func (x *index) find(id mail.ID) uint32 {
	k, _ := x.key(id)
	m := x.ids[x.hashKey(k)]
	for m != 0 && x.at(m).id != k {
		m = x.at(m).chain
	}
	return m
}

func (x *index) hashKey(k idKey) uint32 { return uint32(maphash.Bytes(x.seed, k[:])) }

// unchain takes a record out of the list of those with its hash.
func (x *index) unchain(m uint32) {
	h, next := x.hashKey(x.at(m).id), x.at(m).chain
	first := x.ids[h]
	switch {
	case first != m:
		for x.at(first).chain != m {
			first = x.at(first).chain
		}
		x.at(first).chain = next
	case next != 0:
		x.ids[h] = next
	default:
		delete(x.ids, h)
	}
}

// rcpt returns one recipient of a message.
func (x *index) rcpt(m uint32, i int) *ref {
	if r := x.at(m); r.flags&isMany == 0 {
		return &r.rcpt
	}
	return &x.many[m][i]
}

// each calls f for every recipient of a message; f may change it.
func (x *index) each(m uint32, f func(i int, r *ref)) {
	rec := x.at(m)
	if rec.flags&isMany == 0 {
		f(0, &rec.rcpt)
		return
	}
	rs := x.many[m]
	for i := range rs {
		f(i, &rs[i])
	}
}

// hash is of the lower-case form.
func (x *index) hash(s string) uint32 { return uint32(maphash.String(x.seed, strings.ToLower(s))) }

func (x *index) hashAddr(a address.Address) uint32 {
	return x.hash(a.Local)*16777619 ^ x.hash(a.Domain)
}

// insert makes a record for the entry, whose recipients have no units yet.
func (x *index) insert(e *Entry, delay bool) uint32 {
	var m uint32
	if n := len(x.spare); n > 0 {
		m, x.spare = x.spare[n-1], x.spare[:n-1]
	} else {
		m = x.next
		x.next++
		if int(m>>chunkBits) == len(x.chunks) {
			x.chunks = append(x.chunks, make([]record, chunkSize))
		}
	}
	k, odd := x.key(e.ID)
	h := x.hashKey(k)
	r := x.at(m)
	*r = record{id: k, chain: x.ids[h], arrived: uint32(max(0, e.Env.Arrived.Unix())), size: uint32(min(e.Size, 1<<32-1)),
		from: x.hashAddr(e.Env.From), fromDom: x.hash(e.Env.From.Domain), state: waiting}
	x.ids[h] = m
	x.n++
	if odd {
		r.flags |= isOdd
		x.odd[m] = e.ID
	}
	if !delay {
		r.flags |= delayDone
	}
	if n := len(e.Status); n != 1 {
		r.flags |= isMany
		x.many[m] = make([]ref, n)
	}
	x.each(m, func(i int, r *ref) {
		st := &e.Status[i]
		to := mailbox(&e.Env.Rcpts[i])
		*r = ref{hash: x.hashAddr(to), dom: x.hash(to.Domain), status: st.Status, reason: st.Reason, held: st.Held && st.Status == Pending}
		x.rcpts[r.transport][r.status%3]++
	})
	x.states[waiting]++
	x.size += e.Size
	x.ages.add(e.Env.Arrived, 1)
	return m
}

func mailbox(r *mail.Recipient) address.Address {
	if r.Kind == mail.Pipe {
		return r.Orig
	}
	return r.To
}

// remove forgets a message.
func (x *index) remove(m uint32) {
	r := x.at(m)
	x.each(m, func(_ int, r *ref) { x.rcpts[r.transport][r.status%3]-- })
	x.states[r.state]--
	x.size -= int64(r.size)
	x.ages.add(time.Unix(int64(r.arrived), 0), -1)
	x.unchain(m)
	x.n--
	delete(x.odd, m)
	delete(x.many, m)
	delete(x.giveUp, m)
	*r = record{}
	x.spare = append(x.spare, m)
}

func (x *index) setState(m uint32, s msgState) {
	r := x.at(m)
	x.states[r.state]--
	r.state = s
	x.states[s]++
}

func (x *index) setStatus(r *ref, s Status) {
	x.rcpts[r.transport][r.status%3]--
	r.status = s
	x.rcpts[r.transport][s%3]++
}

func (x *index) setTransport(r *ref, t mail.Transport) {
	x.rcpts[r.transport&3][r.status%3]--
	r.transport = t & 3
	x.rcpts[r.transport][r.status%3]++
}

// pending reports whether a recipient is left to attempt.
func (x *index) pending(m uint32) (left bool) {
	x.each(m, func(_ int, r *ref) { left = left || r.status == Pending })
	return left
}

// allHeld reports whether every recipient left is held.
func (x *index) allHeld(m uint32) bool {
	some, all := false, true
	x.each(m, func(_ int, r *ref) {
		if r.status == Pending {
			some = true
			all = all && r.held
		}
	})
	return some && all
}

// ages counts messages by the time they arrived, in steps of ten seconds.
type ages map[int64]int

const ageStep = 10

func (a ages) add(t time.Time, n int) {
	k := t.Unix() / ageStep
	if a[k] += n; a[k] == 0 {
		delete(a, k)
	}
}

// oldest returns the age of the oldest message, 0 if there is none.
func (a ages) oldest(now time.Time) time.Duration {
	var oldest int64
	for k := range a {
		if oldest == 0 || k < oldest {
			oldest = k
		}
	}
	if oldest == 0 {
		return 0
	}
	return max(0, now.Sub(time.Unix((oldest+1)*ageStep, 0)))
}

// ageLimits bound the age classes of the metric.
var (
	ageNames  = []string{"under_5m", "5m_1h", "1h_4h", "4h_24h", "over_24h"}
	ageLimits = []time.Duration{5 * time.Minute, time.Hour, 4 * time.Hour, 24 * time.Hour}
)

func (a ages) classes(now time.Time) (counts [5]int) {
	for k, n := range a {
		age := now.Sub(time.Unix(k*ageStep, 0))
		c, _ := slices.BinarySearch(ageLimits, age)
		counts[c] += n
	}
	return counts
}

// wantsDelay reports whether some recipient may still be the subject of a delay notice.
func wantsDelay(e *Entry) bool {
	for i := range e.Status {
		if st := &e.Status[i]; st.Status == Pending && st.Notified&NotifiedDelay == 0 && dsn.Wanted(dsn.Delay, &e.Env, &e.Env.Rcpts[i]) {
			return true
		}
	}
	return false
}
