// Package sts is MTA-STS for outgoing mail: it fetches, remembers and applies the policies of recipient domains (RFC 8461).
package sts

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"sync"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/dns"
	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/lru"
	"blitiri.com.ar/go/chasquid/internal/tlspolicy"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// Config is what a Cache works with. Only Resolver must be set.
type Config struct {
	Resolver dns.Resolver
	Dir      string         // of the cache files; empty: nothing is kept over a restart
	Client   *http.Client   // default NewClient(Resolver, Roots, false)
	Roots    *x509.CertPool // for policy hosts, and mail servers of domains that are testing; nil: the system's
	Max      int            // domains remembered in memory, also those without a policy; default 10000

	Report  func(tlspolicy.Report) // told about every session under a policy; may be nil
	Metrics *expvarom.Registry
}

// Times.
const (
	refreshEvery  = 10 * time.Minute
	refreshBudget = 30 * time.Second
	maxUnchecked  = 24 * time.Hour     // a policy is fetched again after so long, even if its id is the same
	noPolicyFor   = 5 * time.Minute    // a domain without usable policy is not asked again
	noAnswerFor   = time.Minute        // likewise after a DNS failure
	deadAfter     = 7 * 24 * time.Hour // an expired entry that nobody uses is not refreshed any more
)

// Cache gives the policies of domains. It is a tlspolicy.Source, safe for concurrent use.
type Cache struct {
	cfg   Config
	files files
	m     *metrics

	mu      sync.Mutex
	entries *lru.Map[string, *entry]
}

// entry is what is known of one domain.
type entry struct {
	busy chan struct{} // holds one token; who takes it may load and fetch

	mu      sync.Mutex
	loaded  bool
	policy  *Policy // nil: none
	expires time.Time
	id      string    // of the policy, "" if not known: it is not in the file
	checked time.Time // when the policy was last fetched; zero if not since the start
	doubt   bool      // it was not satisfied: look for a new one before it is used again
	noneTil time.Time // no policy, and no asking, until then
	noneErr error     // why, if there should be one
	used    time.Time
}

// New makes a Cache and its directory.
func New(cfg Config) (*Cache, error) {
	if cfg.Client == nil {
		cfg.Client = NewClient(cfg.Resolver, cfg.Roots, false)
	}
	if cfg.Max <= 0 {
		cfg.Max = 10000
	}
	c := &Cache{cfg: cfg, files: files{cfg.Dir}, entries: lru.New[string, *entry](cfg.Max)}
	c.m = newMetrics(cfg.Metrics, c.modes)
	return c, c.files.open()
}

func (c *Cache) entry(domain string) *entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries.Get(domain)
	if !ok {
		e = &entry{busy: make(chan struct{}, 1)}
		c.entries.Put(domain, e)
	}
	return e
}

// Policy returns the policy of a domain (lower-case Unicode), nil if there is none that can be used. The error says why there is none
// where there should be one; mail goes on without (RFC 8461 section 5).
func (c *Cache) Policy(ctx context.Context, domain string) (*Policy, error) {
	if d, err := address.NormalizeDomain(domain); err != nil || d != domain || domain[0] == '[' {
		return nil, nil // only names get into file names and URLs
	}
	c.m.fetches.Inc()
	e := c.entry(domain)
	if p, err, ok := e.current(time.Now()); ok {
		c.countHit(p)
		return p, err
	}
	select {
	case e.busy <- struct{}{}:
		defer func() { <-e.busy }()
	case <-ctx.Done():
		c.m.result(miss)
		return nil, ctx.Err()
	}
	if p, err, ok := e.current(time.Now()); ok { // somebody else fetched it meanwhile
		c.countHit(p)
		return p, err
	}
	r := c.load(e, domain)
	if r == hit && !e.doubtful() {
		c.m.result(hit)
		p, err, _ := e.current(time.Now())
		return p, err
	}
	c.m.result(r)
	return c.update(ctx, e, domain)
}

