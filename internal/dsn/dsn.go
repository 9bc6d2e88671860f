// Package dsn decides when a sender is told what became of a message, and writes the notice.
//
// Notices are multipart/report messages (RFC 3461, RFC 3464, RFC 6522, and RFC 6533 where addresses need UTF-8): a text for people, a
// status for programs, and the message or its header. The layout of failure notices is the one existing tools compare byte by byte.
package dsn

import (
	"strings"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/smtp"
)

// Kind is what a notice is about.
type Kind uint8

// The kinds of notices.
const (
	Failure Kind = iota // will not be delivered
	Delay               // not yet delivered
	Success             // delivered, or handed to a host that cannot report
)

// String returns the name used in metrics, events and logs.
func (k Kind) String() string { return [...]string{"failure", "delay", "success"}[k%3] }

// Wanted reports whether the sender is to be told this about the recipient (RFC 3461 section 4.1). The null sender is never told anything
// (RFC 5321 section 6.1). Without NOTIFY, failures and delays are told and successes are not.
func Wanted(k Kind, env *mail.Envelope, r *mail.Recipient) bool {
	if env.From.IsNull() {
		return false
	}
	notify, ok := r.Params.Get("NOTIFY")
	if !ok {
		return k != Success
	}
	for word := range strings.SplitSeq(notify, ",") {
		if strings.EqualFold(word, [...]string{"FAILURE", "DELAY", "SUCCESS"}[k%3]) {
			return true
		}
	}
	return false
}

// Rcpt is one recipient that a notice tells about.
type Rcpt struct {
	mail.Recipient
	Expired bool        // given up after too long, rather than refused
	Relayed bool        // delivered to a host that does not report
	Reason  mail.Reason // of the last failure
	Reply   smtp.Reply  // the last reply of the remote host, zero if there was none
	MTA     string      // that host: "mx.example.org [192.0.2.1]:25"
	Text    string      // the last failure in words
	GiveUp  time.Time   // when it will be given up, for delays
}

// Notice is one notice to be written.
type Notice struct {
	Kind   Kind
	ID     mail.ID // of the notice
	Orig   mail.ID // of the message it is about
	Env    *mail.Envelope
	Rcpts  []Rcpt
	To     address.Address // usually Env.From
	Domain string          // the local domain that the notice comes from
	Host   string          // our host name
	Now    time.Time
}

// MaxReturned is how much of the message comes back in a notice, in bytes.
const MaxReturned = 256 << 10

// status returns the enhanced status code to report (RFC 3463): the remote's if it gave one, else what the reason tells.
func (n *Notice) status(r *Rcpt) string {
	class := uint16(5)
	switch {
	case n.Kind == Success:
		class = 2
	case n.Kind == Delay || r.Expired:
		class = 4
	}
	e := r.Reply.Enh
	if e == (smtp.EnhancedCode{}) {
		e = reasons[r.Reason%mail.NumReasons].status
		if e == (smtp.EnhancedCode{}) && r.Expired {
			e = smtp.EnhancedCode{4, 4, 7} // delivery time expired
		}
	}
	if n.Kind == Success {
		e = smtp.EnhancedCode{}
	}
	e[0] = class // a remote that says "550 4.2.1" means the 550
	return e.String()
}

func (n *Notice) action(r *Rcpt) string {
	switch {
	case n.Kind == Failure:
		return "failed"
	case n.Kind == Delay:
		return "delayed"
	case r.Relayed:
		return "relayed"
	}
	return "delivered"
}

// reasons maps a class of failures to a status, where no host gave one, and to a sentence for the sender.
var reasons = [mail.NumReasons]struct {
	status smtp.EnhancedCode // the class digit is set by the kind of notice
	text   string
}{
	mail.ReasonDNS:            {smtp.EnhancedCode{0, 4, 3}, "The name servers of the recipient's domain gave no usable answer."},
	mail.ReasonNoMX:           {smtp.EnhancedCode{0, 1, 2}, "The recipient's domain does not exist or does not take mail. Check the part after the @ for a typing error."},
	mail.ReasonConnectTimeout: {smtp.EnhancedCode{0, 4, 1}, "The recipient's mail server did not answer."},
	mail.ReasonConnectRefused: {smtp.EnhancedCode{0, 4, 1}, "The recipient's mail server refused the connection."},
	mail.ReasonNetwork:        {smtp.EnhancedCode{0, 4, 2}, "The connection to the recipient's mail server broke."},
	mail.ReasonTLS:            {smtp.EnhancedCode{0, 7, 5}, "No secure connection to the recipient's mail server could be made."},
	mail.ReasonSTSPolicy:      {smtp.EnhancedCode{0, 7, 5}, "The recipient's domain demands a secure connection, and its mail server did not offer one."},
	mail.ReasonSecurityLevel:  {smtp.EnhancedCode{0, 7, 5}, "The connection to the recipient's mail server was less secure than before, so it was not used."},
	mail.ReasonGreylist:       {text: "The recipient's mail server asked to try again later."},
	mail.ReasonRateLimit:      {text: "The recipient's mail server is busy or takes only so much mail at a time."},
	mail.ReasonMailbox:        {text: "The recipient's mailbox does not exist or cannot take the message. Check the address for a typing error."},
	mail.ReasonPolicy:         {text: "The recipient's mail server does not want the message."},
	mail.ReasonRemoteOther:    {text: "The recipient's mail server did not take the message."},
	mail.ReasonMDA:            {text: "The message could not be put into the recipient's mailbox."},
	mail.ReasonPipe:           {text: "The program that takes the recipient's mail failed."},
	mail.ReasonInternal:       {text: "This server had a problem of its own."},
	mail.ReasonExpired:        {text: "The recipient's mail server could not be reached for too long."},
}
