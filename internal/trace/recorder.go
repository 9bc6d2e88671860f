package trace

import (
	"bytes"
	"context"
	"runtime/pprof"
	"sync"
	"sync/atomic"
	"time"

	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/log"
)

// DefaultBudget is the memory a Recorder uses at most, in bytes.
const DefaultBudget = 32 << 20

// Config says what a Recorder does. The zero value keeps traces and does nothing else.
type Config struct {
	Metrics *expvarom.Registry

	Budget int64 // bytes of memory, 0: DefaultBudget
	Log    bool  // errors go to the process log at level info, other events at level debug
	// Line takes the lines for the process log that its level asks for, nil: log.Log. depth is as there: how many frames whoever
	// annotated is above the caller of Line.
	Line    func(level log.Level, depth int, at *Place, line string)
	Mirror  bool // spans of connections, messages, the queue and deliveries go to golang.org/x/net/trace
	Mirrors int  // spans mirrored in a second at most, 0: DefaultMirrors. Failed and slow ones have as many again
	Labels  bool // goroutines that work on a message or connection carry profiler labels "family" and "trace"

	// Generation counts the starts of the server, so that spans of one message tell which process made them.
	Generation int64

	// Export gets the spans that are kept, as they end or when something later makes them interesting. It must not block.
	Export func(SpanData)
	// ExportAll hands all spans to Export, not only those that are kept.
	ExportAll bool
}

// Recorder keeps what spans record: all of the last moments, and of the past what is worth looking at. It is safe for concurrent use.
type Recorder struct {
	cfg     Config
	metrics metrics
	mirrors mirrorLimit
	ex      exemplars

	tight  atomic.Bool                    // active spans hold more than their share of the budget
	export atomic.Pointer[func(SpanData)] // nil: nobody wants spans

	watchMu sync.Mutex // held to change watches
	watches atomic.Pointer[[]*Watch]
	debug   atomic.Pointer[func(string)] // see LogDebug

	buffers sync.Pool // *buffer
	scratch sync.Pool // *[]byte

	_ [64]byte // what every event reads, and hardly anything changes, is not in a cache line with what every span changes

	dropped atomic.Int64 // events that were dropped, or came after Finish
	active  atomic.Int64 // bytes of active spans

	mu   sync.Mutex
	seq  uint64
	fams [numFamilies]family
	store
}

// New returns a Recorder. To work it needs neither start nor stop.
func New(cfg Config) *Recorder {
	if cfg.Budget <= 0 {
		cfg.Budget = DefaultBudget
	}
	if cfg.Mirrors <= 0 {
		cfg.Mirrors = DefaultMirrors
	}
	r := &Recorder{cfg: cfg}
	r.SetExport(cfg.Export)
	r.mirrors.max = int64(cfg.Mirrors)
	r.buffers.New = func() any { return new(buffer) }
	r.scratch.New = func() any { b := make([]byte, 0, 256); return &b }
	r.store.init(cfg.Budget)
	for i := range r.fams {
		r.fams[i].init()
	}
	r.metrics.register(cfg.Metrics, r)
	return r
}

// SetExport changes Config.Export for spans that end from now on.
func (r *Recorder) SetExport(f func(SpanData)) {
	if f == nil {
		r.export.Store(nil)
		return
	}
	r.export.Store(&f)
}

// start makes a span and returns it with the context that carries it. from is the span of ctx, if it has one.
func (r *Recorder) start(ctx context.Context, f Family, title string, id ID, parent SpanID, from *Span) (context.Context, *Span) {
	s := &Span{up: ctx, rec: r, id: id, sid: newSpanID(), parent: parent, title: cleanTitle(title), start: time.Now(), family: min(f, numFamilies-1), from: from,
		buf: r.buffers.Get().(*buffer)}
	c := s.buf.cap()
	if from != nil && from.id != id {
		s.link(Link{from.id, from.sid})
		from.link(Link{id, s.sid})
		if f == SMTPTransaction && from.family == SMTPConn {
			s.logUp = true // where fail2ban looks for refused commands
		}
	}
	if r.cfg.Mirror && s.family.mirrored() && r.mirrors.allow(s.start) {
		s.mirror = newMirror(s)
	}
	r.mu.Lock()
	r.begin(s, from, c)
	r.mu.Unlock()
	s.setLabels(ctx)
	s.watchStart(from)
	return (*spanCtx)(s), s
}

// begin puts s, whose buffer holds so many bytes, among the active spans. The lock is held.
func (r *Recorder) begin(s, from *Span, bytes int) {
	r.account(spanSize + int64(bytes))
	if from != nil && from.id == s.id && from.state.id == s.id && from.state.active > 0 { // then its state is the one in the map
		s.state = from.state
	} else {
		s.state = r.stateOf(s.id)
	}
	s.state.active++
	r.seq++
	s.seq = r.seq
	r.fams[s.family].push(s)
}

// setLabels gives the goroutine the labels of a span that is nobody's child. Children share them, and their contexts are as near to the top.
func (s *Span) setLabels(ctx context.Context) {
	if s.parent != (SpanID{}) {
		s.labels = s.from.labels
		if p, ok := ctx.(*spanCtx); ok {
			s.up = p.up
		}
		return
	}
	if !s.rec.cfg.Labels {
		return
	}
	s.root = true
	s.labels = pprof.WithLabels(context.Background(), pprof.Labels("family", s.family.String(), "trace", s.id.Short()))
	pprof.SetGoroutineLabels(s.labels)
}

