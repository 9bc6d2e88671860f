package expvarom

import (
	"expvar"
	"fmt"
	"net/http"
	"sort"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Limits of a scrape.
const (
	maxScrapes    = 4
	scrapeTimeout = 10 * time.Second
)

// MetricsHandler serves /metrics: Prometheus text, or OpenMetrics to those who ask for it. "?name[]=" chooses metrics.
func (r *Registry) MetricsHandler() http.Handler {
	opts := promhttp.HandlerOpts{
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: maxScrapes,
		Timeout:             scrapeTimeout,
		EnableOpenMetrics:   true,
	}
	if r == nil {
		return promhttp.HandlerFor(prometheus.NewRegistry(), opts)
	}
	opts.Registry = r.prom
	return promhttp.InstrumentMetricHandler(r.prom, promhttp.HandlerFor(prometheus.GathererFunc(r.Gather), opts))
}

// VarsHandler serves /debug/vars: the legacy variables and those of the process (cmdline, memstats), as the standard library's handler would.
func (r *Registry) VarsHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		fmt.Fprintf(w, "{\n")
		for i, kv := range r.vars() {
			if i > 0 {
				fmt.Fprintf(w, ",\n")
			}
			fmt.Fprintf(w, "%q: %s", kv.Key, kv.Value)
		}
		fmt.Fprintf(w, "\n}\n")
	})
}

// vars returns the legacy variables and the process's, sorted by name.
func (r *Registry) vars() []expvar.KeyValue {
	var kvs []expvar.KeyValue
	own := map[string]bool{}
	if r != nil {
		r.mu.Lock()
		for _, v := range r.order {
			if v.expv != nil {
				own[v.info.Legacy] = true
				kvs = append(kvs, expvar.KeyValue{Key: v.info.Legacy, Value: v.expv})
			}
		}
		r.mu.Unlock()
	}
	expvar.Do(func(kv expvar.KeyValue) {
		if !own[kv.Key] {
			kvs = append(kvs, kv)
		}
	})
	sort.Slice(kvs, func(i, j int) bool { return kvs[i].Key < kvs[j].Key })
	return kvs
}

// PublishExpvar publishes the legacy variables in the process-wide list of package expvar, for those who read that. Names already there
// are left alone. Only main calls it: the list cannot be undone.
func (r *Registry) PublishExpvar() {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, v := range r.order {
		if v.expv != nil && expvar.Get(v.info.Legacy) == nil {
			expvar.Publish(v.info.Legacy, v.expv)
		}
	}
}
