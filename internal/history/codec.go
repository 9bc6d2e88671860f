package history

import (
	"encoding/binary"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/timeline"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// Events are kept as bytes from the moment they are observed: kind, time in microseconds, then tagged fields, each with its length.
// A field that is empty is left out; an unknown tag is skipped, so that older readers survive newer writers.
const (
	tagEnd byte = iota
	tagTrace
	tagMode
	tagClient
	tagUser
	tagMessageID
	tagFrom
	tagRcpt
	tagOrig
	tagAttempt
	tagDisposition
	tagReason
	tagCode
	tagReply
	tagMTA
	tagTLS
	tagSize
	tagWait
	tagTook
	tagOther
	tagText
	tagError
	tagID
)

// Limits on what is kept of one event.
const (
	maxText  = 2 << 10 // bytes of a reply, error or other text
	maxRcpts = 100     // recipients listed with one event
)

// Event is one event as it is read back.
type Event struct {
	At          time.Time     `json:"at"`
	Kind        string        `json:"kind"`
	ID          mail.ID       `json:"-"`
	Trace       trace.ID      `json:"-"`
	Mode        string        `json:"mode,omitempty"`
	Client      string        `json:"client,omitempty"`
	User        string        `json:"user,omitempty"`
	MessageID   string        `json:"message_id,omitempty"`
	From        string        `json:"from,omitempty"`
	Rcpts       []string      `json:"recipients,omitempty"`
	Orig        string        `json:"original_recipient,omitempty"`
	Attempt     int           `json:"attempt,omitempty"`
	Disposition string        `json:"disposition,omitempty"`
	Reason      string        `json:"reason,omitempty"`
	Reply       string        `json:"reply,omitempty"`
	MTA         string        `json:"mta,omitempty"`
	TLS         string        `json:"tls,omitempty"`
	Size        int64         `json:"size,omitempty"`
	Wait        time.Duration `json:"wait_ns,omitempty"`
	Took        time.Duration `json:"took_ns,omitempty"`
	Other       string        `json:"other_id,omitempty"`
	Text        string        `json:"text,omitempty"`
	Error       string        `json:"error,omitempty"`
	kind        timeline.Kind //
	disposition mail.Disposition
}

// appendEvent encodes e. names maps an address to what is kept of it: itself, or its hash.
func appendEvent(b []byte, e *timeline.Event, names func(address.Address) string) []byte {
	b = append(b, byte(e.Kind))
	b = binary.AppendVarint(b, e.At.UnixMicro())
	b = appendString(b, tagID, string(e.ID))
	if e.Trace != (trace.ID{}) {
		b = appendString(b, tagTrace, string(e.Trace[:]))
	}
	b = appendString(b, tagMode, e.Mode)
	b = appendString(b, tagClient, e.Client)
	b = appendString(b, tagUser, e.User)
	b = appendString(b, tagMessageID, e.MessageID)
	if e.Kind == timeline.Queued || !e.From.IsNull() {
		b = appendString(b, tagFrom, names(e.From))
	}
	for i, r := range e.Rcpts {
		if i == maxRcpts {
			break
		}
		b = appendString(b, tagRcpt, names(r))
	}
	if r := e.Rcpt; r != nil {
		if r.Kind == mail.Pipe {
			b = appendString(b, tagRcpt, r.Target())
		} else {
			b = appendString(b, tagRcpt, names(r.To))
		}
		if r.Orig != r.To {
			b = appendString(b, tagOrig, names(r.Orig))
		}
	}
	b = appendInt(b, tagAttempt, int64(e.N))
	if o := e.Outcome; o != nil {
		b = append(b, tagDisposition, 1, byte(o.Disposition))
		if o.Reason != mail.ReasonNone {
			b = append(b, tagReason, 1, byte(o.Reason))
		}
		if !o.Reply.IsZero() {
			b = appendString(b, tagReply, o.Reply.String())
		}
		b = appendString(b, tagMTA, o.MTA)
		b = appendString(b, tagTLS, o.TLS)
		if o.Err != nil {
			b = appendString(b, tagError, o.Err.Error())
		}
	}
	if !e.Reply.IsZero() {
		b = appendString(b, tagReply, e.Reply.String())
	}
	b = appendInt(b, tagSize, e.Size)
	b = appendInt(b, tagWait, int64(e.Wait))
	b = appendInt(b, tagTook, int64(e.Took))
	b = appendString(b, tagOther, string(e.Other))
	b = appendString(b, tagText, e.Text)
	if e.Err != nil {
		b = appendString(b, tagError, e.Err.Error())
	}
	return append(b, tagEnd)
}

func appendString(b []byte, tag byte, s string) []byte {
	if s == "" {
		return b
	}
	if len(s) > maxText {
		s = s[:maxText]
	}
	b = binary.AppendUvarint(append(b, tag), uint64(len(s)))
	return append(b, s...)
}

func appendInt(b []byte, tag byte, n int64) []byte {
	if n == 0 {
		return b
	}
	var v [binary.MaxVarintLen64]byte
	return appendString(b, tag, string(v[:binary.PutVarint(v[:], n)]))
}

// field is one tagged value of an encoded event.
type field struct {
	tag   byte
	value []byte
}

// walk calls f for each field of the event at the start of b, and returns the rest. ok is false if b is damaged.
func walk(b []byte, f func(field)) (kind timeline.Kind, at int64, rest []byte, ok bool) {
	if len(b) < 2 {
		return 0, 0, nil, false
	}
	kind = timeline.Kind(b[0])
	at, n := binary.Varint(b[1:])
	if n <= 0 {
		return 0, 0, nil, false
	}
	b = b[1+n:]
	for len(b) > 0 {
		tag := b[0]
		b = b[1:]
		if tag == tagEnd {
			return kind, at, b, true
		}
		l, n := binary.Uvarint(b)
		if n <= 0 || l > uint64(len(b)-n) {
			return 0, 0, nil, false
		}
		f(field{tag, b[n : n+int(l)]})
		b = b[n+int(l):]
	}
	return 0, 0, nil, false
}

// decodeEvent decodes the event at the start of b and returns the rest.
func decodeEvent(b []byte) (e Event, rest []byte, ok bool) {
	var kind timeline.Kind
	var at int64
	kind, at, rest, ok = walk(b, func(f field) { e.set(f) })
	e.kind, e.Kind, e.At = kind, kind.String(), time.UnixMicro(at)
	return e, rest, ok
}

func (e *Event) set(f field) {
	s := string(f.value)
	switch f.tag {
	case tagID:
		e.ID = mail.ID(s)
	case tagTrace:
		copy(e.Trace[:], s)
	case tagMode:
		e.Mode = s
	case tagClient:
		e.Client = s
	case tagUser:
		e.User = s
	case tagMessageID:
		e.MessageID = s
	case tagFrom:
		e.From = s
	case tagRcpt:
		e.Rcpts = append(e.Rcpts, s)
	case tagOrig:
		e.Orig = s
	case tagReply:
		e.Reply = s
	case tagMTA:
		e.MTA = s
	case tagTLS:
		e.TLS = s
	case tagOther:
		e.Other = s
	case tagText:
		e.Text = s
	case tagError:
		e.Error = s
	default:
		e.setNumber(f)
	}
}

func (e *Event) setNumber(f field) {
	n, _ := binary.Varint(f.value)
	switch f.tag {
	case tagAttempt:
		e.Attempt = int(n)
	case tagSize:
		e.Size = n
	case tagWait:
		e.Wait = time.Duration(n)
	case tagTook:
		e.Took = time.Duration(n)
	case tagDisposition:
		if len(f.value) == 1 {
			e.disposition = mail.Disposition(f.value[0])
			e.Disposition = e.disposition.String()
		}
	case tagReason:
		if len(f.value) == 1 {
			e.Reason = mail.Reason(f.value[0]).String()
		}
	}
}
