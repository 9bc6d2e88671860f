package esmtp

import (
	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/smtp"
)

// smtpUTF8 is RFC 6531: addresses and headers in UTF-8.
var smtpUTF8 = Extension{
	Keyword: "SMTPUTF8",
	Mail: map[string]func(*Session, *mail.Envelope, *smtp.Param) *smtp.Reply{
		"SMTPUTF8": func(_ *Session, e *mail.Envelope, p *smtp.Param) *smtp.Reply {
			if p.HasValue {
				return badParam("SMTPUTF8 takes no value") // section 3.4
			}
			e.UTF8 = true
			return nil
		},
	},
	Relay: func(p *Plan, job *mail.Job, _ string, offered bool) {
		need := job.Env.UTF8 || !job.From.ASCII()
		for _, r := range job.Rcpts {
			need = need || !r.To.ASCII()
		}
		switch {
		case !need:
			// Section 3.6: what needs nothing goes on without the parameter.
		case offered:
			p.Mail = append(p.Mail, smtp.Param{Keyword: "SMTPUTF8"})
		case job.Env.UTF8 || !asciiLocal(job.From):
			p.refuse(noUTF8)
		default:
			// A domain has an A-label form that every server takes; a local part has not.
			for i, r := range job.Rcpts {
				if !asciiLocal(r.To) {
					p.Fail[i] = noUTF8
				}
			}
		}
	},
}

// noUTF8: RFC 6531 section 3.5 and RFC 6533; no silent downgrade.
var noUTF8 = reply(550, "5.6.7", "The message needs internationalized mail, and the next server does not take that")

func asciiLocal(a address.Address) bool { return address.Address{Local: a.Local}.ASCII() }
