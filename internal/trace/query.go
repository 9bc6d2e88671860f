package trace

import (
	"bytes"
	"cmp"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// Attr is an attribute of a span.
type Attr struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// Link refers from a span to another trace.
type Link struct {
	Trace ID     `json:"trace"`
	Span  SpanID `json:"span"`
}

// Event is something that happened within a span. Its text is printable UTF-8: what was not is escaped as Go does.
type Event struct {
	At     time.Time     `json:"at"`
	Offset time.Duration `json:"offset"` // since the span began
	Kind   Kind          `json:"kind"`
	Text   string        `json:"text"`
	Gap    int           `json:"gap,omitempty"` // events dropped before this one
}

// SpanData is a copy of a span, active or finished.
type SpanData struct {
	Trace      ID            `json:"trace"`
	ID         SpanID        `json:"id"`
	Parent     SpanID        `json:"parent"`
	Links      []Link        `json:"links,omitempty"`
	Family     Family        `json:"family"`
	Title      string        `json:"title"`
	Start      time.Time     `json:"start"`
	Duration   time.Duration `json:"duration"` // so far, if active
	Active     bool          `json:"active"`
	Failed     bool          `json:"failed"`
	Attrs      []Attr        `json:"attrs,omitempty"`
	Events     []Event       `json:"events,omitempty"`
	Generation int64         `json:"generation"` // of the process that made it
}

// Trace is all that is known of one trace.
type Trace struct {
	ID      ID         `json:"id"`
	Spans   []SpanData `json:"spans"`             // by start, parents before children
	Dropped int        `json:"dropped,omitempty"` // spans that found no room
	Kept    bool       `json:"kept"`              // it stays for a while; otherwise it goes when others need the room
}

// Summary is one line about a span.
type Summary struct {
	Trace    ID            `json:"trace"`
	ID       SpanID        `json:"id"`
	Family   Family        `json:"family"`
	Title    string        `json:"title"` // its first 64 bytes
	Start    time.Time     `json:"start"`
	Duration time.Duration `json:"duration"`
	Active   bool          `json:"active"`
	Failed   bool          `json:"failed"`
	Stored   bool          `json:"stored"` // Recorder.Trace has it
}

// FamilyStats is the numbers of one family since the start, and how many examples there are of each.
type FamilyStats struct {
	Family   Family             `json:"family"`
	Active   int                `json:"active"`
	Done     uint64             `json:"done"`
	Failed   uint64             `json:"failed"`
	Counts   [NumBuckets]uint64 `json:"counts"` // by range of durations
	Sum      time.Duration      `json:"sum"`
	Min      time.Duration      `json:"min"`
	Max      time.Duration      `json:"max"`
	Errors   int                `json:"errors"`   // examples of failed ones
	Examples [NumBuckets]int    `json:"examples"` // examples by range of durations
}

// Size is the memory of the store in bytes, never more than the budget but for an excess of active spans.
func (r *Recorder) Size() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.size + r.spares.size + r.rows.size() + r.active.Load()
}

func (r *Recorder) activeCounts() (n [numFamilies]int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for f := range r.fams {
		n[f] = r.fams[f].active
	}
	return n
}

// Families returns the numbers of all families.
func (r *Recorder) Families() []FamilyStats {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]FamilyStats, numFamilies)
	for i := range r.fams {
		f := &r.fams[i]
		st := FamilyStats{Family: Family(i), Active: f.active, Done: f.done, Failed: f.failed, Counts: f.counts, Sum: f.sum, Min: f.min, Max: f.max}
		st.Errors = len(f.errors.live())
		for b := range f.buckets {
			st.Examples[b] = len(f.buckets[b].live())
		}
		all[i] = st
	}
	return all
}

// live returns the entries that still lead somewhere, latest first.
func (g *ring) live() []entry {
	return slices.DeleteFunc(g.list(), func(e entry) bool { return e.void() || e.record() == nil })
}

