// Package dmarc says whether the domain in the From field of a message stands behind it, and what that domain asks for if it does
// not (RFC 9989, which replaces RFC 7489).
package dmarc

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"blitiri.com.ar/go/chasquid/internal/deadline"
	"blitiri.com.ar/go/chasquid/internal/dns"
	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/message"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// The results (RFC 9989 section 9.1).
const (
	None      = "none" // no policy is published
	Pass      = "pass"
	Fail      = "fail"
	TempError = "temperror"
	PermError = "permerror"
)

// Limits.
const (
	maxWalk   = 8 // questions of one tree walk (RFC 9989 section 4.10)
	maxIDs    = 10
	dnsBudget = 20 * time.Second
)

// Checker evaluates DMARC. It is safe for concurrent use.
type Checker struct {
	resolver dns.Resolver
	results  map[string]*expvarom.Counter // read-only
}

// New makes a Checker.
func New(r dns.Resolver, reg *expvarom.Registry) *Checker {
	values := []string{None, Pass, Fail, TempError, PermError}
	v := reg.CounterVec("chasquid_dmarc_checks_total", "DMARC evaluations, by result", []string{"result"}, values)
	c := &Checker{r, map[string]*expvarom.Counter{}}
	for _, value := range values {
		c.results[value] = v.With(value)
	}
	return c
}

// Input is what is known of a message. Domains are A-labels in lower case.
type Input struct {
	Header *message.Header
	SPF    string   // the domain for which SPF passed, or empty
	DKIM   []string // the domains whose signatures are valid
	Maybe  []string // domains for which SPF or a signature could not be checked for now
}

// Result is the outcome.
type Result struct {
	Value  string // one of the results
	Domain string // the author's domain; of several the one that decided; empty if there is none
	Policy Policy // what the domain asks for when Value is Fail
	Reason string // why not Pass, in words of ours
	Author error  // what is wrong with the From field, an *AuthorError, or nil
}

// Check evaluates a message. If the From field may be read as more than one domain, all of them must pass, and the one with the
// strictest policy decides (standards D24).
func (c *Checker) Check(ctx context.Context, in Input) Result {
	ctx, span := trace.Start(ctx, trace.CheckDMARC, "evaluate")
	defer span.Finish()
	r := c.check(ctx, in)
	if n := c.results[r.Value]; n != nil {
		n.Inc()
	}
	span.Set("result", r.Value)
	span.Set("domain", r.Domain)
	if r.Policy != "" {
		span.Set("policy", string(r.Policy))
	}
	if r.Reason != "" {
		span.Set("reason", r.Reason)
	}
	return r
}

func (c *Checker) check(ctx context.Context, in Input) Result {
	domains, problem := Authors(in.Header)
	if len(domains) == 0 {
		r := Result{Value: Fail, Policy: PolicyNone, Author: problem, Reason: problem.Error()}
		if errors.Is(problem, ErrNoFrom) {
			r.Value = PermError
		}
		return r
	}
	if len(in.DKIM)+len(in.Maybe) > maxIDs {
		in.DKIM, in.Maybe = in.DKIM[:min(len(in.DKIM), maxIDs)], in.Maybe[:min(len(in.Maybe), maxIDs)]
	}
	var r Result
	for i, d := range domains {
		if one := c.evaluate(ctx, d, in); i == 0 || severity(one) > severity(r) {
			r = one
		}
	}
	r.Author = problem
	if problem != nil && r.Value == None {
		r.Value, r.Policy, r.Reason = Fail, PolicyNone, problem.Error() // nobody can say whose policy would count
	}
	return r
}

// severity orders results: the worst of several decides.
func severity(r Result) int {
	switch {
	case r.Value == Pass:
		return 0
	case r.Value == None:
		return 1
	case r.Value == TempError:
		return 2
	case r.Policy == PolicyReject:
		return 5
	case r.Policy == PolicyQuarantine:
		return 4
	}
	return 3
}

// evaluate is the evaluation for one author domain (RFC 9989 section 5.3).
func (c *Checker) evaluate(ctx context.Context, domain string, in Input) Result {
	r := Result{Value: None, Domain: domain, Reason: "no policy published"}
	w := walker{ctx: ctx, resolver: c.resolver}
	defer w.stop()
	rec, at, err := w.policy(domain)
	if err != nil {
		r.Value, r.Reason = TempError, "policy unavailable"
		return r
	}
	if rec == nil || !rec.Usable {
		return r
	}
	r.Policy, err = w.requested(rec, domain, at)
	if err != nil {
		r.Value, r.Reason = TempError, "policy unavailable"
		return r
	}
	aligned, err := w.anyAligned(domain, rec, in.SPF, in.DKIM)
	if aligned {
		r.Value, r.Reason = Pass, ""
		return r
	}
	if err == nil && len(in.Maybe) > 0 {
		aligned, err = w.anyAligned(domain, rec, "", in.Maybe)
	}
	if aligned || err != nil {
		r.Value, r.Reason = TempError, "not all could be checked"
		return r
	}
	r.Value, r.Reason = Fail, "neither SPF nor DKIM passed for the domain"
	return r
}

// walker does the look-ups of one evaluation; no name is asked for twice.
type walker struct {
	ctx      context.Context
	resolver dns.Resolver
	first    answer // one look-up, bounded by the resolver, is nearly always enough
	more     []answer
	cancel   context.CancelFunc // set once the time of more than one look-up is bounded
}

