// Package queue takes responsibility for a message and keeps it until every recipient has a final outcome.
package queue

import (
	"errors"
	"io"
	"iter"
	"time"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/smtp"
)

// Status is where one recipient stands. The values are those of existing queue files.
type Status uint8

// The statuses.
const (
	Pending Status = 0
	Sent    Status = 1
	Failed  Status = 2
)

// String returns the name as queue files and pages show it.
func (s Status) String() string {
	switch s {
	case Pending:
		return "PENDING"
	case Sent:
		return "SENT"
	case Failed:
		return "FAILED"
	}
	return "UNKNOWN"
}

// RcptStatus is the mutable part of one recipient: what Store.Update replaces.
type RcptStatus struct {
	Status   Status
	Attempts int
	Next     time.Time   // when to try next, if pending; persisted so that a restart does not stampede
	Reason   mail.Reason // of the last failure
	Reply    smtp.Reply  // the last reply of the remote
	MTA      string      // who gave it
	Text     string      // the last failure in words, at most 1 KiB
	Relayed  bool
	Notified Notified // which notices were sent already
	Held     bool     // by an operator: not attempted until released
}

// Notified is a set of notices already queued for a recipient.
type Notified uint8

// The notices.
const (
	NotifiedDelay Notified = 1 << iota
	NotifiedSuccess
	NotifiedFailure
)

// Entry is one stored message without its body.
type Entry struct {
	ID     mail.ID
	Env    mail.Envelope // Rcpts are the final recipients
	Status []RcptStatus  // one per Env.Rcpts, same order
	Size   int64         // of prefix and body together
}

// Incoming is a message being written. It is used by one goroutine; exactly one of Commit and Discard ends it.
type Incoming interface {
	io.Writer
	Size() int64
	Content() io.ReadSeeker
	// Commit stores prefix + content and the entry under e.ID and returns when both are durable: the barrier started after the
	// last write. Committing an id that exists is a no-op that returns ErrExists.
	Commit(e *Entry, prefix []byte) error
	Discard()
}

// Store keeps messages on disk. Implementations are safe for concurrent use and pass the suite in queue/storetest.
type Store interface {
	Create() (Incoming, error)
	// All yields every stored message once, in order of arrival as far as known: recovery and ordinary start are the same code.
	// An error is yielded with the entry's id, if known, and does not end the iteration: that message was set aside.
	All() iter.Seq2[Entry, error]
	// Load reads one entry back: envelope and the present status of its recipients.
	Load(mail.ID) (Entry, error)
	// Open reads the message: prefix and body.
	Open(mail.ID) (io.ReadCloser, error)
	// Update makes new states of some recipients durable before it returns. It may be called for different messages at once.
	Update(id mail.ID, us ...RcptUpdate) error
	// Remove forgets the message. After a crash a removed message may come back only if Remove had not returned.
	Remove(mail.ID) error
	Close() error
}

// RcptUpdate is a new state of the recipient with index Rcpt.
type RcptUpdate struct {
	Rcpt  int
	State RcptStatus
}

// Errors of stores.
var (
	ErrExists   = errors.New("message exists already")
	ErrNotFound = errors.New("no such message in the queue")
	ErrFull     = errors.New("not enough free disk space for the queue") // 452 4.3.1
	ErrBroken   = errors.New("the queue's disk failed")                  // 451, not ready: a flush failed
	ErrCorrupt  = errors.New("stored message is damaged")
	ErrClosed   = errors.New("queue is closed")
)
