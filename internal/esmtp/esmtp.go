// Package esmtp is the service extensions of SMTP that are keywords and parameters: both ends of each in one file.
//
// The server asks All what to announce after EHLO and lets Mail and Rcpt judge the parameters of a command. The client reads what a peer
// announced with ParseOffers and asks Relay what to say to it. To add an extension, add a file and a row to All.
package esmtp

import (
	"strings"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/smtp"
	"blitiri.com.ar/go/chasquid/internal/tlspolicy"
)

// Session is what an extension may know of the connection it is announced on.
type Session struct {
	TLS      bool   // the connection is encrypted
	StartTLS bool   // it could be, after STARTTLS
	Auth     string // SASL mechanisms offered now, separated by spaces, or empty
	MaxSize  int64  // bytes of a message; 0: no limit is announced
	MaxRcpts int    // recipients of a message; 0: no limit is announced
	MaxMails int    // messages of a session; 0: no limit is announced
}

// Extension is one service extension (RFC 5321 section 2.2). Functions may be nil where the extension has nothing to say.
type Extension struct {
	Keyword string

	// Announce returns the argument of the keyword and whether to announce it at all; nil: always, without an argument.
	Announce func(s *Session) (arg string, ok bool)
	// Mail and Rcpt take the parameters the extension adds to MAIL and RCPT, by their upper-case keyword, when it was announced. They
	// may put a value into its usual spelling, and return the reply that refuses the command.
	Mail map[string]func(s *Session, e *mail.Envelope, p *smtp.Param) *smtp.Reply
	Rcpt map[string]func(s *Session, e *mail.Envelope, r *mail.Recipient, p *smtp.Param) *smtp.Reply

	// Relay adds what the extension wants said to the next hop; offered tells whether that announced it, and arg with which argument.
	Relay func(p *Plan, job *mail.Job, arg string, offered bool)
	// Demand is what the extension asks of the connection to the next hop; nil or a nil result: nothing.
	Demand func(e *mail.Envelope) *tlspolicy.Rule
}

// All lists the extensions in the order of the EHLO reply. HELP is last: existing clients wait for it.
func All() []*Extension { return all[:] }

var all = [...]*Extension{
	&eightBitMIME, &pipelining, &smtpUTF8, &enhancedStatusCodes, &size, &dsn, &chunking, &binaryMIME, &limits, &requireTLS, &startTLS,
	&auth, &help,
}

// Extensions that are a keyword and nothing else here.
var (
	enhancedStatusCodes = Extension{Keyword: "ENHANCEDSTATUSCODES"} // RFC 2034
	help                = Extension{Keyword: "HELP"}
	startTLS            = Extension{ // RFC 3207
		Keyword:  "STARTTLS",
		Announce: func(s *Session) (string, bool) { return "", s.StartTLS && !s.TLS },
	}
	pipelining = Extension{ // RFC 2920
		Keyword: "PIPELINING",
		Relay:   func(p *Plan, _ *mail.Job, _ string, offered bool) { p.Pipelining = offered },
	}
)

// AppendEHLO appends one "\n"-separated line for each extension that is announced on the session, as the text of a reply.
func AppendEHLO(b []byte, s *Session) []byte {
	for _, x := range all {
		arg, ok := x.announced(s)
		if !ok {
			continue
		}
		b = append(b, '\n')
		b = append(b, x.Keyword...)
		if arg != "" {
			b = append(b, ' ')
			b = append(b, arg...)
		}
	}
	return b
}

func (x *Extension) announced(s *Session) (string, bool) {
	if x.Announce == nil {
		return "", true
	}
	return x.Announce(s)
}

// Mail judges the parameters of a MAIL command and keeps them in the envelope. It returns the reply that refuses the command, or nil.
func Mail(s *Session, e *mail.Envelope, ps smtp.Params) *smtp.Reply {
	for i := range ps {
		f := mailParam(s, ps[i].Keyword)
		if f == nil {
			return unknownParam
		}
		if r := f(s, e, &ps[i]); r != nil {
			return r
		}
	}
	e.Params = ps
	return nil
}

// Rcpt judges the parameters of a RCPT command and keeps them in the recipient. It returns the reply that refuses the command, or nil.
func Rcpt(s *Session, e *mail.Envelope, r *mail.Recipient, ps smtp.Params) *smtp.Reply {
	for i := range ps {
		f := rcptParam(s, ps[i].Keyword)
		if f == nil {
			return unknownParam
		}
		if reply := f(s, e, r, &ps[i]); reply != nil {
			return reply
		}
	}
	r.Params = ps
	return nil
}

