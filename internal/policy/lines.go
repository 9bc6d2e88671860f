package policy

import (
	"context"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/smtp"
)

// Lines refuses text of authenticated users that another server could not be given, since it has a line longer than SMTP allows
// (RFC 5321 section 4.5.3.1.6): the user's program is told at once, instead of the user by a notice later. It is a BodyCheck. Mail
// for local users only may have lines of any length.
type Lines struct {
	Local func(domain string) bool
	Send  bool // such text is sent as it is; nothing is refused
}

// Name is for metrics and the timeline.
func (Lines) Name() string { return "lines" }

var longLine = smtp.Reply{Code: 554, Enh: smtp.EnhancedCode{5, 6, 0},
	Text: "The message has a line longer than 998 octets, which other servers do not take: the sending program should use quoted-printable or base64"}

// Body looks at what was learned while the message was received.
func (c Lines) Body(_ context.Context, t *Transaction, _ Content) Verdict {
	if c.Send || !t.Env.LongLines || !t.Session.Authenticated() {
		return Verdict{}
	}
	for i := range t.Env.Rcpts {
		if r := &t.Env.Rcpts[i]; r.Kind != mail.Pipe && !c.Local(r.To.Domain) {
			return Verdict{Refuse: &longLine, Reason: "a line longer than 998 octets", Label: "bad_content", Note: "long line"}
		}
	}
	return Verdict{Note: "long line"}
}
