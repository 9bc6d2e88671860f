// Package trace follows one operation: a span travels in the context, is annotated by whoever works for it, and is mirrored into golang.org/x/net/trace.
//
// A message has one trace id from accept to the final reply, kept with it in the queue; whatever is done for it, now or days later, is a
// span of that trace. A connection has a trace of its own, linked to those of its messages. Spans go to the Recorder that main puts into
// the context. It decides when a span ends whether its trace is worth keeping, within a fixed budget of memory, and changes its mind when
// something that happens later to the same message goes wrong.
//
// Annotations are for operators: they never carry secrets. Callers keep AUTH exchanges, passwords and message content out of them.
package trace

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

// ID is the 128-bit id of one message's trace, the same from accept to the final reply. The zero value means "none".
type ID [16]byte

// NewID returns a random id. Ids name traces; they are no secrets.
func NewID() (id ID) {
	binary.LittleEndian.PutUint64(id[:8], rand.Uint64()|1) // not zero, which is "none" (and is invalid in W3C Trace Context)
	binary.LittleEndian.PutUint64(id[8:], rand.Uint64()|1)
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
	var b [16]byte
	hex.Encode(b[:], id[:8])
	return string(b[:])
}

// MarshalText renders the id as String does.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText parses what MarshalText renders.
func (id *ID) UnmarshalText(b []byte) (err error) {
	*id = ID{}
	if len(b) > 0 {
		*id, err = ParseID(string(b))
	}
	return err
}

// ParseID parses 32 hex digits.
func ParseID(s string) (id ID, err error) {
	if len(s) != 2*len(id) {
		return ID{}, fmt.Errorf("bad trace id %q", s)
	}
	if _, err := hex.Decode(id[:], []byte(s)); err != nil {
		return ID{}, fmt.Errorf("bad trace id %q", s)
	}
	return id, nil
}

// SpanID names one span of a trace. The zero value means "none".
type SpanID [8]byte

func newSpanID() (id SpanID) {
	binary.LittleEndian.PutUint64(id[:], rand.Uint64()|1)
	return id
}

// String renders the id as 16 hex digits, "" for the zero value.
func (id SpanID) String() string {
	if id == (SpanID{}) {
		return ""
	}
	return hex.EncodeToString(id[:])
}

