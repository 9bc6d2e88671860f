package reload

import "blitiri.com.ar/go/chasquid/internal/expvarom"

type metrics struct {
	reloads *expvarom.CounterVec
	last    *expvarom.Gauge
	good    *expvarom.Gauge
	panics  *expvarom.Counter
}

func newMetrics(r *expvarom.Registry) *metrics {
	return &metrics{
		reloads: r.CounterVec("chasquid_config_reloads_total", "Reloads of the files of the configuration directory.",
			[]string{"trigger", "result"},
			[]string{string(Start), string(Periodic), string(Signal), string(Operator)}, []string{"ok", "error"}),
		last: r.Gauge("chasquid_config_last_reload_successful", "1 if the last reload went without an error, 0 if something stays as it was."),
		good: r.Gauge("chasquid_config_last_reload_success_timestamp_seconds", "When a reload last went without an error."),
		panics: r.CounterVec("chasquid_panics_total", "Panics recovered, by component: each is a bug worth reporting.",
			[]string{"component"}, []string{"reload"}).With("reload"),
	}
}

func (m *metrics) done(why Trigger, s Status) {
	if len(s.Errors) > 0 {
		m.reloads.With(string(why), "error").Inc()
		m.last.Set(0)
		return
	}
	m.reloads.With(string(why), "ok").Inc()
	m.last.Set(1)
	m.good.Set(float64(s.Good.Unix()))
}
