package courier

import (
	"fmt"
	"slices"
	"strconv"
	"unicode/utf8"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/smtp"
)

// fit finds the recipients that this server can be given, and refuses what the server's lack of an extension makes impossible:
// nothing is converted or cut to fit. An outcome says that another server may do.
func (d *delivery) fit(c *client) (todo []int, o *mail.Outcome) {
	if d.requireTLS() && !c.caps.requireTLS { // RFC 8689 section 4.2.1
		r := refused(mail.ReasonTLS, 550, "5.7.30", "the server does not support REQUIRETLS, which the sender asked for")
		r.MTA, r.TLS = c.mta, c.protection()
		return nil, &r
	}
	todo = d.left
	if len(d.tried) > 0 {
		todo = make([]int, 0, len(d.left))
		for _, i := range d.left {
			if !slices.Contains(d.tried, i) {
				todo = append(todo, i)
			}
		}
	}
	if bad := d.unfit(c); bad != nil {
		bad.MTA, bad.TLS = c.mta, c.protection()
		for _, i := range todo {
			d.set(i, *bad)
		}
		return nil, nil
	}
	return d.sendable(c, todo), nil
}

// unfit says why the message itself cannot go to this server.
func (d *delivery) unfit(c *client) *mail.Outcome {
	if c.caps.size > 0 && d.job.Size > c.caps.size { // RFC 1870 section 6.1
		o := refused(mail.ReasonPolicy, 552, "5.3.4", fmt.Sprintf("the message of %d bytes is larger than the %d bytes that the server takes", d.job.Size, c.caps.size))
		return &o
	}
	env := d.job.Env
	if env == nil {
		return nil
	}
	if env.Body == mail.BodyBinary && !d.binary(c) && !d.msg.text() { // RFC 3030 section 3
		o := refused(mail.ReasonPolicy, 554, "5.6.3", "the message is binary, which the server does not support (BINARYMIME)")
		return &o
	}
	if env.LongLines && !d.s.cfg.SendLongLines && !c.lmtp { // RFC 5321 section 4.5.3.1.6
		o := refused(mail.ReasonPolicy, 554, "5.6.0", fmt.Sprintf("the message has a line longer than the %d octets that SMTP allows", mail.MaxLine))
		return &o
	}
	if env.Body != mail.Body7Bit && !c.caps.eightBitMIME && !d.binary(c) && d.msg.eightBit() { // RFC 6152 section 3
		o := refused(mail.ReasonPolicy, 554, "5.6.3", "the message has 8-bit content, which the server does not support (8BITMIME)")
		return &o
	}
	if env.UTF8 && !c.caps.smtpUTF8 && smtp.EightBit(d.msg.header()) { // RFC 6531 section 3.2
		o := refused(mail.ReasonPolicy, 550, "5.6.7", "the message has internationalised headers, which the server does not support (SMTPUTF8)")
		return &o
	}
	return nil
}

// binary reports a binary message and a server that takes such.
func (d *delivery) binary(c *client) bool {
	return d.job.Env != nil && d.job.Env.Body == mail.BodyBinary && c.caps.binaryMIME && c.caps.chunking && !c.lmtp
}

// sendable refuses the recipients whose address, or the sender's, cannot be written in a command to this server.
func (d *delivery) sendable(c *client, todo []int) []int {
	if o := d.unsendable(c, d.job.From, "sender", "5.1.7"); o != nil && !d.job.From.IsNull() {
		for _, i := range todo {
			d.set(i, *o)
		}
		return nil
	}
	bad := func(i int) *mail.Outcome { return d.unsendable(c, d.job.Rcpts[i].To, "recipient", "5.1.3") }
	if !slices.ContainsFunc(todo, func(i int) bool { return bad(i) != nil }) {
		return todo
	}
	var fit []int
	for _, i := range todo {
		if o := bad(i); o != nil {
			d.set(i, *o)
		} else {
			fit = append(fit, i)
		}
	}
	return fit
}

// unsendable says why an address cannot be written in a command to this server. A domain has an ASCII form, a local part has
// none. A control character, or no address at all, never gets this far by itself; it would be the beginning of another command.
func (d *delivery) unsendable(c *client, a address.Address, what, enh string) *mail.Outcome {
	bad := func(code int, enh, text string) *mail.Outcome {
		o := refused(mail.ReasonPolicy, code, enh, text)
		o.MTA, o.TLS = c.mta, c.protection()
		return &o
	}
	switch {
	case a.IsNull() || hasControl(a.Local) || hasControl(a.Domain):
		return bad(553, enh, "the "+what+" address is not valid")
	case !c.caps.smtpUTF8 && !canASCII(a):
		return bad(550, "5.6.7", "the "+what+" address needs SMTPUTF8, which the server does not support")
	}
	return nil
}

