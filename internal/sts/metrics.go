package sts

import (
	"context"
	"errors"
	"net"
	"time"

	"blitiri.com.ar/go/chasquid/internal/dns"
	"blitiri.com.ar/go/chasquid/internal/expvarom"
)

// requestResult is what a look into the cache found.
type requestResult int

const (
	hit requestResult = iota
	miss
	expired
	invalid
	ioError
	numRequestResults
)

var (
	requestNames = [numRequestResults]string{"hit", "miss", "expired", "invalid", "io_error"}
	fetchNames   = []string{"ok", "notfound", "http_error", "tls_error", "timeout", "bad_policy"}
	modes        = []string{string(Enforce), string(Testing), string(None)}
)

type metrics struct {
	fetches, hits, expired, ioErrors, failedFetch, invalid, marshalErrors, unmarshalErrors *expvarom.Int
	refreshCycles, refreshes, refreshErrors                                                *expvarom.Int
	requests                                                                               [numRequestResults]*expvarom.Counter

	legacyMode, legacySecurity *expvarom.Map
	checks                     map[Mode][2]*expvarom.Counter // fail, pass; read-only
	fetchTime                  map[string]*expvarom.Histogram
	lastRefresh                *expvarom.Gauge
}

func newMetrics(r *expvarom.Registry, policies func() map[Mode]int) *metrics {
	n := func(name, help string) *expvarom.Int { return r.Int("chasquid/sts/cache/"+name, help) }
	m := &metrics{
		fetches: n("fetches", "MTA-STS policies asked for"), hits: n("hits", "MTA-STS policies found in the cache"),
		expired: n("expired", "MTA-STS policies found expired in the cache"), ioErrors: n("ioErrors", "errors reading and writing the MTA-STS cache"),
		failedFetch: n("failedFetch", "MTA-STS policies that could not be fetched, also for having none"),
		invalid:     n("invalid", "MTA-STS policies found invalid in the cache"), marshalErrors: n("marshalErrors", "MTA-STS policies that could not be encoded"),
		unmarshalErrors: n("unmarshalErrors", "MTA-STS cache files that could not be decoded"),
		refreshCycles:   n("refreshCycles", "rounds of refreshing the MTA-STS cache"), refreshes: n("refreshes", "MTA-STS policies refreshed"),
		refreshErrors: n("refreshErrors", "MTA-STS policies that could not be refreshed"),

		legacyMode:     r.Map("chasquid/smtpOut/sts/mode", "mode", "MTA-STS policies seen, by mode", modes...),
		legacySecurity: r.Map("chasquid/smtpOut/sts/security", "result", "MTA-STS security checks, by result", "pass", "fail"),
		checks:         map[Mode][2]*expvarom.Counter{},
		fetchTime:      map[string]*expvarom.Histogram{},
		lastRefresh:    r.Gauge("chasquid_sts_cache_last_refresh_timestamp_seconds", "When the last round of refreshing ended, in Unix time"),
	}
	requests := r.CounterVec("chasquid_sts_cache_requests_total", "MTA-STS policies asked for, by what the cache had", []string{"result"}, requestNames[:])
	for i, name := range requestNames {
		m.requests[i] = requests.With(name)
	}
	fetch := r.HistogramVec("chasquid_sts_fetch_duration_seconds", "Time fetching an MTA-STS policy took, by result", expvarom.Net, []string{"result"}, fetchNames)
	for _, name := range fetchNames {
		m.fetchTime[name] = fetch.With(name)
	}
	checks := r.CounterVec("chasquid_sts_policy_checks_total", "Sessions under an MTA-STS policy, by its mode and whether they satisfied it",
		[]string{"mode", "result"}, modes, []string{"pass", "fail"})
	for _, mode := range modes {
		m.checks[Mode(mode)] = [2]*expvarom.Counter{checks.With(mode, "fail"), checks.With(mode, "pass")}
	}
	r.GaugeVecFunc("chasquid_sts_cache_policies", "MTA-STS policies in memory, by mode", []string{"mode"}, func(emit func(float64, ...string)) {
		n := policies()
		for _, mode := range modes {
			emit(float64(n[Mode(mode)]), mode)
		}
	})
	return m
}

// result counts what one look into the cache found; those that are no hit or miss have counted their legacy twin.
func (m *metrics) result(r requestResult) {
	if r == hit {
		m.hits.Inc()
	}
	m.requests[r].Inc()
}

func (m *metrics) mode(mode Mode) { m.legacyMode.Inc(string(mode)) }

func (m *metrics) security(mode Mode, ok bool) {
	if ok {
		m.legacySecurity.Inc("pass")
		m.checks[mode][1].Inc()
	} else {
		m.legacySecurity.Inc("fail")
		m.checks[mode][0].Inc()
	}
}

func (m *metrics) fetched(err error, took time.Duration) {
	m.fetchTime[fetchResult(err)].Observe(took.Seconds())
}

func fetchResult(err error) string {
	var fe *FetchError
	var ne net.Error
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, ErrNoPolicy), errors.Is(err, dns.ErrNotFound):
		return "notfound"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &ne) && ne.Timeout():
		return "timeout"
	case errors.As(err, &fe) && fe.Kind == kindPKIX:
		return "tls_error"
	case errors.As(err, &fe) && fe.Kind == kindInvalid:
		return "bad_policy"
	}
	return "http_error"
}

// modes counts the policies in memory.
func (c *Cache) modes() map[Mode]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := map[Mode]int{}
	for _, e := range c.entries.All() {
		e.mu.Lock()
		if e.policy != nil {
			n[e.policy.Mode]++
		}
		e.mu.Unlock()
	}
	return n
}
