// Package tlsrpt counts what became of TLS with other domains and sends them a report each day (RFC 8460).
package tlsrpt

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"blitiri.com.ar/go/chasquid/internal/dns"
	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/tlspolicy"
)

// Config is what a Recorder works with. Resolver, Hostname and Mail must be set.
type Config struct {
	Off          bool // nothing is counted and reported; see Configure
	Resolver     dns.Resolver
	Hostname     string // who reports, A-labels
	Organization string // default Hostname
	Contact      string // an address for people; default postmaster@Hostname
	From         string // the sender of reports by mail; default Contact

	// Mail takes a report to be sent: it signs it with DKIM (RFC 8460 section 3) and queues it.
	Mail func(ctx context.Context, from, to string, msg []byte) error
	// Client posts reports by HTTPS. Default: NewClient(Resolver).
	Client *http.Client

	State   string // file that keeps the counts over a restart; empty: none
	Later   bool   // the file is another process's until Load is called, before Run
	Max     int    // domains counted in a day; default 10000
	Metrics *expvarom.Registry
}

// Bounds of what is counted for one domain (N-3).
const (
	maxPolicies = 8   // different policies of a domain in one day
	maxFailures = 50  // different failures under one policy
	maxReason   = 200 // bytes of an error text
)

// Recorder counts sessions and reports them. Its methods are safe for concurrent use.
type Recorder struct {
	cfg  Config // but for who reports
	self atomic.Pointer[identity]
	m    *metrics

	mu   sync.Mutex
	days map[string]*dayStats // by date, "2006-01-02"
	due  []*delivery          // reports that could not be posted yet
}

type dayStats struct {
	Domains map[string]*domainStats
}

type domainStats struct {
	Policies []*policyStats
}

type policyStats struct {
	Type       string
	Text, MX   []string
	Successful int64
	Failures   []*failureStats
}

type failureStats struct {
	Type, Host, Reason string
	Count              int64
}

// New makes a Recorder with the counts of the state file. A file that cannot be read is an error, but the Recorder works.
func New(cfg Config) (*Recorder, error) {
	if cfg.Client == nil {
		cfg.Client = NewClient(cfg.Resolver)
	}
	if cfg.Max <= 0 {
		cfg.Max = 10000
	}
	r := &Recorder{cfg: cfg, days: map[string]*dayStats{}}
	r.Configure(cfg.Hostname, !cfg.Off)
	r.m = newMetrics(cfg.Metrics, r.domains)
	if cfg.Later {
		return r, nil
	}
	return r, r.Load()
}

// identity is who reports.
type identity struct {
	on                                    bool
	hostname, organization, contact, from string
}

// Configure changes the host name that reports, and whether it does. What was counted stays.
func (r *Recorder) Configure(hostname string, on bool) {
	r.self.Store(&identity{on: on, hostname: hostname, organization: cmp.Or(r.cfg.Organization, hostname),
		contact: cmp.Or(r.cfg.Contact, "postmaster@"+hostname), from: cmp.Or(r.cfg.From, r.cfg.Contact, "postmaster@"+hostname)})
}

const dateFormat = "2006-01-02"

// Observe counts one session.
func (r *Recorder) Observe(rep tlspolicy.Report) {
	if !r.self.Load().on {
		return
	}
	resultType, reason := "", ""
	if rep.Err != nil {
		resultType, reason = classify(rep.Err), clean(rep.Err.Error())
	}
	r.m.session(rep.Err == nil)
	date := time.Now().UTC().Format(dateFormat)
	r.mu.Lock()
	defer r.mu.Unlock()
	day := r.days[date]
	if day == nil {
		day = &dayStats{map[string]*domainStats{}}
		r.days[date] = day
	}
	d := day.Domains[rep.Domain]
	if d == nil {
		if len(day.Domains) >= r.cfg.Max {
			return
		}
		d = &domainStats{}
		day.Domains[rep.Domain] = d
	}
	p := d.policy(rep)
	if p == nil {
		return
	}
	if rep.Err == nil {
		p.Successful++
		return
	}
	p.fail(resultType, rep.Host, reason, 1)
}

