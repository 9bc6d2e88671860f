package spool

import (
	"io"
	"time"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/vfs"
)

// found is a record as the start sees it: what it does to the index. There may be millions.
type found struct {
	key    key
	serial uint64
	off    uint32 // in units of recordAlign
	size   uint32 // likewise
	n      uint32 // of a message: how many recipients; of a result: the recipient, if it is one; of a removal: the message's segment
	typ    recordType
	more   *foundMore
}

// foundMore is what a minority of records needs.
type foundMore struct {
	which   []uint32 // of a result: the recipients, if they are several
	content content  // of a message with bytes outside its record
}

func (f *found) offset() int64 { return int64(f.off) * recordAlign }
func (f *found) bytes() int64  { return int64(f.size) * recordAlign }

// which returns the recipients of a result; buf is room for one.
func (f *found) which(buf *[1]uint32) []uint32 {
	if f.more != nil {
		return f.more.which
	}
	buf[0] = f.n
	return buf[:]
}

// region is a stretch of a segment that is not records.
type region struct {
	off, end int64
	id       mail.ID // of the message that was there, as far as can be guessed
}

// scanned is what a scan learns besides the records.
type scanned struct {
	seg    *segment
	bad    []region // followed by records
	end    int64    // of the last record
	synced int64    // everything before was durable when the last record was written
	serial uint64   // the highest
}

// used reports whether the segment was ever written to.
func (sc *scanned) used() bool { return sc.end > segmentPage || len(sc.bad) > 0 }

// scanWindow is how much is read at once.
const scanWindow = 256 << 10

// window reads a file forward through a buffer.
type window struct {
	f     vfs.File
	buf   []byte
	off   int64 // of buf in the file
	n     int   // valid bytes
	limit int64 // end of the file
	m     *metrics
}

// at returns at least n bytes from off on, fewer at the end of the file.
func (w *window) at(off int64, n int) ([]byte, error) {
	if off < w.off || off+int64(n) > w.off+int64(w.n) && w.off+int64(w.n) < w.limit || off > w.off+int64(w.n) {
		if n > len(w.buf) {
			w.buf = make([]byte, n)
			w.n = 0
		}
		want := min(int64(len(w.buf)), w.limit-off)
		start := time.Now()
		m, err := w.f.ReadAt(w.buf[:max(want, 0)], off)
		if err == io.EOF {
			err = nil
		}
		if w.m != nil {
			w.m.done(diskRead, start, err)
		}
		if err != nil {
			return nil, err
		}
		w.off, w.n = off, m
	}
	b := w.buf[off-w.off : w.n]
	return b, nil
}

// scan reads the records of a segment up to limit and hands them to emit, until that returns an error. It does not read bodies.
func scan(seg *segment, limit int64, emit func(*found) error) (*scanned, error) {
	sc := &scanned{seg: seg, end: segmentPage}
	var f found
	w := &window{f: seg.f, buf: make([]byte, scanWindow), limit: limit}
	last := uint32(0)
	for pos := int64(segmentPage); pos+recordHead <= limit; {
		h, meta, err := readHead(w, pos, seg.salt)
		if err != nil {
			return nil, err
		}
		if meta == nil || !follows(h, last) || !f.decode(h, meta, pos) {
			next, err := resync(w, pos, seg.salt, last)
			if err != nil {
				return nil, err
			}
			if next < 0 {
				break
			}
			sc.bad = append(sc.bad, region{off: pos, end: next, id: guessID(w, pos)})
			pos = next
			continue
		}
		if h.typ != recSkip {
			last = h.number
		}
		sc.synced = max(sc.synced, int64(h.synced)*recordAlign)
		sc.serial = max(sc.serial, f.serial)
		if h.typ >= recMessage && h.typ <= recRemoved {
			if err := emit(&f); err != nil {
				return nil, err
			}
		}
		pos += h.size()
		sc.end = pos
	}
	return sc, nil
}

// follows reports whether a record can stand after one of write number last: what a failed write left behind cannot.
func follows(h header, last uint32) bool {
	return h.typ == recSkip || last == 0 || int32(h.number-last) >= 0
}

