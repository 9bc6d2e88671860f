package trace

import (
	"time"

	"blitiri.com.ar/go/chasquid/internal/expvarom"
)

// family is the spans of one family. It is guarded by the Recorder's lock.
type family struct {
	oldest, newest *Span // active
	active         int

	done, failed uint64
	counts       [NumBuckets]uint64
	sum          time.Duration
	min, max     time.Duration

	errors  ring
	buckets [NumBuckets]ring
}

func (f *family) init() {
	f.errors = ring{max: keepErrors, every: errorsEvery, eager: true}
	for i := range f.buckets {
		f.buckets[i] = ring{max: keepInBucket, every: inBucketEvery, eager: true}
	}
}

// push adds an active span.
func (f *family) push(s *Span) {
	s.prev = f.newest
	if s.prev == nil {
		f.oldest = s
	} else {
		s.prev.next = s
	}
	f.newest = s
	f.active++
}

// remove removes a span that is no longer active.
func (f *family) remove(s *Span) {
	if s.prev == nil {
		f.oldest = s.next
	} else {
		s.prev.next = s.next
	}
	if s.next == nil {
		f.newest = s.prev
	} else {
		s.next.prev = s.prev
	}
	s.prev, s.next = nil, nil
	f.active--
}

// count counts a span that ended.
func (f *family) count(d time.Duration, failed bool) {
	if f.done == 0 || d < f.min {
		f.min = d
	}
	f.max = max(f.max, d)
	f.sum += d
	f.done++
	f.counts[Bucket(d)]++
	if failed {
		f.failed++
	}
}

// metrics is the variables of a Recorder.
type metrics struct {
	spans [numFamilies][2]*expvarom.Counter // by family and whether it failed
}

func (m *metrics) register(reg *expvarom.Registry, r *Recorder) {
	outcomes := []string{"ok", "error"}
	spans := reg.CounterVec("chasquid_trace_spans_total", "Operations traced, by kind and whether they went well.",
		[]string{"family", "outcome"}, familyNames[:], outcomes)
	for f := range m.spans {
		for o := range m.spans[f] {
			m.spans[f][o] = spans.With(familyNames[f], outcomes[o])
		}
	}
	reg.GaugeVecFunc("chasquid_trace_spans_active", "Operations under way, by kind.", []string{"family"},
		func(emit func(float64, ...string)) {
			for f, n := range r.activeCounts() {
				emit(float64(n), familyNames[f])
			}
		})
	reg.CounterFunc("chasquid_trace_events_dropped_total", "Trace events dropped because their span was full or over.",
		func() float64 { return float64(r.dropped.Load()) })
	reg.GaugeFunc("chasquid_trace_store_size_bytes", "Memory of the trace store.", func() float64 { return float64(r.Size()) })
	reg.SetKept(r.Exemplar)
}

func (m *metrics) finished(f Family, failed bool) {
	o := 0
	if failed {
		o = 1
	}
	m.spans[f][o].Inc()
}