// resetLabels gives the goroutine the labels of s again, or none.
func (s *Span) resetLabels() {
	if s == nil || s.labels == nil {
		pprof.SetGoroutineLabels(context.Background())
		return
	}
	pprof.SetGoroutineLabels(s.labels)
}

// finished takes over a span that ended.
func (r *Recorder) finished(s *Span, failed bool) {
	r.metrics.finished(s.family, failed)
	b := s.buf
	now := s.start.Add(s.dur)
	followed := s.watchFinish(failed)
	flags := byte(0)
	if failed {
		flags = flagFailed
	}

	r.mu.Lock()
	r.account(-spanSize - int64(b.cap()))
	r.fams[s.family].remove(s)
	r.fams[s.family].count(s.dur, failed)
	st := s.state
	st.active--
	was := st.kept()
	rec := r.addSpan(st, s, b, flags, 0)
	s.buf = nil
	r.decide(st, s, failed, now)
	if followed {
		r.put(&r.watched, st, s.sid, now)
	}
	var exports []snapshot
	export := r.export.Load()
	if export != nil {
		exports = r.exports(st, rec, was)
	}
	r.evict(r.active.Load())
	r.mu.Unlock()

	r.putBuffer(b)
	for _, e := range exports {
		(*export)(e.spanData(e.id, r.cfg.Generation))
	}
}

// decide says why the trace of a span that ended is worth keeping, if it is.
func (r *Recorder) decide(st *state, s *Span, failed bool, now time.Time) {
	f := &r.fams[s.family]
	if failed {
		r.put(&f.errors, st, s.sid, now)
		if s.family.late() {
			r.put(&r.late, st, s.sid, now)
		}
	}
	r.put(&f.buckets[Bucket(s.dur)], st, s.sid, now)
	if s.parent == (SpanID{}) {
		r.put(&r.sample, st, s.sid, now)
		r.rows.add(s, failed)
	}
}

// exports returns the spans to hand to Export now that one ended.
func (r *Recorder) exports(st *state, ended record, was bool) []snapshot {
	switch {
	case r.cfg.ExportAll || was && st.kept():
		return []snapshot{{st.id, bytes.Clone(ended)}}
	case st.kept(): // it just became interesting: all there is of it
		return st.snapshots()
	}
	return nil
}

// Import adds a span that ended before this process began, rebuilt from what is known of it.
func (r *Recorder) Import(d SpanData) {
	if r == nil || d.Trace == (ID{}) {
		return
	}
	s := &Span{id: d.Trace, sid: d.ID, parent: d.Parent, family: min(d.Family, numFamilies-1), title: cleanTitle(d.Title), start: d.Start, dur: d.Duration}
	if s.sid == (SpanID{}) {
		s.sid = newSpanID()
	}
	b := buffer{links: d.Links[:min(len(d.Links), maxLinks)]}
	for _, a := range d.Attrs {
		b.set(a.Key, a.Value)
	}
	for _, e := range d.Events {
		b.add(e.Offset, e.Kind, []byte(e.Text), spanBytes)
	}
	flags := byte(flagImported)
	if d.Failed {
		flags |= flagFailed
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.addSpan(r.stateOf(s.id), s, &b, flags, d.Generation)
	r.evict(r.active.Load())
}

// Resume begins a span for a message that an earlier process accepted, at the time given: the trace goes on where that process left it.
func Resume(ctx context.Context, f Family, title string, id ID, accepted time.Time) (context.Context, *Span) {
	r := RecorderFrom(ctx)
	if r != nil && id != (ID{}) {
		r.mu.Lock()
		known := r.imported(id)
		r.mu.Unlock()
		if !known {
			r.Import(SpanData{Trace: id, Family: QueuePut, Title: title, Start: accepted, Generation: r.cfg.Generation - 1,
				Events: []Event{{Kind: Info, Text: "accepted by an earlier process"}}})
		}
	}
	ctx, s := StartMessage(ctx, f, title, id)
	if r != nil {
		s.Printf("resumed after restart, process generation %d", r.cfg.Generation)
	}
	return ctx, s
}

// imported says whether a span of the trace was imported. The lock is held.
func (r *Recorder) imported(id ID) bool {
	if st := r.traces[id]; st != nil {
		for rec := range records(st.data) {
			if rec.flag(flagImported) {
				return true
			}
		}
	}
	return false
}

// account adds to the bytes of active spans.
func (r *Recorder) account(n int64) {
	if n == 0 {
		return
	}
	if tight := r.active.Add(n) > r.cfg.Budget/4; tight != r.tight.Load() {
		r.tight.Store(tight)
	}
}

// eventLimit is the number of bytes the events of one span may take now.
func (r *Recorder) eventLimit() int {
	if r.tight.Load() {
		return tightBytes
	}
	return spanBytes
}

func (r *Recorder) putBuffer(b *buffer) {
	if b.cap() <= 2*pooledCap {
		b.reset()
		r.buffers.Put(b)
	}
}

func (r *Recorder) getScratch() *[]byte { return r.scratch.Get().(*[]byte) }

func (r *Recorder) putScratch(p *[]byte) {
	if cap(*p) <= 2*pooledCap {
		r.scratch.Put(p)
	}
}
