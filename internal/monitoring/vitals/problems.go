package vitals

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"blitiri.com.ar/go/chasquid/internal/trace"
)

// Severity is how soon somebody should look.
type Severity string

// The severities, worst first.
const (
	Page   Severity = "page"   // mail is refused or lost time matters: now
	Ticket Severity = "ticket" // today
	Info   Severity = "info"   // good to know
)

func (s Severity) rank() int { return slices.Index([]Severity{Page, Ticket, Info}, s) }

// Problem is one thing that is wrong now.
type Problem struct {
	Alert    string    `json:"alert"` // the name of the alert it belongs to
	Severity Severity  `json:"severity"`
	Text     string    `json:"text"`            // a sentence or two that name the cause; parts of it may come from strangers
	Link     string    `json:"link"`            // the page that tells more
	Check    string    `json:"check,omitempty"` // the health check that fails with it
	Trace    trace.ID  `json:"trace,omitzero"`
	Since    time.Time `json:"since"`
}

// Evidence is what is known besides metrics.
type Evidence struct {
	Now          time.Time
	Certificates []Certificate
	Renewals     []Renewal
	ReloadErr    string
	Stuck        []Stuck // what is under way for long
	Dead         []Dead  // destinations that are left alone
	Examples     map[string]Example
	Senders      []Sender // who sent most in the last hour, most first
	Resolvers    []string
	Unresolved   int       // domains that the DNS gave no answer for in the last minutes; 0: not known
	Failing      []Failing // health checks that fail
	MinFree      int64     // bytes of disk that mail from outside leaves free
	Refused      Example   // the last message refused because of us
	Hook         trace.ID  // of the last run of a hook that failed
	Handshake    trace.ID  // of the last session that ended over our certificate
}

// Failing is a health check that fails.
type Failing struct {
	Name, Err string
	Warning   bool // mail is taken all the same
}

// Certificate is one in use.
type Certificate struct {
	Name     string
	NotAfter time.Time
}

// Renewal is a certificate that could not be got or renewed.
type Renewal struct {
	Name        string
	NotAfter    time.Time // of the one in use; zero: there is none
	Since, Next time.Time
	Err, Remedy string
}

// Stuck is an operation under way for long.
type Stuck struct {
	Family trace.Family
	Title  string
	For    time.Duration
	Trace  trace.ID
}

// Dead is a destination whose hosts cannot be used.
type Dead struct {
	Name    string
	Waiting int
	Err     string
	ProbeAt time.Time
}

// Example is the last failure of a reason.
type Example struct {
	At            time.Time
	To, MTA, Text string
	Trace         trace.ID
}

// Sender is how much one user sent in the last hour.
type Sender struct {
	User       string
	Recipients int
	Trace      trace.ID
}

// rule looks for one kind of problem. s.mu is held.
type rule func(s *Sampler, e *Evidence) []Problem

// rules are all of them. Causes come before what they cause: that is the order in which they are told.
var rules = []rule{
	diskErrors, diskSpace, resolver, hooksBroken, stuck, loginBackend, certificates, renewals, ownFailures, dead, providers, farFailures, reputation, unsigned, clock,
	acceptErrors, acceptSlow, noInbound, loginGuessing, harvest, spike, queueSize, queueAge, diskSlow,
	certificateFiles, reloading, panics, history, logging, overflow, leak, selfcheck, stale,
}

// Problems judges the samples, worst first. It is called with each sample: it remembers since when what is there.
func (s *Sampler) Problems(e *Evidence) []Problem {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []Problem
	for _, r := range rules {
		list = append(list, r(s, e)...)
	}
	list = append(list, checks(list, e)...)
	began := map[string]time.Time{}
	for i := range list {
		p := &list[i]
		key := p.Alert + "\x00" + p.Link
		p.Since = e.Now
		if t, ok := s.began[key]; ok {
			p.Since = t
		}
		began[key] = p.Since
	}
	s.began = began
	slices.SortStableFunc(list, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Severity.rank(), b.Severity.rank()), a.Since.Compare(b.Since))
	})
	return list
}

// in names the health check that fails with the problems.
func in(check string, list []Problem) []Problem {
	for i := range list {
		list[i].Check = check
	}
	return list
}

// one makes a list of one problem.
func one(alert string, sev Severity, link string, id trace.ID, format string, a ...any) []Problem {
	return []Problem{{Alert: alert, Severity: sev, Link: link, Trace: id, Text: fmt.Sprintf(format, a...)}}
}

// recent returns the last n values of a series, those that are known.
func (s *Sampler) recent(name string, n int) (vals []float64) {
	for i := range s.rings {
		if s.rings[i].name != name {
			continue
		}
		short := s.rings[i].short
		for _, v := range short[max(0, len(short)-n):] {
			if v == v {
				vals = append(vals, float64(v))
			}
		}
	}
	return vals
}

func (s *Sampler) long(name string) []float32 {
	for i := range s.rings {
		if s.rings[i].name == name {
			return s.rings[i].long
		}
	}
	return nil
}

// slope is how much a series grows per second, by the difference of the means of its halves.
func slope(vals []float64) float64 {
	if len(vals) < 12 {
		return 0
	}
	h := len(vals) / 2
	return (mean(vals[len(vals)-h:]) - mean(vals[:h])) / (float64(len(vals)-h) * Step.Seconds())
}

func mean(vals []float64) (m float64) {
	for _, v := range vals {
		m += v / float64(len(vals))
	}
	return m
}

// largest returns the key with the largest value, the first of equal ones.
func largest(by map[string]float64) (key string, n float64) {
	for k, v := range by {
		if v > n || v == n && n > 0 && k < key {
			key, n = k, v
		}
	}
	return key, n
}

// listing renders counts, the largest first: "timeout 12, error 3".
func listing(by map[string]float64) string {
	type kv struct {
		k string
		v float64
	}
	var all []kv
	for k, v := range by {
		all = append(all, kv{k, v})
	}
	slices.SortFunc(all, func(a, b kv) int { return cmp.Or(cmp.Compare(b.v, a.v), cmp.Compare(a.k, b.k)) })
	var parts []string
	for i, x := range all {
		if i == 4 {
			parts = append(parts, "…")
			break
		}
		parts = append(parts, fmt.Sprintf("%s %.0f", x.k, x.v))
	}
	return strings.Join(parts, ", ")
}

func total(by map[string]float64) (n float64) {
	for _, v := range by {
		n += v
	}
	return n
}

// short renders a duration in its largest unit or two.
func short(d time.Duration) string {
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%.0f s", d.Seconds())
	case d < 2*time.Hour:
		return fmt.Sprintf("%.0f min", d.Minutes())
	case d < 48*time.Hour:
		return fmt.Sprintf("%.0f h", d.Hours())
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

func size(n float64) string {
	switch {
	case n < 1<<20:
		return fmt.Sprintf("%.0f KiB", n/(1<<10))
	case n < 1<<30:
		return fmt.Sprintf("%.0f MiB", n/(1<<20))
	}
	return fmt.Sprintf("%.1f GiB", n/(1<<30))
}

// plural is "1 message" or "3 messages".
func plural[T int | float64](n T, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%.0f %ss", float64(n), what)
}