// record returns the record of an entry's span, nil if there is no room for it any more.
func (e entry) record() record {
	for rec := range records(e.st.data) {
		if rec.is(e.sid) {
			return rec
		}
	}
	return nil
}

// Examples returns finished spans of a family whose duration is in a range (0 to NumBuckets-1), latest first.
func (r *Recorder) Examples(f Family, bucket int) []SpanData {
	if f >= numFamilies || bucket < 0 || bucket >= NumBuckets {
		return nil
	}
	return r.examples(&r.fams[f].buckets[bucket])
}

// Errors returns finished spans of a family that failed, latest first.
func (r *Recorder) Errors(f Family) []SpanData {
	if f >= numFamilies {
		return nil
	}
	return r.examples(&r.fams[f].errors)
}

// Sample returns traces chosen by nothing but the clock, latest first.
func (r *Recorder) Sample() []SpanData { return r.examples(&r.sample) }

func (r *Recorder) examples(g *ring) []SpanData {
	r.mu.Lock()
	var spans []snapshot
	for _, e := range g.live() {
		spans = append(spans, snapshot{e.st.id, bytes.Clone(e.record())})
	}
	r.mu.Unlock()
	return r.decode(spans)
}

// Active returns the active spans of the families, all if none is given, the oldest first, at most max.
func (r *Recorder) Active(max int, families ...Family) []SpanData {
	if len(families) == 0 {
		families = Families()
	}
	var active []*Span
	r.mu.Lock()
	for _, f := range families {
		n := 0
		for s := r.fams[f%numFamilies].oldest; s != nil && n < max; s = s.next {
			active = append(active, s)
			n++
		}
	}
	slices.SortFunc(active, func(a, b *Span) int { return cmp.Compare(a.seq, b.seq) })
	var spans []snapshot
	for _, s := range active[:min(len(active), max)] {
		spans = append(spans, s.snapshot())
	}
	r.mu.Unlock()
	return r.decode(spans)
}

// Kept says whether the trace is kept for a while.
func (r *Recorder) Kept(id ID) bool {
	if r == nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	st := r.traces[id]
	return st != nil && st.kept()
}

// Trace returns all spans of a trace, those under way included, false if nothing is stored of it.
func (r *Recorder) Trace(id ID) (Trace, bool) {
	r.mu.Lock()
	st := r.traces[id]
	if st == nil {
		r.mu.Unlock()
		return Trace{}, false
	}
	t := Trace{ID: id, Dropped: st.dropped, Kept: st.kept()}
	spans := st.snapshots()
	for f, n := 0, st.active; n > 0 && f < len(r.fams); f++ {
		for s := r.fams[f].newest; s != nil && n > 0; s = s.prev {
			if s.state == st {
				spans = append(spans, s.snapshot())
				n--
			}
		}
	}
	r.mu.Unlock()
	slices.SortFunc(spans, byStart)
	t.Spans = r.decode(spans)
	return t, true
}

// byStart orders spans as they were started, those of earlier processes first.
func byStart(a, b snapshot) int {
	return cmp.Or(cmp.Compare(a.seq(), b.seq()), a.start().Compare(b.start()))
}

// Query chooses spans. Its zero value chooses all that begin a trace.
type Query struct {
	Text   string        // part of a title in any case, or the first digits, at least 4, of a trace id
	Family Family        // with HasFamily
	Failed bool          // only failed ones
	Slower time.Duration // only those that took at least this long
	Limit  int           // 0: 100

	HasFamily bool
}

const defaultLimit = 100

