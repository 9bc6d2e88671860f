// Package dane proves mail servers by TLSA records that DNSSEC vouches for (RFC 6698, RFC 7671, RFC 7672).
package dane

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/dns"
	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/tlspolicy"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// Config is what a Source works with. Only Resolver must be set.
type Config struct {
	Resolver dns.Resolver
	Port     int                    // of the mail servers; default 25
	Report   func(tlspolicy.Report) // told about every session under TLSA records; may be nil
	Metrics  *expvarom.Registry
}

// Source gives the rule of a mail server by its TLSA records. It is a tlspolicy.HostSource, safe for concurrent use.
type Source struct {
	cfg    Config
	prefix string // "_25._tcp."
	m      *metrics
}

// New makes a Source.
func New(cfg Config) *Source {
	if cfg.Port == 0 {
		cfg.Port = 25
	}
	return &Source{cfg, "_" + strconv.Itoa(cfg.Port) + "._tcp.", newMetrics(cfg.Metrics)}
}

// maxRecords is how many TLSA records of a host are looked at.
const maxRecords = 64

// lookupError is a failure that may hide an attack: nothing may be sent to the host now (RFC 7672 section 2.1).
type lookupError struct{ err error }

func (e *lookupError) Error() string      { return "DANE: " + e.err.Error() }
func (e *lookupError) Unwrap() error      { return e.err }
func (e *lookupError) ResultType() string { return "dnssec-invalid" } // RFC 8460 section 4.3.2.1

// HostRule implements tlspolicy.HostSource. DANE only applies where the MX records of the domain, the addresses of the host and its
// TLSA records are all validated. A look-up that fails is an error: the host must not be used now.
func (s *Source) HostRule(ctx context.Context, domain, host string) (tlspolicy.Rule, error) {
	records, err := s.lookup(ctx, domain, host)
	if err != nil {
		s.m.lookups[lookupFailed].Inc()
		err = &lookupError{err}
		trace.From(ctx).Printf("DANE for %q: %v", host, err)
		s.report(tlspolicy.Report{Domain: domain, Policy: "tlsa", Host: host, Err: err})
		return tlspolicy.Rule{}, err
	}
	if len(records) == 0 {
		s.m.lookups[lookupNone].Inc()
		return tlspolicy.Rule{}, nil
	}
	usable := records[:0:0]
	for _, r := range records {
		if isUsable(r) {
			usable = append(usable, r)
		}
	}
	rule := tlspolicy.Rule{Source: "dane", RequireTLS: true, Report: s.reporter(domain, host, records)}
	if len(usable) == 0 {
		// RFC 7672 section 2.2: somebody published records, so there is TLS; we cannot tell by which certificate.
		s.m.lookups[lookupUnusable].Inc()
		trace.From(ctx).Printf("DANE for %q: none of %d TLSA records is usable: TLS without authentication", host, len(records))
		return rule, nil
	}
	s.m.lookups[lookupSecure].Inc()
	trace.From(ctx).Debugf("DANE for %q: %d usable TLSA records", host, len(usable))
	names := []string{ascii(host), ascii(domain)} // RFC 7672 section 3.2.3
	rule.Verify = func(_ string, state *tls.ConnectionState) error {
		err := verify(usable, names, state)
		s.m.checked(err)
		return err
	}
	return rule, nil
}

// lookup returns the TLSA records of a host, none if DANE does not apply to it.
func (s *Source) lookup(ctx context.Context, domain, host string) ([]dns.TLSA, error) {
	d, h := ascii(domain), ascii(host)
	if d == "" || h == "" {
		return nil, nil
	}
	_, meta, err := s.cfg.Resolver.MX(ctx, dns.ForDANE, d)
	switch {
	case errors.Is(err, dns.ErrNotFound) && h == d:
		// the domain is its own mail server (RFC 7672 section 2.2.1)
	case errors.Is(err, dns.ErrNotFound):
		return nil, nil
	case err != nil:
		return nil, err
	}
	if !meta.Secure {
		return nil, nil
	}
	// RFC 7672 section 2.2.2: hosts without signed addresses are not asked for TLSA, which their servers may not even answer.
	_, meta, err = s.cfg.Resolver.IP(ctx, dns.ForDANE, h)
	if errors.Is(err, dns.ErrNotFound) || err == nil && !meta.Secure {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	records, meta, err := s.cfg.Resolver.TLSA(ctx, dns.ForDANE, s.prefix+h)
	if errors.Is(err, dns.ErrNotFound) || err == nil && !meta.Secure {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return records[:min(len(records), maxRecords)], nil
}

// ascii returns a name in A-labels, "" for address literals and what is no name.
func ascii(name string) string {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if strings.HasPrefix(name, "[") {
		return ""
	}
	a, err := address.DomainToASCII(name)
	if err != nil {
		return ""
	}
	return a
}

// reporter tells about the sessions with a host.
func (s *Source) reporter(domain, host string, records []dns.TLSA) func(string, error) {
	if s.cfg.Report == nil {
		return nil
	}
	return func(_ string, err error) {
		r := tlspolicy.Report{Domain: domain, Policy: "tlsa", MX: []string{host}, Host: host, Err: err}
		for _, t := range records {
			r.Text = append(r.Text, fmt.Sprintf("%s%s. IN TLSA %d %d %d %X", s.prefix, ascii(host), t.Usage, t.Selector, t.Matching, t.Data))
		}
		s.cfg.Report(r)
	}
}

func (s *Source) report(r tlspolicy.Report) {
	if s.cfg.Report != nil {
		s.cfg.Report(r)
	}
}
