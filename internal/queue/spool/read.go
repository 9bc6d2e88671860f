package spool

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"runtime"
	"sync"
	"time"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/queue"
	"blitiri.com.ar/go/chasquid/internal/vfs"
)

// hold takes a segment for reading; nil if it is gone.
func (s *Store) hold(seq uint32) *segment {
	s.x.mu.RLock()
	defer s.x.mu.RUnlock()
	return s.x.hold(seq)
}

// hold needs the lock, for reading at least.
func (x *index) hold(seq uint32) *segment {
	g := x.segs[seq]
	if g != nil {
		g.holds.Add(1)
	}
	return g
}

// readAt reads from the record at l, skip bytes into it.
func (s *Store) readAt(l loc, skip int64, p []byte) (int, error) {
	g := s.hold(l.seg)
	if g == nil {
		return 0, s.lost(l)
	}
	defer g.done()
	start := time.Now()
	n, err := g.f.ReadAt(p, l.offset()+skip)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, s.m.done(diskRead, start, err)
}

// lost is the error for a segment that is not there.
func (s *Store) lost(l loc) error {
	if s.closed.Load() {
		return queue.ErrClosed
	}
	return fmt.Errorf("%w: segment %08x is missing", queue.ErrCorrupt, l.seg)
}

func corrupt(g *segment, off int64) error {
	return fmt.Errorf("%w: segment %08x at %d", queue.ErrCorrupt, g.seq, off)
}

// damaged counts damage that a reader met.
func (s *Store) damaged(g *segment, off int64) error {
	s.m.errors[diskParse].Inc()
	return corrupt(g, off)
}

// headGuess is how much of a record is read at first: the meta part of most.
const headGuess = 1 << 10

// cursor reads records, most often one behind the other.
type cursor struct {
	seg *segment
	w   window
}

// record returns the head of the record at off and its bytes as far as they were read: at least the meta part, whose checksum it
// has verified. They are good until the next call.
func (c *cursor) record(m *metrics, g *segment, off int64) (header, []byte, error) {
	if c.seg != g {
		c.seg, c.w = g, window{f: g.f, buf: c.w.buf, limit: 1 << 62, m: m}
	}
	b, err := c.w.at(off, recordHead)
	if err != nil {
		return header{}, nil, err
	}
	h, ok := parseHeader(b, maxMeta+recordHead+2*blockSize)
	if need := recordHead + int(h.metaLen); ok && len(b) < need {
		b, err = c.w.at(off, need)
		ok = len(b) >= need
	}
	if err != nil {
		return header{}, nil, err
	}
	if !ok || !verifyRecord(b, h, g.salt) {
		return header{}, nil, corrupt(g, off)
	}
	return h, b, nil
}

// loader reads entries. It is used by one goroutine.
type loader struct {
	s         *Store
	serial    uint64
	at        placement
	msg       *segment   // held
	states    []*segment // held; by recipient, as at.states
	rec, res  cursor
	firstRoom [headGuess]byte
	nextRoom  [headGuess / 2]byte
}

// take notes where a message is and holds the segments. The index is locked, for reading at least.
func (l *loader) take(x *index, i uint32) {
	sl := x.at(i)
	l.serial, l.at.msg, l.at.states = sl.serial, sl.msg, x.appendStates(l.at.states[:0], i)
	l.msg = x.hold(sl.msg.seg)
	for _, at := range l.at.states {
		l.states = append(l.states, x.hold(at.seg))
	}
}

func (l *loader) release() {
	if l.msg != nil {
		l.msg.done()
	}
	for _, g := range l.states {
		if g != nil {
			g.done()
		}
	}
	clear(l.states)
	l.msg, l.states = nil, l.states[:0]
}

// load reads the record of the message taken and the latest results of its recipients.
func (l *loader) load() (e queue.Entry, st stub, err error) {
	if l.msg == nil {
		return e, st, l.s.lost(l.at.msg)
	}
	for range 2 {
		e, st, err = l.loadOnce()
		if !errors.Is(err, queue.ErrCorrupt) {
			return e, st, err
		}
		// What the cursors read earlier may be older than the record.
		l.rec.seg, l.res.seg = nil, nil
	}
	l.s.m.errors[diskParse].Inc()
	return e, st, err
}

