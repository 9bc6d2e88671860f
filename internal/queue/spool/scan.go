package spool

import (
	"io"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/vfs"
)

// found is a record as the start sees it: what it does to the index.
type found struct {
	typ    recordType
	off    int64
	size   int64
	key    key
	serial uint64
	rcpts  uint32   // of a message: how many; of a result: the recipient, if which is nil
	which  []uint32 // of a result: the recipients, if there are several
	tomb   uint32   // of a removed record: the segment of the message
	extra  *content // of a message, if it has bytes elsewhere
}

// region is a stretch of a segment that is not records.
type region struct {
	off, end int64
	id       mail.ID // of the message that was there, as far as can be guessed
}

// scanned is what is in a segment.
type scanned struct {
	seg     *segment
	prev    uint32 // from the link record; 0 if there is none
	prevEnd int64
	records []found
	bad     []region // followed by records
	end     int64    // of the last record
	synced  int64    // everything before was durable when the last record was written
	serial  uint64   // the highest
}

// scanWindow is how much is read at once.
const scanWindow = 256 << 10

// window reads a file forward through a buffer.
type window struct {
	f     vfs.File
	buf   []byte
	off   int64 // of buf in the file
	n     int   // valid bytes
	limit int64 // end of the file
}

// at returns at least n bytes from off on, fewer at the end of the file.
func (w *window) at(off int64, n int) ([]byte, error) {
	if off < w.off || off+int64(n) > w.off+int64(w.n) && w.off+int64(w.n) < w.limit || off > w.off+int64(w.n) {
		if n > len(w.buf) {
			w.buf = make([]byte, n)
		}
		want := min(int64(len(w.buf)), w.limit-off)
		m, err := w.f.ReadAt(w.buf[:max(want, 0)], off)
		if err != nil && err != io.EOF {
			return nil, err
		}
		w.off, w.n = off, m
	}
	b := w.buf[off-w.off : w.n]
	return b, nil
}

// scan reads the records of a segment up to limit. It does not read bodies.
func scan(seg *segment, limit int64) (*scanned, error) {
	sc := &scanned{seg: seg, end: segmentPage}
	w := &window{f: seg.f, buf: make([]byte, scanWindow), limit: limit}
	last := uint32(0)
	for pos := int64(segmentPage); pos+recordHead <= limit; {
		h, meta, err := readHead(w, pos, seg.salt)
		if err != nil {
			return nil, err
		}
		if meta == nil || !follows(h, last) || !sc.add(h, meta, pos) {
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

// add notes a verified record; false if its meta part makes no sense, which its checksum makes all but impossible.
func (sc *scanned) add(h header, meta []byte, pos int64) bool {
	f := found{typ: h.typ, off: pos, size: h.size()}
	d := decoder{b: meta}
	switch h.typ {
	case recLink:
		prev, end, ok := parseLink(meta)
		if ok && pos == segmentPage {
			sc.prev, sc.prevEnd = prev, end
		}
		return ok
	case recMessage:
		var st stub
		d.stub(&st)
		if st.id == "" || st.rcpts == 0 || st.rcpts > h.metaLen { // a recipient takes several bytes
			return false
		}
		f.key, f.serial, f.rcpts = keyOf(st.id), st.serial, st.rcpts
		if len(st.content.chunks) > 0 || st.content.fileLen > 0 {
			f.extra = &st.content
		}
	case recChunk:
		serial, _, ok := parseChunk(meta)
		if !ok {
			return false
		}
		f.serial = serial
	case recResult:
		id := mail.ID(d.string())
		if id == "" {
			return false
		}
		f.key, f.serial = keyOf(id), d.uvarint()
		f.rcpts, f.which = d.resultRcpts()
	case recRemoved:
		r := d.removed()
		if r.id == "" {
			return false
		}
		f.key, f.serial, f.tomb = keyOf(r.id), r.serial, r.seg
	case recSkip, recSeal:
		return true
	}
	if d.bad {
		return false
	}
	sc.serial = max(sc.serial, f.serial)
	sc.records = append(sc.records, f)
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
