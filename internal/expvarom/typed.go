package expvarom

import (
	"expvar"
	"math"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// Counter is a number that only grows.
type Counter struct{ c prometheus.Counter }

// Counter returns the counter with this name, which ends in "_total".
func (r *Registry) Counter(name, help string) *Counter {
	return once(r, Info{Name: name, Help: help, Type: "counter", Unit: unitOf(name)}, func() (*Counter, prometheus.Collector, expvar.Var) {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help, Unit: unitOf(name)})
		return &Counter{c}, c, nil
	})
}

// Inc adds one.
func (c *Counter) Inc() { c.c.Inc() }

// Add adds v, which is dropped if it is negative or not a number.
func (c *Counter) Add(v float64) {
	if v >= 0 {
		c.c.Add(v)
	}
}

// Value returns the current value.
func (c *Counter) Value() float64 {
	var m dto.Metric
	if c.c.Write(&m) != nil {
		return 0
	}
	return m.GetCounter().GetValue()
}

// Gauge is a number that goes up and down.
type Gauge struct{ g prometheus.Gauge }

// Gauge returns the gauge with this name. It shows 0 until it is set.
func (r *Registry) Gauge(name, help string) *Gauge {
	return once(r, Info{Name: name, Help: help, Type: "gauge", Unit: unitOf(name)}, func() (*Gauge, prometheus.Collector, expvar.Var) {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help, Unit: unitOf(name)})
		return &Gauge{g}, g, nil
	})
}

// Set replaces the value.
func (g *Gauge) Set(v float64) { g.g.Set(v) }

// Inc adds one.
func (g *Gauge) Inc() { g.g.Inc() }

// Dec subtracts one.
func (g *Gauge) Dec() { g.g.Dec() }

// Add adds v, which may be negative.
func (g *Gauge) Add(v float64) { g.g.Add(v) }

// Value returns the current value.
func (g *Gauge) Value() float64 {
	var m dto.Metric
	if g.g.Write(&m) != nil {
		return 0
	}
	return m.GetGauge().GetValue()
}

// Histogram counts observations in buckets.
type Histogram struct {
	h prometheus.Observer
	r *Registry
}

// Histogram returns the histogram with this name and these bucket bounds.
func (r *Registry) Histogram(name, help string, buckets []float64) *Histogram {
	info := Info{Name: name, Help: help, Type: "histogram", Unit: unitOf(name), Buckets: buckets}
	return once(r, info, func() (*Histogram, prometheus.Collector, expvar.Var) {
		h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Unit: unitOf(name), Buckets: buckets})
		return &Histogram{h, r}, h, nil
	})
}

// Observe counts one observation. NaN is dropped, and what is below 0 (a clock that was set back) counts as 0.
func (h *Histogram) Observe(v float64) {
	if math.IsNaN(v) {
		return
	}
	h.h.Observe(max(v, 0))
}

// Count returns how many observations there were and their sum.
func (h *Histogram) Count() (n uint64, sum float64) {
	m, ok := h.h.(prometheus.Metric)
	var d dto.Metric
	if !ok || m.Write(&d) != nil {
		return 0, 0
	}
	return d.GetHistogram().GetSampleCount(), d.GetHistogram().GetSampleSum()
}

// unitOf returns the unit that ends a metric's name, for OpenMetrics.
func unitOf(name string) string {
	name = strings.TrimSuffix(name, "_total")
	for _, u := range []string{"seconds", "bytes"} {
		if strings.HasSuffix(name, "_"+u) {
			return u
		}
	}
	return ""
}
