package trace

import (
	"time"
	"unsafe"
)

// What is kept, beside the last moments.
const (
	keepErrors    = 50     // failed spans of a family
	keepInBucket  = 10     // spans of a family and range of durations
	keepSample    = 100    // traces chosen by nothing but the clock, one a second
	keepLate      = 4096   // messages of which a delivery failed
	keepExemplars = 256    // traces that metrics refer to
	keepRows      = 20_000 // one-line summaries of traces
	maxSpans      = 200    // spans of a trace: the first half and the latest
	maxTraceBytes = 256 << 10

	errorsEvery   = 100 * time.Millisecond // in a flood of errors, how long at least one is kept before the next takes its place
	inBucketEvery = time.Second
	sampleEvery   = time.Second
)

// Sizes for the account of memory, somewhat above what the allocator takes.
const (
	spanSize  = int64(unsafe.Sizeof(Span{})) + 64
	stateSize = int64(unsafe.Sizeof(state{})) + 96 // with its entry in the map
)

// buckets are the lower bounds of the ranges of durations that pages show.
var buckets = [...]time.Duration{0, 5 * time.Millisecond, 50 * time.Millisecond, 500 * time.Millisecond,
	time.Second, 10 * time.Second, time.Minute, 10 * time.Minute}

// NumBuckets is the number of ranges of durations.
const NumBuckets = len(buckets)

// BucketBounds returns the lower bounds of the ranges of durations, ascending.
func BucketBounds() []time.Duration { return append([]time.Duration(nil), buckets[:]...) }

// Bucket returns the range a duration belongs to.
func Bucket(d time.Duration) int {
	for i := len(buckets) - 1; i > 0; i-- {
		if d >= buckets[i] {
			return i
		}
	}
	return 0
}

// state is what is known of one trace. It is in the store's map as long as it has an active span, is recent or is kept. Afterwards another
// trace may get it: who remembers a state has to see by the id or gen whether it is still the same.
type state struct {
	id      ID
	active  int
	spans   int    // finished ones
	data    []byte // their records
	dropped int    // finished spans that found no room
	gone    bool   // it is not in the map any more
	size    int64

	gen    int     // of refs and pins: counts how often it was stripped of them, by all traces it was the state of
	refs   int     // reasons to keep it: entries of rings
	pins   int     // kept traces that are linked to it
	pinned []entry // traces this one pins while it is kept

	lists [2]struct { // its place in store.recents and store.keeps
		in         bool
		prev, next *state
	}
}

// list is a list of states, the one that is longest in it first.
type list struct {
	which       int // of state.lists
	first, last *state
}

func (l *list) has(st *state) bool { return st.lists[l.which].in }

func (l *list) push(st *state) {
	n := &st.lists[l.which]
	n.in, n.prev = true, l.last
	if n.prev == nil {
		l.first = st
	} else {
		n.prev.lists[l.which].next = st
	}
	l.last = st
}

func (l *list) remove(st *state) {
	n := &st.lists[l.which]
	if n.prev == nil {
		l.first = n.next
	} else {
		n.prev.lists[l.which].next = n.next
	}
	if n.next == nil {
		l.last = n.prev
	} else {
		n.next.lists[l.which].prev = n.prev
	}
	n.in, n.prev, n.next = false, nil, nil
}

func (st *state) kept() bool { return st.refs+st.pins > 0 }

// entry is a reason to keep a trace, for the sake of one of its spans. It is void once the trace was stripped.
type entry struct {
	st  *state
	gen int
	sid SpanID
}

func (e entry) void() bool { return e.gen != e.st.gen }

// ring keeps the latest entries, and once it is full takes one at most every so often.
type ring struct {
	max   int
	every time.Duration
	eager bool // take the first ones as they come
	last  time.Time
	next  int
	slots []entry
}

