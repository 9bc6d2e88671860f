package dsn

import (
	"strings"
	"time"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/smtp"
)

func decodeXtext(s string) (string, bool) { return smtp.DecodeXtext(s) }

// text writes the part for people.
func (d *doc) text() {
	d.part(`text/plain; charset="utf-8"`, "Notification")
	switch d.Kind {
	case Failure:
		d.line("Your message could not be delivered to the following recipients:")
	case Delay:
		d.line("Your message has not been delivered yet to the following recipients.")
		d.line("You need not do anything: this server goes on trying.")
	case Success:
		d.line("Your message has been delivered to the following recipients:")
	}
	d.line("")
	for _, a := range d.originals() {
		d.linef("  - %s", a)
	}
	d.line("")
	d.line("")
	d.line("Technical details:")
	d.line("")
	for i := range d.Rcpts {
		r := &d.Rcpts[i]
		d.linef("- %q (%s) %s", final(r).String(), kindName(r), d.phrase(r))
		d.details(r)
		d.line("")
	}
	d.linef("The message arrived here on %s and had the queue id %s.", d.Env.Arrived.Format(time.RFC1123Z), d.Orig)
	if t := d.Env.Trace.Short(); t != "" {
		d.linef("Its trace id is %s; the administrator of %s can look it up.", t, d.host())
	}
	d.line("")
}

func (d *doc) details(r *Rcpt) {
	if d.Kind == Success {
		return
	}
	if s := reasons[r.Reason%mail.NumReasons].text; s != "" {
		d.line("    " + s)
	}
	diag := diagnostic(r)
	if diag == "" {
		return
	}
	if host := hostOf(r.MTA); host != "" && !r.Reply.IsZero() {
		d.linef("    The answer of %s was:", host)
	}
	d.line("    " + strings.ReplaceAll(diag, "\n", "\r\n    "))
}

func (d *doc) phrase(r *Rcpt) string {
	switch {
	case d.Kind == Success && r.Relayed:
		return "was handed to a mail server that does not send delivery reports."
	case d.Kind == Success:
		return "was delivered."
	case d.Kind == Delay && !r.GiveUp.IsZero():
		return "is still being tried, until " + r.GiveUp.Format(time.RFC1123Z) + ". The last failure was:"
	case d.Kind == Delay:
		return "is still being tried. The last failure was:"
	case r.Expired:
		return "failed repeatedly until it was given up. The last failure was:"
	}
	return "failed permanently:"
}

func (d *doc) host() string {
	if d.Host != "" {
		return d.Host
	}
	return d.Domain
}

func kindName(r *Rcpt) string { return r.Kind.String() }
