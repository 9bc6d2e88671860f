package monitoring

import (
	"net/http"
	"strings"

	"blitiri.com.ar/go/chasquid/internal/expvarom"
)

type metrics struct {
	requests *expvarom.CounterVec
	panics   *expvarom.Counter
}

// handlerLabels maps the first matching path prefix to the metric's label: never the raw path.
var handlerLabels = []struct{ prefix, label string }{
	{"/metrics", "metrics"}, {"/debug/vars", "vars"}, {"/debug/traces", "traces"}, {"/debug/requests", "requests"},
	{"/debug/events", "events"}, {"/debug/queue", "queue"}, {"/debug/goroutines", "goroutines"}, {"/debug/config", "config"},
	{"/debug/flags", "flags"}, {"/debug/messages", "messages"}, {"/debug/profiles", "pprof"}, {"/debug/pprof", "pprof"}, {"/healthz", "health"}, {"/readyz", "health"}, {"/exit", "exit"},
}

func newMetrics(r *expvarom.Registry) *metrics {
	labels := []string{"index", "other"}
	for _, h := range handlerLabels {
		if labels[len(labels)-1] != h.label {
			labels = append(labels, h.label)
		}
	}
	return &metrics{
		requests: r.CounterVec("chasquid_monitoring_http_requests_total", "Requests to the monitoring server, by page and class of answer.",
			[]string{"handler", "code"}, labels, []string{"2xx", "3xx", "4xx", "5xx"}),
		panics: r.CounterVec("chasquid_panics_total", "Panics recovered, by component: each is a bug worth reporting.",
			[]string{"component"}, PanicComponents).With("monitoring"),
	}
}

// PanicComponents is the closed set of values of the component label of chasquid_panics_total.
var PanicComponents = []string{"smtp_in", "queue", "courier", "monitoring", "reload", "other"}

func (m *metrics) count(r *http.Request, code int) {
	label := "other"
	if r.URL.Path == "/" {
		label = "index"
	}
	for _, h := range handlerLabels {
		if strings.HasPrefix(r.URL.Path, h.prefix) {
			label = h.label
			break
		}
	}
	class := "5xx"
	switch {
	case code < 300:
		class = "2xx"
	case code < 400:
		class = "3xx"
	case code < 500:
		class = "4xx"
	}
	m.requests.With(label, class).Inc()
}
