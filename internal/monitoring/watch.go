package monitoring

import (
	"context"
	"slices"
	"strings"
	"time"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/monitoring/vitals"
	"blitiri.com.ar/go/chasquid/internal/trace"
	"blitiri.com.ar/go/log"
)

// shownDestinations is how many destinations are looked at.
const shownDestinations = 50

// How long an operation may take until it is thought to hang.
const (
	hookHangs     = 30 * time.Second
	deliveryHangs = 2 * time.Minute
)

// watch samples the metrics and judges them until ctx ends.
func (s *Server) watch(ctx context.Context) {
	ticker := time.NewTicker(vitals.Step)
	defer ticker.Stop()
	for {
		s.sample(ctx)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// sample takes one sample. A part of the server that fails to answer must not end the watch.
func (s *Server) sample(ctx context.Context) {
	defer func() {
		if p := recover(); p != nil {
			s.m.panics.Inc()
			log.Errorf("monitoring: panic taking a sample: %v", p)
		}
	}()
	s.lookAtDisks()
	fams, err := s.conf.Metrics.Gather()
	if err != nil && len(fams) == 0 {
		log.Errorf("monitoring: taking a sample: %v", err)
		return
	}
	for _, f := range fams {
		if f.GetName() == "chasquid_queue_items_by_age" {
			ages := map[string]float64{}
			for _, m := range f.GetMetric() {
				ages[m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue()
			}
			s.ages.Store(&ages)
		}
	}
	now := time.Now()
	s.vitals.Sample(fams, now, now.Sub(s.began))
	list := s.vitals.Problems(s.evidence(ctx, now))
	s.problems.Store(&list)
}

// currentProblems is what the last sample showed.
func (s *Server) currentProblems() []vitals.Problem {
	if p := s.problems.Load(); p != nil {
		return *p
	}
	return nil
}

// evidence gathers what the rules want to know besides the metrics.
func (s *Server) evidence(ctx context.Context, now time.Time) *vitals.Evidence {
	e := &vitals.Evidence{Now: now, Examples: map[string]vitals.Example{}, MinFree: s.minFree.Load()}
	for _, c := range s.checks {
		if err := c.lastErr(); err != nil {
			e.Failing = append(e.Failing, vitals.Failing{Name: c.Name, Err: clip(oneLine(err)), Warning: c.Warning})
		}
	}
	if s.conf.Status != nil {
		s.statusEvidence(e, s.conf.Status())
	}
	if s.conf.Traces != nil {
		s.traceEvidence(e)
	}
	for r := mail.ReasonNone + 1; r < mail.NumReasons; r++ {
		if f, ok := s.conf.Recent.Example(r); ok {
			e.Examples[r.String()] = vitals.Example{At: f.At, To: f.To, MTA: f.MTA, Text: core(f.Text), Trace: f.Trace}
		}
	}
	for _, u := range s.conf.Recent.Senders(now, 3) {
		e.Senders = append(e.Senders, vitals.Sender{User: u.User, Recipients: u.LastHour, Trace: u.Trace})
	}
	if s.conf.DNS != nil {
		d := s.conf.DNS()
		for _, srv := range d.Servers {
			e.Resolvers = append(e.Resolvers, srv.Address)
		}
		e.Unresolved = unresolved(d.Failures, now)
	}
	if s.conf.Queue != nil {
		for _, d := range s.conf.Queue.Destinations(ctx, shownDestinations) {
			if d.Dead {
				e.Dead = append(e.Dead, vitals.Dead{Name: d.Name, Waiting: d.Units, Err: core(clip(d.LastErr)), ProbeAt: d.ProbeAt})
			}
		}
	}
	e.Stuck = s.stuck()
	return e
}

// unresolved counts the domains among the failures of the last minutes, by the last two labels of their names.
func unresolved(list []DNSFailure, now time.Time) int {
	domains := map[string]bool{}
	for _, f := range list {
		if now.Sub(f.At) < 5*time.Minute {
			labels := strings.Split(strings.TrimSuffix(f.Name, "."), ".")
			domains[strings.Join(labels[max(0, len(labels)-2):], ".")] = true
		}
	}
	return len(domains)
}

// core is what went wrong with the last of several servers that were tried, if that is what the text is about.
func core(text string) string {
	if _, last, ok := strings.Cut(text, "(last: "); ok {
		return strings.TrimSuffix(last, ")")
	}
	return text
}

// statusEvidence is what the rest of the server says of itself.
func (s *Server) statusEvidence(e *vitals.Evidence, st Status) {
	renewed := map[string]bool{} // without trouble, however short they last
	for _, r := range st.Renewals {
		renewed["acme/"+r.Name] = r.Error == "" && r.NotAfter.After(e.Now)
		if r.Error != "" {
			e.Renewals = append(e.Renewals, vitals.Renewal{Name: r.Name, NotAfter: r.NotAfter, Since: r.Since, Next: r.Next, Err: clip(r.Error), Remedy: r.Remedy})
		}
	}
	for _, c := range st.Certificates {
		if renewed[c.Name] {
			continue
		}
		e.Certificates = append(e.Certificates, vitals.Certificate{Name: c.Name, NotAfter: c.NotAfter})
	}
	if st.ReloadErr != nil {
		e.ReloadErr = strings.ReplaceAll(st.ReloadErr.Error(), "\n", "; ")
	}
	for _, r := range st.Rejections {
		// The queue's own answers: 452 4.3.1 and 451 4.3.0.
		if strings.HasPrefix(r.Reply, "452 4.3.") || strings.HasPrefix(r.Reply, "451 4.3.") {
			e.Refused = vitals.Example{At: r.At, To: clip(r.To), Text: clip(r.Reply), Trace: r.Trace}
			break
		}
	}
}

// traceEvidence is examples among the traces that failed.
func (s *Server) traceEvidence(e *vitals.Evidence) {
	for _, sp := range s.conf.Traces.Errors(trace.Hook) {
		// A hook that refuses a message does its work.
		if !slices.ContainsFunc(sp.Events, func(ev trace.Event) bool { return strings.HasPrefix(ev.Text, "exit status") }) {
			e.Hook = sp.Trace
			break
		}
	}
	if !slices.ContainsFunc(e.Certificates, func(c vitals.Certificate) bool { return c.NotAfter.Before(e.Now) }) {
		return
	}
	for _, sp := range s.conf.Traces.Errors(trace.SMTPConn) {
		if slices.ContainsFunc(sp.Events, func(ev trace.Event) bool {
			return strings.HasPrefix(ev.Text, "TLS handshake:") && strings.Contains(ev.Text, "certificate")
		}) {
			e.Handshake = sp.Trace
			return
		}
	}
}

// stuck finds what has been under way for long.
func (s *Server) stuck() (list []vitals.Stuck) {
	if s.conf.Traces == nil {
		return nil
	}
	for _, d := range s.conf.Traces.Active(100, trace.Hook, trace.DeliveryLocal, trace.DeliveryPipe) {
		limit := deliveryHangs
		if d.Family == trace.Hook {
			limit = hookHangs
		}
		if d.Duration > limit {
			list = append(list, vitals.Stuck{Family: d.Family, Title: clip(d.Title), For: d.Duration, Trace: d.Trace})
		}
	}
	return list
}
