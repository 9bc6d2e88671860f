package esmtp

import (
	"strings"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/smtp"
)

// eightBitMIME is RFC 6152: BODY=7BIT and BODY=8BITMIME.
var eightBitMIME = Extension{
	Keyword: "8BITMIME",
	Mail: map[string]func(*Session, *mail.Envelope, *smtp.Param) *smtp.Reply{
		"BODY": func(_ *Session, e *mail.Envelope, p *smtp.Param) *smtp.Reply {
			switch strings.ToUpper(p.Value) {
			case "7BIT":
				e.Body = mail.Body7Bit
			case "8BITMIME":
				e.Body = mail.Body8Bit
			case "BINARYMIME": // RFC 3030 section 3; announced together
				e.Body = mail.BodyBinary
			default:
				return badParam("BODY must be 7BIT, 8BITMIME or BINARYMIME")
			}
			p.Value = strings.ToUpper(p.Value)
			return nil
		},
	},
	Relay: func(p *Plan, job *mail.Job, _ string, offered bool) {
		switch {
		case job.Env.Body == mail.BodyBinary:
			// The business of BINARYMIME.
		case offered:
			p.Mail = append(p.Mail, smtp.Param{Keyword: "BODY", Value: "8BITMIME", HasValue: true})
		case job.Env.Body == mail.Body8Bit:
			// RFC 6152 section 3: convert or return it. Converting would break signatures.
			p.refuse(reply(554, "5.6.3", "The message has 8-bit content, and the next server does not take that"))
		}
	},
}

// chunking is RFC 3030: BDAT.
var chunking = Extension{
	Keyword: "CHUNKING",
	Relay:   func(p *Plan, _ *mail.Job, _ string, offered bool) { p.Chunking = offered },
}

// binaryMIME is RFC 3030 section 3. It stands after chunking, on which it builds.
var binaryMIME = Extension{
	Keyword: "BINARYMIME",
	Relay: func(p *Plan, job *mail.Job, _ string, offered bool) {
		if job.Env.Body != mail.BodyBinary {
			return
		}
		if !offered || !p.Chunking {
			p.refuse(reply(554, "5.6.3", "The message has binary content, and the next server does not take that"))
			return
		}
		p.Binary = true
		p.Mail = append(p.Mail, smtp.Param{Keyword: "BODY", Value: "BINARYMIME", HasValue: true})
	},
}
