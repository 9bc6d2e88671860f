package spool

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"blitiri.com.ar/go/chasquid/internal/queue"
	"blitiri.com.ar/go/chasquid/internal/vfs"
	"blitiri.com.ar/go/log"
)

// writer appends to the active segment. Its lock is held while bytes go to the page cache, and through a flush only when a
// segment is full; readers never take it.
type writer struct {
	mu     sync.Mutex
	seg    *segment // nil if there was no space for one at start
	tail   int64    // where the next record goes
	synced int64    // durable up to here
	number uint32   // of the last write, also of a failed one: what a failed write left behind has a lower number than what follows
	failed bool     // the last write failed, and not for want of space: use another segment
	dirty  bool     // the last write failed: there may be records behind the tail that are not to be
	asked  bool     // the janitor was told that the segment is half full

	flushes int64 // of the segment
	bulk    bool  // the segment before was filled by large flushes

	prevSeq uint32 // the segment before the first, and its end
	prevEnd int64

	head [chunkHead]byte // scratch
	vec  [3][]byte       // scratch
}

var padding [recordAlign]byte

// writeBatch appends the records of ops in one write. It returns the segment they are in, which the caller must leave once the
// index knows of them, and where they end.
func (s *Store) writeBatch(ops []*op) (*segment, int64, error) {
	w := &s.w
	w.mu.Lock()
	defer w.mu.Unlock()
	var need int64
	outside := false
	for _, o := range ops {
		need += o.size()
		outside = outside || o.outside
	}
	if err := s.room(need, outside); err != nil {
		return nil, 0, err
	}
	w.number++
	bufs, at := s.q.bufs[:0], w.tail
	for _, o := range ops {
		h := header{typ: opRecord[o.kind], number: w.number, synced: uint32(w.synced / recordAlign), metaLen: o.metaLen, tailLen: uint32(o.tailLen())}
		sealRecord(o.buf, h, w.seg.salt)
		o.at = locOf(w.seg.seq, at)
		bufs = append(bufs, o.buf)
		n := int64(len(o.buf) + len(o.body))
		if len(o.body) > 0 {
			bufs = append(bufs, o.body)
		}
		if pad := alignUp(n) - n; pad > 0 {
			bufs = append(bufs, padding[:pad])
		}
		at += alignUp(n)
	}
	err := s.write(bufs, at)
	clear(bufs)
	s.q.bufs = bufs
	if err == nil {
		w.seg.landing.Add(1)
	}
	return w.seg, at, err
}

// write puts bufs at the tail, which becomes end. After an error the tail is where it was, and the next write covers what this
// one left behind.
func (s *Store) write(bufs [][]byte, end int64) error {
	w := &s.w
	start := time.Now()
	n, err := w.seg.f.WritevAt(bufs, w.tail)
	if err == nil && int64(n) != end-w.tail {
		err = fmt.Errorf("short write of %d bytes", n)
	}
	if s.m.done(diskWrite, start, err) != nil {
		w.failed, w.dirty = !noSpace(err), true
		return s.writeErr(err)
	}
	w.dirty = false
	s.hurt.Store(0)
	w.tail = end
	if !w.asked && w.tail > w.seg.size/2 {
		w.asked = true
		s.wakeJanitor()
	}
	return nil
}

// writeChunk appends a block of a message that is still being written. It is not durable: the commit of the message is what
// flushes it.
func (s *Store) writeChunk(serial uint64, data []byte) (chunkRef, error) {
	crc := checksum(data)
	if err := s.brokenErr(); err != nil {
		return chunkRef{}, err
	}
	if s.closed.Load() {
		return chunkRef{}, queue.ErrClosed
	}
	w := &s.w
	w.mu.Lock()
	defer w.mu.Unlock()
	size := chunkSize(uint32(len(data)))
	if err := s.room(size, true); err != nil {
		return chunkRef{}, err
	}
	w.number++
	head := appendChunk(w.head[:recordHead], serial, crc)
	h := header{typ: recChunk, number: w.number, synced: uint32(w.synced / recordAlign), metaLen: chunkMeta, tailLen: uint32(len(data))}
	sealRecord(head, h, w.seg.salt)
	bufs := append(w.vec[:0], head, data)
	if pad := size - chunkHead - int64(len(data)); pad > 0 {
		bufs = append(bufs, padding[:pad])
	}
	ref := chunkRef{at: locOf(w.seg.seq, w.tail), len: uint32(len(data)), crc: crc}
	err := s.write(bufs, w.tail+size)
	clear(bufs)
	if err != nil {
		return chunkRef{}, err
	}
	s.x.mu.Lock()
	w.seg.hold(1, size)
	s.x.mu.Unlock()
	return ref, nil
}