// Search finds spans among the active ones and the summaries of the latest 20,000 that began a trace, the latest first.
func (r *Recorder) Search(q Query) []Summary {
	if q.Limit <= 0 {
		q.Limit = defaultLimit
	}
	text := bytes.ToLower([]byte(q.Text))
	var found []Summary
	match := func(w *row) bool {
		return (!q.HasFamily || w.family == q.Family) && (!q.Failed || w.failed) && w.dur >= q.Slower && w.matches(text)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for f := range r.fams {
		n := 0
		for s := r.fams[f].newest; s != nil && n < q.Limit; s = s.prev {
			if s.parent != (SpanID{}) {
				continue
			}
			w := row{id: s.id, sid: s.sid, start: s.start.UnixNano(), dur: time.Since(s.start), family: s.family}
			w.n = uint8(copy(w.title[:], s.title))
			if match(&w) {
				sum := w.summary(r)
				sum.Active = true
				found = append(found, sum)
				n++
			}
		}
	}
	slices.SortStableFunc(found, func(a, b Summary) int { return b.Start.Compare(a.Start) })
	r.rows.all(func(w *row) bool {
		if match(w) {
			found = append(found, w.summary(r))
		}
		return len(found) < q.Limit
	})
	return found[:min(len(found), q.Limit)]
}

// matches says whether the title or the id of the row matches a text in lower case.
func (w *row) matches(text []byte) bool {
	if len(text) == 0 {
		return true
	}
	var title [len(w.title)]byte
	for i, c := range w.title[:w.n] {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		title[i] = c
	}
	return bytes.Contains(title[:w.n], text) || len(text) >= 4 && len(text) <= 32 && strings.HasPrefix(w.id.String(), string(text))
}

func (w *row) summary(r *Recorder) Summary {
	_, stored := r.traces[w.id]
	return Summary{Trace: w.id, ID: w.sid, Family: w.family, Title: strings.ToValidUTF8(string(w.title[:w.n]), ""), Start: time.Unix(0, w.start),
		Duration: w.dur, Failed: w.failed, Stored: stored}
}

// Lookup returns the ids of stored traces that begin with these hex digits, at least 4, at most 100.
func (r *Recorder) Lookup(prefix string) []ID {
	prefix = strings.ToLower(prefix)
	if len(prefix) < 4 || len(prefix) > 32 {
		return nil
	}
	var ids []ID
	r.mu.Lock()
	defer r.mu.Unlock()
	for id := range r.traces {
		if strings.HasPrefix(id.String(), prefix) {
			if ids = append(ids, id); len(ids) == defaultLimit {
				break
			}
		}
	}
	return ids
}

// exemplars bounds how many traces metrics may refer to.
type exemplars struct {
	fast, slow pause
	last       atomic.Pointer[ID] // the latest
}

// pause lets one through, and then nobody for a while. It is asked at every observation, so it does not look at the clock.
type pause struct{ on atomic.Bool }

func (p *pause) pass(every time.Duration) bool {
	if p.on.Load() || !p.on.CompareAndSwap(false, true) {
		return false
	}
	time.AfterFunc(every, func() { p.on.Store(false) })
	return true
}

// What metrics may refer to: a trace a second, and five more for slow observations.
const (
	exemplarSlow      = 0.5 // seconds
	exemplarEvery     = time.Second
	exemplarSlowEvery = time.Second / 5
)

// Exemplar says whether a metric may refer to the trace: it is an expvarom.KeptFunc. For an observation (of v seconds) that is the case now
// and then, and the trace is kept from then on; otherwise if it is kept.
func (r *Recorder) Exemplar(id [16]byte, observed bool, v float64) bool {
	if !observed {
		return r.Kept(id)
	}
	if last := r.ex.last.Load(); last != nil && *last == id {
		return true
	}
	welcome, every := &r.ex.fast, exemplarEvery
	if v >= exemplarSlow {
		welcome, every = &r.ex.slow, exemplarSlowEvery
	}
	if !welcome.pass(every) {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	st := r.traces[id]
	if st == nil {
		return false
	}
	r.put(&r.exemplar, st, SpanID{}, time.Now())
	last := ID(id)
	r.ex.last.Store(&last)
	return true
}
