package esmtp

import (
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/smtp"
	"blitiri.com.ar/go/chasquid/internal/tlspolicy"
)

// requireTLS is RFC 8689: the message travels over verified TLS or not at all.
var requireTLS = Extension{
	Keyword:  "REQUIRETLS",
	Announce: func(s *Session) (string, bool) { return "", s.TLS }, // section 2
	Mail: map[string]func(*Session, *mail.Envelope, *smtp.Param) *smtp.Reply{
		"REQUIRETLS": func(_ *Session, _ *mail.Envelope, p *smtp.Param) *smtp.Reply {
			if p.HasValue {
				return badParam("REQUIRETLS takes no value")
			}
			return nil
		},
	},
	Relay: func(p *Plan, job *mail.Job, _ string, offered bool) {
		if !job.Env.Params.Has("REQUIRETLS") {
			return
		}
		if !offered {
			p.refuse(reply(550, "5.7.30", "The message requires TLS all the way, and the next server does not promise that")) // section 4.2.1
			return
		}
		p.Mail = append(p.Mail, smtp.Param{Keyword: "REQUIRETLS"})
	},
	Demand: func(e *mail.Envelope) *tlspolicy.Rule {
		if !e.Params.Has("REQUIRETLS") {
			return nil
		}
		return &tlspolicy.Rule{Source: "requiretls", RequireTLS: true, RequirePKIX: true} // section 4.2.1, step 3
	},
}