func (l *loader) loadOnce() (e queue.Entry, st stub, err error) {
	h, rec, err := l.rec.record(l.s.m, l.msg, l.at.msg.offset())
	if err != nil {
		return e, st, err
	}
	if e, st, err = decodeMessage(rec[recordHead : recordHead+h.metaLen]); err != nil {
		return e, st, err
	}
	if st.serial != l.serial {
		return e, st, corrupt(l.msg, l.at.msg.offset())
	}
	return e, st, l.loadStates(e.Status)
}

func decodeMessage(meta []byte) (e queue.Entry, st stub, err error) {
	d := decoder{b: meta}
	e.ID = mail.ID(d.stub(&st))
	d.envelope(&e.Env, st.rcpts)
	if d.bad {
		return e, st, fmt.Errorf("%w: message record", queue.ErrCorrupt)
	}
	e.Status = d.states(st.rcpts)
	if d.bad {
		return e, st, fmt.Errorf("%w: states in the record of message %q", queue.ErrCorrupt, e.ID)
	}
	st.id, e.Size = e.ID, st.content.size()
	return e, st, nil
}

// loadStates replaces the states that have later results.
func (l *loader) loadStates(status []queue.RcptStatus) error {
	for r, at := range l.at.states {
		if at == (loc{}) || r > 0 && at == l.at.states[r-1] {
			continue // none, or read with the recipient before
		}
		if l.states[r] == nil {
			return l.s.lost(at)
		}
		h, rec, err := l.res.record(l.s.m, l.states[r], at.offset())
		if err != nil {
			return err
		}
		d := decoder{b: rec[recordHead : recordHead+h.metaLen]}
		serial := d.applyResult(status, func(n int) bool { return n < len(l.at.states) && l.at.states[n] == at })
		if d.bad || h.typ != recResult || serial != l.serial {
			return corrupt(l.states[r], at.offset())
		}
	}
	return nil
}

var loaders = sync.Pool{New: func() any { return new(loader) }}

// Load implements queue.Store.
func (s *Store) Load(id mail.ID) (queue.Entry, error) {
	l := loaders.Get().(*loader)
	defer loaders.Put(l)
	l.s = s
	s.x.mu.RLock()
	i, sl := s.x.find(keyOf(id))
	if sl != nil {
		l.take(s.x, i)
	}
	s.x.mu.RUnlock()
	if sl == nil {
		return queue.Entry{}, queue.ErrNotFound
	}
	defer l.release()
	l.rec = cursor{w: window{buf: l.firstRoom[:]}}
	l.res = cursor{w: window{buf: l.nextRoom[:]}}
	e, _, err := l.load()
	l.rec, l.res = cursor{}, cursor{}
	return e, err
}

// All implements queue.Store. It reads ahead on all processors; the order is that of Create.
func (s *Store) All() iter.Seq2[queue.Entry, error] {
	return func(yield func(queue.Entry, error) bool) {
		for _, b := range s.bad {
			if !yield(queue.Entry{ID: b.id}, b.err) {
				return
			}
		}
		stop := make(chan struct{})
		var wg sync.WaitGroup
		defer wg.Wait()
		defer close(stop)
		for part := range s.readAhead(s.x.inOrder(), stop, &wg) {
			for _, r := range <-part {
				if errors.Is(r.err, queue.ErrNotFound) {
					continue // removed since the iteration began
				}
				if !yield(r.e, r.err) {
					return
				}
			}
		}
	}
}

type loaded struct {
	e   queue.Entry
	err error
}

// readAhead loads messages in parts, in parallel. The parts come in order, each as a channel that has it when it is read.
func (s *Store) readAhead(all []ordered, stop <-chan struct{}, wg *sync.WaitGroup) <-chan chan []loaded {
	const partSize = 256
	parts := make(chan chan []loaded, 2*runtime.GOMAXPROCS(0))
	free := make(chan *loader, runtime.GOMAXPROCS(0))
	for range cap(free) {
		free <- nil
	}
	wg.Go(func() {
		defer close(parts)
		for len(all) > 0 {
			part := all[:min(len(all), partSize)]
			all = all[len(part):]
			out := make(chan []loaded, 1)
			select {
			case parts <- out:
			case <-stop:
				return
			}
			l := <-free
			if l == nil {
				l = s.newLoader()
			}
			wg.Go(func() {
				out <- l.loadPart(part)
				free <- l
			})
		}
	})
	return parts
}

