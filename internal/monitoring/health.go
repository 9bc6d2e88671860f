package monitoring

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
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

// RunChecks runs all checks at once and returns their results in order.
func (s *Server) RunChecks(ctx context.Context, exclude ...string) []CheckResult {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	results := make([]CheckResult, len(s.conf.Checks))
	var wg sync.WaitGroup
	for i, c := range s.conf.Checks {
		results[i].Name = c.Name
		if slices.Contains(exclude, c.Name) {
			continue
		}
		wg.Go(func() {
			results[i].Err = s.runCheck(ctx, c)
			v := 1.0
			if results[i].Err != nil {
				v = 0
			}
			s.m.health.With(c.Name).Set(v)
		})
	}
	wg.Wait()
	return results
}

// runCheck gives up on a check that does not return in time, rather than hang with it.
func (s *Server) runCheck(ctx context.Context, c Check) error {
	done := make(chan error, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				s.m.panics.Inc()
				done <- fmt.Errorf("the check itself failed: %v", p)
			}
		}()
		done <- c.Run(ctx)
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("no answer within %v", checkTimeout)
	}
}

func (s *Server) addHealth() {
	// Alive means the process answers; nothing outside may make this fail.
	s.mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "ok") })
	s.mux.HandleFunc("GET /readyz", s.readyz)
	s.mux.HandleFunc("GET /readyz/{check}", s.readyzOne)
}

func (s *Server) readyz(w http.ResponseWriter, r *http.Request) {
	results := s.RunChecks(r.Context(), r.URL.Query()["exclude"]...)
	var failed []string
	var b strings.Builder
	for _, c := range results {
		if c.Err != nil {
			failed = append(failed, c.Name)
			fmt.Fprintf(&b, "[-] %s: %v\n", c.Name, c.Err)
		} else {
			fmt.Fprintf(&b, "[+] %s: ok\n", c.Name)
		}
	}
	if len(failed) > 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_, verbose := r.URL.Query()["verbose"]
	if verbose && (s.loopbackPeer(r)) {
		fmt.Fprint(w, b.String())
	}
	if len(failed) > 0 {
		fmt.Fprintf(w, "not ready: %s\n", strings.Join(failed, ", "))
		return
	}
	fmt.Fprintln(w, "ready")
}

// loopbackPeer reports a peer that may see details.
func (s *Server) loopbackPeer(r *http.Request) bool { return isLoopback(r.RemoteAddr) }

func (s *Server) readyzOne(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("check")
	for _, c := range s.conf.Checks {
		if c.Name != name {
			continue
		}
		ctx, cancel := context.WithTimeout(r.Context(), checkTimeout)
		defer cancel()
		if err := s.runCheck(ctx, c); err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintf(w, "%s: %v\n", c.Name, err)
			return
		}
		fmt.Fprintf(w, "%s: ok\n", c.Name)
		return
	}
	http.NotFound(w, r)
}
