package monitoring

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"blitiri.com.ar/go/chasquid/internal/monitoring/vitals"
)

// Check is one health check. Run must return when ctx ends; its error says what is wrong and what to do. It looks, and asks nobody: what only
// use can show is found by the rules of vitals, whose problems name the check they fail.
type Check struct {
	Name    string                          // one of CheckNames
	Run     func(ctx context.Context) error // nil: only problems fail it
	Warning bool                            // mail is taken all the same: its failure is told, and the server stays ready
	Hold    time.Duration                   // how long a failure is told after it was last seen, so that one that comes and goes does not blink
}

// CheckNames is the closed set of check names: a metric label.
var CheckNames = []string{"listeners", "queue_dir", "queue_space", "certificates", "config", "resolver", "mda", "shutdown", "relay", "hooks", "auth"}

// checkTimeout bounds one check; a check that hangs fails.
const checkTimeout = 5 * time.Second

// CheckResult is the outcome of one check.
type CheckResult struct {
	Name    string
	Err     error
	Warning bool // the server is ready in spite of it
}

// checkRun runs one check, once at a time however many ask: those who ask while it runs get what it finds.
type checkRun struct {
	Check
	mu      sync.Mutex
	running *outcome
	status  atomic.Int32
	failed  time.Time // when it failed last, with held
	held    error
	last    error // what its last run said
}

// What a check found last, for the metric. A check that never ran has none.
const (
	unknown int32 = iota
	failing
	well
)

func (c *checkRun) found(err error) {
	c.mu.Lock()
	c.last = err
	c.mu.Unlock()
	c.status.Store(well)
	if err != nil {
		c.status.Store(failing)
	}
}

var errNoAnswer = errors.New("the check gets no answer")

func (c *checkRun) lastErr() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last
}

// outcome is what a run finds; err may be read when done is closed.
type outcome struct {
	done  chan struct{}
	err   error
	start time.Time
}

// run gives up on a check that does not return in time, rather than hang with it, and starts no second one meanwhile.
func (c *checkRun) run(ctx context.Context, m *metrics) error {
	c.mu.Lock()
	o := c.running
	if o == nil {
		o = &outcome{done: make(chan struct{}), start: time.Now()}
		c.running = o
		go c.work(context.WithoutCancel(ctx), o, m)
	}
	c.mu.Unlock()
	wait := time.NewTimer(checkTimeout)
	defer wait.Stop()
	select {
	case <-o.done:
		return o.err
	case <-ctx.Done(): // whoever asked is gone; that says nothing about the check
	case <-wait.C:
		c.found(errNoAnswer)
	}
	return fmt.Errorf("no answer for %v", time.Since(o.start).Round(time.Millisecond))
}

// work is not waited for: a check that never returns must not keep the server from stopping.
func (c *checkRun) work(ctx context.Context, o *outcome, m *metrics) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	defer func() {
		if p := recover(); p != nil {
			m.panics.Inc()
			o.err = fmt.Errorf("the check itself failed: %v", p)
		}
		c.found(o.err)
		c.mu.Lock()
		c.running = nil
		c.mu.Unlock()
		close(o.done)
	}()
	if c.Run != nil {
		o.err = c.hold(c.Run(ctx))
	}
}

// hold makes a failure last.
func (c *checkRun) hold(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.failed, c.held = time.Now(), err
	} else if c.held != nil && time.Since(c.failed) < c.Hold {
		return fmt.Errorf("%w (this is over, and watched for a moment)", c.held)
	} else {
		c.held = nil
	}
	return err
}

// RunChecks runs all checks at once and returns their results in order.
func (s *Server) RunChecks(ctx context.Context, exclude ...string) []CheckResult {
	results := s.look(ctx, exclude...)
	problems := s.currentProblems()
	for i := range results {
		if results[i].Err == nil && !slices.Contains(exclude, results[i].Name) {
			results[i] = judge(results[i], problems)
		}
	}
	return results
}

// look runs what the checks run.
func (s *Server) look(ctx context.Context, exclude ...string) []CheckResult {
	results := make([]CheckResult, len(s.checks))
	var wg sync.WaitGroup
	for i, c := range s.checks {
		results[i].Name, results[i].Warning = c.Name, c.Warning
		if c.Run != nil && !slices.Contains(exclude, c.Name) {
			wg.Go(func() { results[i].Err = c.run(ctx, s.m) })
		}
	}
	wg.Wait()
	return results
}

