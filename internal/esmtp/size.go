package esmtp

import (
	"strconv"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/smtp"
)

// size is RFC 1870.
var size = Extension{
	Keyword:  "SIZE",
	Announce: func(s *Session) (string, bool) { return strconv.FormatInt(s.MaxSize, 10), true }, // section 3; 0: no fixed limit
	Mail: map[string]func(*Session, *mail.Envelope, *smtp.Param) *smtp.Reply{
		"SIZE": func(s *Session, _ *mail.Envelope, p *smtp.Param) *smtp.Reply {
			n, ok := parseSize(p.Value)
			if !ok {
				return badParam("SIZE must be a number")
			}
			if s.MaxSize > 0 && n > s.MaxSize {
				return reply(552, "5.3.4", "Message too big") // section 6.1
			}
			return nil
		},
	},
	Relay: func(p *Plan, job *mail.Job, arg string, offered bool) {
		if !offered {
			return
		}
		if limit, ok := parseSize(arg); ok && limit > 0 && job.Size > limit {
			p.refuse(reply(552, "5.3.4", "The message is bigger than the next server takes"))
			return
		}
		p.Mail = append(p.Mail, smtp.Param{Keyword: "SIZE", Value: strconv.FormatInt(job.Size, 10), HasValue: true})
	},
}

// maxSizeDigits: RFC 1870 section 4, size-value. What does not fit 63 bits is as good as the most that does.
const maxSizeDigits = 20

func parseSize(v string) (int64, bool) {
	if v == "" || len(v) > maxSizeDigits {
		return 0, false
	}
	for i := 0; i < len(v); i++ {
		if v[i] < '0' || v[i] > '9' {
			return 0, false
		}
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil {
		return 1<<63 - 1, true
	}
	return n, true
}
