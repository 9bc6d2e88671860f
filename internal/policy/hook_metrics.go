package policy

import "blitiri.com.ar/go/chasquid/internal/expvarom"

// hookResult is how a run of the post-data hook is counted.
type hookResult uint8

const (
	hookSuccess hookResult = iota
	hookSkip
	hookPermanent
	hookTemporary
	hookTimeout
	hookBadOutput
	hookExecError
	numHookResults
)

// Names of the results: the typed metric's label and the legacy variable's key.
var (
	hookLabels = [numHookResults]string{"success", "skip", "permanent", "temporary", "timeout", "bad_output", "exec_error"}
	hookLegacy = [numHookResults]string{"post-data:success", "post-data:skip", "post-data:fail", "post-data:fail", "post-data:fail",
		"post-data:badoutput", "post-data:fail"}
)

type hookMetrics struct {
	legacy   *expvarom.Map
	runs     [numHookResults]*expvarom.Counter
	duration *expvarom.Histogram
	running  *expvarom.Gauge
}

func newHookMetrics(r *expvarom.Registry) *hookMetrics {
	const name = "post_data"
	hooks := []string{name}
	runs := r.CounterVec("chasquid_hook_runs_total", "Runs of hooks, by result.", []string{"hook", "result"}, hooks, hookLabels[:])
	m := &hookMetrics{
		legacy: r.Map("chasquid/smtpIn/hookResults", "result", "count of hook invocations, by result",
			"post-data:skip", "post-data:fail", "post-data:badoutput", "post-data:success"),
		duration: r.HistogramVec("chasquid_hook_duration_seconds", "Time a hook took.", expvarom.Net, []string{"hook"}, hooks).With(name),
		running:  r.GaugeVec("chasquid_hooks_running", "Hooks running now.", []string{"hook"}, hooks).With(name),
	}
	for i, l := range hookLabels {
		m.runs[i] = runs.With(name, l)
	}
	return m
}

func (m *hookMetrics) count(r hookResult) {
	m.legacy.Inc(hookLegacy[r])
	m.runs[r].Inc()
}
