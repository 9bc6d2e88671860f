package tlsrpt

import "blitiri.com.ar/go/chasquid/internal/expvarom"

type metrics struct {
	success, failure *expvarom.Counter
	reports          map[string][2]*expvarom.Counter // by way: error, ok; read-only
}

func newMetrics(r *expvarom.Registry, domains func() int) *metrics {
	m := &metrics{reports: map[string][2]*expvarom.Counter{}}
	s := r.CounterVec("chasquid_tlsrpt_sessions_total", "Sessions under a TLS policy counted for reports to its domain, by result", []string{"result"}, []string{"success", "failure"})
	m.success, m.failure = s.With("success"), s.With("failure")
	v := r.CounterVec("chasquid_tlsrpt_reports_total", "TLS reports sent to other domains, by way and result", []string{"via", "result"}, []string{"mailto", "https"}, []string{"ok", "error"})
	for _, via := range []string{"mailto", "https"} {
		m.reports[via] = [2]*expvarom.Counter{v.With(via, "error"), v.With(via, "ok")}
	}
	r.GaugeFunc("chasquid_tlsrpt_domains", "Domains counted and not yet reported to", func() float64 { return float64(domains()) })
	return m
}

func (m *metrics) session(ok bool) {
	if ok {
		m.success.Inc()
	} else {
		m.failure.Inc()
	}
}

func (m *metrics) sent(via string, ok bool) {
	i := 0
	if ok {
		i = 1
	}
	m.reports[via][i].Inc()
}