// answer is what was found at a domain. It is not changed once it is there.
type answer struct {
	domain string
	rec    Record
	found  bool
	err    error // temporary
}

func (w *walker) stop() {
	if w.cancel != nil {
		w.cancel()
	}
}

// record returns the policy record at a domain. Of several records none counts (RFC 9989 section 4.10).
func (w *walker) record(domain string) (*Record, error) {
	if w.first.domain == domain {
		return w.first.result()
	}
	for i := range w.more {
		if a := &w.more[i]; a.domain == domain {
			return a.result()
		}
	}
	if w.first.domain == "" {
		w.look(&w.first, domain)
		return w.first.result()
	}
	if w.cancel == nil {
		w.ctx, w.cancel = deadline.After(w.ctx, dnsBudget)
	}
	w.more = append(w.more, answer{})
	a := &w.more[len(w.more)-1]
	w.look(a, domain)
	return a.result()
}

// look asks for the record at a domain.
func (w *walker) look(a *answer, domain string) {
	a.domain = domain
	txt, _, err := w.resolver.TXT(w.ctx, dns.ForDMARC, "_dmarc."+domain)
	if err != nil && !errors.Is(err, dns.ErrNotFound) {
		a.err = err
	}
	n := 0
	for _, t := range txt {
		if r, ok := ParseRecord(t); ok {
			a.rec = r
			n++
		}
	}
	a.found = n == 1
}

func (a *answer) result() (*Record, error) {
	if !a.found {
		return nil, a.err
	}
	return &a.rec, a.err
}

// policy finds the record that applies to an author domain (RFC 9989 section 4.10.1) and the domain it stands at.
func (w *walker) policy(domain string) (*Record, string, error) {
	rec, err := w.record(domain)
	if rec != nil || err != nil {
		return rec, domain, err
	}
	org, psd, err := w.organization(domain)
	if err != nil {
		return nil, "", err
	}
	if rec, _ := w.record(org); rec != nil {
		return rec, org, nil
	}
	if psd != "" {
		rec, _ := w.record(psd)
		return rec, psd, nil
	}
	return nil, "", nil
}

// organization finds the organizational domain by the tree walk (RFC 9989 section 4.10.2), and the public suffix domain above it
// if that says it is one.
func (w *walker) organization(domain string) (org, psd string, err error) {
	org = domain
	labels := strings.Split(domain, ".")
	for i := 0; i < maxWalk && len(labels) > 0; i++ {
		name := strings.Join(labels, ".")
		rec, err := w.record(name)
		if err != nil {
			return "", "", err
		}
		if rec != nil {
			switch {
			case rec.PSD == 'n':
				return name, "", nil
			case rec.PSD == 'y' && i > 0:
				return below(domain, name), name, nil
			}
			org = name // the last one found has the fewest labels
			if rec.PSD == 'y' {
				return org, "", nil
			}
		}
		if len(labels) > maxWalk {
			labels = labels[len(labels)-maxWalk+1:]
		} else {
			labels = labels[1:]
		}
	}
	return org, "", nil
}

// below is the name one label below parent on the way to domain.
func below(domain, parent string) string {
	rest := strings.TrimSuffix(domain, "."+parent)
	return rest[strings.LastIndexByte(rest, '.')+1:] + "." + parent
}

// requested is the policy that applies to the author domain, with sp, np and t taken into account.
func (w *walker) requested(rec *Record, domain, at string) (Policy, error) {
	p := rec.Policy
	if domain != at {
		p = rec.Subdomains
		if rec.Absent != "" && rec.Absent != p {
			// RFC 9989 section 3.2.13: NXDOMAIN, as RFC 8020 understands it.
			switch _, _, err := w.resolver.TXT(w.ctx, dns.ForDMARC, domain); {
			case errors.Is(err, dns.ErrNXDomain):
				p = rec.Absent
			case err != nil && !errors.Is(err, dns.ErrNotFound):
				return "", err
			}
		}
	}
	if rec.Test {
		p = p.weaker()
	}
	return p, nil
}

// anyAligned reports whether one of the identifiers aligns with the author domain (RFC 9989 section 4.4). The error says that one
// of them may, but could not be looked up.
func (w *walker) anyAligned(domain string, rec *Record, spf string, dkim []string) (bool, error) {
	if spf == domain && spf != "" || slices.Contains(dkim, domain) {
		return true, nil
	}
	if rec.StrictSPF {
		spf = ""
	}
	if rec.StrictDKIM {
		dkim = nil
	}
	ids := dkim
	if spf != "" {
		ids = append([]string{spf}, dkim...)
	}
	if !slices.ContainsFunc(ids, func(id string) bool { return related(id, domain) }) {
		return false, nil
	}
	org, _, problem := w.organization(domain)
	if problem != nil {
		return false, problem
	}
	for _, id := range ids {
		if id != org && !strings.HasSuffix(id, "."+org) {
			continue
		}
		switch idOrg, _, err := w.organization(id); {
		case err != nil:
			problem = err
		case idOrg == org:
			return true, nil
		}
	}
	return false, problem
}

// related reports names that end in the same label: others have no organizational domain in common.
func related(a, b string) bool {
	return a != "" && a[strings.LastIndexByte(a, '.')+1:] == b[strings.LastIndexByte(b, '.')+1:]
}
