package expvarom

import (
	"expvar"
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// Bounds of the values of a label.
const (
	other         = "other" // what an unknown value is folded to
	openValues    = 20      // values admitted, first come, first served, for a label whose values are not listed beforehand
	maxValueLen   = 128     // bytes of a label value
	maxCollected  = 512     // series of one GaugeVecFunc
	maxCombined   = 1024    // series made beforehand for one vector; past it they are made when first used
	keyBufferSize = 128
)

// vec is the children of a metric with labels: all combinations of known values, made beforehand, and those with folded values, made when
// first needed. Nothing else, so that a stranger cannot make one.
type vec[T any] struct {
	make func(values ...string) T
	over prometheus.Counter

	mu       sync.RWMutex
	known    []map[string]bool // by label: the values that are admitted
	open     []bool            // by label: new values are admitted while there are less than openValues
	children map[string]T
}

func newVec[T any](labels []string, known [][]string, over prometheus.Counter, mk func(values ...string) T) *vec[T] {
	v := &vec[T]{make: mk, over: over, children: map[string]T{}}
	for i := range labels {
		set := map[string]bool{}
		if i < len(known) {
			for _, k := range known[i] {
				set[cleanValue(k)] = true
			}
		}
		v.known = append(v.known, set)
		v.open = append(v.open, len(set) == 0)
	}
	v.createKnown()
	return v
}

// createKnown makes the child of every combination of known values.
func (v *vec[T]) createKnown() {
	n := 1
	sets := make([][]string, len(v.known))
	for i, set := range v.known {
		for k := range set {
			sets[i] = append(sets[i], k)
		}
		slices.Sort(sets[i])
		n *= len(sets[i])
	}
	if n == 0 || n > maxCombined {
		return
	}
	values := make([]string, len(sets))
	for c := range n {
		for i, set := range sets {
			values[i] = set[c%len(set)]
			c /= len(set)
		}
		v.child(values)
	}
}

// With returns the child for these label values, in the order of the labels. Values that are not known become "other", as do missing
// ones; surplus ones are ignored. Callers on a hot path keep the child instead.
func (v *vec[T]) With(values ...string) T {
	if len(values) == len(v.known) {
		var buf [keyBufferSize]byte
		key := appendKey(buf[:0], values)
		v.mu.RLock()
		c, ok := v.children[string(key)]
		v.mu.RUnlock()
		if ok {
			return c
		}
	}
	return v.fold(values)
}

// fold finds or makes the child for values of which some may be unknown.
func (v *vec[T]) fold(values []string) T {
	v.mu.Lock()
	defer v.mu.Unlock()
	vals := make([]string, len(v.known))
	for i, set := range v.known {
		val := other
		if i < len(values) {
			val = cleanValue(values[i])
		}
		if !set[val] && val != other {
			if v.open[i] && len(set) < openValues {
				val = strings.Clone(val)
				set[val] = true
			} else {
				val = other
				if v.over != nil {
					v.over.Inc()
				}
			}
		}
		vals[i] = val
	}
	return v.child(vals)
}

func (v *vec[T]) child(values []string) T {
	key := string(appendKey(nil, values))
	c, ok := v.children[key]
	if !ok {
		c = v.make(values...)
		v.children[key] = c
	}
	return c
}

// widen admits more known values: two packages may share a metric.
func (v *vec[T]) widen(known [][]string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	grew := false
	for i := range v.known {
		if i >= len(known) {
			break
		}
		for _, k := range known[i] {
			if k = cleanValue(k); !v.known[i][k] {
				v.known[i][k] = true
				grew = true
			}
		}
	}
	if grew {
		v.createKnown()
	}
}

func appendKey(b []byte, values []string) []byte {
	for _, v := range values {
		b = append(b, v...)
		b = append(b, 0xff) // never in UTF-8
	}
	return b
}

// cleanValue makes a string fit for a label value.
func cleanValue(s string) string {
	if len(s) > maxValueLen {
		s = s[:maxValueLen]
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// CounterVec is a counter with labels.
type CounterVec struct{ *vec[*Counter] }

// CounterVec returns the counter with these labels. known holds, for each label, its closed set of values; all combinations are there
// from the start, at 0. A label without a set admits the first 20 values it sees.
func (r *Registry) CounterVec(name, help string, labels []string, known ...[]string) *CounterVec {
	info := Info{Name: name, Help: help, Type: "counter", Unit: unitOf(name), Labels: labels, Known: known}
	v := once(r, info, func() (*CounterVec, prometheus.Collector, expvar.Var) {
		p := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help, Unit: unitOf(name)}, labels)
		return &CounterVec{newVec(labels, known, r.guardVec(name), func(vs ...string) *Counter { return &Counter{p.WithLabelValues(vs...)} })}, p, nil
	})
	v.widen(known)
	return v
}

// GaugeVec is a gauge with labels.
type GaugeVec struct{ *vec[*Gauge] }

// GaugeVec returns the gauge with these labels; see CounterVec.
func (r *Registry) GaugeVec(name, help string, labels []string, known ...[]string) *GaugeVec {
	info := Info{Name: name, Help: help, Type: "gauge", Unit: unitOf(name), Labels: labels, Known: known}
	v := once(r, info, func() (*GaugeVec, prometheus.Collector, expvar.Var) {
		p := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help, Unit: unitOf(name)}, labels)
		return &GaugeVec{newVec(labels, known, r.guardVec(name), func(vs ...string) *Gauge { return &Gauge{p.WithLabelValues(vs...)} })}, p, nil
	})
	v.widen(known)
	return v
}

// HistogramVec is a histogram with labels.
type HistogramVec struct{ *vec[*Histogram] }

// HistogramVec returns the histogram with these bucket bounds and labels; see CounterVec.
func (r *Registry) HistogramVec(name, help string, buckets []float64, labels []string, known ...[]string) *HistogramVec {
	info := Info{Name: name, Help: help, Type: "histogram", Unit: unitOf(name), Buckets: buckets, Labels: labels, Known: known}
	v := once(r, info, func() (*HistogramVec, prometheus.Collector, expvar.Var) {
		p := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Unit: unitOf(name), Buckets: buckets}, labels)
		mk := func(vs ...string) *Histogram { return &Histogram{p.WithLabelValues(vs...), r} }
		return &HistogramVec{newVec(labels, known, r.guardVec(name), mk)}, p, nil
	})
	v.widen(known)
	return v
}

// guardVec is guard for a vector, whose overflow is counted from the first one on: most never fold anything.
func (r *Registry) guardVec(name string) prometheus.Counter {
	if r == nil {
		return nil
	}
	return &lazyCounter{make: func() prometheus.Counter { return r.overflow.WithLabelValues(name) }}
}

// lazyCounter is a counter that comes to be when first incremented.
type lazyCounter struct {
	prometheus.Counter
	make func() prometheus.Counter
	once sync.Once
}

func (l *lazyCounter) Inc() {
	l.once.Do(func() { l.Counter = l.make() })
	l.Counter.Inc()
}
