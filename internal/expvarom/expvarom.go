// Package expvarom is metrics with two faces: one atomic variable, seen by expvar under its old name and by Prometheus.
//
// Legacy variables (Int, Map, String) keep the names and label names existing installations know: "chasquid/queue/putCount" in the JSON
// of VarsHandler and, mangled and without a type, "chasquid_queue_putCount" on MetricsHandler. New metrics (Counter, Gauge, Histogram and
// their vectors) are typed, carry their unit in the name and are created with every known label value present at zero.
//
// No label value comes from outside: values that are not known beforehand are folded to "other", and counted in
// chasquid_metrics_label_overflow_total. Observing never panics, whatever the bytes, and every method of a nil *Registry works: it makes
// variables that count but are published nowhere.
package expvarom

import (
	"expvar"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// Registry holds the variables of one server. Asking twice for a name gives the same variable; asking for it as another kind of
// variable, or with other labels, is a mistake in the program and panics.
type Registry struct {
	prom     *prometheus.Registry
	overflow *prometheus.CounterVec
	kept     atomic.Pointer[KeptFunc]

	mu     sync.Mutex
	byName map[string]*variable // by the name on /metrics
	order  []*variable
}

// variable is what the registry remembers of one variable.
type variable struct {
	info Info
	self any        // *Int, *CounterVec, ...
	expv expvar.Var // its face in expvar, nil if it has none
}

// New returns an empty registry.
func New() *Registry { return newRegistry(prometheus.NewRegistry()) }

// NewPedantic returns an empty registry that checks at every collection that what is collected agrees with what was described. For tests.
func NewPedantic() *Registry { return newRegistry(prometheus.NewPedanticRegistry()) }

func newRegistry(p *prometheus.Registry) *Registry {
	r := &Registry{prom: p, byName: map[string]*variable{}}
	r.overflow = prometheus.NewCounterVec(prometheus.CounterOpts{Name: overflowName, Help: overflowHelp}, []string{"metric"})
	r.add(&variable{info: Info{Name: overflowName, Help: overflowHelp, Type: "counter", Labels: []string{"metric"}}, self: r.overflow}, r.overflow)
	return r
}

const (
	overflowName = "chasquid_metrics_label_overflow_total"
	overflowHelp = "Label values folded because they were unknown and the slots for unknown ones were taken: somebody is fuzzing."
)

// once returns the variable registered under the name of info, made by mk if there is none. A nil registry just makes it.
func once[T any](r *Registry, info Info, mk func() (T, prometheus.Collector, expvar.Var)) T {
	if r == nil {
		v, _, _ := mk()
		return v
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if old := r.byName[info.Name]; old != nil {
		v, ok := old.self.(T)
		if !ok || !slices.Equal(old.info.Labels, info.Labels) {
			panic(fmt.Sprintf("expvarom: %s is already registered as a %s with labels %q", info.Name, old.info.Type, old.info.Labels))
		}
		old.info.Known = mergeKnown(old.info.Known, info.Known)
		return v
	}
	v, c, ev := mk()
	r.addLocked(&variable{info: info, self: v, expv: ev}, c)
	return v
}

func (r *Registry) add(v *variable, c prometheus.Collector) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.addLocked(v, c)
}

// addLocked registers the variable. A name or help that Prometheus refuses is a mistake in the program: it panics.
func (r *Registry) addLocked(v *variable, c prometheus.Collector) {
	r.prom.MustRegister(c)
	r.byName[v.info.Name] = v
	r.order = append(r.order, v)
}

// mergeKnown returns for each label the values of a and those of b that a lacks.
func mergeKnown(a, b [][]string) [][]string {
	var merged [][]string
	for i := range max(len(a), len(b)) {
		var vs []string
		if i < len(a) {
			vs = slices.Clone(a[i])
		}
		if i < len(b) {
			for _, v := range b[i] {
				if !slices.Contains(vs, v) {
					vs = append(vs, v)
				}
			}
		}
		merged = append(merged, vs)
	}
	return merged
}

// guard returns the counter of the values of a metric that were folded, nil for a nil registry.
func (r *Registry) guard(name string) prometheus.Counter {
	if r == nil {
		return nil
	}
	return r.overflow.WithLabelValues(name)
}

// Gather collects all metrics, as a scrape sees them. Exemplars whose trace is no longer kept are left out. A nil registry has none.
func (r *Registry) Gather() ([]*dto.MetricFamily, error) {
	if r == nil {
		return nil, nil
	}
	mfs, err := r.prom.Gather()
	if kept := r.kept.Load(); kept != nil {
		dropStaleExemplars(mfs, *kept)
	}
	return mfs, err
}

// MustRegister adds a collector that is not one of this package's, for what client_golang and others bring along.
func (r *Registry) MustRegister(c prometheus.Collector) {
	if r != nil {
		r.prom.MustRegister(c)
	}
}
