package smtpsrv

import (
	"bytes"
	"crypto/tls"
	"strconv"
	"time"

	"blitiri.com.ar/go/chasquid/internal/policy"
)

// headers are the lines put on top of a message, by their place: what existing installations have relied on for its order.
type headers struct {
	top      []byte // of hooks and others
	authRes  []byte // Authentication-Results that a check made itself
	spf      []byte // Received-SPF
	received []byte
	dkim     []byte // DKIM-Signature, which covers nothing above it
}

// place puts the lines that a check returned where they belong.
func (h *headers) place(v policy.Verdict) {
	if len(v.Below) > 0 {
		h.dkim = appendCRLF(clip(h.dkim), v.Below)
	}
	if len(v.Header) == 0 {
		return
	}
	to := &h.top
	switch {
	case startsWith(v.Header, "Received-SPF:"):
		to = &h.spf
	case startsWith(v.Header, "Authentication-Results:"):
		to = &h.authRes
	}
	*to = appendCRLF(clip(*to), v.Header)
}

func startsWith(b []byte, prefix string) bool {
	return len(b) >= len(prefix) && bytes.EqualFold(b[:len(prefix)], []byte(prefix))
}

// compose appends all lines, top first, to b.
func (h *headers) compose(t *policy.Transaction, b []byte) []byte {
	b = append(b, h.top...)
	b = appendAuthRes(b, t.Session.Hostname, t.Results.AuthRes)
	b = append(b, h.authRes...)
	b = append(b, h.spf...)
	b = append(b, h.received...)
	return append(b, h.dkim...)
}

// appendAuthRes appends the Authentication-Results field (RFC 8601 section 2.2), if there are results.
func appendAuthRes(b []byte, host string, results []string) []byte {
	if len(results) == 0 {
		return b
	}
	b = append(b, "Authentication-Results: "...)
	b = append(b, host...)
	b = append(b, "\r\n"...)
	for _, r := range results {
		b = append(b, "\t;"...)
		b = appendCRLF(b, []byte(r))
	}
	return b
}

// appendCRLF appends lines with CRLF at the end of each, whatever they end in.
func appendCRLF(b, lines []byte) []byte {
	for len(lines) > 0 {
		var line []byte
		line, lines, _ = bytes.Cut(lines, []byte{'\n'})
		b = append(b, bytes.TrimSuffix(line, []byte{'\r'})...)
		b = append(b, "\r\n"...)
	}
	return b
}

// appendReceived appends the Received field (RFC 5321 section 4.4) in the layout existing installations have, with the queue id.
// Recipients are not named, nor the address of an authenticated client.
func appendReceived(b []byte, s *session, tx *transaction) []byte {
	b = append(b, "Received: from "...)
	b = append(b, s.EHLO...)
	if s.User == "" {
		b = append(b, " (["...)
		if ip := s.Remote.Addr(); ip.Is6() {
			b = append(b, "IPv6:"...)
			b = ip.WithZone("").AppendTo(b)
		} else {
			b = ip.AppendTo(b)
		}
		b = append(b, "])"...)
	}
	b = append(b, "\r\n\tby "...)
	b = append(b, s.Hostname...)
	b = append(b, " (chasquid) with "...)
	b = append(b, protocol(s, tx)...)
	if tx.ID != "" {
		b = append(b, " id "...)
		b = append(b, tx.ID...)
	}
	version := "plain text!"
	if s.TLS != nil {
		version = tlsVersion(s.TLS.Version)
		b = append(b, "\r\n\ttls "...)
		b = append(b, cipherSuite(s.TLS.CipherSuite)...)
	}
	b = append(b, "\r\n\t(over "...)
	b = append(b, s.Mode...)
	b = append(b, ", "...)
	b = append(b, version...)
	b = append(b, ", envelope from "...)
	b = appendQuoted(b, tx.Env.From.LogString())
	b = append(b, ")\r\n\t; "...)
	b = append(b, s.srv.date(s.thought)...)
	return append(b, "\r\n"...)
}

// stamp is a second as the Received field has it.
type stamp struct {
	second int64
	text   string
}

// date formats a time. Busy servers ask for the same second many times.
func (srv *Server) date(t time.Time) string {
	last := srv.stamp.Load()
	if last == nil || last.second != t.Unix() {
		last = &stamp{t.Unix(), t.Format(time.RFC1123Z)}
		srv.stamp.Store(last)
	}
	return last.text
}

// appendQuoted appends text in quotes, safe within a comment: parentheses are escaped there (RFC 5322 section 3.2.2).
func appendQuoted(b []byte, text string) []byte {
	from := len(b)
	b = strconv.AppendQuote(b, text)
	if bytes.IndexByte(b[from:], '(') < 0 && bytes.IndexByte(b[from:], ')') < 0 {
		return b
	}
	q := bytes.Clone(b[from:])
	b = b[:from]
	for _, c := range q {
		if c == '(' || c == ')' {
			b = append(b, '\\')
		}
		b = append(b, c)
	}
	return b
}

// protocols are the keywords of RFC 3848 and RFC 6531 section 4.3, by kind, TLS and authentication.
var protocols = [3][2][2]string{
	{{"SMTP", "SMTPA"}, {"SMTPS", "SMTPSA"}},
	{{"ESMTP", "ESMTPA"}, {"ESMTPS", "ESMTPSA"}},
	{{"UTF8SMTP", "UTF8SMTPA"}, {"UTF8SMTPS", "UTF8SMTPSA"}},
}

func protocol(s *session, tx *transaction) string {
	kind, secure, auth := 0, 0, 0
	if s.ESMTP {
		kind = 1
	}
	if tx.utf8 {
		kind = 2
	}
	if s.TLS != nil {
		secure = 1
	}
	if s.User != "" {
		auth = 1
	}
	return protocols[kind][secure][auth]
}

// tlsVersion returns "TLS-1.3" and the like.
func tlsVersion(v uint16) string {
	switch v {
	case tls.VersionTLS13:
		return "TLS-1.3"
	case tls.VersionTLS12:
		return "TLS-1.2"
	case tls.VersionTLS11:
		return "TLS-1.1"
	case tls.VersionTLS10:
		return "TLS-1.0"
	}
	return "TLS-" + strconv.FormatUint(uint64(v), 16)
}

// cipherSuite returns the IANA name.
func cipherSuite(id uint16) string {
	for _, list := range [...][]*tls.CipherSuite{tls.CipherSuites(), tls.InsecureCipherSuites()} {
		for _, c := range list {
			if c.ID == id {
				return c.Name
			}
		}
	}
	const hex = "0123456789abcdef"
	return "TLS_UNKNOWN_CIPHER_SUITE-0x" + string([]byte{hex[id>>12], hex[id>>8&15], hex[id>>4&15], hex[id&15]})
}