// MarshalText renders the id as String does.
func (id SpanID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText parses what MarshalText renders.
func (id *SpanID) UnmarshalText(b []byte) error {
	*id = SpanID{}
	if n, err := hex.Decode(id[:], b[:min(len(b), 2*len(id))]); len(b) > 0 && (err != nil || n != len(id) || len(b) != 2*len(id)) {
		return fmt.Errorf("bad span id %q", b)
	}
	return nil
}

// Traceparent renders the ids as the W3C Trace Context header "traceparent", which hooks and delivery agents get as TRACEPARENT. It is ""
// if there is no trace. Without a span, an id derived from the trace's stands in, as the format demands one.
func Traceparent(id ID, span SpanID) string {
	if id == (ID{}) {
		return ""
	}
	if span == (SpanID{}) {
		copy(span[:], id[8:])
		span[0] |= 1
	}
	var b [55]byte
	copy(b[:], "00-")
	hex.Encode(b[3:], id[:])
	b[35] = '-'
	hex.Encode(b[36:], span[:])
	copy(b[52:], "-01")
	return string(b[:])
}

// ParseTraceparent parses a W3C "traceparent" (Trace Context, section 3.2). Versions to come are read as far as this one goes.
func ParseTraceparent(s string) (id ID, span SpanID, ok bool) {
	if len(s) < 55 || s[2] != '-' || s[35] != '-' || s[52] != '-' || s[:2] == "ff" || strings.ToLower(s) != s {
		return ID{}, SpanID{}, false
	}
	if len(s) > 55 && (s[:2] == "00" || s[55] != '-') {
		return ID{}, SpanID{}, false
	}
	var flags, version [1]byte
	for _, p := range []struct{ dst, src []byte }{{version[:], []byte(s[:2])}, {id[:], []byte(s[3:35])}, {span[:], []byte(s[36:52])}, {flags[:], []byte(s[53:55])}} {
		if _, err := hex.Decode(p.dst, p.src); err != nil {
			return ID{}, SpanID{}, false
		}
	}
	if id == (ID{}) || span == (SpanID{}) {
		return ID{}, SpanID{}, false
	}
	return id, span, true
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

// MarshalText renders the family's name.
func (f Family) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText parses what MarshalText renders.
func (f *Family) UnmarshalText(b []byte) error {
	var ok bool
	if *f, ok = ParseFamily(string(b)); !ok {
		return fmt.Errorf("unknown trace family %q", b)
	}
	return nil
}

// ParseFamily is the inverse of String.
func ParseFamily(s string) (Family, bool) {
	for i, n := range familyNames {
		if n == s {
			return Family(i), true
		}
	}
	return 0, false
}

// Families lists all families.
func Families() []Family {
	fs := make([]Family, numFamilies)
	for i := range fs {
		fs[i] = Family(i)
	}
	return fs
}

// late says that an error of the family is worth the whole story of its message, however long ago that began: a delivery that failed.
func (f Family) late() bool { return f >= QueuePut && f <= DeliveryPipe }

// mirrored says that spans of the family go to golang.org/x/net/trace.
func (f Family) mirrored() bool { return f <= SMTPTransaction || f.late() }

type (
	spanKey     struct{}
	recorderKey struct{}
)

// spanCtx is a span as the context that carries it, and by it the recorder.
type spanCtx Span

func (c *spanCtx) Deadline() (time.Time, bool) { return c.up.Deadline() }

func (c *spanCtx) Done() <-chan struct{} { return c.up.Done() }

func (c *spanCtx) Err() error { return c.up.Err() }

// Value returns what the context carries under the key.
func (c *spanCtx) Value(key any) any {
	switch key.(type) {
	case spanKey:
		return (*Span)(c)
	case recorderKey:
		if c.rec != nil {
			return c.rec
		}
	}
	if c.labels != nil {
		if v := c.labels.Value(key); v != nil {
			return v
		}
	}
	return c.up.Value(key)
}

// WithRecorder returns a context whose spans go to r. Without one in the context, spans cost nothing and go nowhere.
func WithRecorder(ctx context.Context, r *Recorder) context.Context {
	return context.WithValue(ctx, recorderKey{}, r)
}

// RecorderFrom returns the context's recorder, nil if there is none.
func RecorderFrom(ctx context.Context) *Recorder {
	r, _ := ctx.Value(recorderKey{}).(*Recorder)
	return r
}

// From returns the context's span, nil if there is none.
func From(ctx context.Context) *Span {
	if c, ok := ctx.(*spanCtx); ok {
		return (*Span)(c)
	}
	s, _ := ctx.Value(spanKey{}).(*Span)
	return s
}

// Start begins a span of the family as a child of the context's span, or else as the first of a new trace, and returns a context that
// carries it. title is short, made for people, and no part of a larger string. Whoever starts a span finishes it, on the same goroutine
// if goroutine labels are on.
func Start(ctx context.Context, f Family, title string) (context.Context, *Span) {
	p := From(ctx)
	if p == nil {
		if r := RecorderFrom(ctx); r != nil {
			return r.start(ctx, f, title, NewID(), SpanID{}, nil)
		}
		return ctx, nil
	}
	if p.rec == nil {
		return ctx, p
	}
	return p.rec.start(ctx, f, title, p.id, p.sid, p)
}

// StartMessage begins a span that belongs to the message trace id, linked to the context's span rather than its child. Without a recorder
// the span does nothing but know its id.
func StartMessage(ctx context.Context, f Family, title string, id ID) (context.Context, *Span) {
	p := From(ctx)
	if p != nil && p.id == id {
		return Start(ctx, f, title)
	}
	if r := RecorderFrom(ctx); r != nil {
		return r.start(ctx, f, title, id, SpanID{}, p)
	}
	s := &Span{up: ctx, family: f, title: title, id: id}
	return (*spanCtx)(s), s
}
