package auth

import (
	"sync/atomic"
	"time"

	"blitiri.com.ar/go/chasquid/internal/expvarom"
)

// Results of an attempt, for CountAttempt.
const (
	ResultOK             = "ok"
	ResultBadCredentials = "bad_credentials"
	ResultBackendError   = "backend_error"
	ResultMalformed      = "malformed"
	ResultTLSRequired    = "tls_required"
)

type metrics struct {
	attempts    *expvarom.CounterVec
	durations   map[string][2]*expvarom.Histogram // by backend; failed, ok
	lastFailure atomic.Int64                      // unix milliseconds, 0: never
}

func newMetrics(r *expvarom.Registry) *metrics {
	m := &metrics{
		attempts: r.CounterVec("chasquid_auth_attempts_total", "Attempts to authenticate.", []string{"mode", "backend", "result"},
			[]string{"smtp", "submission", "submission_tls"}, []string{UserDB, Dovecot, None},
			[]string{ResultOK, ResultBadCredentials, ResultBackendError, ResultMalformed, ResultTLSRequired}),
		durations: map[string][2]*expvarom.Histogram{},
	}
	v := r.HistogramVec("chasquid_auth_duration_seconds", "Time to verify a password: its hash, or the fallback's answer.", expvarom.Fast,
		[]string{"backend", "result"}, []string{UserDB, Dovecot}, []string{"ok", "failed"})
	for _, b := range []string{UserDB, Dovecot} {
		m.durations[b] = [2]*expvarom.Histogram{v.With(b, "failed"), v.With(b, "ok")}
	}
	m.durations[None] = m.durations[UserDB]
	r.GaugeVecFunc("chasquid_auth_last_failure_timestamp_seconds", "When somebody last failed to authenticate.", nil, func(emit func(float64, ...string)) {
		if ms := m.lastFailure.Load(); ms != 0 {
			emit(float64(ms) / 1000)
		}
	})
	return m
}

func (m *metrics) authenticated(start, now time.Time, backend string, ok bool, err error) {
	i := 0
	if ok {
		i = 1
	}
	m.durations[backend][i].Observe(now.Sub(start).Seconds())
	if !ok && err == nil {
		m.lastFailure.Store(now.UnixMilli())
	}
}

// CountAttempt counts one AUTH command: mode is "smtp", "submission" or "submission_tls", backend as Authenticate returned it (None if it was
// not asked), result one of the Result constants. The server calls it, since only it knows of the attempts that never get here.
func (a *Authenticator) CountAttempt(mode, backend, result string) {
	a.metrics.attempts.With(mode, backend, result).Inc()
}
