package expvarom

import (
	"expvar"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// funcMetric is a metric computed when it is collected.
type funcMetric struct {
	desc   *prometheus.Desc
	typ    prometheus.ValueType
	labels int
	f      atomic.Pointer[func(emit func(v float64, values ...string))]
}

// GaugeFunc publishes a gauge that f computes when asked. f must be quick and hold no lock for long. Registered again, the last f counts.
func (r *Registry) GaugeFunc(name, help string, f func() float64) {
	r.funcMetric(name, help, "gauge", nil, func(emit func(float64, ...string)) { emit(f()) })
}

// CounterFunc publishes a counter whose value lives elsewhere; f never returns less than before.
func (r *Registry) CounterFunc(name, help string, f func() float64) {
	r.funcMetric(name, help, "counter", nil, func(emit func(float64, ...string)) { emit(f()) })
}

// GaugeVecFunc publishes a gauge with labels whose series f emits when asked. A series that is emitted twice counts once.
func (r *Registry) GaugeVecFunc(name, help string, labels []string, f func(emit func(v float64, values ...string))) {
	r.funcMetric(name, help, "gauge", labels, f)
}

func (r *Registry) funcMetric(name, help, typ string, labels []string, f func(emit func(float64, ...string))) {
	info := Info{Name: name, Help: help, Type: typ, Unit: unitOf(name), Labels: labels}
	m := once(r, info, func() (*funcMetric, prometheus.Collector, expvar.Var) {
		m := &funcMetric{desc: newDesc(name, help, labels), typ: prometheus.GaugeValue, labels: len(labels)}
		if typ == "counter" {
			m.typ = prometheus.CounterValue
		}
		return m, m, nil
	})
	m.f.Store(&f)
}

func newDesc(name, help string, labels []string) *prometheus.Desc {
	vs := make(prometheus.ConstrainedLabels, len(labels))
	for i, l := range labels {
		vs[i] = prometheus.ConstrainedLabel{Name: l}
	}
	return prometheus.V2.NewDesc(name, help, vs, nil, prometheus.WithUnit(unitOf(name)))
}

// Describe is for Prometheus.
func (m *funcMetric) Describe(ch chan<- *prometheus.Desc) { ch <- m.desc }

// Collect is for Prometheus.
func (m *funcMetric) Collect(ch chan<- prometheus.Metric) {
	f := m.f.Load()
	if f == nil {
		return
	}
	seen := map[string]bool{}
	(*f)(func(v float64, values ...string) {
		if len(values) != m.labels || len(seen) >= maxCollected {
			return
		}
		clean := make([]string, len(values))
		for i, s := range values {
			clean[i] = cleanValue(s)
		}
		key := string(appendKey(nil, clean))
		if seen[key] {
			return
		}
		seen[key] = true
		ch <- prometheus.MustNewConstMetric(m.desc, m.typ, v, clean...)
	})
}
