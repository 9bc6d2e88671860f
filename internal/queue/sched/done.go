package sched

import (
	"time"

	"blitiri.com.ar/go/chasquid/internal/mail"
)

// Verdict is what one attempt tells about its site.
type Verdict uint8

// The verdicts.
const (
	Neutral Verdict = iota // nothing: the attempt failed for a reason of ours, or was not made
	Good                   // the site answers, whatever it says about the recipients
	Slow                   // it asks for less
	Dead                   // it could not be reached
	Barred                 // the destination cannot be reached, for reasons that are its own and not its site's: DNS, TLS policy
)

// Judge tells from the outcomes of one attempt what they say about the site. One recipient that got an answer proves that it is alive.
func Judge(outcomes []mail.Outcome) Verdict {
	v := Neutral
	for i := range outcomes {
		switch o := &outcomes[i]; o.Reason {
		case mail.ReasonNone, mail.ReasonGreylist, mail.ReasonMailbox, mail.ReasonPolicy, mail.ReasonRemoteOther:
			if o.Disposition == mail.Delivered || !o.Reply.IsZero() {
				return Good
			}
		case mail.ReasonRateLimit:
			v = Slow
		case mail.ReasonConnectTimeout, mail.ReasonConnectRefused, mail.ReasonNetwork:
			if v == Neutral && o.Disposition == mail.Deferred {
				v = Dead
			}
		case mail.ReasonDNS, mail.ReasonTLS, mail.ReasonSTSPolicy, mail.ReasonSecurityLevel:
			if v == Neutral && o.Disposition == mail.Deferred {
				v = Barred
			}
		}
	}
	return v
}

// Done ends the attempt of a running unit, which becomes claimed, and gives its slot back. The verdict moves the concurrency of the site:
// one more attempt at once for each round of good ones, half as many after a failure; after three failures in a row the site is left
// alone, then probed. why is the failure in words, for people. jitter is in [-1, 1].
func (s *Schedule) Done(k Key, v Verdict, why string, now time.Time, jitter float64) {
	r, ok := s.runs[k]
	if !ok {
		return
	}
	delete(s.runs, k)
	u := s.unit(k)
	u.state = claimed
	st := r.site
	if v == Barred { // a domain must not be able to close the site of others by pointing its MX there
		v = Neutral
		if st.key == s.dests.at(u.dest).name {
			v = Dead
		}
	}
	st.running--
	if st.class == remote {
		s.remote--
		if r.doubtful {
			s.doubtful--
		}
		st.learn(s.conf, v, r.started, now, jitter)
	}
	if v == Slow || v == Dead {
		st.lastErr, st.lastAt = clip(why), now
	}
	if f := r.flow; f != nil {
		f.running--
		st.linkFlow(f)
		s.dropFlow(f)
	}
	s.enqueue(st, now)
}

// maxErr bounds the remembered failure of a site.
const maxErr = 200

func clip(s string) string {
	if len(s) > maxErr {
		s = s[:maxErr]
	}
	return s
}

func (st *site) learn(conf Config, v Verdict, started, now time.Time, jitter float64) {
	switch v {
	case Good:
		st.well, st.probing, st.fails, st.rounds = true, false, 0, 0
		st.limit = min(float64(conf.PerSite), st.limit+1/st.limit)
	case Slow, Dead:
		st.well = false
		st.fails++
		if !started.Before(st.cutAt) { // attempts that ran when the limit was cut fail for the reason it was cut for
			st.limit, st.cutAt = max(minLimit, st.limit/2), now
		}
		if (st.probing || st.fails >= deadAfter) && !st.open {
			d := probeTable[min(st.rounds, len(probeTable)-1)]
			d += time.Duration(float64(d) * jitterShare * max(-1, min(jitter, 1)))
			st.open, st.probing, st.probeAt = true, true, now.Add(d)
			st.rounds++
		}
	}
}

// Probe lets the site of the unit be tried at once if it is left alone: somebody believes that it is back.
func (s *Schedule) Probe(k Key, now time.Time) {
	if st := s.siteOf(s.dests.at(s.unit(k).dest)); st.open {
		st.probeAt = now
		s.enqueue(st, now)
	}
}