func (c *Cache) countHit(p *Policy) {
	if p != nil {
		c.m.result(hit)
	} else {
		c.m.result(miss) // remembered as having none
	}
}

// current returns what is known, if that is enough.
func (e *entry) current(now time.Time) (p *Policy, err error, ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.used = now
	if e.policy != nil && now.Before(e.expires) && !e.doubt {
		return e.policy, nil, true
	}
	if now.Before(e.noneTil) && (e.policy == nil || !now.Before(e.expires)) {
		return nil, e.noneErr, true
	}
	return nil, nil, false
}

func (e *entry) doubtful() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.doubt
}

// load looks at the memory and at the file, once, and says what was found.
func (c *Cache) load(e *entry, domain string) requestResult {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.loaded {
		e.loaded = true
		p, expires, err := c.files.load(domain)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return miss
		case errors.Is(err, errUnmarshal):
			c.m.unmarshalErrors.Inc()
			return invalid
		case err != nil:
			c.m.ioErrors.Inc()
			return ioError
		case p.Check() != nil:
			c.m.invalid.Inc()
			return invalid
		}
		e.policy, e.expires = p, expires
	}
	switch {
	case e.policy == nil:
		return miss
	case !time.Now().Before(e.expires):
		c.m.expired.Inc()
		return expired
	}
	return hit
}

// update fetches the policy, and says which one applies now. The caller holds the entry's token.
func (c *Cache) update(ctx context.Context, e *entry, domain string) (*Policy, error) {
	ctx, span := trace.Start(ctx, trace.STS, domain)
	defer span.Finish()
	if e.sameID(ctx, c.cfg.Resolver, domain) {
		return e.keep(), nil
	}
	start := time.Now()
	p, id, err := Fetch(ctx, c.cfg.Resolver, c.cfg.Client, domain)
	c.m.fetched(err, time.Since(start))
	now := time.Now()
	if err != nil {
		c.m.failedFetch.Inc()
		span.Printf("%v", err)
		return e.failed(err, now)
	}
	e.store(p, id, now)
	if err := c.files.save(domain, p, now.Add(p.MaxAge)); err != nil {
		span.Errorf("writing the cache: %w", err)
		if errors.Is(err, errMarshal) {
			c.m.marshalErrors.Inc()
		} else {
			c.m.ioErrors.Inc()
		}
	}
	return p, nil
}

// sameID reports a policy in doubt that is still the one published.
func (e *entry) sameID(ctx context.Context, r dns.Resolver, domain string) bool {
	e.mu.Lock()
	id, valid := e.id, e.policy != nil && time.Now().Before(e.expires)
	e.mu.Unlock()
	if !valid || id == "" {
		return false
	}
	ascii, err := address.DomainToASCII(domain)
	if err != nil {
		return false
	}
	now, err := lookupID(ctx, r, ascii)
	return err != nil || now == id
}

// keep goes on with the policy there is.
func (e *entry) keep() *Policy {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.doubt = false
	return e.policy
}

func (e *entry) store(p *Policy, id string, now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.loaded, e.policy, e.id, e.expires, e.checked = true, p, id, now.Add(p.MaxAge), now
	e.doubt, e.noneTil, e.noneErr = false, time.Time{}, nil
}

// failed notes a failed fetch: a policy that has not expired goes on to apply (RFC 8461 section 5.1), without one there is none for a
// while.
func (e *entry) failed(err error, now time.Time) (*Policy, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.doubt = false
	if e.policy != nil && now.Before(e.expires) {
		return e.policy, nil
	}
	e.noneErr, e.noneTil = nil, now.Add(noPolicyFor)
	var fe *FetchError
	switch {
	case errors.As(err, &fe):
		e.noneErr = fe
	case !errors.Is(err, ErrNoPolicy):
		e.noneTil = now.Add(noAnswerFor)
	}
	return nil, e.noneErr
}

