package history

import (
	"encoding/binary"
	"strconv"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/smtp"
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

// encoder writes events; hash replaces addresses by what is kept of them, nil keeps them.
type encoder struct {
	hash func(address.Address) string
}

// append encodes e. What the first event of a message says of it (sender, client, trace) is left out of the others, and the id of all: see
// appendID.
func (c encoder) append(b []byte, e *timeline.Event) []byte {
	b = append(b, byte(e.Kind))
	b = binary.AppendVarint(b, e.At.UnixMicro())
	switch e.Kind {
	case timeline.Queued, timeline.Refused, timeline.Auth:
		b = c.appendOrigin(b, e)
	}
	for i, r := range e.Rcpts {
		if i == maxRcpts {
			break
		}
		b = c.appendAddress(b, tagRcpt, r)
	}
	if r := e.Rcpt; r != nil {
		if r.Kind == mail.Pipe {
			b = appendString(b, tagRcpt, r.Target())
		} else {
			b = c.appendAddress(b, tagRcpt, r.To)
		}
		if r.Orig != r.To {
			b = c.appendAddress(b, tagOrig, r.Orig)
		}
	}
	b = appendInt(b, tagAttempt, int64(e.N))
	if e.Outcome != nil {
		b = appendOutcome(b, e.Outcome)
	}
	if e.Outcome == nil || e.Reply != e.Outcome.Reply {
		b = appendReply(b, e.Reply)
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

// appendID adds the id to the event at the end of b. The first event of a message has it, those that follow need not: earlier versions put
// it into each.
func appendID(b []byte, id mail.ID) []byte {
	if id == "" {
		return b
	}
	return append(appendString(b[:len(b)-1], tagID, string(id)), tagEnd)
}

// waiting is an event on its way from Observe to take, with what tells its message.
type waiting struct {
	id    []byte
	trace trace.ID // of the kinds that begin a message, or have no id
	event []byte   // encoded
}

// waitingHead is the bytes before the id: the length of the event, and those of the id and the trace.
const waitingHead = 4 + 1 + 1

// appendWaiting appends e as nextWaiting reads it.
func (c encoder) appendWaiting(b []byte, e *timeline.Event) []byte {
	head := len(b)
	id := e.ID[:min(len(e.ID), 255)]
	b = append(b, 0, 0, 0, 0, byte(len(id)), 0)
	b = append(b, id...)
	if id == "" || e.Kind == timeline.Queued || e.Kind == timeline.Refused {
		b[head+5] = byte(len(e.Trace))
		b = append(b, e.Trace[:]...)
	}
	start := len(b)
	b = c.append(b, e)
	binary.LittleEndian.PutUint32(b[head:], uint32(len(b)-start))
	return b
}

// nextWaiting takes the first event off b.
func nextWaiting(b []byte) (w waiting, rest []byte) {
	event, id, tr := int(binary.LittleEndian.Uint32(b)), int(b[4]), int(b[5])
	b = b[waitingHead:]
	w.id, b = b[:id], b[id:]
	copy(w.trace[:], b[:tr])
	w.event = b[tr : tr+event]
	return w, b[tr+event:]
}

// kind is the event's kind.
func (w *waiting) kind() timeline.Kind { return timeline.Kind(w.event[0]) }

func (c encoder) appendOrigin(b []byte, e *timeline.Event) []byte {
	b = appendTrace(b, e.Trace)
	b = appendString(b, tagMode, e.Mode)
	b = appendString(b, tagClient, e.Client)
	b = appendString(b, tagUser, e.User)
	b = appendString(b, tagMessageID, e.MessageID)
	if e.Kind == timeline.Queued || !e.From.IsNull() {
		b = c.appendAddress(b, tagFrom, e.From)
	}
	return b
}

func appendTrace(b []byte, id trace.ID) []byte {
	if id == (trace.ID{}) {
		return b
	}
	return append(append(b, tagTrace, byte(len(id))), id[:]...)
}

func appendOutcome(b []byte, o *mail.Outcome) []byte {
	b = append(b, tagDisposition, 1, byte(o.Disposition))
	if o.Reason != mail.ReasonNone {
		b = append(b, tagReason, 1, byte(o.Reason))
	}
	b = appendReply(b, o.Reply)
	b = appendString(b, tagMTA, o.MTA)
	b = appendString(b, tagTLS, o.TLS)
	if o.Err != nil {
		b = appendString(b, tagError, o.Err.Error())
	}
	return b
}

func (c encoder) appendAddress(b []byte, tag byte, a address.Address) []byte {
	if c.hash != nil && !a.IsNull() {
		return appendString(b, tag, c.hash(a))
	}
	if a.IsNull() {
		return append(b, tag, 2, '<', '>')
	}
	start := len(b)
	return endField(a.AppendTo(append(b, tag, 0)), start)
}

func appendReply(b []byte, r smtp.Reply) []byte {
	if r.IsZero() {
		return b
	}
	start := len(b)
	b = strconv.AppendInt(append(b, tagReply, 0), int64(r.Code), 10)
	if r.Enh != (smtp.EnhancedCode{}) {
		b = append(b, ' ')
		for i, n := range r.Enh {
			if i > 0 {
				b = append(b, '.')
			}
			b = strconv.AppendUint(b, uint64(n), 10)
		}
	}
	if r.Text != "" {
		b = append(append(b, ' '), r.Text...)
	}
	return endField(b, start)
}

// endField puts the length of the field that began at start, a tag and a byte of room for the length, into its place.
func endField(b []byte, start int) []byte {
	n := len(b) - start - 2
	if n < 0x80 {
		b[start+1] = byte(n)
		return b
	}
	return appendString(b[:start], b[start], string(b[start+2:]))
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
	start := len(b)
	return endField(binary.AppendVarint(append(b, tag, 0), n), start)
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
