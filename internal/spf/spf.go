// Package spf says whether a domain lets a host send its mail (RFC 7208).
package spf

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/dns"
	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/trace"
	"blitiri.com.ar/go/spf"
)

// The results (RFC 7208 section 2.6).
const (
	None      = string(spf.None)
	Neutral   = string(spf.Neutral)
	Pass      = string(spf.Pass)
	Fail      = string(spf.Fail)
	SoftFail  = string(spf.SoftFail)
	TempError = string(spf.TempError)
	PermError = string(spf.PermError)
)

// DefaultBudget is the time a check may take in total (RFC 7208 section 4.6.4).
const DefaultBudget = 20 * time.Second

// Config is what a Checker works with.
type Config struct {
	Resolver dns.Resolver
	Budget   time.Duration // default DefaultBudget
	Metrics  *expvarom.Registry
}

// Checker checks senders. It is safe for concurrent use.
type Checker struct {
	resolver dns.Resolver
	budget   time.Duration
	memo     memo
	m        *metrics
}

// New makes a Checker.
func New(cfg Config) *Checker {
	if cfg.Budget <= 0 {
		cfg.Budget = DefaultBudget
	}
	return &Checker{resolver: cfg.Resolver, budget: cfg.Budget, m: newMetrics(cfg.Metrics)}
}

// Result is the outcome of a check.
type Result struct {
	Value  string // one of the results
	Reason string // "matched mx", "no DNS record found": a constant phrase, "" if there is none
	Domain string // the domain that was checked, A-labels
	Helo   bool   // it is the HELO identity, because the sender is null (RFC 7208 section 2.4)
}

// Check evaluates the MAIL FROM identity, or for the null sender the HELO identity, for the client ip that greeted with helo.
// The limits are those of RFC 7208 section 4.6.4: 10 look-ups, 2 of them void, 10 names of an MX or PTR, and the time budget.
func (c *Checker) Check(ctx context.Context, ip netip.Addr, helo string, from address.Address) Result {
	ctx, span := trace.Start(ctx, trace.CheckSPF, from.Domain)
	defer span.Finish()
	r := c.check(ctx, ip.Unmap(), helo, from)
	c.m.count(r.Value)
	span.Set("result", r.Value)
	span.Set("reason", r.Reason)
	span.Set("domain", r.Domain)
	return r
}

func (c *Checker) check(ctx context.Context, ip netip.Addr, helo string, from address.Address) Result {
	r := Result{Value: None, Domain: domain(from.Domain)}
	local := from.Local
	if from.Domain == "" {
		r.Domain, r.Helo, local = domain(helo), true, "postmaster"
	}
	if strings.IndexByte(r.Domain, '.') < 0 {
		r.Reason = "not a domain name" // RFC 7208 section 4.3
		return r
	}
	k, now := memoKey{ip, r.Domain}, time.Now()
	if v, ok := c.memo.get(k, now); ok {
		r.Value, r.Reason = v.value, v.reason
		return r
	}
	ctx, cancel := context.WithTimeout(ctx, c.budget)
	defer cancel()
	// The library takes the first "@" for the one before the domain.
	local = strings.ReplaceAll(local, "@", "_")
	t := &tracker{Resolver: c.resolver, ttl: maxMemoTTL}
	value, err := spf.CheckHostWithSender(ip.AsSlice(), macroHelo(helo), local+"@"+r.Domain, spf.WithContext(ctx),
		spf.WithResolver(resolver{dns.Std{Resolver: t, Purpose: dns.ForSPF}}), spf.WithTraceFunc(trace.From(ctx).Debugf))
	r.Value, r.Reason = string(value), reason(err)
	if r.Value != TempError && !t.personal && t.ttl > 0 {
		c.memo.put(k, memoValue{r.Value, r.Reason, now.Add(t.ttl)}, now)
	}
	return r
}

// macroHelo is what the macro "h" expands to (RFC 7208 section 7.2).
func macroHelo(helo string) string {
	if d := domain(helo); d != "" {
		return d
	}
	return "unknown"
}

// domain returns the A-label form of a name, "" if it is no domain name.
func domain(d string) string {
	a, err := address.ASCIIDomain(d)
	if err != nil {
		return ""
	}
	return a
}

// reason puts an error of the library into words that may stand in a header: nothing of them comes from a stranger.
func reason(err error) string {
	var de *net.DNSError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &de) && de.IsNotFound:
		return spf.ErrNoResult.Error()
	case errors.As(err, &de) && de.IsTimeout:
		return "DNS time-out"
	case errors.As(err, &de):
		return "DNS error"
	}
	for _, known := range [...]error{
		spf.ErrMatchedAll, spf.ErrMatchedA, spf.ErrMatchedIP, spf.ErrMatchedMX, spf.ErrMatchedPTR, spf.ErrMatchedExists,
		spf.ErrNoResult, spf.ErrLookupLimitReached, spf.ErrVoidLookupLimitReached, spf.ErrTooManyMXRecords, spf.ErrMultipleRecords,
		spf.ErrUnknownField, spf.ErrInvalidIP, spf.ErrInvalidMask, spf.ErrInvalidMacro, spf.ErrInvalidDomain, spf.ErrInvalidIPAddress,
	} {
		if errors.Is(err, known) {
			return known.Error()
		}
	}
	return "invalid record"
}
