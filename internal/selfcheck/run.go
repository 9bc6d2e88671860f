package selfcheck

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"blitiri.com.ar/go/chasquid/internal/domains"
	"blitiri.com.ar/go/chasquid/internal/expvarom"
)

// How often the domains are looked at, and sooner what was wrong or not answered.
const (
	first = time.Minute // after the start, when other things are more urgent
	every = 24 * time.Hour
	again = time.Hour
)

// maxDomains bounds the domains in the metric.
const maxDomains = 20

// RunnerConfig of a Runner.
type RunnerConfig struct {
	Checks  func() Config            // as they are now
	Domains func() []*domains.Domain // those of this server, in a constant order
	Metrics *expvarom.Registry
}

// Report is what the last look at a domain found.
type Report struct {
	At       time.Time
	Findings []Finding
}

// Runner looks at all domains once a day, while it is on.
type Runner struct {
	cfg  RunnerConfig
	on   atomic.Bool
	kick chan struct{}

	mu      sync.Mutex
	reports map[string]Report // by domain
}

// New returns a Runner that is off.
func New(cfg RunnerConfig) *Runner {
	r := &Runner{cfg: cfg, kick: make(chan struct{}, 1), reports: map[string]Report{}}
	cfg.Metrics.GaugeVecFunc("chasquid_selfcheck_status", "What the DNS says of our own domains, by domain and check: 1 is well, 0 is not. There is none while selfcheck is off.",
		[]string{"domain", "check"}, r.emit)
	return r
}

// Set turns the checks on or off.
func (r *Runner) Set(on bool) {
	if r.on.Swap(on) == on {
		return
	}
	if !on {
		r.mu.Lock()
		r.reports = map[string]Report{}
		r.mu.Unlock()
	}
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// Run checks until ctx ends.
func (r *Runner) Run(ctx context.Context) {
	wait := time.NewTimer(first)
	defer wait.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.kick: // it was turned on or off: soon is soon enough
			wait.Reset(first)
		case <-wait.C:
			next := every
			if r.on.Load() && !r.Look(ctx) {
				next = again
			}
			wait.Reset(next)
		}
	}
}

// Look checks all domains now, and reports whether nothing is wrong or unknown.
func (r *Runner) Look(ctx context.Context) bool {
	conf := r.cfg.Checks()
	host, well := conf.Host(ctx), true
	reports := map[string]Report{}
	for _, d := range r.cfg.Domains() {
		if ctx.Err() != nil {
			return false
		}
		found := append(conf.Domain(ctx, d), host...)
		for _, f := range found {
			well = well && (f.Result == OK || f.Result == Warn)
		}
		reports[d.Name] = Report{At: time.Now(), Findings: r.keepKnown(d.Name, found)}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.on.Load() {
		r.reports = reports
	}
	return well
}

// keepKnown puts what was found before in the place of what could not be looked up now: trouble of a resolver is not the domain's.
func (r *Runner) keepKnown(domain string, found []Finding) []Finding {
	r.mu.Lock()
	defer r.mu.Unlock()
	unknown := map[string]bool{}
	for _, f := range found {
		if f.Result == Unknown {
			unknown[f.Check] = true
		}
	}
	for _, f := range r.reports[domain].Findings {
		if unknown[f.Check] {
			found = append(found, f)
		}
	}
	return found
}

// Last is what the last look at a domain found.
func (r *Runner) Last(domain string) Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.reports[domain]
}

// emit is called for a scrape. A check without an answer has no series.
func (r *Runner) emit(emit func(v float64, values ...string)) {
	if !r.on.Load() {
		return
	}
	list := r.cfg.Domains()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, d := range list[:min(len(list), maxDomains)] {
		status := map[string]float64{}
		for _, f := range r.reports[d.Name].Findings {
			switch f.Result {
			case OK, Warn:
				if _, ok := status[f.Check]; !ok {
					status[f.Check] = 1
				}
			case Fail:
				status[f.Check] = 0
			}
		}
		for check, v := range status {
			emit(v, d.Name, check)
		}
	}
}
