package policy

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/deadline"
	"blitiri.com.ar/go/chasquid/internal/dns"
	"blitiri.com.ar/go/chasquid/internal/message"
	"blitiri.com.ar/go/chasquid/internal/smtp"
)

// Match says how far a user is held to addresses of his own.
type Match uint8

// The values of sender_login_match.
const (
	MatchOff      Match = iota // users may send as anybody
	MatchEnvelope              // MAIL FROM must be theirs
	MatchHeader                // so must every address of the From header
)

// ParseMatch parses the setting sender_login_match; empty is off.
func ParseMatch(s string) (Match, error) {
	switch s {
	case "", "off":
		return MatchOff, nil
	case "envelope":
		return MatchEnvelope, nil
	case "header":
		return MatchHeader, nil
	}
	return 0, fmt.Errorf("sender_login_match is %q; it can be off, envelope or header", s)
}

// Sender decides who may be the sender. It is a MailCheck and a BodyCheck.
type Sender struct {
	Match Match
	// Owns reports whether the user, as he logged in, may send as the address. Needed unless Match is off.
	Owns func(ctx context.Context, user, from address.Address) (bool, error)

	Resolver dns.Resolver // to refuse senders whose domain says that it takes no mail (RFC 7505); nil: not looked up
}

var (
	replyNotYours   = smtp.NewReply(550, "5.7.1", "You may not send as this address; use one of your own, or ask for an alias of it")
	replyFromHeader = smtp.NewReply(550, "5.7.1", "The From header names an address you may not send as; use one of your own")
	replyFromSyntax = smtp.NewReply(554, "5.6.0", "The message needs exactly one From header with valid addresses")
	replyNullMX     = smtp.NewReply(550, "5.7.27", "The domain of the sender says that it takes no mail, so no answer could reach you")
	replyOwnership  = smtp.NewReply(451, "4.3.0", "Temporary error checking whose address the sender is, please try again later")
)

const nullMXTime = 5 * time.Second

// Name is for metrics and the timeline.
func (*Sender) Name() string { return "sender" }

// Mail decides about MAIL FROM. A user may always send with the null sender, as answers to answers do.
func (c *Sender) Mail(ctx context.Context, t *Transaction) Verdict {
	from := t.Env.From
	switch {
	case from.IsNull():
		return Verdict{}
	case t.Session.Authenticated():
		if c.Match == MatchOff {
			return Verdict{}
		}
		return c.owned(ctx, t, from, &replyNotYours)
	case c.Resolver == nil || from.IsLiteral():
		return Verdict{}
	}
	return c.reachable(ctx, from)
}

// Body decides about the From header (RFC 6409 section 6.1).
func (c *Sender) Body(ctx context.Context, t *Transaction, content Content) Verdict {
	if c.Match != MatchHeader || !t.Session.Authenticated() {
		return Verdict{}
	}
	h, err := t.Header(content)
	if err != nil {
		return refuseHeader(err)
	}
	authors, err := fromAddresses(h)
	if err != nil {
		return Verdict{Refuse: &replyFromSyntax, Reason: "From header: " + err.Error(), Label: "bad_content"}
	}
	for _, a := range authors {
		if v := c.owned(ctx, t, a, &replyFromHeader); v.Refuse != nil {
			return v
		}
	}
	return Verdict{}
}

// owned is the verdict about one address a user wants to be.
func (c *Sender) owned(ctx context.Context, t *Transaction, a address.Address, no *smtp.Reply) Verdict {
	user, err := address.Parse(t.Session.User)
	ok := false
	if err == nil {
		ok, err = c.Owns(ctx, user, a)
	}
	switch {
	case err != nil:
		return Verdict{Refuse: &replyOwnership, Reason: fmt.Sprintf("checking whether %s may send as %s: %v", t.Session.User, a, err), Label: "other"}
	case !ok:
		return Verdict{Refuse: no, Reason: fmt.Sprintf("user %s may not send as %s", t.Session.User, a), Label: "bad_from"}
	}
	return Verdict{}
}

// reachable refuses senders with a null MX (RFC 7505 section 4.2). Whatever goes wrong with the look-up is no reason.
func (c *Sender) reachable(ctx context.Context, from address.Address) Verdict {
	ctx, cancel := deadline.After(ctx, nullMXTime)
	defer cancel()
	domain, err := address.DomainToASCII(from.Domain)
	if err != nil {
		return Verdict{}
	}
	mx, _, err := c.Resolver.MX(ctx, dns.ForMX, domain)
	if err == nil && len(mx) == 1 && mx[0].Host == "" {
		return Verdict{Refuse: &replyNullMX, Reason: "sender domain has a null MX", Label: "bad_from"}
	}
	return Verdict{}
}

// fromAddresses returns the addresses of the one From field.
func fromAddresses(h *message.Header) ([]address.Address, error) {
	if n := h.Count("From"); n != 1 {
		return nil, fmt.Errorf("there are %d of them", n)
	}
	f, _ := h.First("From")
	boxes, err := message.ParseMailboxes(f.Value())
	if err != nil {
		return nil, err
	}
	as := make([]address.Address, len(boxes))
	for i, b := range boxes {
		d, err := address.NormalizeDomain(b.Domain)
		if err != nil {
			return nil, err
		}
		if b.Local == "" || strings.ContainsAny(b.Local, "\r\n\x00") {
			return nil, errors.New("empty or bad local part")
		}
		as[i] = address.Address{Local: b.Local, Domain: d}
	}
	return as, nil
}