// Neighbours in the order of arrival are neighbours on the disk, most of them; results of the same round of attempts too.
const (
	recWindow = 64 << 10
	resWindow = 8 << 10
)

// newLoader returns a loader for many messages.
func (s *Store) newLoader() *loader {
	return &loader{s: s, rec: cursor{w: window{buf: make([]byte, recWindow)}}, res: cursor{w: window{buf: make([]byte, resWindow)}}}
}

func (l *loader) loadPart(part []ordered) []loaded {
	s, ls := l.s, make([]loaded, len(part))
	l.rec.seg, l.res.seg = nil, nil // what they read earlier may have changed
	for i, o := range part {
		s.x.mu.RLock()
		sl := s.x.at(o.slot)
		alive := sl.serial == o.serial && sl.msg != (loc{})
		if alive {
			l.take(s.x, o.slot)
		}
		s.x.mu.RUnlock()
		if !alive {
			ls[i].err = queue.ErrNotFound
			continue
		}
		ls[i].e, _, ls[i].err = l.load()
		l.release()
	}
	return ls
}

// readRecord reads the whole record at off into rec, which is as long, and verifies its head and meta part.
func (s *Store) readRecord(g *segment, off int64, rec []byte) (header, []byte, error) {
	start := time.Now()
	_, err := g.f.ReadAt(rec, off)
	if s.m.done(diskRead, start, err) != nil && err != io.EOF {
		return header{}, nil, err
	}
	h, ok := parseHeader(rec, int64(len(rec)))
	if !ok || !verifyRecord(rec, h, g.salt) {
		return header{}, nil, s.damaged(g, off)
	}
	return h, rec, nil
}