// reserve is how much of the last segment mail from outside leaves to records that free the disk again.
func (s *Store) reserve() int64 { return min(1<<20, s.cfg.SegmentSize/8) }

// room makes sure that need bytes fit at the tail. The writer's lock is held.
func (s *Store) room(need int64, outside bool) error {
	w := &s.w
	fits := func() bool {
		if w.seg == nil || w.failed {
			return false
		}
		left := w.seg.size - w.tail
		if outside {
			left -= s.reserve()
		}
		return need <= left
	}
	if fits() {
		return nil
	}
	if need > s.cfg.SegmentSize-2*segmentPage-s.reserve() {
		return fmt.Errorf("queue: a record of %d bytes does not fit in a segment", need)
	}
	if err := s.rotate(); err != nil {
		return err
	}
	if !fits() { // the new segment is a small one, for want of space
		return fmt.Errorf("%w: no room for a segment", queue.ErrFull)
	}
	return nil
}

// bulkFlush is how many bytes a flush has on average when it no longer matters that it costs a little more, but bandwidth does.
const bulkFlush = 128 << 10

// rotate seals the active segment and begins the next. The writer's lock is held.
func (s *Store) rotate() error {
	w := &s.w
	prev, end := w.prevSeq, w.prevEnd
	if w.seg != nil {
		prev, end = w.seg.seq, w.tail
	}
	next, err := s.nextSegment()
	if err != nil {
		return err
	}
	if w.seg != nil && w.tail > w.synced {
		// Chunks may wait for a message that will be committed in the next segment.
		start := time.Now()
		if err := s.m.done(diskFsync, start, w.seg.f.Sync()); err != nil {
			s.putBack(next)
			return s.fail(err)
		}
		w.synced = w.tail
	}
	w.number++
	link := appendLink(w.head[:recordHead], prev, end)
	sealRecord(link, header{typ: recLink, number: w.number, synced: segmentPage / recordAlign, metaLen: linkMeta}, next.salt)
	bufs := append(w.vec[:0], link, padding[:alignUp(int64(len(link)))-int64(len(link))])
	start := time.Now()
	n, err := next.f.WritevAt(bufs, segmentPage)
	clear(bufs)
	if s.m.done(diskWrite, start, err) != nil {
		s.discard(next)
		return s.writeErr(err)
	}
	s.x.mu.Lock()
	if w.seg != nil {
		w.seg.sealed, w.seg.end = true, w.tail
		if w.dirty {
			next.follow(w.seg.seq) // only the link in next says where w.seg ends
		}
	}
	s.x.segs[next.seq] = next
	s.x.mu.Unlock()
	w.bulk = w.flushes > 0 && end/w.flushes > bulkFlush
	w.seg, w.tail, w.synced, w.failed, w.dirty, w.asked, w.flushes = next, segmentPage+int64(n), segmentPage, false, false, false, 0
	s.wakeJanitor()
	return nil
}

// preparer makes segments ahead of their use, so that a full segment does not keep anybody waiting.
type preparer struct {
	mu      sync.Mutex
	next    *segment // ready, its name durable
	nextSeq uint32
	spares  []spare
}

// spare is a file whose blocks are written and whose records nobody needs.
type spare struct {
	name   string // path
	f      vfs.File
	size   int64
	filled int64
}

// maxSpares is how many are kept.
const maxSpares = 2

