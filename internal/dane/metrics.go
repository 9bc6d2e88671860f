package dane

import "blitiri.com.ar/go/chasquid/internal/expvarom"

// lookupResult is what a look for TLSA records found.
type lookupResult int

const (
	lookupSecure lookupResult = iota
	lookupNone
	lookupUnusable
	lookupFailed
	numLookupResults
)

type metrics struct {
	lookups    [numLookupResults]*expvarom.Counter
	pass, fail *expvarom.Counter
}

func newMetrics(r *expvarom.Registry) *metrics {
	m := &metrics{}
	names := []string{"secure", "none", "unusable", "error"}
	v := r.CounterVec("chasquid_dane_lookups_total", "Looks for TLSA records of mail servers, by result", []string{"result"}, names)
	for i, n := range names {
		m.lookups[i] = v.With(n)
	}
	c := r.CounterVec("chasquid_dane_checks_total", "Certificates checked against TLSA records, by result", []string{"result"}, []string{"pass", "fail"})
	m.pass, m.fail = c.With("pass"), c.With("fail")
	return m
}

func (m *metrics) checked(err error) {
	if err == nil {
		m.pass.Inc()
	} else {
		m.fail.Inc()
	}
}
