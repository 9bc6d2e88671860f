// Package timeline is what happened to one message: typed events, handed in order to their observers.
package timeline

import (
	"sync"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/smtp"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// Kind is the type of an event.
type Kind uint8

// The kinds of events.
const (
	Auth     Kind = iota // an authentication: User, Client, Err nil when it succeeded
	Refused              // a command or message was refused: Client, From, Rcpts, Reply, Text is the reason
	Check                // a check gave its verdict: Text is "name: verdict", before the message has an id
	Queued               // responsibility taken: Client, From, Rcpts as given at RCPT, Size
	Expanded             // aliases resolved: Rcpt is a final recipient
	Attempt              // one attempt for one recipient ended: Rcpt, Outcome, N
	LoopEnd              // a round ended with recipients left: Wait until the next
	Notice               // a notice was queued: Text is its kind, Other its id
	Final                // no recipient is left: the message leaves the queue
	Operator             // an operator did something: Text says who and what
	Listen               // the server listens: Text is the address
)

var kindNames = [...]string{"auth", "refused", "check", "queued", "expanded", "attempt", "wait", "notice", "final", "operator", "listen"}

// String returns the kind's name.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return "unknown"
}

// Event is one happening. Which fields are set depends on Kind. Observers must not change what it points to.
type Event struct {
	Kind      Kind
	At        time.Time
	ID        mail.ID
	Trace     trace.ID
	Mode      string // the listener's mode
	Client    string // "ip:port"
	User      string // "user@domain"
	MessageID string
	From      address.Address
	Rcpts     []address.Address
	Rcpt      *mail.Recipient
	N         int // attempt number
	Outcome   *mail.Outcome
	Reply     smtp.Reply
	Size      int64
	Wait      time.Duration
	Took      time.Duration
	Other     mail.ID
	Text      string
	Err       error
}

var events = sync.Pool{New: func() any { return new(Event) }}

// New returns an event to fill in. Whoever made it may Free it once it was observed: nobody keeps it.
func New(k Kind) *Event {
	e := events.Get().(*Event)
	e.Kind = k
	return e
}

// Free gives the event back for another use.
func (e *Event) Free() {
	*e = Event{}
	events.Put(e)
}

// Observer takes events. Observe is called in order for one message, must not block, and must neither keep the event nor pointers
// it may change.
type Observer interface{ Observe(*Event) }

// Observers hands each event to all of them in turn. A nil list does nothing.
type Observers []Observer

// Observe stamps the event with the time, if it has none, and hands it on.
func (os Observers) Observe(e *Event) {
	if e.At.IsZero() {
		e.At = time.Now()
	}
	for _, o := range os {
		o.Observe(e)
	}
}
