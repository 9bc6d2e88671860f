package esmtp

import (
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/smtp"
)

// auth is the parameter half of RFC 4954; the AUTH command is the server's.
var auth = Extension{
	Keyword:  "AUTH",
	Announce: func(s *Session) (string, bool) { return s.Auth, s.Auth != "" },
	Mail: map[string]func(*Session, *mail.Envelope, *smtp.Param) *smtp.Reply{
		// Section 5: who submitted the message, as the client says. We take nobody's word for it: it is checked and not passed on.
		"AUTH": func(_ *Session, _ *mail.Envelope, p *smtp.Param) *smtp.Reply {
			if p.Value == "<>" {
				return nil
			}
			if mailbox, ok := smtp.DecodeXtext(p.Value); !ok || mailbox == "" || !printable(mailbox) {
				return badParam("AUTH must be <> or a mailbox in xtext")
			}
			return nil
		},
	},
}
