// Package vitals samples a server's metrics into small rings and says in words what is wrong with it now.
//
// It is pure: families of metrics and times go in, series for sparklines and sentences come out. The rules are those of the shipped alerts
// that make sense within one process, so that a site without Prometheus still gets answers.
package vitals

import (
	"math"
	"slices"
	"sync"
	"time"

	dto "github.com/prometheus/client_model/go"
)

// Sizes of the rings: an hour in steps of ten seconds and a day in steps of five minutes.
const (
	Step      = 10 * time.Second
	LongStep  = 5 * time.Minute
	shortLen  = 360
	longLen   = 288
	perLong   = int(LongStep / Step)
	jumpLimit = 5 * time.Second // the clock may be slewed by less unnoticed
)

// Series is one number over time. NaN stands for not known.
type Series struct {
	Name  string    `json:"name"`
	Title string    `json:"title"`
	Unit  string    `json:"unit"` // "/min", "s", "B" or ""
	Last  float32   `json:"-"`
	Short []float32 `json:"-"` // in steps of Step, the last one now
	Long  []float32 `json:"-"` // in steps of LongStep
}

// Sampler holds the rings. It is safe for concurrent use.
type Sampler struct {
	mu      sync.Mutex
	rings   []ring
	windows map[string]*window
	wall    time.Time
	mono    time.Duration
	samples int
	jump    time.Duration
	jumpAt  time.Duration // monotonic time of the last jump
	jumps   int
	began   map[string]time.Time
	ends    map[string]*end
}

// ring is one series and what is needed to go on with it.
type ring struct {
	spec
	short, long []float32
	part        []float32 // of the long step under way
	last        float64   // of a counter
	buckets     map[float64]float64
	known       bool
}

// New returns an empty Sampler.
func New() *Sampler {
	s := &Sampler{windows: map[string]*window{}, began: map[string]time.Time{}, ends: map[string]*end{}}
	for _, sp := range specs {
		s.rings = append(s.rings, ring{spec: sp})
	}
	for _, w := range watched {
		s.windows[w] = newWindow()
	}
	return s
}

