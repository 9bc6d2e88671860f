package monitoring

import (
	"context"
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
	e := &vitals.Evidence{Now: now, Examples: map[string]vitals.Example{}}
	if s.conf.Status != nil {
		st := s.conf.Status()
		for _, c := range st.Certificates {
			e.Certificates = append(e.Certificates, vitals.Certificate{Name: c.Name, NotAfter: c.NotAfter})
		}
		if st.ReloadErr != nil {
			e.ReloadErr = strings.ReplaceAll(st.ReloadErr.Error(), "\n", "; ")
		}
	}
	for r := mail.ReasonNone + 1; r < mail.NumReasons; r++ {
		if f, ok := s.conf.Recent.Example(r); ok {
			e.Examples[r.String()] = vitals.Example{At: f.At, To: f.To, MTA: f.MTA, Text: f.Text, Trace: f.Trace}
		}
	}
	for _, u := range s.conf.Recent.Senders(now, 3) {
		e.Senders = append(e.Senders, vitals.Sender{User: u.User, Recipients: u.LastHour, Trace: u.Trace})
	}
	if s.conf.DNS != nil {
		for _, srv := range s.conf.DNS().Servers {
			e.Resolvers = append(e.Resolvers, srv.Address)
		}
	}
	if s.conf.Queue != nil {
		for _, d := range s.conf.Queue.Destinations(ctx, shownDestinations) {
			if d.Dead {
				e.Dead = append(e.Dead, vitals.Dead{Name: d.Name, Waiting: d.Units, Err: clip(d.LastErr), ProbeAt: d.ProbeAt})
			}
		}
	}
	e.Stuck = s.stuck()
	return e
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