// readHead returns the record at pos, with a nil meta if there is none.
func readHead(w *window, pos int64, salt uint32) (h header, meta []byte, err error) {
	b, err := w.at(pos, recordHead+headGuess)
	if err != nil {
		return h, nil, err
	}
	h, ok := parseHeader(b, w.limit-pos)
	if !ok {
		return h, nil, nil
	}
	if b, err = w.at(pos, recordHead+int(h.metaLen)); err != nil {
		return h, nil, err
	}
	if len(b) < recordHead+int(h.metaLen) || !verifyRecord(b, h, salt) {
		return h, nil, nil
	}
	return h, b[recordHead : recordHead+h.metaLen : recordHead+h.metaLen], nil
}

// resync returns where the next record begins after pos, -1 if there is none.
func resync(w *window, pos int64, salt uint32, last uint32) (int64, error) {
	for at := pos + recordAlign; at+recordHead <= w.limit; at += recordAlign {
		b, err := w.at(at, recordHead)
		if err != nil {
			return 0, err
		}
		if i := nextMagic(b); i > 0 { // most of it cannot begin a record
			at += int64(i) - recordAlign
			continue
		}
		if h, meta, err := readHead(w, at, salt); err != nil {
			return 0, err
		} else if meta != nil && follows(h, last) {
			return at, nil
		}
	}
	return -1, nil
}

// nextMagic returns the first aligned place in b that may begin a record: 0 if b does, the length rounded down if none.
func nextMagic(b []byte) int {
	i := 0
	for ; i+recordAlign <= len(b); i += recordAlign {
		if b[i] == recordMagic && b[i+1] != 0 && b[i+1] <= byte(lastType) && b[i+2] == 0 && b[i+3] == 0 {
			return i
		}
	}
	return max(i, recordAlign)
}

// decode reads a verified record; false if its meta part makes no sense, which its checksum makes all but impossible.
func (f *found) decode(h header, meta []byte, pos int64) bool {
	*f = found{typ: h.typ, off: uint32(pos / recordAlign), size: uint32(h.size() / recordAlign)}
	d := decoder{b: meta}
	switch h.typ {
	case recLink:
		_, _, ok := parseLink(meta)
		return ok
	case recMessage:
		return f.message(&d, h)
	case recChunk:
		serial, _, ok := parseChunk(meta)
		f.serial = serial
		return ok
	case recResult:
		id := d.bytes(d.count(1))
		f.key, f.serial = keyOf(id), d.uvarint()
		one, which := d.resultRcpts()
		if f.n = one; which != nil {
			f.more = &foundMore{which: which}
		}
		return len(id) > 0 && !d.bad
	case recRemoved:
		f.n = d.fixed32()
		id := d.bytes(d.count(1))
		f.key, f.serial = keyOf(id), d.uvarint()
		return len(id) > 0 && !d.bad
	}
	return true
}

func (f *found) message(d *decoder, h header) bool {
	var st stub
	id := d.stub(&st)
	if d.bad || len(id) == 0 || st.rcpts == 0 || st.rcpts > h.metaLen { // a recipient takes several bytes
		return false
	}
	f.key, f.serial, f.n = keyOf(id), st.serial, st.rcpts
	if len(st.content.chunks) > 0 || st.content.fileLen > 0 {
		f.more = &foundMore{content: st.content}
	}
	return true
}

// guessID reads the id out of what may be a damaged message record.
func guessID(w *window, pos int64) mail.ID {
	b, err := w.at(pos, recordHead+headGuess)
	if err != nil || len(b) < recordHead || recordType(b[1]) != recMessage {
		return ""
	}
	d := decoder{b: b[recordHead:]}
	d.uvarint()
	id := d.string()
	if d.bad || len(id) > maxIDLen {
		return ""
	}
	for _, c := range id {
		if c <= ' ' || c >= 0x7f || c == '/' {
			return ""
		}
	}
	return mail.ID(id)
}