// Sample takes the metrics of now. wall is the time of the clock, mono of one that never jumps, from any origin. It is called every Step.
func (s *Sampler) Sample(fams []*dto.MetricFamily, wall time.Time, mono time.Duration) {
	by := make(map[string]*dto.MetricFamily, len(fams))
	for _, f := range fams {
		by[f.GetName()] = f
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	elapsed := mono - s.mono
	if s.samples > 0 {
		if j := wall.Round(0).Sub(s.wall) - elapsed; j.Abs() > jumpLimit {
			s.jump, s.jumpAt = j, mono
			s.jumps++
		}
	}
	for i := range s.rings {
		s.rings[i].sample(by[s.rings[i].family], elapsed.Seconds(), s.samples)
	}
	for name, w := range s.windows {
		w.sample(by[name], mono)
	}
	s.wall, s.mono = wall.Round(0), mono
	s.samples++
}

// sample adds a value to the ring.
func (r *ring) sample(f *dto.MetricFamily, elapsed float64, n int) {
	v := math.NaN()
	switch r.kind {
	case gaugeSum, gaugeMax, gaugeMin:
		v = r.gauge(f)
	case rate:
		total := r.total(f)
		if r.known && elapsed > 0 {
			v = max(0, total-r.last) / elapsed * r.scale
		}
		r.last, r.known = total, f != nil
	case p99:
		v = r.quantile(f)
	}
	r.short = push(r.short, float32(v), shortLen)
	r.part = append(r.part, float32(v))
	if (n+1)%perLong == 0 {
		r.long = push(r.long, r.sum(r.part), longLen)
		r.part = r.part[:0]
	}
}

func push(s []float32, v float32, limit int) []float32 {
	if len(s) < limit {
		return append(s, v)
	}
	copy(s, s[1:])
	s[len(s)-1] = v
	return s
}

// sum makes one long step of short ones: the mean of rates, the worst of all others.
func (r *ring) sum(part []float32) float32 {
	var acc, n float32
	for _, v := range part {
		if v != v {
			continue
		}
		switch {
		case n == 0:
			acc = v
		case r.kind == rate:
			acc += v
		case r.kind == gaugeMin:
			acc = min(acc, v)
		default:
			acc = max(acc, v)
		}
		n++
	}
	if n == 0 {
		return float32(math.NaN())
	}
	if r.kind == rate {
		return acc / n
	}
	return acc
}

func (r *ring) gauge(f *dto.MetricFamily) float64 {
	v, some := 0.0, false
	for _, m := range f.GetMetric() {
		if !r.fits(m) {
			continue
		}
		x := value(m)
		switch {
		case !some:
			v = x
		case r.kind == gaugeSum:
			v += x
		case r.kind == gaugeMax:
			v = max(v, x)
		default:
			v = min(v, x)
		}
		some = true
	}
	if !some {
		return math.NaN()
	}
	return v
}

func (r *ring) total(f *dto.MetricFamily) (sum float64) {
	for _, m := range f.GetMetric() {
		if r.fits(m) {
			sum += value(m)
		}
	}
	return sum
}

// quantile estimates the 99th percentile of what a histogram observed since the last sample, NaN if that was nothing.
func (r *ring) quantile(f *dto.MetricFamily) float64 {
	now := map[float64]float64{}
	count := 0.0
	for _, m := range f.GetMetric() {
		h := m.GetHistogram()
		if h == nil || !r.fits(m) {
			continue
		}
		for _, b := range h.GetBucket() {
			now[b.GetUpperBound()] += float64(b.GetCumulativeCount())
		}
		now[math.Inf(1)] += float64(h.GetSampleCount())
	}
	before, known := r.buckets, r.known
	r.buckets, r.known = now, f != nil
	if !known {
		return math.NaN()
	}
	bounds := make([]float64, 0, len(now))
	for b := range now {
		bounds = append(bounds, b)
	}
	slices.Sort(bounds)
	if len(bounds) > 0 {
		count = now[math.Inf(1)] - before[math.Inf(1)]
	}
	if count <= 0 {
		return math.NaN()
	}
	return estimate(bounds, now, before, 0.99*count)
}

// estimate finds the value that rank observations do not exceed, with a straight line within its bucket.
func estimate(bounds []float64, now, before map[float64]float64, rank float64) float64 {
	lower, below := 0.0, 0.0
	for _, b := range bounds {
		n := now[b] - before[b]
		if n >= rank {
			if math.IsInf(b, 1) {
				return lower
			}
			if n == below {
				return b
			}
			return lower + (b-lower)*(rank-below)/(n-below)
		}
		lower, below = b, n
	}
	return lower
}

// fits reports whether the metric has the labels the series is about.
func (sp *spec) fits(m *dto.Metric) bool {
	for i := 0; i+1 < len(sp.match); i += 2 {
		if !slices.Contains(alternatives(sp.match[i+1]), label(m, sp.match[i])) {
			return false
		}
	}
	return true
}

func label(m *dto.Metric, name string) string {
	for _, l := range m.GetLabel() {
		if l.GetName() == name {
			return l.GetValue()
		}
	}
	return ""
}

// value is the number of a metric, whatever its type.
func value(m *dto.Metric) float64 {
	switch {
	case m.Counter != nil:
		return m.Counter.GetValue()
	case m.Gauge != nil:
		return m.Gauge.GetValue()
	case m.Untyped != nil:
		return m.Untyped.GetValue()
	case m.Histogram != nil:
		return float64(m.Histogram.GetSampleCount())
	}
	return 0
}

// Series returns a copy of all series.
func (s *Sampler) Series() []Series {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Series, len(s.rings))
	for i := range s.rings {
		r := &s.rings[i]
		out[i] = Series{Name: r.name, Title: r.title, Unit: r.unit, Short: slices.Clone(r.short), Long: slices.Clone(r.long), Last: float32(math.NaN())}
		if n := len(r.short); n > 0 {
			out[i].Last = r.short[n-1]
		}
	}
	return out
}

// Jumps is how often the clock was set.
func (s *Sampler) Jumps() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.jumps
}

// Size is the memory of the rings in bytes.
func (s *Sampler) Size() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for i := range s.rings {
		n += 4 * (cap(s.rings[i].short) + cap(s.rings[i].long) + cap(s.rings[i].part))
	}
	return n
}