// Open implements queue.Store. Every block is verified before any of its bytes is returned: damage is queue.ErrCorrupt.
func (s *Store) Open(id mail.ID) (io.ReadCloser, error) {
	s.x.mu.RLock()
	i, sl := s.x.find(keyOf(id))
	if sl == nil {
		s.x.mu.RUnlock()
		return nil, queue.ErrNotFound
	}
	at, serial, size := sl.msg, sl.serial, int64(sl.size)*recordAlign
	g := s.x.hold(at.seg)
	var segs []*segment // of the chunks
	var file int64
	if e := s.x.extras[i]; e != nil {
		file = e.file
		for _, c := range e.chunks {
			segs = append(segs, s.x.hold(c.at.seg))
		}
	}
	s.x.mu.RUnlock()
	r := &bodyReader{s: s, segs: segs}
	var err error
	if g == nil {
		err = s.lost(at)
	} else {
		err = r.open(g, at.offset(), size)
		g.done()
	}
	if err == nil && file > 0 {
		r.file, err = s.fs.OpenFile(s.path(bodyName(serial)), os.O_RDONLY, 0)
		if errors.Is(err, fs.ErrNotExist) {
			err = queue.ErrNotFound // removed this moment
			if s.exists(id) == nil {
				err = fmt.Errorf("%w: the body file of message %s is missing", queue.ErrCorrupt, id)
			}
		}
	}
	if err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// bodyReader reads a message block by block: prefix, chunks, body file, inline rest.
type bodyReader struct {
	s      *Store
	c      content
	record []byte // what was read of the record
	pooled *[recordBuf]byte
	prefix []byte
	inline []byte
	segs   []*segment // of the chunks, held
	file   vfs.File
	block  *[blockSize]byte

	cur    []byte // verified, not yet read
	next   int    // block to come
	closed bool
}

// recordBuf is room for the record of a message with a small buffer's body.
const recordBuf = 16 << 10

var recordBufs = sync.Pool{New: func() any { return new([recordBuf]byte) }}

// open reads the whole record of the message and verifies it.
func (r *bodyReader) open(g *segment, off, size int64) error {
	if size <= recordBuf {
		r.pooled = recordBufs.Get().(*[recordBuf]byte)
		r.record = r.pooled[:size]
	} else {
		r.record = make([]byte, size)
	}
	h, rec, err := r.s.readRecord(g, off, r.record)
	if err != nil {
		return err
	}
	d := decoder{b: rec[recordHead : recordHead+h.metaLen]}
	var st stub
	d.stub(&st)
	tail := rec[recordHead+h.metaLen:]
	r.c = st.content
	if d.bad || h.typ != recMessage || uint64(len(tail)) < uint64(r.c.prefixLen)+uint64(r.c.inlineLen) || len(r.c.chunks) != len(r.segs) {
		return r.s.damaged(g, off)
	}
	r.prefix = tail[:r.c.prefixLen]
	r.inline = tail[r.c.prefixLen:][:r.c.inlineLen]
	if checksum(r.prefix) != r.c.prefixCRC || checksum(r.inline) != r.c.inlineCRC {
		return r.s.damaged(g, off)
	}
	return nil
}

// advance makes cur the next block; io.EOF if there is none.
func (r *bodyReader) advance() error {
	i := r.next
	r.next++
	if i == 0 {
		r.cur = r.prefix
		return nil
	}
	if i--; i < len(r.c.chunks) {
		c, g := r.c.chunks[i], r.segs[i]
		if g == nil {
			return r.s.lost(c.at)
		}
		return r.fill(g.f, c.at.offset()+chunkHead, int64(c.len), c.crc)
	}
	if i -= len(r.c.chunks); i < len(r.c.fileCRCs) {
		at := int64(i) * blockSize
		return r.fill(r.file, at, min(blockSize, r.c.fileLen-at), r.c.fileCRCs[i])
	}
	if i == len(r.c.fileCRCs) {
		r.cur = r.inline
		return nil
	}
	return io.EOF
}

func (r *bodyReader) fill(f vfs.File, off, n int64, crc uint32) error {
	if n > blockSize {
		return fmt.Errorf("%w: block of %d bytes", queue.ErrCorrupt, n)
	}
	if r.block == nil {
		r.block = blockBufs.Get().(*[blockSize]byte)
	}
	start := time.Now()
	m, err := f.ReadAt(r.block[:n], off)
	if err == io.EOF && int64(m) == n {
		err = nil
	}
	if r.s.m.done(diskRead, start, err) != nil {
		if err == io.EOF {
			return fmt.Errorf("%w: block cut short", queue.ErrCorrupt)
		}
		return err
	}
	if checksum(r.block[:n]) != crc {
		r.s.m.errors[diskParse].Inc()
		return fmt.Errorf("%w: block checksum", queue.ErrCorrupt)
	}
	r.cur = r.block[:n]
	return nil
}

// Read implements io.Reader.
func (r *bodyReader) Read(p []byte) (int, error) {
	if err := r.ready(); err != nil {
		return 0, err
	}
	n := copy(p, r.cur)
	r.cur = r.cur[n:]
	return n, nil
}

// ready makes sure that cur has something.
func (r *bodyReader) ready() error {
	if r.closed {
		return fs.ErrClosed
	}
	for len(r.cur) == 0 {
		if err := r.advance(); err != nil {
			return err
		}
	}
	return nil
}

// WriteTo implements io.WriterTo: whole blocks, without another copy.
func (r *bodyReader) WriteTo(w io.Writer) (n int64, err error) {
	for {
		if err := r.ready(); err == io.EOF {
			return n, nil
		} else if err != nil {
			return n, err
		}
		m, err := w.Write(r.cur)
		n += int64(m)
		r.cur = r.cur[m:]
		if err != nil {
			return n, err
		}
	}
}

// Close implements io.Closer.
func (r *bodyReader) Close() error {
	if r.closed {
		return fs.ErrClosed
	}
	r.closed = true
	for _, g := range r.segs {
		if g != nil {
			g.done()
		}
	}
	if r.pooled != nil {
		recordBufs.Put(r.pooled)
	}
	if r.block != nil {
		blockBufs.Put(r.block)
	}
	r.record, r.prefix, r.inline, r.cur, r.pooled, r.block = nil, nil, nil, nil, nil, nil
	if r.file != nil {
		return r.file.Close()
	}
	return nil
}
