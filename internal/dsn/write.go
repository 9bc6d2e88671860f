package dsn

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/mail"
)

// Form is what the transport of a written notice must know.
type Form struct {
	UTF8     bool // its header needs SMTPUTF8 (RFC 6531)
	EightBit bool // it has bytes beyond ASCII
}

// Write writes the notice with CRLF line ends. original is read no further than needed; nil leaves the message out.
func (n *Notice) Write(w io.Writer, original io.Reader) (Form, error) {
	d := &doc{Notice: n, w: bufio.NewWriterSize(w, 4<<10), utf8: !isASCII(n.To.Local), boundary: boundary(n.ID)}
	d.header()
	d.text()
	d.report()
	if original != nil {
		d.returned(original)
	}
	d.line("--" + d.boundary + "--")
	if err := d.w.Flush(); d.err == nil {
		d.err = err
	}
	return Form{UTF8: d.utf8, EightBit: d.high}, d.err
}

// boundary is made of the notice's id, which the author of the original message could not know.
func boundary(id mail.ID) string {
	const want = 11
	b := make([]byte, 0, want)
	for i := len(id) - 1; i >= 0 && len(b) < want; i-- {
		if c := id[i]; c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' {
			b = append(b, c)
		}
	}
	for len(b) < want {
		b = append(b, '-')
	}
	if b[want-1] == '-' {
		b[want-1] = 'x'
	}
	return string(b)
}

// doc is a notice being written.
type doc struct {
	*Notice
	w        *bufio.Writer
	boundary string
	utf8     bool // the header may hold UTF-8, because the sender's address cannot do without
	high     bool
	err      error
}

func (d *doc) raw(s string) {
	if !d.high && !isASCII(s) {
		d.high = true
	}
	if _, err := d.w.WriteString(s); err != nil && d.err == nil {
		d.err = err
	}
}

func (d *doc) line(s string) {
	d.raw(s)
	d.raw("\r\n")
}

func (d *doc) linef(format string, a ...any) { d.line(fmt.Sprintf(format, a...)) }

// addr renders an address for the header: in ASCII unless the header holds UTF-8 anyway.
func (d *doc) addr(a address.Address) string {
	if d.utf8 {
		return a.String()
	}
	if b, err := a.WithASCIIDomain(); err == nil {
		a = b
	}
	return xtext6533(a.String())
}

func (d *doc) domain() string {
	if d.utf8 {
		return d.Domain
	}
	if a, err := address.DomainToASCII(d.Domain); err == nil {
		return a
	}
	return "unknown"
}

var subjects = [...]string{
	Failure: "Mail delivery failed: returning message to sender",
	Delay:   "Mail delivery delayed: no action is needed",
	Success: "Mail delivery report: your message has arrived",
}

func (d *doc) header() {
	ref := ""
	if id := d.Env.MessageID; id != "" && (d.utf8 || isASCII(id)) {
		ref = "<" + clean(id, 900) + ">"
	}
	d.linef("From: Mail Delivery System <postmaster-dsn@%s>", d.domain())
	d.linef("To: <%s>", d.addr(d.To))
	d.linef("Subject: %s", subjects[d.Kind])
	d.linef("Message-ID: <chasquid-dsn-%s@%s>", d.ID, d.domain())
	d.linef("Date: %s", d.Now.Format(time.RFC1123Z))
	d.linef("In-Reply-To: %s", ref)
	d.linef("References: %s", ref)
	if d.Kind == Failure {
		d.failed()
	}
	d.line("Auto-Submitted: auto-replied") // RFC 3834 section 5
	d.line("MIME-Version: 1.0")
	d.line("Content-Type: multipart/report; report-type=delivery-status;")
	d.linef("    boundary=%q", d.boundary)
	d.line("")
}

// failed writes X-Failed-Recipients, folded where the line would get too long (RFC 5322 section 2.1.1).
func (d *doc) failed() {
	const name, maxLine = "X-Failed-Recipients: ", 900
	d.raw(name)
	n := len(name)
	for _, a := range d.originals() {
		s := d.addr(a) + ", "
		if n+len(s) > maxLine {
			d.raw("\r\n    ")
			n = 4
		}
		d.raw(s)
		n += len(s)
	}
	d.line("")
}

