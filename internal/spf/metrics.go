package spf

import "blitiri.com.ar/go/chasquid/internal/expvarom"

// results are all there are (RFC 7208 section 2.6).
var results = [...]string{"none", "neutral", "pass", "fail", "softfail", "temperror", "permerror"}

type metrics struct {
	legacy *expvarom.Map
	checks map[string]*expvarom.Counter // read-only
}

func newMetrics(r *expvarom.Registry) *metrics {
	m := &metrics{
		legacy: r.Map("chasquid/smtpIn/spfResultCount", "result", "SPF results", results[:]...),
		checks: map[string]*expvarom.Counter{},
	}
	v := r.CounterVec("chasquid_spf_checks_total", "SPF checks, by result", []string{"result"}, results[:])
	for _, res := range results {
		m.checks[res] = v.With(res)
	}
	return m
}

func (m *metrics) count(result string) {
	m.legacy.Inc(result)
	if c := m.checks[result]; c != nil {
		c.Inc()
	}
}
