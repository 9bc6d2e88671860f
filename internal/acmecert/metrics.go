package acmecert

import (
	"errors"
	"strings"
	"sync/atomic"
	"time"

	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"golang.org/x/crypto/acme"
)

type metrics struct {
	attempts *expvarom.CounterVec
	panics   *expvarom.Counter
	manager  atomic.Pointer[Manager] // set once its names are known
}

func newMetrics(r *expvarom.Registry) *metrics {
	m := &metrics{
		attempts: r.CounterVec("chasquid_acme_attempts_total", "Attempts to get or renew a certificate by ACME, by result.",
			[]string{"result"}, []string{"ok", "failed", "rate_limited"}),
		panics: r.CounterVec("chasquid_panics_total", "Panics recovered, by component: each is a bug worth reporting.",
			[]string{"component"}, []string{"acme"}).With("acme"),
	}
	r.GaugeFunc("chasquid_acme_failing_names", "Host names whose last attempt to get a certificate by ACME failed.", func() float64 {
		n := 0
		for _, s := range m.status() {
			if s.Err != nil {
				n++
			}
		}
		return float64(n)
	})
	r.GaugeFunc("chasquid_acme_next_attempt_timestamp_seconds", "When the authority is asked next, 0 if it is not.", func() float64 {
		var next time.Time
		for _, s := range m.status() {
			if !s.Next.IsZero() && (next.IsZero() || s.Next.Before(next)) {
				next = s.Next
			}
		}
		if next.IsZero() {
			return 0
		}
		return float64(next.Unix())
	})
	return m
}

// watch lets the gauges ask the manager.
func (m *metrics) watch(of *Manager) { m.manager.Store(of) }

func (m *metrics) status() []Status {
	if of := m.manager.Load(); of != nil {
		return of.Status()
	}
	return nil
}

func (m *metrics) done(err error) {
	switch {
	case err == nil:
		m.attempts.With("ok").Inc()
	case problemType(err) == "ratelimited":
		m.attempts.With("rate_limited").Inc()
	default:
		m.attempts.With("failed").Inc()
	}
}

// problemType is the last word of an ACME problem's type, in lower case (RFC 8555 section 6.7).
func problemType(err error) string {
	var e *acme.Error
	if !errors.As(err, &e) {
		return ""
	}
	return strings.ToLower(e.ProblemType[strings.LastIndexByte(e.ProblemType, ':')+1:])
}
