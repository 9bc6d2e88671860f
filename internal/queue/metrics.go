package queue

import (
	"time"

	"blitiri.com.ar/go/chasquid/internal/dsn"
	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// Label values. They are closed sets, so every child is found by an index.
var (
	transports   = []string{"local", "remote", "forward", "pipe"}
	dispositions = []string{"deferred", "delivered", "bounced"}
	finals       = []string{"delivered", "bounced", "expired"}
	sources      = []string{"smtp", "submission", "dsn", "admin"}
	putResults   = []string{"ok", "full", "error"}
	noticeKinds  = []string{"failure", "delay", "success"}
	noticeEnds   = []string{"queued", "suppressed", "error"}
	fates        = []string{"delivered", "bounced", "expired", "dropped", "admin"}
	statuses     = []string{"pending", "sent", "failed"}
)

const (
	putOK = iota
	putFull
	putError
)

const (
	noticeQueued = iota
	noticeSuppressed
	noticeError
)

// metrics are the variables of the queue and of what it attempts. Each legacy one is moved by the call that moves its twin.
type metrics struct {
	putCount  *expvarom.Int
	dsnQueued *expvarom.Int
	attempts  *expvarom.Map

	puts     [4][3]*expvarom.Counter
	putTook  [2]*expvarom.Histogram
	notices  [3][3]*expvarom.Counter
	fates    map[string]*expvarom.Counter
	inQueue  [4][3]*expvarom.Histogram
	lag      *expvarom.Histogram
	tries    [4][3]*expvarom.Counter
	took     [4][3]*expvarom.Histogram
	inFlight [4]*expvarom.Gauge
	failures [2][mail.NumReasons]*expvarom.Counter
	finalTry [3]*expvarom.Histogram
	panics   *expvarom.Counter
}

func newMetrics(r *expvarom.Registry, q *Queue) *metrics {
	m := &metrics{
		putCount:  r.Int("chasquid/queue/putCount", "Messages offered to the queue, but for those refused because it was full."),
		dsnQueued: r.Int("chasquid/queue/dsnQueued", "Delivery notices put into the queue."),
		attempts: r.Map("chasquid/queue/deliverAttempts", "recipient_type", "Delivery attempts, by type of recipient.",
			"email:local", "email:remote", "pipe", "forward"),
		lag: r.Histogram("chasquid_queue_attempt_lag_seconds", "Time from when an attempt was due to its start.", expvarom.Net),
		panics: r.CounterVec("chasquid_panics_total", "Panics that were recovered, by component. Any is a bug.", []string{"component"},
			[]string{"queue"}).With("queue"),
		fates: map[string]*expvarom.Counter{},
	}
	m.makePuts(r)
	m.makeAttempts(r)
	gauges(r, q)
	return m
}

func (m *metrics) makePuts(r *expvarom.Registry) {
	puts := r.CounterVec("chasquid_queue_puts_total", "Messages offered to the queue, by source and result.", []string{"source", "result"}, sources, putResults)
	for s, source := range sources {
		for i, result := range putResults {
			m.puts[s][i] = puts.With(source, result)
		}
	}
	took := r.HistogramVec("chasquid_queue_put_duration_seconds", "Time to resolve aliases and make a message durable.", expvarom.Fast,
		[]string{"result"}, []string{"ok", "error"})
	m.putTook = [2]*expvarom.Histogram{took.With("ok"), took.With("error")}
	removed := r.CounterVec("chasquid_queue_items_removed_total", "Messages that left the queue, by reason.", []string{"reason"}, fates)
	for _, f := range fates {
		m.fates[f] = removed.With(f)
	}
	notices := r.CounterVec("chasquid_dsn_messages_total", "Delivery notices, by kind and result.", []string{"kind", "result"}, noticeKinds, noticeEnds)
	for k, kind := range noticeKinds {
		for i, end := range noticeEnds {
			m.notices[k][i] = notices.With(kind, end)
		}
	}
}

func (m *metrics) makeAttempts(r *expvarom.Registry) {
	tries := r.CounterVec("chasquid_delivery_attempts_total", "Delivery attempts, one for each recipient, by way and result.", []string{"type", "result"}, transports, dispositions)
	took := r.HistogramVec("chasquid_delivery_attempt_duration_seconds", "Duration of delivery attempts, by way and result.", expvarom.Net, []string{"type", "result"}, transports, dispositions)
	inQueue := r.HistogramVec("chasquid_queue_time_in_queue_seconds", "Time from accept to the final outcome of a recipient.", expvarom.Long, []string{"type", "result"}, transports, finals)
	inFlight := r.GaugeVec("chasquid_delivery_in_flight", "Delivery attempts under way.", []string{"type"}, transports)
	for t, transport := range transports {
		for d, disposition := range dispositions {
			m.tries[t][d] = tries.With(transport, disposition)
			m.took[t][d] = took.With(transport, disposition)
		}
		for f, final := range finals {
			m.inQueue[t][f] = inQueue.With(transport, final)
		}
		m.inFlight[t] = inFlight.With(transport)
	}
	var reasons []string
	for i := range mail.NumReasons - 1 {
		reasons = append(reasons, (i + 1).String())
	}
	kinds := []string{"deferred", "bounced"}
	failures := r.CounterVec("chasquid_delivery_failures_total", "Failed attempts, by kind and reason.", []string{"kind", "reason"}, kinds, reasons)
	for k, kind := range kinds {
		for i := range m.failures[k] {
			reason := mail.Reason(i)
			if reason == mail.ReasonNone {
				reason = mail.ReasonInternal
			}
			m.failures[k][i] = failures.With(kind, reason.String())
		}
	}
	final := r.HistogramVec("chasquid_delivery_final_attempt_number", "Number of the attempt that was final for a recipient.", expvarom.Small, []string{"result"}, finals)
	for i, f := range finals {
		m.finalTry[i] = final.With(f)
	}
}

// gauges publishes what is read at each scrape: counters the queue keeps, never a walk over its messages.
func gauges(r *expvarom.Registry, q *Queue) {
	locked := func(f func(x *index) float64) func() float64 {
		return func() float64 {
			q.mu.Lock()
			defer q.mu.Unlock()
			return f(&q.index)
		}
	}
	r.GaugeVecFunc("chasquid_queue_items", "Messages in the queue, by state.", []string{"state"}, func(emit func(float64, ...string)) {
		q.mu.Lock()
		states := q.index.states
		q.mu.Unlock()
		for s := waiting; s < numStates; s++ {
			emit(float64(states[s]), s.String())
		}
	})
	r.GaugeFunc("chasquid_queue_capacity_items", "Messages the queue takes before it answers 452.", func() float64 { return float64(q.conf().MaxItems) })
	r.GaugeVecFunc("chasquid_queue_recipients", "Recipients of the messages in the queue, by way and status.", []string{"type", "status"}, func(emit func(float64, ...string)) {
		q.mu.Lock()
		rcpts := q.index.rcpts
		q.mu.Unlock()
		for t := range rcpts {
			for s := range rcpts[t] {
				emit(float64(rcpts[t][s]), transports[t], statuses[s])
			}
		}
	})
	r.GaugeFunc("chasquid_queue_size_bytes", "Size of the messages in the queue.", locked(func(x *index) float64 { return float64(x.size) }))
	r.GaugeFunc("chasquid_queue_oldest_item_age_seconds", "Age of the oldest message in the queue, 0 if there is none.",
		locked(func(x *index) float64 { return x.ages.oldest(time.Now()).Seconds() }))
	r.GaugeVecFunc("chasquid_queue_items_by_age", "Messages in the queue, by age.", []string{"age"}, func(emit func(float64, ...string)) {
		q.mu.Lock()
		counts := q.index.ages.classes(time.Now())
		q.mu.Unlock()
		for i, n := range counts {
			emit(float64(n), ageNames[i])
		}
	})
}

// offered counts a message that the queue was not too full for.
func (m *metrics) offered() { m.putCount.Inc() }

func (m *metrics) put(s mail.Source, result int, took time.Duration, id trace.ID) {
	m.puts[s&3][result].Inc()
	switch result {
	case putOK:
		m.putTook[0].ObserveTrace(took.Seconds(), id)
	case putError:
		m.putTook[1].ObserveTrace(took.Seconds(), id)
	}
}

func (m *metrics) notice(k dsn.Kind, end int) {
	if end == noticeQueued {
		m.dsnQueued.Inc()
	}
	m.notices[k%3][end].Inc()
}

func (m *metrics) removed(fate string) { m.fates[fate].Inc() }

// attempted counts the attempt for one recipient.
func (m *metrics) attempted(kind mail.Kind, t mail.Transport, o *mail.Outcome) {
	switch {
	case kind == mail.Pipe:
		m.attempts.Inc("pipe")
	case kind == mail.Forward:
		m.attempts.Inc("forward")
	case t == mail.Local:
		m.attempts.Inc("email:local")
	default:
		m.attempts.Inc("email:remote")
	}
	m.tries[t&3][o.Disposition%3].Inc()
	switch o.Disposition {
	case mail.Deferred:
		m.failures[0][o.Reason%mail.NumReasons].Inc()
	case mail.Failed:
		m.failures[1][o.Reason%mail.NumReasons].Inc()
	}
}

// attemptTook observes one attempt for one or more recipients, under its best result.
func (m *metrics) attemptTook(t mail.Transport, out []mail.Outcome, took time.Duration, id trace.ID) {
	result := mail.Failed
	for i := range out {
		if d := out[i].Disposition; d == mail.Delivered || d == mail.Deferred && result == mail.Failed {
			result = d
		}
	}
	m.took[t&3][result%3].ObserveTrace(took.Seconds(), id)
}

// gaveUp counts a recipient whose time was up, which is a failure without an attempt.
func (m *metrics) gaveUp() { m.failures[1][mail.ReasonExpired].Inc() }

// final observes the end of one recipient.
func (m *metrics) final(t mail.Transport, o *mail.Outcome, attempts int, age time.Duration, id trace.ID) {
	i := 0
	switch {
	case o.Reason == mail.ReasonExpired:
		i = 2
	case o.Disposition == mail.Failed:
		i = 1
	}
	m.inQueue[t&3][i].ObserveTrace(age.Seconds(), id)
	m.finalTry[i].Observe(float64(attempts))
}
