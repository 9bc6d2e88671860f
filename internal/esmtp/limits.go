package esmtp

import (
	"strconv"
	"strings"

	"blitiri.com.ar/go/chasquid/internal/mail"
)

// limits is RFC 9422: how many recipients a transaction and transactions a session may have.
var limits = Extension{
	Keyword: "LIMITS",
	Announce: func(s *Session) (string, bool) {
		var words []string
		if s.MaxMails > 0 {
			words = append(words, "MAILMAX="+strconv.Itoa(s.MaxMails))
		}
		if s.MaxRcpts > 0 {
			words = append(words, "RCPTMAX="+strconv.Itoa(s.MaxRcpts))
		}
		return strings.Join(words, " "), len(words) > 0
	},
	Relay: func(p *Plan, _ *mail.Job, arg string, _ bool) {
		for _, word := range strings.Fields(arg) {
			k, v, _ := strings.Cut(word, "=")
			// Section 4: one to six digits, not zero; anything else is ignored.
			n, err := strconv.Atoi(v)
			if err != nil || n <= 0 || len(v) > 6 {
				continue
			}
			switch strings.ToUpper(k) {
			case "RCPTMAX":
				p.MaxRcpts = n
			case "MAILMAX":
				p.MaxMails = n
			}
		}
	},
}
