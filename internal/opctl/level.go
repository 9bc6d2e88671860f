package opctl

import (
	"context"
	"net/url"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/control"
	"blitiri.com.ar/go/chasquid/internal/domaininfo"
)

// The methods of the TLS levels of domains. To forget one is DomaininfoClear, which existing installations know.
const (
	LevelList  = "LevelList"  // "domain" or "limit"; []Level
	LevelAllow = "LevelAllow" // "domain", "for"; nothing
)

// Level is what is known of the TLS of a domain.
type Level struct {
	Domain   string    `json:"domain"`
	Incoming string    `json:"incoming"`
	Outgoing string    `json:"outgoing"`
	Override time.Time `json:"any_level_until,omitzero"`
}

// Levels is what the methods need of the levels. *domaininfo.DB has it.
type Levels interface {
	List() []domaininfo.Entry
	Lookup(domain string) (domaininfo.Entry, bool)
	Override(ctx context.Context, domain string, until time.Time) error
}

// maxLevels is how many levels one answer has at most.
const maxLevels = 10000

// LevelMethods returns the methods for the control socket.
func LevelMethods(l Levels) map[string]control.Method {
	return map[string]control.Method{
		LevelList:  func(_ context.Context, a url.Values) (url.Values, error) { return levelList(l, a) },
		LevelAllow: func(ctx context.Context, a url.Values) (url.Values, error) { return levelAllow(ctx, l, a) },
	}
}

func levelList(l Levels, a url.Values) (url.Values, error) {
	limit, err := number(a, "limit")
	if err != nil {
		return nil, err
	}
	if limit == 0 || limit > maxLevels {
		limit = maxLevels
	}
	var entries []domaininfo.Entry
	if a.Get("domain") == "" {
		entries = l.List()
	} else {
		domain, err := address.NormalizeDomain(a.Get("domain"))
		if err != nil {
			return nil, err
		}
		e, ok := l.Lookup(domain)
		if !ok {
			return nil, domaininfo.ErrNotFound
		}
		entries = append(entries, e)
	}
	out := []Level{}
	for _, e := range entries[:min(limit, len(entries))] {
		out = append(out, Level{Domain: e.Domain, Incoming: e.Incoming.String(), Outgoing: e.Outgoing.String(), Override: e.Override})
	}
	return Answer(out, nil)
}

func levelAllow(ctx context.Context, l Levels, a url.Values) (url.Values, error) {
	domain, err := address.NormalizeDomain(a.Get("domain"))
	if err != nil {
		return nil, err
	}
	d, err := duration(a, "for")
	if err != nil {
		return nil, err
	}
	var until time.Time
	if d > 0 {
		until = time.Now().Add(d)
	}
	return url.Values{}, l.Override(ctx, domain, until)
}
