package policy

import (
	"context"
	"strings"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/smtp"
)

// Recipient decides who may be a recipient: anybody for those who logged in, of others only addresses of ours that lead to somebody. It
// is a RcptCheck, and the first of them, since it normalises our own addresses.
type Recipient struct {
	Local  func(domain string) bool                                      // whether we are responsible for the domain
	Exists func(ctx context.Context, addr address.Address) (bool, error) // whether mail for an address of ours ends at somebody

	Primary    func() string                                       // the domain of a bare <postmaster>; nil or empty: there is none
	Reverse    func(addr address.Address) (address.Address, error) // whom a rewritten (SRS) address of ours stands for; nil: there are none
	ErrorReply func(err error) smtp.Reply                          // what to say of an error of Exists; nil: that it is temporary
}

var (
	replyRelay       = smtp.NewReply(503, "5.7.1", "Relay not allowed: mail for this domain is not handled here, please log in to send elsewhere")
	replyBadUser     = smtp.NewReply(550, "5.1.3", "Destination address is invalid")
	replyUnknownUser = smtp.NewReply(550, "5.1.1", "Destination address is unknown (user does not exist)")
	replyCheckFailed = smtp.NewReply(451, "4.4.3", "Temporary error checking address, please try again later")
)

const postmaster = "postmaster"

// Name is for metrics and the timeline.
func (*Recipient) Name() string { return "recipient" }

// Rcpt decides about one recipient.
func (c *Recipient) Rcpt(ctx context.Context, t *Transaction, r *mail.Recipient) Verdict {
	if r.To.Domain == "" && strings.EqualFold(r.To.Local, postmaster) && c.Primary != nil {
		r.To.Domain = c.Primary() // RFC 5321 section 4.1.1.3
	}
	if !c.Local(r.To.Domain) {
		if t.Session.Authenticated() {
			return Verdict{}
		}
		return Verdict{Refuse: &replyRelay, Reason: "relay not allowed", Label: "relay_denied"}
	}
	addr := r.To
	if c.Reverse != nil {
		if a, err := c.Reverse(r.To); err == nil {
			if !c.Local(a.Domain) {
				return Verdict{Note: "bounce address of " + a.String()}
			}
			addr = a
		}
	}
	to, err := r.To.Normalize()
	if addr == r.To {
		addr = to
	} else if err == nil {
		addr, err = addr.Normalize()
	}
	if err != nil {
		return Verdict{Refuse: &replyBadUser, Reason: "invalid address: " + err.Error(), Label: "syntax"}
	}
	r.To = to
	return c.exists(ctx, addr)
}

func (c *Recipient) exists(ctx context.Context, addr address.Address) Verdict {
	ok, err := c.Exists(ctx, addr)
	switch {
	case err != nil:
		reply := replyCheckFailed
		if c.ErrorReply != nil {
			reply = c.ErrorReply(err)
		}
		label := "tempfail"
		if reply.Permanent() {
			label = "loop"
		}
		return Verdict{Refuse: &reply, Reason: "error checking if user exists: " + err.Error(), Label: label}
	case ok || addr.Local == postmaster: // RFC 5321 section 4.5.1: whoever it is for, it is taken
		return Verdict{}
	}
	return Verdict{Refuse: &replyUnknownUser, Reason: "local user does not exist", Label: "unknown_user"}
}
