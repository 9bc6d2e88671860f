package esmtp

import (
	"strings"
	"unicode/utf8"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/smtp"
)

// Size limits of RFC 3461 section 4, in octets as they stand on the command line.
const (
	maxEnvID = 100
	maxORCPT = 500
)

// dsn is RFC 3461: RET and ENVID of MAIL, NOTIFY and ORCPT of RCPT.
var dsn = Extension{
	Keyword: "DSN",
	Mail: map[string]func(*Session, *mail.Envelope, *smtp.Param) *smtp.Reply{
		"RET": func(_ *Session, _ *mail.Envelope, p *smtp.Param) *smtp.Reply { // section 4.3
			p.Value = strings.ToUpper(p.Value)
			if p.Value != "FULL" && p.Value != "HDRS" {
				return badParam("RET must be FULL or HDRS")
			}
			return nil
		},
		"ENVID": func(_ *Session, _ *mail.Envelope, p *smtp.Param) *smtp.Reply { // section 4.4
			id, ok := smtp.DecodeXtext(p.Value)
			if !ok || id == "" || len(p.Value) > maxEnvID || !printable(id) {
				return badParam("ENVID must be up to 100 characters of xtext")
			}
			return nil
		},
	},
	Rcpt: map[string]func(*Session, *mail.Envelope, *mail.Recipient, *smtp.Param) *smtp.Reply{
		"NOTIFY": func(_ *Session, _ *mail.Envelope, _ *mail.Recipient, p *smtp.Param) *smtp.Reply { // section 4.1
			p.Value = strings.ToUpper(p.Value)
			if !validNotify(p.Value) {
				return badParam("NOTIFY must be NEVER, or a list of SUCCESS, FAILURE and DELAY")
			}
			return nil
		},
		"ORCPT": func(_ *Session, e *mail.Envelope, _ *mail.Recipient, p *smtp.Param) *smtp.Reply { // section 4.2
			if len(p.Value) > maxORCPT || !validORCPT(p.Value, e.UTF8) {
				return badParam("ORCPT must be an address type, a semicolon and an address in xtext")
			}
			return nil
		},
	},
	Relay: func(p *Plan, job *mail.Job, _ string, offered bool) {
		p.DSN = offered
		if !offered {
			return
		}
		// Section 5.2.1: passed on as they were given.
		p.Mail = carry(p.Mail, job.Env.Params, "RET")
		p.Mail = carry(p.Mail, job.Env.Params, "ENVID")
		for i, r := range job.Rcpts {
			p.Rcpt[i] = carry(p.Rcpt[i], r.Params, "NOTIFY")
			p.Rcpt[i] = carry(p.Rcpt[i], r.Params, "ORCPT")
		}
	},
}

// carry appends the parameter to the list if it is among those given.
func carry(to, given smtp.Params, keyword string) smtp.Params {
	if v, ok := given.Get(keyword); ok {
		to = append(to, smtp.Param{Keyword: keyword, Value: v, HasValue: true})
	}
	return to
}

func validNotify(v string) bool {
	if v == "NEVER" {
		return true
	}
	seen := 0
	for more := true; more; {
		var word string
		word, v, more = strings.Cut(v, ",")
		bit := 0
		switch word {
		case "SUCCESS":
			bit = 1
		case "FAILURE":
			bit = 2
		case "DELAY":
			bit = 4
		}
		if bit == 0 || seen&bit != 0 {
			return false
		}
		seen |= bit
	}
	return true
}

// validORCPT reports "type;xtext" (RFC 3461 section 4.2), or a "utf-8" address with its own escapes (RFC 6533 section 3).
func validORCPT(v string, smtputf8 bool) bool {
	typ, addr, ok := strings.Cut(v, ";")
	if !ok || !smtp.ValidKeyword(typ) || addr == "" {
		return false
	}
	if strings.EqualFold(typ, "utf-8") {
		if !smtputf8 && !ascii(addr) {
			return false
		}
		return validUTF8Address(addr)
	}
	a, ok := smtp.DecodeXtext(addr)
	if ok && strings.EqualFold(typ, "rfc822") && utf8.ValidString(a) {
		return printable(strings.Map(dropForeign, a)) // Postfix writes the octets of UTF-8 so, as RFC 6533 does not foresee
	}
	return ok && printable(a)
}

// dropForeign drops from a text what is beyond ASCII.
func dropForeign(r rune) rune {
	if r >= utf8.RuneSelf {
		return -1
	}
	return r
}

// validUTF8Address reports utf-8-addr-xtext or utf-8-addr-unitext: octets that are themselves, or "\x{HEX}".
func validUTF8Address(s string) bool {
	if !utf8.ValidString(s) {
		return false
	}
	for s != "" {
		i := strings.IndexByte(s, '\\')
		if i < 0 {
			return true
		}
		hex, rest, ok := strings.Cut(s[i+1:], "}")
		if !ok || !strings.HasPrefix(hex, "x{") || len(hex) < 4 || len(hex) > 8 || strings.Trim(hex[2:], "0123456789ABCDEF") != "" {
			return false
		}
		s = rest
	}
	return true
}

func ascii(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// printable reports text without control characters or octets above 126.
func printable(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}
