// Package policy decides whether to take mail, phase by phase: one file per check.
package policy

import (
	"context"
	"crypto/tls"
	"io"
	"net/netip"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/message"
	"blitiri.com.ar/go/chasquid/internal/smtp"
)

// Session is what a check may know of the connection. It is read-only for checks.
type Session struct {
	Mode       string         // "SMTP", "submission", "submission+TLS"
	Submission bool           // one of the submission modes
	Remote     netip.AddrPort // the client, behind PROXY the real one
	Hostname   string         // ours, as greeted
	EHLO       string         // as the client gave it
	ESMTP      bool           // EHLO rather than HELO was used
	TLS        *tls.ConnectionState
	User       string // authenticated "user@domain", or empty
}

// Authenticated reports whether the client authenticated.
func (s *Session) Authenticated() bool { return s.User != "" }

// Verdict is a check's answer. The zero value accepts.
type Verdict struct {
	Refuse *smtp.Reply // the reply to refuse with
	Reason string      // why, in words for the log: never sent to the client
	Label  string      // a constant for the rejection metric: "spf_fail", "unknown_user", …
	Note   string      // "spf=pass", for the timeline
	Header []byte      // header lines (CRLF) to put on top, above Received, in the order of the checks; not to be changed
	Below  []byte      // header lines (CRLF) to put between Received and the message: its signatures; not to be changed
}

// Transaction is what checks share about one message. Checks put their results here for later ones and for headers.
type Transaction struct {
	Session *Session
	Env     *mail.Envelope
	Results Results

	ID     mail.ID       // the queue id it will get, once the body phase has begun; empty if the queue gives ids later
	Prefix func() []byte // in the body phase: the header lines that will stand on top of the content, but for what later checks add

	// Added are header lines (CRLF) that the server adds to the message itself, such as Date and Message-ID: set before the
	// body checks, signed with the message and put directly on top of it, below signatures and Received.
	Added []byte

	header    *message.Header
	headerErr error
}

// Results of the checks that ran for this transaction, for Authentication-Results, hooks and later checks.
type Results struct {
	SPF       string // result token, empty if it did not run
	SPFReason string
	SPFDomain string   // the identity that was checked
	DKIM      []string // "pass", …: one per signature, in order
	DKIMPass  []string // domains with a valid signature
	Pending   []string // domains for which SPF or a signature could not be checked for now
	DMARC     string
	AuthRes   []string // method results, each a "method=result …" for Authentication-Results, in order
}

// Content is the message at the body phase.
type Content interface {
	Size() int64
	Content() io.ReadSeeker
}

// MailCheck, RcptCheck and BodyCheck are the phases; a check implements those it cares about.
// A check must return when ctx ends. Name is a constant: a metric label and timeline word.
type MailCheck interface {
	Name() string
	Mail(ctx context.Context, t *Transaction) Verdict
}

// RcptCheck runs for each RCPT; r may be changed (normalised) by the check.
type RcptCheck interface {
	Name() string
	Rcpt(ctx context.Context, t *Transaction, r *mail.Recipient) Verdict
}

// BodyCheck runs after the data was received, before the message is committed.
type BodyCheck interface {
	Name() string
	Body(ctx context.Context, t *Transaction, c Content) Verdict
}

// Learner is a check that learns from messages that were accepted. Accepted is called once the message is durable and the client was told so.
type Learner interface {
	Accepted(ctx context.Context, t *Transaction)
}