func mailParam(s *Session, keyword string) func(*Session, *mail.Envelope, *smtp.Param) *smtp.Reply {
	for _, x := range all {
		if f := x.Mail[keyword]; f != nil {
			if _, ok := x.announced(s); ok {
				return f
			}
		}
	}
	return nil
}

func rcptParam(s *Session, keyword string) func(*Session, *mail.Envelope, *mail.Recipient, *smtp.Param) *smtp.Reply {
	for _, x := range all {
		if f := x.Rcpt[keyword]; f != nil {
			if _, ok := x.announced(s); ok {
				return f
			}
		}
	}
	return nil
}

// unknownParam: RFC 5321 section 4.1.1.11, never ignored silently.
var unknownParam = reply(555, "5.5.4", "Parameter not recognized")

func reply(code int, enh, text string) *smtp.Reply {
	r := smtp.NewReply(code, enh, text)
	return &r
}

// badParam is the reply to a parameter whose value is not what its RFC allows.
func badParam(text string) *smtp.Reply { return reply(501, "5.5.4", text) }

// Offers is what a peer announced in its EHLO reply: upper-case keyword to argument.
type Offers map[string]string

// Limits of what is kept of a peer's EHLO reply.
const (
	maxOffers   = 100
	maxOfferArg = 500 // bytes
)

// ParseOffers reads the text of an EHLO reply: lines separated by "\n" of which the first greets (RFC 5321 section 4.1.1.1). What is not
// a keyword is left out. "AUTH=PLAIN", as some old servers write, is read as "AUTH PLAIN".
func ParseOffers(text string) Offers {
	o := Offers{}
	_, rest, more := strings.Cut(text, "\n")
	for more && len(o) < maxOffers {
		var line string
		line, rest, more = strings.Cut(rest, "\n")
		k, arg, _ := strings.Cut(strings.TrimSpace(line), " ")
		if len(k) > 5 && strings.EqualFold(k[:5], "AUTH=") {
			k, arg = k[:4], k[5:]+" "+arg
		}
		if k = strings.ToUpper(k); smtp.ValidKeyword(k) && len(arg) <= maxOfferArg {
			o[k] = strings.TrimSpace(arg)
		}
	}
	return o
}

// Has reports whether the peer announced the keyword.
func (o Offers) Has(keyword string) bool {
	_, ok := o[keyword]
	return ok
}

// Plan is what to say to a peer about one job.
type Plan struct {
	Mail   smtp.Params   // parameters of MAIL
	Rcpt   []smtp.Params // parameters of each RCPT, in the order of the job's recipients
	Fail   []*smtp.Reply // why a recipient cannot be relayed to this peer, in the same order; nil: it can
	Refuse *smtp.Reply   // why the whole job cannot, nil if it can. All of these are permanent unless their code says otherwise.

	Pipelining bool // commands may be sent without waiting for replies (RFC 2920)
	Chunking   bool // BDAT may be used; it must be if Binary
	Binary     bool // the content can only go through BDAT (RFC 3030 section 3)
	DSN        bool // the peer takes over the duty of sending notices (RFC 3461 section 5.2.1)
	MaxRcpts   int  // recipients the peer accepts in one transaction; 0: it does not say
	MaxMails   int  // transactions the peer accepts in one session; 0: it does not say
}

// refuse keeps the first reason.
func (p *Plan) refuse(r *smtp.Reply) {
	if p.Refuse == nil {
		p.Refuse = r
	}
}

// Relay asks every extension what to say about the job to a peer that announced o.
func Relay(job *mail.Job, o Offers) *Plan {
	p := &Plan{Rcpt: make([]smtp.Params, len(job.Rcpts)), Fail: make([]*smtp.Reply, len(job.Rcpts))}
	for _, x := range all {
		if x.Relay != nil {
			arg, ok := o[x.Keyword]
			x.Relay(p, job, arg, ok)
		}
	}
	return p
}

// Demands are the rules that the message itself makes for every connection it travels over.
func Demands(e *mail.Envelope) []tlspolicy.Rule {
	var rules []tlspolicy.Rule
	for _, x := range all {
		if x.Demand == nil {
			continue
		}
		if r := x.Demand(e); r != nil {
			rules = append(rules, *r)
		}
	}
	return rules
}
