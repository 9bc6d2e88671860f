package monitoring

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"blitiri.com.ar/go/chasquid/internal/monitoring/vitals"
)

// Check is one readiness check. Run must return when ctx ends; its error says what is wrong and what to do.
type Check struct {
	Name string // one of CheckNames
	Run  func(ctx context.Context) error
}

// CheckNames is the closed set of check names: a metric label.
var CheckNames = []string{"listeners", "queue_dir", "queue_space", "certificates", "config", "resolver", "mda", "shutdown", "relay", "hooks"}

// checkTimeout bounds one check; a check that hangs fails.
const checkTimeout = 5 * time.Second

// CheckResult is the outcome of one check.
type CheckResult struct {
	Name string
	Err  error
}

// checkRun runs one check, once at a time however many ask: those who ask while it runs get what it finds.
type checkRun struct {
	Check
	mu      sync.Mutex
	running *outcome
	status  atomic.Int32
}

// What a check found last, for the metric. A check that never ran has none.
const (
	unknown int32 = iota
	failing
	well
)

func (c *checkRun) found(err error) {
	c.status.Store(well)
	if err != nil {
		c.status.Store(failing)
	}
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
		c.status.Store(failing)
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
	o.err = c.Run(ctx)
}

// RunChecks runs all checks at once and returns their results in order.
func (s *Server) RunChecks(ctx context.Context, exclude ...string) []CheckResult {
	results := make([]CheckResult, len(s.checks))
	var wg sync.WaitGroup
	for i, c := range s.checks {
		results[i].Name = c.Name
		if slices.Contains(exclude, c.Name) {
			continue
		}
		wg.Go(func() { results[i].Err = c.run(ctx, s.m) })
	}
	wg.Wait()
	return results
}

func (s *Server) addHealth() {
	for _, c := range s.conf.Checks {
		s.checks = append(s.checks, &checkRun{Check: c})
	}
	s.conf.Metrics.GaugeVecFunc("chasquid_health_check_status", "Health checks as /readyz runs them: 1 is well, 0 is failing.", []string{"check"},
		func(emit func(float64, ...string)) {
			for _, c := range s.checks {
				if st := c.status.Load(); st != unknown {
					emit(float64(st-failing), c.Name)
				}
			}
		})
	// Alive means the process answers; nothing outside may make this fail.
	s.mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "ok") })
	s.mux.HandleFunc("GET /readyz", s.readyz)
	s.mux.HandleFunc("GET /readyz/{check}", s.readyzOne)
}

// watchHealth runs the checks until ctx ends, so that the metric is true also when nobody asks for /readyz.
func (s *Server) watchHealth(ctx context.Context) {
	for ctx.Err() == nil {
		s.RunChecks(ctx)
		select {
		case <-ctx.Done():
		case <-time.After(vitals.Step):
		}
	}
}

// readyz says whether the server can do its work. What is wrong with it is told to those who may see everything.
func (s *Server) readyz(w http.ResponseWriter, r *http.Request) {
	q, err := query(r)
	if err != nil {
		sendError(w, err)
		return
	}
	results := s.RunChecks(r.Context(), q["exclude"]...)
	var failed []string
	var b strings.Builder
	for _, c := range results {
		switch {
		case c.Err != nil:
			failed = append(failed, c.Name)
			fmt.Fprintf(&b, "[-] %s: %s\n", c.Name, oneLine(c.Err))
		case slices.Contains(q["exclude"], c.Name):
			fmt.Fprintf(&b, "[+] %s: excluded\n", c.Name)
		default:
			fmt.Fprintf(&b, "[+] %s: ok\n", c.Name)
		}
	}
	if len(failed) > 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	if q.Has("verbose") && s.trusted(r) {
		fmt.Fprint(w, b.String())
	}
	if len(failed) > 0 {
		fmt.Fprintf(w, "not ready: %s\n", strings.Join(failed, ", "))
		return
	}
	fmt.Fprintln(w, "ready")
}

func (s *Server) readyzOne(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("check")
	for _, c := range s.checks {
		if c.Name != name {
			continue
		}
		if err := c.run(r.Context(), s.m); err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintf(w, "%s: %s\n", c.Name, oneLine(err))
			return
		}
		fmt.Fprintf(w, "%s: ok\n", c.Name)
		return
	}
	http.NotFound(w, r)
}
