package policy

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"blitiri.com.ar/go/chasquid/internal/lru"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/smtp"
)

const (
	rateWindow  = time.Hour
	rateEntries = 50000 // users, and networks, whose use is remembered
)

// Rate limits how much a user who logged in, and a client address, may submit in an hour. It is a MailCheck and a RcptCheck, the last of
// both: what another check refuses does not count. Mail that comes in from outside is not limited.
type Rate struct {
	mu       sync.Mutex
	limit    Limits
	users    *lru.Map[string, *usage]
	networks *lru.Map[netip.Prefix, *usage]
}

// Limits are per hour, of each user and of each client address (IPv6: /64 network). 0 is no limit.
type Limits struct {
	Messages, Recipients int
}

// usage is what was submitted since the window began.
type usage struct {
	since                time.Time
	messages, recipients int
}

var replyRate = smtp.NewReply(451, "4.7.1", "You have sent too much in the last hour, please try again later")

// NewRate returns the check.
func NewRate(l Limits) *Rate {
	return &Rate{limit: l, users: lru.New[string, *usage](rateEntries), networks: lru.New[netip.Prefix, *usage](rateEntries)}
}

// SetLimits replaces the limits; what was submitted so far still counts.
func (c *Rate) SetLimits(l Limits) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.limit = l
}

// Name is for metrics and the timeline.
func (*Rate) Name() string { return "rate" }

// Mail counts a message.
func (c *Rate) Mail(_ context.Context, t *Transaction) Verdict {
	return c.take(t, "messages", func(u *usage, l Limits) (*int, int) { return &u.messages, l.Messages })
}

// Rcpt counts a recipient.
func (c *Rate) Rcpt(_ context.Context, t *Transaction, _ *mail.Recipient) Verdict {
	return c.take(t, "recipients", func(u *usage, l Limits) (*int, int) { return &u.recipients, l.Recipients })
}

// take counts one of what is chosen by field, for the user and for the network, unless either has used up its limit.
func (c *Rate) take(t *Transaction, what string, field func(*usage, Limits) (used *int, limit int)) Verdict {
	if !t.Session.Authenticated() {
		return Verdict{}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, limit := field(&usage{}, c.limit); limit <= 0 {
		return Verdict{}
	}
	now := time.Now()
	of := []*usage{current(c.users, t.Session.User, now)}
	ip := t.Session.Remote.Addr().Unmap()
	if ip.IsValid() && !ip.IsLoopback() { // a webmail on this machine sends for everybody
		of = append(of, current(c.networks, rateNetwork(ip), now))
	}
	for i, u := range of {
		if used, limit := field(u, c.limit); *used >= limit {
			who := "user " + t.Session.User
			if i > 0 {
				who = "client " + ip.String()
			}
			return Verdict{Refuse: &replyRate, Reason: fmt.Sprintf("%s has submitted %d %s since %s", who, *used, what, u.since.Format(time.TimeOnly)), Label: "other"}
		}
	}
	for _, u := range of {
		used, _ := field(u, c.limit)
		*used++
	}
	return Verdict{}
}

// current returns the usage of the window that is running, beginning one if need be.
func current[K comparable](m *lru.Map[K, *usage], k K, now time.Time) *usage {
	u, ok := m.Get(k)
	if !ok || now.Sub(u.since) >= rateWindow {
		u = &usage{since: now}
		m.Put(k, u)
	}
	return u
}

func rateNetwork(ip netip.Addr) netip.Prefix {
	bits := ip.BitLen()
	if ip.Is6() {
		bits = 64
	}
	p, _ := ip.Prefix(bits) // valid addresses have one
	return p
}
