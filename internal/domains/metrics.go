package domains

import (
	"time"

	"blitiri.com.ar/go/chasquid/internal/expvarom"
)

// maxCertSeries bounds the certificates shown one by one in the metrics.
const maxCertSeries = 20

type metrics struct {
	certErrors *expvarom.CounterVec
}

func newMetrics(r *expvarom.Registry, t *Table) *metrics {
	m := &metrics{
		certErrors: r.CounterVec("chasquid_tls_certificate_load_errors_total",
			"Certificate directories found unusable, once for each look.", []string{"name"}),
	}
	certs := func(value func(*Cert) time.Time) func(emit func(v float64, values ...string)) {
		return func(emit func(v float64, values ...string)) {
			for i, c := range t.snapshot().Certs {
				if i == maxCertSeries {
					break
				}
				emit(float64(value(c).Unix()), c.Name)
			}
		}
	}
	r.GaugeVecFunc("chasquid_tls_certificate_not_after_timestamp_seconds", "When the loaded certificate expires.",
		[]string{"name"}, certs(func(c *Cert) time.Time { return c.NotAfter }))
	r.GaugeVecFunc("chasquid_tls_certificate_not_before_timestamp_seconds", "When the loaded certificate became valid.",
		[]string{"name"}, certs(func(c *Cert) time.Time { return c.NotBefore }))
	r.GaugeFunc("chasquid_tls_domains_without_certificate",
		"Local domains for which neither their own name nor the server's is in a valid certificate.", t.withoutCert)
	r.GaugeVecFunc("chasquid_config_objects", "What is loaded.", []string{"kind"}, t.countObjects)
	return m
}

// snapshot is Current, or an empty one while the first is being loaded.
func (t *Table) snapshot() *Snapshot {
	if s := t.Current(); s != nil {
		return s
	}
	return &Snapshot{}
}

func (t *Table) withoutCert() float64 {
	s, now, n := t.snapshot(), time.Now(), 0
	if s.HasCert(t.expects.Load().hostname, now) {
		return 0
	}
	for _, d := range s.Domains {
		if d.Name != Localhost && !s.HasCert(d.Name, now) {
			n++
		}
	}
	return float64(n)
}

func (t *Table) countObjects(emit func(v float64, values ...string)) {
	s, keys := t.snapshot(), 0
	for _, d := range s.Domains {
		keys += len(d.Keys)
	}
	emit(float64(len(s.Domains)), "domain")
	emit(float64(keys), "dkim_key")
	emit(float64(len(s.Certs)), "certificate")
	if t.cfg.Users != nil {
		emit(float64(t.cfg.Users()), "user")
	}
	if t.cfg.Aliases != nil {
		emit(float64(t.cfg.Aliases()), "alias")
	}
}