// list returns the entries, latest first.
func (g *ring) list() []entry {
	es := make([]entry, 0, len(g.slots))
	for i := range g.slots {
		es = append(es, g.slots[(g.next-1-i+2*len(g.slots))%len(g.slots)])
	}
	return es
}

// store is the traces. It is guarded by the Recorder's lock.
type store struct {
	budget  int64
	traces  map[ID]*state
	recents list
	keeps   list
	size    int64 // bytes of all traces
	kept    int64 // bytes of those that are kept
	spares  spares

	sample, late, exemplar, watched ring
	rows                            rows
}

func (t *store) init(budget int64) {
	t.budget = budget
	t.traces = map[ID]*state{}
	t.keeps.which = 1
	t.spares.max = budget / 32
	t.sample = ring{max: keepSample, every: sampleEvery}
	t.late = ring{max: keepLate, eager: true}
	t.exemplar = ring{max: keepExemplars, eager: true}
	t.watched = ring{max: maxWatchTraces, eager: true}
	t.rows.max = int(min(keepRows, budget/8/int64(unsafe.Sizeof(row{}))))
}

// stateOf returns the state of a trace, which it makes if there is none.
func (t *store) stateOf(id ID) *state {
	st := t.traces[id]
	if st == nil {
		st = t.newState(id)
	}
	return st
}

// newState makes the state of a trace that has none.
func (t *store) newState(id ID) *state {
	st := t.spares.state()
	st.id, st.size, st.dropped, st.gone = id, stateSize, 0, false
	t.traces[id] = st
	t.size += stateSize
	return st
}

// addSpan adds the record of a finished span to its trace, which thereby is among the recent ones, and returns it.
func (t *store) addSpan(st *state, s *Span, b *buffer, flags byte, generation int64) record {
	n := recordSize(s, b)
	t.makeRoom(st, n)
	at := len(st.data)
	st.data = appendRecord(st.data, s, b, s.dur, flags, generation)
	st.spans++
	rec := record(st.data[at:])
	if !t.recents.has(st) {
		t.recents.push(st)
	}
	if st.kept() {
		t.pin(st, rec)
	}
	return rec
}

// makeRoom makes the data of a trace take n more bytes. Of very many spans, those in the middle go.
func (t *store) makeRoom(st *state, n int) {
	for st.spans >= maxSpans || len(st.data)+n > maxTraceBytes && st.spans > 1 {
		rest := st.data
		for range min(st.spans/2, maxSpans/2) {
			rest = rest[len(first(rest)):]
		}
		st.data = st.data[:len(st.data)-len(rest)+copy(rest, rest[len(first(rest)):])]
		st.spans--
		st.dropped++
	}
	if c := cap(st.data); len(st.data)+n > c {
		old := st.data
		st.data = append(t.spares.data(len(old)+n), old...)
		t.spares.putData(old)
		t.resize(st, int64(cap(st.data)-c))
	}
}

func (t *store) resize(st *state, n int64) {
	st.size += n
	t.size += n
	if st.kept() {
		t.kept += n
	}
}

// put offers a trace to a ring, for the sake of one of its spans, and keeps it if the ring takes it.
func (t *store) put(g *ring, st *state, sid SpanID, now time.Time) {
	if full := len(g.slots) == g.max; (full || !g.eager) && now.Sub(g.last) < g.every {
		return
	}
	g.last = now
	e := entry{st, st.gen, sid}
	t.hold(st)
	if len(g.slots) < g.max {
		g.slots = append(g.slots, e)
		g.next = len(g.slots) % g.max
		return
	}
	old := g.slots[g.next]
	g.slots[g.next] = e
	g.next = (g.next + 1) % g.max
	if !old.void() {
		old.st.refs--
		t.release(old.st)
	}
}

// hold adds a reason to keep the trace.
func (t *store) hold(st *state) {
	was := st.kept()
	st.refs++
	t.becomeKept(st, was)
	if st.refs == 1 {
		for rec := range records(st.data) {
			t.pin(st, rec)
		}
	}
}

