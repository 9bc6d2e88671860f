package dkim

import "blitiri.com.ar/go/chasquid/internal/expvarom"

type verifyMetrics struct {
	found, notFound, valid, errors *expvarom.Int
	results                        map[string]*expvarom.Counter // read-only
}

func newVerifyMetrics(r *expvarom.Registry) *verifyMetrics {
	m := &verifyMetrics{
		found:    r.Int("chasquid/smtpIn/dkimVerifyFound", "messages with DKIM signatures"),
		notFound: r.Int("chasquid/smtpIn/dkimVerifyNotFound", "messages without DKIM signature"),
		valid:    r.Int("chasquid/smtpIn/dkimVerifyValid", "messages with a valid DKIM signature"),
		errors:   r.Int("chasquid/smtpIn/dkimVerifyErrors", "messages whose DKIM signatures could not be verified"),
		results:  map[string]*expvarom.Counter{},
	}
	values := []string{Pass, Fail, None, TempError, PermError}
	v := r.CounterVec("chasquid_dkim_verifications_total", "DKIM signatures verified, by result; none counts messages without one",
		[]string{"result"}, values)
	for _, value := range values {
		m.results[value] = v.With(value)
	}
	return m
}

func (m *verifyMetrics) none() {
	m.notFound.Inc()
	m.results[None].Inc()
}

func (m *verifyMetrics) failed() {
	m.found.Inc()
	m.errors.Inc()
}

func (m *verifyMetrics) count(v Verification) {
	m.found.Inc()
	if v.Valid() > 0 {
		m.valid.Inc()
	}
	for i := range v.Results {
		m.results[v.Results[i].Value].Inc()
	}
}

type signMetrics struct {
	signed, errors *expvarom.Int
	signatures     map[string][2]*expvarom.Counter // by algorithm: ok, error; read-only
}

func newSignMetrics(r *expvarom.Registry) *signMetrics {
	m := &signMetrics{
		signed:     r.Int("chasquid/smtpIn/dkimSigned", "messages signed with DKIM"),
		errors:     r.Int("chasquid/smtpIn/dkimSignErrors", "messages that could not be signed with DKIM"),
		signatures: map[string][2]*expvarom.Counter{},
	}
	names := map[string]string{RSASHA256: "rsa_sha256", Ed25519SHA256: "ed25519_sha256"}
	v := r.CounterVec("chasquid_dkim_signatures_total", "DKIM signatures made, by algorithm and result",
		[]string{"algorithm", "result"}, []string{"rsa_sha256", "ed25519_sha256"}, []string{"ok", "error"})
	for algorithm, name := range names {
		m.signatures[algorithm] = [2]*expvarom.Counter{v.With(name, "ok"), v.With(name, "error")}
	}
	return m
}