// suspect makes the next use look for a new policy first.
func (e *entry) suspect() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.doubt = true
}

// Rule implements tlspolicy.Source. It never fails: a domain whose policy cannot be had is treated as if it had none.
func (c *Cache) Rule(ctx context.Context, domain string) (tlspolicy.Rule, error) {
	p, err := c.Policy(ctx, domain)
	if err != nil {
		trace.From(ctx).Printf("MTA-STS of %q: %v", domain, err)
		c.report(domain, nil, "", err)
	}
	if p == nil {
		return tlspolicy.Rule{}, nil
	}
	c.m.mode(p.Mode)
	e := c.entry(domain)
	switch p.Mode {
	case Enforce:
		return c.enforce(e, domain, p), nil
	case Testing:
		return c.observe(domain, p), nil
	}
	return tlspolicy.Rule{}, nil
}

// enforce is the rule of a policy that is enforced (RFC 8461 section 5).
func (c *Cache) enforce(e *entry, domain string, p *Policy) tlspolicy.Rule {
	return tlspolicy.Rule{
		Source: "mta-sts",
		AllowMX: func(host string) error {
			if !p.Allows(host) {
				e.suspect()
				return &violation{kindInvalidMX, fmt.Errorf("%s is not a mail server of the domain's MTA-STS policy", host)}
			}
			return nil
		},
		RequireTLS:  true,
		RequirePKIX: true,
		Report: func(host string, err error) {
			if err != nil {
				e.suspect()
			}
			c.m.security(Enforce, err == nil)
			c.report(domain, p, host, err)
		},
	}
}

// observe is the rule of a policy that is only tested: it refuses nothing and reports what would have been (RFC 8461 section 5).
func (c *Cache) observe(domain string, p *Policy) tlspolicy.Rule {
	tell := func(host string, err error) {
		c.m.security(Testing, err == nil)
		c.report(domain, p, host, err)
	}
	return tlspolicy.Rule{
		Source: "mta-sts (testing)",
		AllowConn: func(host string, state *tls.ConnectionState) error {
			tell(host, c.examine(p, host, state))
			return nil
		},
		Report: func(host string, err error) {
			if err != nil { // the connection failed before AllowConn could look at it
				tell(host, err)
			}
		},
	}
}

// kindInvalidMX is the result type for a mail server that the policy does not name (RFC 8460 section 4.3.2.1).
const kindInvalidMX = "certificate-host-mismatch"

// violation is a reason not to use a mail server, with its result type of RFC 8460.
type violation struct {
	kind string
	err  error
}

func (v *violation) Error() string      { return v.err.Error() }
func (v *violation) Unwrap() error      { return v.err }
func (v *violation) ResultType() string { return v.kind }

// examine reports what enforcing the policy would object to.
func (c *Cache) examine(p *Policy, host string, state *tls.ConnectionState) error {
	switch {
	case !p.Allows(host):
		return &violation{kindInvalidMX, fmt.Errorf("%s is not a mail server of the policy", host)}
	case state == nil:
		return tlspolicy.ErrNoSTARTTLS
	case len(state.PeerCertificates) == 0:
		return &violation{"validation-failure", errors.New("no certificate")}
	case len(state.VerifiedChains) > 0:
		return nil
	}
	opts := x509.VerifyOptions{DNSName: host, Roots: c.cfg.Roots, Intermediates: x509.NewCertPool()}
	for _, cert := range state.PeerCertificates[1:] {
		opts.Intermediates.AddCert(cert)
	}
	_, err := state.PeerCertificates[0].Verify(opts)
	return err
}

func (c *Cache) report(domain string, p *Policy, host string, err error) {
	if c.cfg.Report == nil {
		return
	}
	r := tlspolicy.Report{Domain: domain, Policy: "sts", Host: host, Err: err}
	if p != nil {
		r.Text, r.MX = p.Lines(), p.MXs
	}
	c.cfg.Report(r)
}
