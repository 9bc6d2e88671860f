// Package mail holds the nouns of the trade: envelope, recipient, route, job, draft, outcome.
package mail

import (
	"context"
	"io"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/smtp"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// ID names one queued message: sortable by time, never reused, safe in file names and headers.
type ID string

// Kind says what a recipient is once aliases are expanded. The values are those of existing queue files.
type Kind uint8

// The kinds of recipient.
const (
	Email   Kind = 0 // a mailbox, local or remote
	Pipe    Kind = 1 // a command that takes the message on its standard input
	Forward Kind = 2 // a mailbox to be reached through the servers of Via
)

// String returns the name as queue files and pages show it.
func (k Kind) String() string {
	switch k {
	case Email:
		return "EMAIL"
	case Pipe:
		return "PIPE"
	case Forward:
		return "FORWARD"
	}
	return "UNKNOWN"
}

// Recipient is one final recipient of a message.
type Recipient struct {
	Kind    Kind
	To      address.Address // the mailbox to deliver to; zero for a pipe
	Command string          // the command of a pipe
	Via     []string        // the servers of a forward, tried in order
	Orig    address.Address // as accepted at RCPT, before aliases
	Detail  string          // of a local mailbox: the suffix of Orig that To lost, "tag" of "user+tag"; empty if there was none
	Params  smtp.Params     // of RCPT as given: kept verbatim for the next hop and the notice

	NotBefore time.Time // not attempted earlier; zero: at once
	GiveUp    time.Time // not attempted later; zero: the queue's default
}

// Target is the mailbox or "|command" of the recipient, for logs and pages.
func (r Recipient) Target() string {
	if r.Kind == Pipe {
		return "|" + r.Command
	}
	return r.To.String()
}

// Envelope is who a message is from and for (RFC 5321 section 2.3.1), and how it came here.
type Envelope struct {
	From    address.Address // MAIL FROM; null for notices
	Params  smtp.Params     // of MAIL as given
	Rcpts   []Recipient
	Arrived time.Time
	Trace   trace.ID

	Client    string // "ip:port" of the client, empty for mail made here
	Auth      string // the authenticated user "user@domain", or empty
	Source    Source
	MessageID string // the Message-ID header, without angle brackets, at most 256 bytes
	UTF8      bool   // the message needs SMTPUTF8 (RFC 6531 section 3.5)
	Body      Body   // the body type declared, or found
	LongLines bool   // text with a line longer than MaxLine
}

// MaxLine is the most octets in a line of text, without its CRLF (RFC 5321 section 4.5.3.1.6, RFC 5322 section 2.1.1).
const MaxLine = 998

// Source says where a message entered the queue.
type Source uint8

// The sources.
const (
	FromSMTP Source = iota // port 25
	FromSubmission
	FromDSN   // a notice made here
	FromAdmin // an operator, an import
)

// String returns the name used as a metric label.
func (s Source) String() string {
	return [...]string{"smtp", "submission", "dsn", "admin"}[s&3]
}

// Body is the body type of RFC 6152 and RFC 3030.
type Body uint8

// The body types.
const (
	Body7Bit Body = iota
	Body8Bit
	BodyBinary
)

// Draft is a message being received: nobody's responsibility yet. Bytes are the wire form, with CRLF, without dot stuffing.
// It is used by one goroutine. Exactly one of Commit and Discard ends it; Discard after Commit does nothing.
type Draft interface {
	io.Writer
	// Size is the number of bytes written so far.
	Size() int64
	// Content reads what was written so far, from its start.
	Content() io.ReadSeeker
	// Commit makes prefix + content durable with the envelope and takes responsibility for it. When it returns nil, the
	// message survives any crash. An error that is (or wraps) an smtp.Reply is what the client is told. The envelope, its list of
	// recipients and prefix are the caller's again when it returns.
	Commit(ctx context.Context, env *Envelope, prefix []byte) (ID, error)
	Discard()
}

// Disposition is what became of one attempt for one recipient.
type Disposition uint8

// The dispositions. The zero value is the safe one.
const (
	Deferred Disposition = iota
	Delivered
	Failed
)

// String returns the name used in logs and as a metric label.
func (d Disposition) String() string {
	switch d {
	case Delivered:
		return "delivered"
	case Failed:
		return "bounced"
	}
	return "deferred"
}

// Outcome is the result of one attempt for one recipient.
type Outcome struct {
	Disposition Disposition
	Reason      Reason     // the class of the failure; ReasonNone when delivered
	Reply       smtp.Reply // the remote's final reply, zero if it never answered
	MTA         string     // the host that answered or was tried last, "mx.example.org [192.0.2.1]:25"
	TLS         string     // how the connection was protected: "plain", "insecure TLS1.3", "secure TLS1.3 (MTA-STS)"
	Relayed     bool       // delivered to a host that does not support DSN (RFC 3461 section 5.2.2)
	Err         error      // what went wrong, for people; nil when delivered

	RetryAfter time.Duration // not worth another attempt earlier, by the remote's words; 0: nothing known. A hint for the scheduler
}

// Route says where a recipient goes next and why.
type Route struct {
	Transport Transport
	Domain    string   // the domain whose MX are used, or the local domain; empty for pipes
	Hosts     []string // "host" or "host:port" tried in order instead of MX: via servers, a smarthost
	Target    string   // transport-specific: LMTP address, Maildir template, command, smarthost URL
	Why       string   // a sentence for people
}

// Transport is how a message leaves.
type Transport uint8

// The transports.
const (
	Local   Transport = iota // MDA command, LMTP or Maildir: whatever local delivery is configured
	SMTP                     // by MX of Domain
	Relay                    // SMTP to Hosts: via servers or a smarthost
	Command                  // a pipe
)

// String returns the name used as a metric label (RTYPE).
func (t Transport) String() string {
	return [...]string{"local", "remote", "forward", "pipe"}[t&3]
}

// Job is one transaction to attempt: some recipients of one message that share a route.
type Job struct {
	ID      ID
	Env     *Envelope // shared and read-only; its Rcpts are all of the message, of which the job has some
	From    address.Address
	Rcpts   []Recipient
	Route   Route
	Attempt int   // 1 for the first
	Size    int64 // bytes that Open yields
	Open    func() (io.ReadCloser, error)
}
