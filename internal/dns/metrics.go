package dns

import (
	"context"
	"errors"
	"net"
	"time"

	"blitiri.com.ar/go/chasquid/internal/expvarom"
)

var purposeNames = [...]string{"other", "mx", "spf", "dkim", "sts", "ptr", "dane", "dmarc"}

// String returns the purpose as metrics and pages show it.
func (p Purpose) String() string {
	if int(p) < len(purposeNames) {
		return purposeNames[p]
	}
	return "other"
}

// Results of a look-up, as metrics show them.
const (
	resultOK = iota
	resultNotFound
	resultTimeout
	resultTemporary
	resultError
	numResults
)

var resultNames = [numResults]string{"ok", "notfound", "timeout", "temporary", "error"}

type metrics struct {
	lookups  [len(purposeNames)][numResults]*expvarom.Counter
	duration [len(purposeNames)]*expvarom.Histogram
}

func newMetrics(r *expvarom.Registry, c *cache) *metrics {
	m := new(metrics)
	lookups := r.CounterVec("chasquid_dns_lookups_total", "DNS look-ups sent to a server, by purpose and result; answers from the cache are not counted",
		[]string{"purpose", "result"}, purposeNames[:], resultNames[:])
	duration := r.HistogramVec("chasquid_dns_lookup_duration_seconds", "Time DNS look-ups took, by purpose; answers from the cache are not counted",
		expvarom.Net, []string{"purpose"}, purposeNames[:])
	for p, purpose := range purposeNames {
		for i, result := range resultNames {
			m.lookups[p][i] = lookups.With(purpose, result)
		}
		m.duration[p] = duration.With(purpose)
	}
	r.GaugeFunc("chasquid_dns_cache_entries", "DNS answers in memory", func() float64 {
		n, _, _, _, _ := c.stats()
		return float64(n)
	})
	r.GaugeFunc("chasquid_dns_cache_size_bytes", "Memory for DNS answers", func() float64 {
		_, n, _, _, _ := c.stats()
		return float64(n)
	})
	r.GaugeFunc("chasquid_dns_cache_hit_ratio", "Share of questions answered from memory since the start", func() float64 {
		_, _, hits, misses, _ := c.stats()
		return float64(hits) / max(float64(hits+misses), 1)
	})
	return m
}

// lookup counts and times one look-up.
func (m *metrics) lookup(p Purpose, err error, took time.Duration) {
	if int(p) >= len(purposeNames) {
		p = Other
	}
	m.lookups[p][classify(err)].Inc()
	m.duration[p].Observe(took.Seconds())
}

func classify(err error) int {
	var ne net.Error
	var rc rcodeError
	switch {
	case err == nil:
		return resultOK
	case errors.Is(err, ErrNotFound):
		return resultNotFound
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &ne) && ne.Timeout():
		return resultTimeout
	case errors.As(err, &rc):
		return resultTemporary
	}
	return resultError
}