// policy returns the counts of a policy. A failure that left no policy to show goes with one of the same type.
func (d *domainStats) policy(rep tlspolicy.Report) *policyStats {
	for _, p := range d.Policies {
		if p.Type == rep.Policy && (rep.Text == nil || slices.Equal(p.Text, rep.Text) && slices.Equal(p.MX, rep.MX)) {
			return p
		}
	}
	if len(d.Policies) == maxPolicies {
		return nil
	}
	p := &policyStats{Type: rep.Policy, Text: rep.Text, MX: rep.MX}
	d.Policies = append(d.Policies, p)
	return p
}

func (p *policyStats) fail(resultType, host, reason string, n int64) {
	for _, f := range p.Failures {
		if f.Type == resultType && f.Host == host && (f.Reason == reason || len(p.Failures) == maxFailures) {
			f.Count += n
			return
		}
	}
	if len(p.Failures) < maxFailures {
		p.Failures = append(p.Failures, &failureStats{resultType, host, reason, n})
		return
	}
	p.Failures[maxFailures-1].Count += n // the total stays right
}

// classify returns the result type of RFC 8460 section 4.3.
func classify(err error) string {
	var known tlspolicy.ReportError
	var hostname x509.HostnameError
	var invalid x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &known):
		return known.ResultType()
	case errors.Is(err, tlspolicy.ErrNoSTARTTLS), errors.Is(err, tlspolicy.ErrSTARTTLS):
		return "starttls-not-supported"
	case errors.As(err, &hostname):
		return "certificate-host-mismatch"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "certificate-expired"
	case errors.As(err, &unknown):
		return "certificate-not-trusted"
	}
	return "validation-failure"
}

// clean makes an error text printable and short.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
	return s[:min(len(s), maxReason)]
}

// domains returns how many domains have been counted and not reported yet.
func (r *Recorder) domains() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, d := range r.days {
		n += len(d.Domains)
	}
	return n
}

// maxState bounds the state file.
const maxState = 64 << 20

// Load adds the counts of the state file to those there are.
func (r *Recorder) Load() error {
	if r.cfg.State == "" {
		return nil
	}
	data, err := os.ReadFile(r.cfg.State)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("TLSRPT state: %w", err)
	}
	days := map[string]*dayStats{}
	if len(data) > maxState {
		return fmt.Errorf("TLSRPT state: %s is too big", r.cfg.State)
	}
	if err := json.Unmarshal(data, &days); err != nil {
		return fmt.Errorf("TLSRPT state: %s: %w", r.cfg.State, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for date, d := range days {
		if _, err := time.Parse(dateFormat, date); err == nil && d != nil && d.Domains != nil {
			r.days[date] = r.days[date].merge(d)
		}
	}
	return nil
}

// merge adds what another process counted on the same day.
func (d *dayStats) merge(more *dayStats) *dayStats {
	if d == nil {
		return more
	}
	for name, m := range more.Domains {
		if m == nil {
			continue
		}
		mine := d.Domains[name]
		if mine == nil {
			d.Domains[name] = m
			continue
		}
		for _, p := range m.Policies {
			if p != nil {
				mine.merge(p)
			}
		}
	}
	return d
}

func (d *domainStats) merge(more *policyStats) {
	p := d.policy(tlspolicy.Report{Policy: more.Type, Text: more.Text, MX: more.MX})
	if p == nil {
		return
	}
	p.Successful += more.Successful
	for _, f := range more.Failures {
		p.fail(f.Type, f.Host, f.Reason, f.Count)
	}
}

// save writes the counts. They are statistics: what a crash loses is an hour of them.
func (r *Recorder) save() error {
	if r.cfg.State == "" {
		return nil
	}
	r.mu.Lock()
	data, err := json.Marshal(r.days)
	r.mu.Unlock()
	if err != nil {
		return fmt.Errorf("TLSRPT state: %w", err)
	}
	tmp := filepath.Join(filepath.Dir(r.cfg.State), "."+filepath.Base(r.cfg.State)+".tmp")
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return fmt.Errorf("TLSRPT state: %w", err)
	}
	if err := os.Rename(tmp, r.cfg.State); err != nil {
		return fmt.Errorf("TLSRPT state: %w", err)
	}
	return nil
}