// originals returns the recipients as the sender knows them, sorted, each once.
func (d *doc) originals() []address.Address {
	var as []address.Address
	for i := range d.Rcpts {
		as = append(as, original(&d.Rcpts[i]))
	}
	slices.SortFunc(as, func(a, b address.Address) int { return strings.Compare(a.String(), b.String()) })
	return slices.Compact(as)
}

func original(r *Rcpt) address.Address {
	if r.Orig.IsNull() {
		return r.To
	}
	return r.Orig
}

// final is where the message was to go. A command is nothing the sender needs to know.
func final(r *Rcpt) address.Address {
	if r.Kind == mail.Pipe {
		return original(r)
	}
	return r.To
}

func (d *doc) part(contentType, description string) {
	d.linef("--%s", d.boundary)
	d.line("Content-Type: " + contentType)
	if strings.HasPrefix(contentType, "text/plain") {
		d.line("Content-Disposition: inline")
	}
	d.line("Content-Description: " + description)
	d.line("Content-Transfer-Encoding: 8bit")
	d.line("")
}

// report writes the part for programs (RFC 3464 section 2).
func (d *doc) report() {
	utf := d.Kind == Failure || d.needsUTF8()
	kind, atype := "message/delivery-status", "rfc822"
	if utf {
		kind, atype = "message/global-delivery-status", "utf-8" // RFC 6533 section 3
	}
	d.part(kind, "Delivery Report")
	d.linef("Reporting-MTA: dns; %s", d.domain())
	if id, ok := d.Env.Params.Get("ENVID"); ok {
		if id, ok := decodeXtext(id); ok {
			d.linef("Original-Envelope-Id: %s", clean(id, 900))
		}
	}
	if d.Kind != Failure {
		d.linef("Arrival-Date: %s", d.Env.Arrived.Format(time.RFC1123Z))
	}
	d.line("")
	for i := range d.Rcpts {
		r := &d.Rcpts[i]
		d.linef("Original-Recipient: %s", d.originalRecipient(r, atype))
		d.linef("Final-Recipient: %s; %s", atype, d.statusAddr(final(r), utf))
		d.linef("Action: %s", d.action(r))
		d.linef("Status: %s", d.status(r))
		if host := hostOf(r.MTA); host != "" && !r.Reply.IsZero() {
			d.linef("Remote-MTA: dns; %s", host)
		}
		if diag := diagnostic(r); diag != "" && d.Kind != Success {
			d.line("Diagnostic-Code: smtp; " + strings.ReplaceAll(diag, "\n", "\r\n    "))
		}
		if d.Kind == Delay && !r.GiveUp.IsZero() {
			d.linef("Will-Retry-Until: %s", r.GiveUp.Format(time.RFC1123Z))
		}
		d.line("")
	}
	d.line("")
}

func (d *doc) needsUTF8() bool {
	return slices.ContainsFunc(d.Rcpts, func(r Rcpt) bool { return !isASCII(final(&r).Local) || !isASCII(original(&r).Local) })
}

func (d *doc) statusAddr(a address.Address, utf bool) string {
	if utf {
		return a.String()
	}
	return d.addr(a)
}

// originalRecipient is what ORCPT said (RFC 3461 section 4.2), else the address as accepted.
func (d *doc) originalRecipient(r *Rcpt, atype string) string {
	if v, ok := r.Params.Get("ORCPT"); ok {
		t, a, ok := strings.Cut(v, ";")
		if strings.EqualFold(t, "rfc822") {
			if a, ok = decodeXtext(a); !isASCII(a) {
				t = "utf-8"
			}
		} // of other types, such as utf-8, the encoded form is a valid one (RFC 6533 section 3)
		if atype != "utf-8" {
			a = xtext6533(a)
		}
		if ok && t != "" && a != "" {
			return clean(t, 50) + "; " + clean(a, 900)
		}
	}
	return atype + "; " + d.statusAddr(original(r), atype == "utf-8")
}

