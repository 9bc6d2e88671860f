package trace

import (
	"bytes"
	"encoding/binary"
	"time"
)

// record is a span in its stored form, encoded: so the thousands of spans in the store are free of pointers, and the garbage collector has
// nothing to look at. Numbers are in little-endian order. After the head come the links, the title and the annotations.
type record []byte

// Where the parts of a record are.
const (
	recLen     = 0  // of the record, 4 bytes
	recSpan    = 4  // 8 bytes
	recParent  = 12 // 8 bytes
	recSeq     = 20 // 8 bytes
	recSecond  = 28 // of the start, since 1970, 8 bytes
	recNano    = 36 // 4 bytes
	recDur     = 40 // 8 bytes
	recGen     = 48 // generation of the process it comes from, if it was imported, 8 bytes
	recMeta    = 56 // bytes of attributes, 4 bytes
	recHeadLen = 60 // bytes of first events, 4 bytes
	recDropped = 64 // events dropped between first and latest, 4 bytes
	recTitle   = 68 // bytes of the title, 2 bytes
	recLinks   = 70 // number of links
	recFamily  = 71
	recFlags   = 72
	recHead    = 73
)

// The flags of a record.
const (
	flagFailed = 1 << iota
	flagActive
	flagImported
)

const linkBytes = len(ID{}) + len(SpanID{})

// recordSize is the length of the record of a span with its annotations.
func recordSize(s *Span, b *buffer) int {
	return recHead + len(b.links)*linkBytes + len(s.title) + b.size()
}

// appendRecord appends the record of a span with its annotations.
func appendRecord(dst []byte, s *Span, b *buffer, dur time.Duration, flags byte, generation int64) []byte {
	var h [recHead]byte
	le := binary.LittleEndian
	le.PutUint32(h[recLen:], uint32(recordSize(s, b)))
	copy(h[recSpan:], s.sid[:])
	copy(h[recParent:], s.parent[:])
	le.PutUint64(h[recSeq:], s.seq)
	le.PutUint64(h[recSecond:], uint64(s.start.Unix()))
	le.PutUint32(h[recNano:], uint32(s.start.Nanosecond()))
	le.PutUint64(h[recDur:], uint64(dur))
	le.PutUint64(h[recGen:], uint64(generation))
	le.PutUint32(h[recMeta:], uint32(len(b.meta)))
	le.PutUint32(h[recHeadLen:], uint32(len(b.head)))
	le.PutUint32(h[recDropped:], uint32(b.dropped))
	le.PutUint16(h[recTitle:], uint16(len(s.title)))
	h[recLinks], h[recFamily], h[recFlags] = byte(len(b.links)), byte(s.family), flags
	dst = append(dst, h[:]...)
	for _, l := range b.links {
		dst = append(append(dst, l.Trace[:]...), l.Span[:]...)
	}
	dst = append(dst, s.title...)
	dst = append(dst, b.meta...)
	dst = append(dst, b.head...)
	return append(dst, b.tail[b.start:]...)
}

// first returns the first of the records that stand one after the other in b, nil if there is none.
func first(b []byte) record {
	if len(b) == 0 {
		return nil
	}
	return record(b[:binary.LittleEndian.Uint32(b[recLen:])])
}

// records calls f for the records that stand one after the other in b, until it returns false.
func records(b []byte) func(f func(record) bool) {
	return func(f func(record) bool) {
		for rec := first(b); rec != nil && f(rec); rec = first(b) {
			b = b[len(rec):]
		}
	}
}

func (rec record) is(id SpanID) bool { return bytes.Equal(rec[recSpan:recParent], id[:]) }

func (rec record) flag(f byte) bool { return rec[recFlags]&f != 0 }

func (rec record) seq() uint64 { return binary.LittleEndian.Uint64(rec[recSeq:]) }

func (rec record) start() time.Time {
	le := binary.LittleEndian
	return time.Unix(int64(le.Uint64(rec[recSecond:])), int64(le.Uint32(rec[recNano:])))
}

// link returns one of the links.
func (rec record) link(i int) (l Link) {
	b := rec[recHead+i*linkBytes:]
	copy(l.Span[:], b[copy(l.Trace[:], b):])
	return l
}

func (rec record) links() (ls []Link) {
	for i := range int(rec[recLinks]) {
		ls = append(ls, rec.link(i))
	}
	return ls
}

// title returns the title, and the annotations behind it.
func (rec record) title() (title string, n notes) {
	le := binary.LittleEndian
	b := rec[recHead+int(rec[recLinks])*linkBytes:]
	l := le.Uint16(rec[recTitle:])
	return string(b[:l]), notes{data: b[l:], meta: int(le.Uint32(rec[recMeta:])), head: int(le.Uint32(rec[recHeadLen:])),
		dropped: int(le.Uint32(rec[recDropped:]))}
}

// spanData decodes the record of a span of the trace. generation is that of this process.
func (rec record) spanData(id ID, generation int64) SpanData {
	le := binary.LittleEndian
	title, n := rec.title()
	d := SpanData{Trace: id, Family: Family(rec[recFamily]), Title: title, Links: rec.links(), Start: rec.start(), Duration: time.Duration(le.Uint64(rec[recDur:])),
		Active: rec.flag(flagActive), Failed: rec.flag(flagFailed), Generation: generation}
	copy(d.ID[:], rec[recSpan:])
	copy(d.Parent[:], rec[recParent:])
	if rec.flag(flagImported) {
		d.Generation = int64(le.Uint64(rec[recGen:]))
	}
	d.Attrs, d.Events = n.attrs(), n.events(d.Start)
	return d
}

// snapshot is a copy of a record, to be decoded without a lock held.
type snapshot struct {
	id ID // of the trace
	record
}

// snapshots copies all records of a trace.
func (st *state) snapshots() (list []snapshot) {
	for rec := range records(bytes.Clone(st.data)) {
		list = append(list, snapshot{st.id, rec})
	}
	return list
}

// snapshot copies the span, which is active. The Recorder's lock is held.
func (s *Span) snapshot() snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	dur, flags := s.dur, byte(0)
	if !s.done {
		dur, flags = time.Since(s.start), flagActive
	}
	if s.failed {
		flags |= flagFailed
	}
	return snapshot{s.id, appendRecord(nil, s, s.buf, dur, flags, 0)}
}

// decode decodes snapshots.
func (r *Recorder) decode(list []snapshot) []SpanData {
	ds := make([]SpanData, len(list))
	for i, s := range list {
		ds[i] = s.spanData(s.id, r.cfg.Generation)
	}
	return ds
}