// nextSegment returns a segment that is ready for use.
func (s *Store) nextSegment() (*segment, error) {
	s.prep.mu.Lock()
	defer s.prep.mu.Unlock()
	if g := s.prep.next; g != nil {
		s.prep.next = nil
		return g, nil
	}
	return s.makeSegment()
}

// prepareNext makes the next segment if there is none. It does not use the reserve.
func (s *Store) prepareNext() error {
	s.prep.mu.Lock()
	defer s.prep.mu.Unlock()
	if s.prep.next != nil || s.brokenErr() != nil {
		return nil
	}
	if len(s.prep.spares) == 0 && s.checkReserve(s.minFree.Load()+s.cfg.SegmentSize) != nil {
		return nil
	}
	g, err := s.makeSegment()
	s.prep.next = g
	return err
}

// putBack keeps a segment that was taken with nextSegment and not used.
func (s *Store) putBack(g *segment) {
	s.prep.mu.Lock()
	s.prep.next = g
	s.prep.mu.Unlock()
}

// makeSegment makes a segment out of a spare, or a new file. The preparer's lock is held.
func (s *Store) makeSegment() (*segment, error) {
	if s.prep.nextSeq == 0 {
		return nil, errors.New("queue: out of segment numbers")
	}
	g := &segment{seq: s.prep.nextSeq, salt: rand.Uint32(), name: s.path(segmentName(s.prep.nextSeq))}
	s.prep.nextSeq++
	if err := s.makeFile(g); err != nil {
		return nil, s.writeErr(err)
	}
	err := s.readySegment(g)
	if err == nil {
		return g, nil
	}
	s.discard(g)
	return nil, s.writeErr(err)
}

func (s *Store) makeFile(g *segment) error {
	if n := len(s.prep.spares); n > 0 {
		sp := s.prep.spares[n-1]
		start := time.Now()
		if err := s.m.done(diskRename, start, s.fs.Rename(sp.name, g.name)); err != nil {
			return err
		}
		s.prep.spares = s.prep.spares[:n-1]
		g.f, g.size, g.filled = sp.f, sp.size, sp.filled
		return nil
	}
	f, err := s.fs.OpenFile(g.name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0600)
	if err != nil {
		s.m.errors[diskWrite].Inc()
		return err
	}
	g.f = f
	// On a nearly full disk a small segment is better than none.
	least := min(minSegmentSize, s.cfg.SegmentSize)
	for g.size = s.cfg.SegmentSize; ; g.size = max(g.size/4, least) {
		err = f.Allocate(g.size)
		if err == nil || !noSpace(err) || g.size <= least {
			break
		}
	}
	switch {
	case errors.Is(err, errors.ErrUnsupported): // the file grows as it is written
		g.filled = g.size
	case err != nil:
		s.m.errors[diskWrite].Inc()
		s.discard(g)
		return err
	}
	return nil
}

// readySegment writes the header page and makes it and the name durable.
func (s *Store) readySegment(g *segment) error {
	page := appendSegmentPage(nil, g.seq, g.salt)
	start := time.Now()
	if _, err := g.f.WriteAt(page, 0); s.m.done(diskWrite, start, err) != nil {
		return err
	}
	start = time.Now()
	if err := s.m.done(diskFsync, start, g.f.Sync()); err != nil {
		return err // the file was not used yet and is thrown away
	}
	return s.syncDir()
}

// syncDir makes names durable. After a failure nothing about names can be trusted.
func (s *Store) syncDir() error {
	start := time.Now()
	if err := s.m.done(diskDirFsync, start, s.fs.SyncDir(s.dir)); err != nil {
		return s.fail(err)
	}
	return nil
}

// discard throws a segment away that was never used.
func (s *Store) discard(g *segment) {
	g.gone.Store(true)
	g.close()
	if err := s.remove(g.name); err != nil {
		log.Errorf("queue: removing an unused segment: %v", err)
	}
}

// remove unlinks a file; that it is gone already is fine.
func (s *Store) remove(name string) error {
	start := time.Now()
	err := s.fs.Remove(name)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return s.m.done(diskRemove, start, err)
}
