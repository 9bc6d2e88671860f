package trace

import (
	"encoding/binary"
	"time"
)

// Limits of a span.
const (
	maxEvents  = 100           // events kept of a span: the first third and the latest of the rest
	headEvents = maxEvents / 3 //
	maxText    = 512           // bytes of an event
	maxTitle   = 200           // bytes of a title
	maxMeta    = 2 << 10       // bytes of a span's attributes
	maxKey     = 64            // bytes of an attribute's key
	maxLinks   = 32            // links of a span
	spanBytes  = 16 << 10      // bytes of a span's events
	tightBytes = 1 << 10       // the same, when active spans hold more than their share of the budget
	pooledCap  = 1 << 10       // larger buffers are not kept for reuse
)

// Kind is the kind of an event.
type Kind uint8

// The kinds of events.
const (
	Info Kind = iota
	Debug
	Error
)

// String returns the kind's name.
func (k Kind) String() string { return [...]string{"info", "debug", "error", "error"}[k&3] }

// MarshalText renders the kind's name.
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText parses what MarshalText renders.
func (k *Kind) UnmarshalText(b []byte) error {
	for _, *k = range []Kind{Info, Debug, Error} {
		if k.String() == string(b) {
			return nil
		}
	}
	*k = Info
	return nil
}

// buffer holds the annotations of an active span, encoded: an event is its time since the span began in microseconds (uvarint), its kind
// (a byte), the length of its text (uvarint) and the text. The first events stay in head; tail is a queue of the latest.
type buffer struct {
	head, tail, meta []byte
	links            []Link
	nhead, ntail     int
	start            int // where tail begins
	dropped          int
}

func (b *buffer) reset() {
	*b = buffer{head: b.head[:0], tail: b.tail[:0], meta: b.meta[:0], links: b.links[:0]}
}

// cap is the memory the buffer holds.
func (b *buffer) cap() int {
	return cap(b.head) + cap(b.tail) + cap(b.meta) + cap(b.links)*linkBytes
}

// size is the number of bytes of its annotations.
func (b *buffer) size() int { return len(b.meta) + len(b.head) + len(b.tail) - b.start }

func appendEvent(dst []byte, at time.Duration, k Kind, text []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(max(at, 0)/time.Microsecond))
	dst = append(dst, byte(k))
	dst = binary.AppendUvarint(dst, uint64(len(text)))
	return append(dst, text...)
}

// add appends an event and returns how many were dropped to make room. limit is the number of bytes the events may take.
func (b *buffer) add(at time.Duration, k Kind, text []byte, limit int) (dropped int) {
	if len(text) > maxText {
		text = text[:maxText]
	}
	if b.nhead < headEvents && b.ntail == 0 && len(b.head)+len(text) <= limit/3 {
		b.head = appendEvent(b.head, at, k, text)
		b.nhead++
		return 0
	}
	if b.start > len(b.tail)/2 {
		b.tail = b.tail[:copy(b.tail, b.tail[b.start:])]
		b.start = 0
	}
	b.tail = appendEvent(b.tail, at, k, text)
	b.ntail++
	for b.ntail > maxEvents-headEvents || b.ntail > 1 && len(b.tail)-b.start > limit*2/3 {
		_, rest := nextEvent(b.tail[b.start:])
		b.start = len(b.tail) - len(rest)
		b.ntail--
		dropped++
	}
	b.dropped += dropped
	return dropped
}

// set appends an attribute, unless there are too many.
func (b *buffer) set(key, value string) bool {
	key, value = key[:min(len(key), maxKey)], value[:min(len(value), maxText)]
	if len(b.meta)+len(key)+len(value) > maxMeta {
		return false
	}
	b.meta = binary.AppendUvarint(b.meta, uint64(len(key)))
	b.meta = append(b.meta, key...)
	b.meta = binary.AppendUvarint(b.meta, uint64(len(value)))
	b.meta = append(b.meta, value...)
	return true
}

// notes is the annotations of a span in their final form.
type notes struct {
	data    []byte // attributes, first events, latest events
	meta    int    // bytes of attributes
	head    int    // bytes of first events
	dropped int    // events dropped between first and latest
}

// notes copies the annotations.
func (b *buffer) notes() notes {
	n := notes{meta: len(b.meta), head: len(b.head), dropped: b.dropped}
	if b.size() > 0 {
		n.data = make([]byte, 0, b.size())
		n.data = append(n.data, b.meta...)
		n.data = append(n.data, b.head...)
		n.data = append(n.data, b.tail[b.start:]...)
	}
	return n
}

// rawEvent is an event as it stands in a buffer.
type rawEvent struct {
	at   time.Duration
	kind Kind
	text []byte
}

// nextEvent decodes the first event of b and returns what follows it, nil at the end or if b makes no sense.
func nextEvent(b []byte) (e rawEvent, rest []byte) {
	us, n := binary.Uvarint(b)
	if n <= 0 || n >= len(b) {
		return e, nil
	}
	e.at, e.kind = time.Duration(us)*time.Microsecond, Kind(b[n])
	text, rest := nextBytes(b[n+1:])
	e.text = text
	return e, rest
}

// nextBytes decodes a length and as many bytes.
func nextBytes(b []byte) (text, rest []byte) {
	l, n := binary.Uvarint(b)
	if n <= 0 || l > uint64(len(b)-n) {
		return nil, nil
	}
	return b[n : n+int(l)], b[n+int(l):]
}

// events decodes the events; the first of those after a gap has the number of dropped ones before it.
func (n notes) events(start time.Time) []Event {
	var es []Event
	b := n.data[n.meta:]
	tail := len(b) - n.head
	for len(b) > 0 {
		gap := 0
		if len(b) == tail {
			gap = n.dropped
		}
		e, rest := nextEvent(b)
		es = append(es, Event{At: start.Add(e.at), Offset: e.at, Kind: e.kind, Text: printable(e.text), Gap: gap})
		b = rest
	}
	return es
}

// attrs decodes the attributes in the order they were first set; of a key set twice the later value counts.
func (n notes) attrs() []Attr {
	var as []Attr
	for b := n.data[:n.meta]; len(b) > 0; {
		var k, v []byte
		k, b = nextBytes(b)
		v, b = nextBytes(b)
		as = setAttr(as, printable(k), printable(v))
	}
	return as
}

func setAttr(as []Attr, key, value string) []Attr {
	for i := range as {
		if as[i].Key == key {
			as[i].Value = value
			return as
		}
	}
	return append(as, Attr{key, value})
}