func (t *store) becomeKept(st *state, was bool) {
	if !was {
		t.kept += st.size
		t.keeps.push(st)
	}
}

// pin keeps the traces that a span of a kept one is linked to: the connection of a message whose delivery failed.
func (t *store) pin(st *state, rec record) {
	if st.refs == 0 {
		return // pinned itself: the chain ends here
	}
	for i := range int(rec[recLinks]) {
		if o := t.traces[rec.link(i).Trace]; o != nil && o != st && len(st.pinned) < maxLinks {
			was := o.kept()
			o.pins++
			t.becomeKept(o, was)
			st.pinned = append(st.pinned, entry{st: o, gen: o.gen})
		}
	}
}

// release forgets about a trace there is no reason to keep any more.
func (t *store) release(st *state) {
	if st.refs == 0 {
		t.unpin(st)
	}
	if !st.kept() {
		t.unkeep(st)
		t.forget(st)
	}
}

// unpin takes back the pins of a trace that is kept no more.
func (t *store) unpin(st *state) {
	pinned := st.pinned
	st.pinned = nil
	for _, e := range pinned {
		if !e.void() {
			e.st.pins--
			t.release(e.st)
		}
	}
}

func (t *store) unkeep(st *state) {
	if t.keeps.has(st) {
		t.kept -= st.size
		t.keeps.remove(st)
	}
}

// forget removes a trace that is neither active nor recent nor kept.
func (t *store) forget(st *state) {
	if st.active > 0 || t.recents.has(st) || st.kept() || st.gone {
		return
	}
	st.gone = true
	delete(t.traces, st.id)
	t.size -= st.size
	t.spares.putData(st.data)
	st.spans, st.data, st.size = 0, nil, 0
	t.spares.putState(st)
}

// evict makes the traces fit into the budget: first recent ones go that there is no reason to keep, then the longest kept.
func (t *store) evict(active int64) {
	limit := max(t.budget-active-t.rows.size()-t.spares.max, t.budget/4)
	for t.kept > limit*3/4 && t.keeps.first != nil {
		t.strip(t.keeps.first)
	}
	for t.size > limit && t.recents.first != nil {
		st := t.recents.first
		t.recents.remove(st)
		if st.active > 0 && !st.kept() {
			t.strip(st) // what it recorded so far
			continue
		}
		t.forget(st)
	}
}

// strip drops the finished spans of a trace, and every reason to keep it.
func (t *store) strip(st *state) {
	t.unkeep(st)
	st.refs, st.pins = 0, 0
	st.gen++
	t.unpin(st)
	st.dropped += st.spans
	t.resize(st, stateSize-st.size)
	t.spares.putData(st.data)
	st.spans, st.data = 0, nil
	if t.recents.has(st) {
		t.recents.remove(st)
	}
	t.forget(st)
}

// row is the summary of one trace, free of pointers.
type row struct {
	id     ID
	sid    SpanID
	start  int64 // nanoseconds since 1970
	dur    time.Duration
	family Family
	failed bool
	n      uint8
	title  [64]byte
}

// rows is a ring of summaries.
type rows struct {
	max  int
	next int
	rows []row
}

func (t *rows) size() int64 { return int64(cap(t.rows)) * int64(unsafe.Sizeof(row{})) }

func (t *rows) add(s *Span, failed bool) {
	w := row{id: s.id, sid: s.sid, start: s.start.UnixNano(), dur: s.dur, family: s.family, failed: failed}
	w.n = uint8(copy(w.title[:], s.title))
	if len(t.rows) < t.max {
		t.rows = append(t.rows, w)
		return
	}
	t.rows[t.next] = w
	t.next = (t.next + 1) % t.max
}

// all calls f for the rows, latest first, until it returns false.
func (t *rows) all(f func(*row) bool) {
	for i := range t.rows {
		if !f(&t.rows[(t.next-1-i+2*len(t.rows))%len(t.rows)]) {
			return
		}
	}
}
