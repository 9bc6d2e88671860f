package policy

import (
	"context"

	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/smtp"
	"blitiri.com.ar/go/chasquid/internal/tlspolicy"
)

// Ledger remembers the best TLS level that mail from a domain came with.
type Ledger interface {
	CheckIncoming(ctx context.Context, domain string, level tlspolicy.Level) bool
	RecordIncoming(ctx context.Context, domain string, level tlspolicy.Level)
}

// Level refuses mail in plain text from domains that have used TLS before. It is a MailCheck and a Learner, and comes after SPF: only of a
// sender who is proven to be of the domain it says anything, and only then is it learned from.
type Level struct {
	ledger  Ledger
	offered func() bool
	legacy  *expvarom.Map
	results [numLevelResults]*expvarom.Counter
}

type levelResult uint8

const (
	levelSkip levelResult = iota
	levelPass
	levelFail
	numLevelResults
)

var (
	levelNames = [numLevelResults]string{"skip", "pass", "fail"}
	replyNoTLS = smtp.NewReply(451, "4.7.0", "TLS is not available here for the moment, and your domain has used it before: please try again later")
	replyLevel = smtp.NewReply(550, "5.7.3", "Security level check failed: your domain has sent mail over TLS before, please use it again")
)

// NewLevel returns the check. Offered reports whether clients can use TLS now; nil: they always can.
func NewLevel(ledger Ledger, offered func() bool, r *expvarom.Registry) *Level {
	c := &Level{
		ledger:  ledger,
		offered: offered,
		legacy:  r.Map("chasquid/smtpIn/securityLevelChecks", "result", "incoming security level checks (by result)", levelNames[:]...),
	}
	v := r.CounterVec("chasquid_security_level_checks_total", "Checks of a connection's TLS level against the best one seen with the domain.",
		[]string{"direction", "result"}, []string{"in", "out"}, []string{"pass", "fail", "skip"})
	for i, n := range levelNames {
		c.results[i] = v.With("in", n)
	}
	return c
}

// Name is for metrics and the timeline.
func (*Level) Name() string { return "security_level" }

// Mail decides about the connection.
func (c *Level) Mail(ctx context.Context, t *Transaction) Verdict {
	level, ok := levelOf(t)
	switch {
	case !ok:
		c.count(levelSkip)
		return Verdict{}
	case !c.ledger.CheckIncoming(ctx, t.Env.From.Domain, level):
		c.count(levelFail)
		reply := &replyLevel
		if c.offered != nil && !c.offered() {
			reply = &replyNoTLS
		}
		return Verdict{Refuse: reply, Reason: "security level check failed", Label: "security_level", Note: "security_level=fail (" + level.String() + ")"}
	}
	c.count(levelPass)
	return Verdict{}
}

// Accepted records the level of a message that was accepted.
func (c *Level) Accepted(ctx context.Context, t *Transaction) {
	if level, ok := levelOf(t); ok {
		c.ledger.RecordIncoming(ctx, t.Env.From.Domain, level)
	}
}

// levelOf returns the level of the connection; ok is false if it says nothing about the sender's domain.
func levelOf(t *Transaction) (level tlspolicy.Level, ok bool) {
	if t.Session.Authenticated() || t.Env.From.IsNull() || t.Results.SPF != "pass" {
		return 0, false
	}
	if t.Session.TLS != nil {
		return tlspolicy.TLSClient, true
	}
	return tlspolicy.Plain, true
}

func (c *Level) count(r levelResult) {
	c.legacy.Inc(levelNames[r])
	c.results[r].Inc()
}
