package expvarom

import (
	"encoding/hex"
	"math"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// traceLabel is the exemplar label that carries a trace id, as Grafana and others expect it.
const traceLabel = "trace_id"

// KeptFunc says whether a trace can be looked at now and will be for a while. observed is true when an observation of v wants to refer to
// it, so that the trace store may make sure it stays; it is false when a scrape asks whether an exemplar made earlier still leads somewhere.
type KeptFunc func(id [16]byte, observed bool, v float64) bool

// SetKept gives the registry the trace store's answer. Until then, and with nil, there are no exemplars.
func (r *Registry) SetKept(f KeptFunc) {
	switch {
	case r == nil:
	case f == nil:
		r.kept.Store(nil)
	default:
		r.kept.Store(&f)
	}
}

// ObserveTrace counts one observation, in seconds, and refers to the trace (a trace.ID) if that is kept, so that a reader of the histogram
// can look at an example. The zero id refers to nothing.
func (h *Histogram) ObserveTrace(seconds float64, id [16]byte) {
	if h.r == nil || id == ([16]byte{}) || math.IsNaN(seconds) {
		h.Observe(seconds)
		return
	}
	kept := h.r.kept.Load()
	eo, ok := h.h.(prometheus.ExemplarObserver)
	if kept == nil || !ok || !(*kept)(id, true, seconds) {
		h.Observe(seconds)
		return
	}
	eo.ObserveWithExemplar(max(seconds, 0), prometheus.Labels{traceLabel: hex.EncodeToString(id[:])})
}

// dropStaleExemplars removes exemplars that lead nowhere any more.
func dropStaleExemplars(mfs []*dto.MetricFamily, kept KeptFunc) {
	for _, mf := range mfs {
		if mf.GetType() != dto.MetricType_HISTOGRAM {
			continue
		}
		for _, m := range mf.Metric {
			for _, b := range m.GetHistogram().GetBucket() {
				if b.Exemplar != nil && !exemplarKept(b.Exemplar, kept) {
					b.Exemplar = nil
				}
			}
		}
	}
}

func exemplarKept(e *dto.Exemplar, kept KeptFunc) bool {
	for _, l := range e.Label {
		if l.GetName() == traceLabel {
			var id [16]byte
			if n, err := hex.Decode(id[:], []byte(l.GetValue())); err == nil && n == len(id) {
				return kept(id, false, e.GetValue())
			}
		}
	}
	return false
}