// diagnostic is the last failure, one or more lines: the reply if a host gave one.
func diagnostic(r *Rcpt) string {
	if r.Reply.IsZero() {
		return cleanLines(r.Text)
	}
	reply := r.Reply
	head, rest, more := strings.Cut(reply.Text, "\n")
	reply.Text = head
	s := reply.String()
	if more {
		s += "\n" + rest
	}
	return cleanLines(s)
}

// hostOf returns the host name of "mx.example.org [192.0.2.1]:25".
func hostOf(mta string) string {
	host, _, _ := strings.Cut(mta, " ")
	for i := 0; i < len(host); i++ {
		if c := host[i]; c <= ' ' || c >= 0x7f {
			return ""
		}
	}
	return host
}

// returned writes the message itself, cut, or its header if that was asked for (RFC 3461 section 4.3), if the message arrived or still may,
// or if it is binary and cannot stand in an 8-bit part, or has lines that no server would take in a notice either.
func (d *doc) returned(r io.Reader) {
	ret, _ := d.Env.Params.Get("RET")
	headerOnly := d.Kind != Failure || strings.EqualFold(ret, "HDRS") || d.Env.Body == mail.BodyBinary || d.Env.LongLines
	kind, desc := "message/rfc822", "Undelivered Message"
	if d.Kind != Failure {
		desc = "Message"
	}
	switch {
	case headerOnly && d.Env.UTF8:
		kind = "message/global-headers"
	case headerOnly:
		kind = "text/rfc822-headers"
	case d.Env.UTF8:
		kind = "message/global"
	}
	d.part(kind, desc)
	switch d.copy(io.LimitReader(r, MaxReturned), headerOnly) {
	case '\n':
	case '\r':
		d.raw("\n")
	default:
		d.line("")
	}
	d.line("")
}

// cutLine cuts what was read of a line to what fits: the beginning, and none of the rest.
func cutLine(chunk []byte, start bool) []byte {
	whole := chunk[len(chunk)-1] == '\n'
	switch {
	case start && len(chunk) <= mail.MaxLine+2:
		return chunk
	case start && whole:
		return append(chunk[:mail.MaxLine:mail.MaxLine], "\r\n"...)
	case start:
		return chunk[:mail.MaxLine]
	case whole:
		return []byte("\r\n")
	}
	return nil
}

// copy copies the message, or its header, and returns its last byte.
func (d *doc) copy(r io.Reader, headerOnly bool) (last byte) {
	last = '\n'
	br := bufio.NewReaderSize(r, 16<<10)
	start := true
	for d.err == nil {
		chunk, err := br.ReadSlice('\n')
		if headerOnly && start && len(strings.Trim(string(chunk), "\r\n")) == 0 {
			return last
		}
		if headerOnly && d.Env.LongLines && len(chunk) > 0 {
			chunk = cutLine(chunk, start)
		}
		if len(chunk) > 0 {
			last = chunk[len(chunk)-1]
			start = last == '\n'
			d.raw(string(chunk))
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			if err != io.EOF {
				d.err = fmt.Errorf("reading the message: %w", err)
			}
			return last
		}
	}
	return last
}

func isASCII(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// clean makes a string from outside safe inside one header line.
func clean(s string, limit int) string {
	s = strings.ToValidUTF8(s, "?")
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, s)
	return cut(s, limit)
}

func cut(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	for limit > 0 && !utf8.RuneStart(s[limit]) {
		limit--
	}
	return s[:limit]
}

// cleanLines makes a failure in words safe: bounded lines without control characters.
func cleanLines(s string) string {
	const maxLines, maxLine = 30, 500
	var out []string
	for l := range strings.SplitSeq(s, "\n") {
		if l = strings.TrimRight(clean(l, maxLine), " "); l != "" {
			out = append(out, l)
		}
		if len(out) == maxLines {
			break
		}
	}
	return strings.Join(out, "\n")
}

// xtext6533 renders non-ASCII characters as utf-8-addr-xtext does (RFC 6533 section 3).
func xtext6533(s string) string {
	if isASCII(s) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if r < utf8.RuneSelf {
			b.WriteRune(r)
		} else {
			fmt.Fprintf(&b, `\x{%X}`, r)
		}
	}
	return b.String()
}