// judge fails a check that its own look has passed, if a problem does. That is a warning: such problems are found by what was tried, and a server
// that is given nothing to do because of them could never show that they are over.
func judge(r CheckResult, problems []vitals.Problem) CheckResult {
	for _, p := range problems {
		if p.Check == r.Name && p.Severity != vitals.Info {
			r.Err, r.Warning = errors.New(p.Text), true
			break
		}
	}
	return r
}

func (s *Server) addHealth() {
	for _, c := range s.conf.Checks {
		s.checks = append(s.checks, &checkRun{Check: c})
	}
	s.publishHealth()
	// Alive means the process answers; nothing outside may make this fail.
	s.mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "ok") })
	s.mux.HandleFunc("GET /readyz", s.readyz)
	s.mux.HandleFunc("GET /readyz/{check}", s.readyzOne)
}

// publishHealth publishes what the checks found last.
func (s *Server) publishHealth() {
	s.conf.Metrics.GaugeVecFunc("chasquid_health_check_status", "Health checks as /readyz?verbose tells them: 1 is well, 0 is failing, be it a warning.", []string{"check"},
		func(emit func(float64, ...string)) {
			problems := s.currentProblems()
			for _, c := range s.checks {
				switch st := c.status.Load(); {
				case judge(CheckResult{Name: c.Name}, problems).Err != nil:
					emit(0, c.Name)
				case c.Run == nil:
					emit(1, c.Name)
				case st != unknown:
					emit(float64(st-failing), c.Name)
				}
			}
		})
	s.conf.Metrics.GaugeFunc("chasquid_ready", "1 if the server takes mail, which is what /readyz says, else 0.", func() float64 {
		for _, c := range s.checks {
			if !c.Warning && c.status.Load() == failing {
				return 0
			}
		}
		return 1
	})
}

// watchHealth runs the checks until ctx ends, so that the metrics are true also when nobody asks for /readyz.
func (s *Server) watchHealth(ctx context.Context) {
	for ctx.Err() == nil {
		s.look(ctx)
		select {
		case <-ctx.Done():
		case <-time.After(vitals.Step):
		}
	}
}

// readyz says whether the server takes mail. What is wrong with it is told to those who may see everything.
func (s *Server) readyz(w http.ResponseWriter, r *http.Request) {
	q, err := query(r)
	if err != nil {
		sendError(w, err)
		return
	}
	results := s.RunChecks(r.Context(), q["exclude"]...)
	var failed, warned []string
	var b strings.Builder
	for _, c := range results {
		switch {
		case c.Err != nil && c.Warning:
			warned = append(warned, c.Name)
			fmt.Fprintf(&b, "[!] %s: %s\n", c.Name, oneLine(c.Err))
		case c.Err != nil:
			failed = append(failed, c.Name)
			fmt.Fprintf(&b, "[-] %s: %s\n", c.Name, oneLine(c.Err))
		case slices.Contains(q["exclude"], c.Name):
			fmt.Fprintf(&b, "[+] %s: excluded\n", c.Name)
		default:
			fmt.Fprintf(&b, "[+] %s: ok\n", c.Name)
		}
	}
	for _, p := range s.currentProblems() {
		if !slices.ContainsFunc(results, func(c CheckResult) bool { return c.Name == p.Check }) {
			fmt.Fprintf(&b, "[!] %s: %s\n", p.Alert, oneLine(errors.New(p.Text)))
		}
	}
	if len(failed) > 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	if q.Has("verbose") && s.trusted(r) {
		fmt.Fprint(w, b.String())
	}
	switch {
	case len(failed) > 0:
		fmt.Fprintf(w, "not ready: %s\n", strings.Join(failed, ", "))
	case len(warned) > 0:
		fmt.Fprintf(w, "ready, with warnings: %s\n", strings.Join(warned, ", "))
	default:
		fmt.Fprintln(w, "ready")
	}
}

// readyzOne tells of one check. Who asks for it by name wants to know, so a warning is a failure here.
func (s *Server) readyzOne(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("check")
	for _, c := range s.checks {
		if c.Name != name {
			continue
		}
		res := CheckResult{Name: c.Name}
		if c.Run != nil {
			res.Err = c.run(r.Context(), s.m)
		}
		if res.Err == nil {
			res = judge(res, s.currentProblems())
		}
		if res.Err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintf(w, "%s: %s\n", c.Name, oneLine(res.Err))
			return
		}
		fmt.Fprintf(w, "%s: ok\n", c.Name)
		return
	}
	http.NotFound(w, r)
}