func hasControl(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < ' ' || s[i] == 0x7f {
			return true
		}
	}
	return false
}

// canASCII reports an address whose local part is ASCII and whose domain has an ASCII form.
func canASCII(a address.Address) bool {
	if a.ASCII() {
		return true
	}
	b, err := a.WithASCIIDomain()
	return err == nil && b.ASCII()
}

// appendMail appends the MAIL command with the parameters this server understands.
func (t *transaction) appendMail(b []byte) []byte {
	d, c, caps := t.d, t.c, &t.c.caps
	t.utf8 = caps.smtpUTF8 && t.needsUTF8()
	b = appendPath(append(b, "MAIL FROM:"...), d.job.From, t.utf8)
	env := d.job.Env
	switch {
	case t.binary:
		b = append(b, " BODY=BINARYMIME"...)
	case caps.eightBitMIME:
		b = append(b, " BODY=8BITMIME"...)
	}
	if caps.hasSize {
		b = strconv.AppendInt(append(b, " SIZE="...), d.job.Size, 10)
	}
	if t.utf8 {
		b = append(b, " SMTPUTF8"...)
	}
	if env != nil {
		if caps.dsn { // RFC 3461 section 4
			b = appendParam(b, env.Params, "RET")
			b = appendParam(b, env.Params, "ENVID")
		}
		if caps.requireTLS && c.state != nil {
			b = appendParam(b, env.Params, "REQUIRETLS")
		}
	}
	return append(b, '\r', '\n')
}

// needsUTF8 reports a transaction with a local part or a header that is not ASCII. A domain alone is no reason: it has a form in ASCII, and
// servers behind the next one may know no other (RFC 6531 section 3.2).
func (t *transaction) needsUTF8() bool {
	if t.d.job.Env != nil && t.d.job.Env.UTF8 || !t.d.job.From.ASCIILocal() {
		return true
	}
	for _, i := range t.idx {
		if !t.to(&t.d.job.Rcpts[i]).ASCIILocal() {
			return true
		}
	}
	return false
}

// appendRcpt appends the RCPT command for the recipient.
func (t *transaction) appendRcpt(b []byte, r *mail.Recipient) []byte {
	b = appendPath(append(b, "RCPT TO:"...), t.to(r), t.utf8)
	if t.c.caps.dsn {
		b = appendParam(b, r.Params, "NOTIFY")
		from := len(b)
		b = appendParam(b, r.Params, "ORCPT")
		if !t.utf8 {
			b = escapeForeign(b, from)
		}
	}
	return append(b, '\r', '\n')
}

// escapeForeign writes what is not ASCII from an index on as "\x{HEX}": an ORCPT that came with SMTPUTF8 goes on without (RFC 6533 section 3).
func escapeForeign(b []byte, from int) []byte {
	if !smtp.EightBit(b[from:]) {
		return b
	}
	text := string(b[from:])
	b = b[:from]
	for _, r := range text {
		if r < utf8.RuneSelf {
			b = append(b, byte(r))
		} else {
			b = fmt.Appendf(b, `\x{%X}`, r)
		}
	}
	return b
}

// appendPath appends the address in angle brackets, its domain in ASCII unless the transaction has SMTPUTF8.
func appendPath(b []byte, a address.Address, utf8 bool) []byte {
	if !utf8 && !a.ASCII() {
		if ascii, err := a.WithASCIIDomain(); err == nil {
			a = ascii
		}
	}
	b = append(b, '<')
	if a.Domain != "" && plainLocal(a.Local) { // what String would give, without making a string
		b = append(append(append(b, a.Local...), '@'), a.Domain...)
	} else {
		b = append(b, a.String()...)
	}
	return append(b, '>')
}

// plainLocal reports a local part of letters, digits and dashes, which no grammar wants quoted.
func plainLocal(l string) bool {
	for i := 0; i < len(l); i++ {
		c := l[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '+' && c != '=' {
			return false
		}
	}
	return l != ""
}

func appendParam(b []byte, ps smtp.Params, keyword string) []byte {
	for _, p := range ps {
		if p.Keyword == keyword && !hasControl(p.Value) {
			b = append(append(b, ' '), keyword...)
			if p.HasValue {
				b = append(append(b, '='), p.Value...)
			}
			return b
		}
	}
	return b
}
