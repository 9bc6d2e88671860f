package aliases

import (
	"time"

	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// hookResult is how a run of the hook is counted.
type hookResult uint8

const (
	hookSuccess hookResult = iota
	hookFailed
	hookTimeout
	hookExecError
	hookBadOutput
	hookSkipped
	numHookResults
)

// Names of the results: the typed metric's label and the legacy variable's key.
var (
	hookLabels = [numHookResults]string{"success", "temporary", "timeout", "exec_error", "bad_output", "skip"}
	legacyKeys = [numHookResults]string{
		"resolve:success", "resolve:fail", "resolve:fail", "resolve:fail", "resolve:parse_err", "resolve:skip",
	}
)

const legacyNotSet = "resolve:notset"

// metrics of the alias-resolve hook. Index 0 is for resolving, 1 for asking whether an address exists.
type metrics struct {
	legacy   *expvarom.Map
	runs     [2][numHookResults]*expvarom.Counter
	duration [2]*expvarom.Histogram
	running  [2]*expvarom.Gauge
}

func newMetrics(r *expvarom.Registry) *metrics {
	hooks := []string{"alias_resolve", "alias_exists"}
	results := []string{"success", "skip", "permanent", "temporary", "timeout", "bad_output", "exec_error"}
	runs := r.CounterVec("chasquid_hook_runs_total", "Runs of hooks, by result.", []string{"hook", "result"}, hooks, results)
	duration := r.HistogramVec("chasquid_hook_duration_seconds", "Time a hook took.", expvarom.Net, []string{"hook"}, hooks)
	running := r.GaugeVec("chasquid_hooks_running", "Hooks running now.", []string{"hook"}, hooks)
	m := &metrics{legacy: r.Map("chasquid/aliases/hookResults", "result", "count of aliases hook results, by hook and result",
		legacyNotSet, "resolve:skip", "resolve:fail", "resolve:parse_err", "resolve:success")}
	for i, h := range hooks {
		m.duration[i], m.running[i] = duration.With(h), running.With(h)
		for j, l := range hookLabels {
			m.runs[i][j] = runs.With(h, l)
		}
	}
	return m
}

// begin counts a hook as running until the function it returns is called with how it ended.
func (m *metrics) begin(asking bool) func(time.Duration, trace.ID, hookResult) {
	i := 0
	if asking {
		i = 1
	}
	m.running[i].Inc()
	return func(took time.Duration, id trace.ID, res hookResult) {
		m.running[i].Dec()
		m.duration[i].ObserveTrace(took.Seconds(), id)
		m.runs[i][res].Inc()
		m.legacy.Inc(legacyKeys[res])
	}
}

// skipped counts a look-up without a hook.
func (m *metrics) skipped(path string) {
	if path == "" {
		m.legacy.Inc(legacyNotSet)
		return
	}
	m.legacy.Inc(legacyKeys[hookSkipped])
	m.runs[0][hookSkipped].Inc()
}
