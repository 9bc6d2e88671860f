package spool

import (
	"errors"
	"io/fs"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"blitiri.com.ar/go/chasquid/internal/queue"
	"blitiri.com.ar/go/log"
)

// The janitor is the one goroutine behind the commits: it makes segments ahead of their use, removes those that nothing needs,
// and copies the rest out of those that little needs.

// careInterval is how often the janitor looks when nobody calls it.
const careInterval = time.Minute

func (s *Store) wakeJanitor() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *Store) runJanitor() {
	tick := time.NewTicker(careInterval)
	defer tick.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-s.wake:
		case <-tick.C:
		}
		s.safeCare()
	}
}

// safeCare keeps a bug in the housekeeping from ending the process: the log goes on without it.
func (s *Store) safeCare() {
	defer func() {
		if p := recover(); p != nil {
			log.Errorf("queue: panic in the janitor: %v\n%s", p, debug.Stack())
		}
	}()
	s.care()
}

// care does what there is to do.
func (s *Store) care() {
	s.w.mu.Lock()
	half := s.w.asked
	s.w.mu.Unlock()
	if half {
		if err := s.prepareNext(); err != nil && !errors.Is(err, queue.ErrFull) {
			log.Errorf("queue: preparing a segment: %v", err)
		}
	}
	s.emptyTrash()
	s.dropDead()
	// No more rounds than there are segments now: what it writes itself can wait.
	for n := s.Stats().Segments; n > 0 && !s.stopping() && s.brokenErr() == nil; n-- {
		g := s.sparsest()
		if g == nil {
			break
		}
		if err := s.compact(g); err != nil {
			if !errors.Is(err, queue.ErrFull) && !errors.Is(err, queue.ErrClosed) {
				log.Errorf("queue: compacting %s: %v", g.name, err)
			}
			break
		}
		s.dropDead()
	}
	s.prefill()
}

func (s *Store) stopping() bool {
	select {
	case <-s.stop:
		return true
	default:
		return false
	}
}

// trash are the body files of removed messages.
type trash struct {
	mu      sync.Mutex
	serials []uint64
}

func (t *trash) add(serial uint64) {
	t.mu.Lock()
	t.serials = append(t.serials, serial)
	t.mu.Unlock()
}

// emptyTrash removes the files. Their names need no flush: a file that comes back has no message and is removed at start.
func (s *Store) emptyTrash() {
	s.trash.mu.Lock()
	serials := s.trash.serials
	s.trash.serials = nil
	s.trash.mu.Unlock()
	for _, serial := range serials {
		if err := s.remove(s.path(bodyName(serial))); err != nil && !errors.Is(err, fs.ErrNotExist) {
			log.Errorf("queue: removing a body: %v", err)
		}
	}
}

// dropDead removes the segments that nothing needs, or makes them spares. One at a time and with a flush of the directory after
// each: what a tombstone keeps dead must be gone for certain before the tombstone goes.
func (s *Store) dropDead() {
	for s.brokenErr() == nil {
		g := s.takeDead()
		if g == nil {
			return
		}
		err := s.dispose(g)
		if err == nil {
			err = s.syncDir()
		}
		if err != nil {
			// The file may be there at the next start: what depends on it stays.
			log.Errorf("queue: removing %s: %v", g.name, err)
			continue
		}
		s.x.mu.Lock()
		delete(s.x.leaving, g.seq)
		for _, other := range s.x.segs {
			other.forget(g.seq)
		}
		s.x.mu.Unlock()
	}
}

// takeDead takes a dead segment out of the index, so that no reader finds it any more.
func (s *Store) takeDead() *segment {
	s.x.mu.Lock()
	defer s.x.mu.Unlock()
	var first *segment
	for _, g := range s.x.segs {
		if g.dead() && (first == nil || g.seq < first.seq) {
			first = g
		}
	}
	if first != nil {
		delete(s.x.segs, first.seq)
		s.x.leaving[first.seq] = true
		first.gone.Store(true)
	}
	return first
}

// dispose makes a spare of a segment that nobody reads, or removes its file, which readers may still read.
func (s *Store) dispose(g *segment) error {
	s.prep.mu.Lock()
	defer s.prep.mu.Unlock()
	if g.holds.Load() == 0 && len(s.prep.spares) < maxSpares && g.size == s.cfg.SegmentSize && !g.closed.Load() {
		name := s.path(spareName(g.seq))
		start := time.Now()
		if err := s.m.done(diskRename, start, s.fs.Rename(g.name, name)); err != nil {
			g.close()
			return err
		}
		s.prep.spares = append(s.prep.spares, spare{name: name, f: g.f, size: g.size, filled: g.filled})
		return nil
	}
	err := s.remove(g.name)
	if g.holds.Load() == 0 {
		g.close()
	}
	return err
}

// Compaction takes segments of which less than a quarter is needed; of the last few only when space is short, because they may
// become empty by themselves. Small ones, which restarts leave behind, are taken as soon as half of their bytes are not needed.
const (
	sparseDivisor = 4
	youngSegments = 2
	compactRetry  = 10 * time.Minute
)

// sparse reports whether the segment is worth a look. The index is locked.
func (s *Store) sparse(g *segment) bool {
	return g.refs == 0 && g.results == 0 || g.needed() < g.size/sparseDivisor
}

// sparsest returns the segment that is worth compacting most, nil if none is.
func (s *Store) sparsest() *segment {
	s.w.mu.Lock()
	active := s.w.seg
	s.w.mu.Unlock()
	if active == nil {
		return nil
	}
	young := uint32(youngSegments)
	if s.checkReserve(2*s.minFree.Load()) != nil {
		young = 0
	}
	s.x.mu.RLock()
	defer s.x.mu.RUnlock()
	var best *segment
	for _, g := range s.x.segs {
		if !g.sealed || g.landing.Load() > 0 || len(g.after) > 0 || time.Now().Before(g.retry) {
			continue
		}
		need := g.needed()
		small := g.size <= s.cfg.SegmentSize/8 && need < g.size/2
		if !small && !(s.cfg.eager && need < g.size/2) && (need >= g.size/sparseDivisor || active.seq-g.seq <= young) {
			continue
		}
		if best == nil || need < best.needed() {
			best = g
		}
	}
	return best
}

// compact copies what is needed of a segment to the end of the log. It can stop at any point: what was copied was copied, and the
// segment is removed only when nothing in it is needed.
func (s *Store) compact(g *segment) error {
	s.x.mu.Lock()
	// What changes while it is being copied, cannot be read, or belongs to a message that is still being written, stays.
	g.retry = time.Now().Add(compactRetry)
	s.x.mu.Unlock()
	c := compactor{s: s, g: g, l: s.newLoader(), seen: map[uint64]bool{}}
	_, err := scan(g, g.end, func(f *found) error {
		if s.stopping() {
			return queue.ErrClosed
		}
		return c.record(f)
	})
	if ferr := c.flush(); err == nil {
		err = ferr
	}
	if err != nil {
		return err
	}
	s.x.mu.Lock()
	defer s.x.mu.Unlock()
	clear(g.kills) // every tombstone that is needed was copied
	return nil
}

// compactor copies one segment.
type compactor struct {
	s     *Store
	g     *segment
	ops   []*op
	bytes int64
	l     *loader
	seen  map[uint64]bool // serials of messages that were copied: one may be met several times, by its chunks
}

// record copies a record if it is needed.
func (c *compactor) record(f *found) error {
	s := c.s
	at := locOf(c.g.seq, f.offset())
	s.x.mu.RLock()
	k, serial, need := f.key, f.serial, false
	switch f.typ {
	case recChunk:
		if i, ok := s.x.chunky[f.serial]; ok {
			need = !c.seen[serial] && slices.ContainsFunc(s.x.extras[i].chunks, func(r chunkRef) bool { return r.at == at })
			s.x.mu.RUnlock()
			if need {
				return c.chunked(i, serial)
			}
			return nil
		}
	case recMessage:
		_, sl := s.x.find(k)
		need = sl != nil && sl.serial == serial && sl.msg == at && !c.seen[serial]
	case recResult:
		if i, sl := s.x.find(k); sl != nil && sl.serial == serial {
			var one [1]uint32
			need = slices.ContainsFunc(f.which(&one), func(r uint32) bool { return r < sl.rcpts && s.x.state(i, int(r)) == at })
		}
	case recRemoved:
		need = f.n != c.g.seq && s.x.onDisk(f.n)
	}
	s.x.mu.RUnlock()
	if !need {
		return nil
	}
	switch f.typ {
	case recMessage:
		return c.message(k, serial)
	case recResult:
		return c.result(f)
	case recRemoved:
		return c.tombstone(f)
	}
	return nil
}

// chunked copies a message because of a chunk of it.
func (c *compactor) chunked(slot uint32, serial uint64) error {
	s := c.s
	s.x.mu.RLock()
	sl := s.x.at(slot)
	if sl.serial != serial || sl.msg == (loc{}) {
		s.x.mu.RUnlock()
		return nil
	}
	c.l.take(s.x, slot)
	s.x.mu.RUnlock()
	e, _, err := c.l.load()
	c.l.release()
	if err != nil {
		return nil // it stays where it is; reading it reports the damage
	}
	return c.message(keyOf(e.ID), serial)
}

// message copies a message: its record with the latest states, and those of its chunks that are in this segment.
func (c *compactor) message(k key, serial uint64) error {
	s := c.s
	c.seen[serial] = true
	s.x.mu.RLock()
	i, sl := s.x.find(k)
	if sl == nil || sl.serial != serial {
		s.x.mu.RUnlock()
		return nil
	}
	c.l.take(s.x, i)
	size := int64(sl.size) * recordAlign
	s.x.mu.RUnlock()
	defer c.l.release()
	e, st, err := c.l.load()
	if err != nil {
		return nil
	}
	// The whole record: the prefix and the inline rest are copied too.
	rec := make([]byte, size)
	if _, err := c.l.msg.f.ReadAt(rec, c.l.at.msg.offset()); err != nil {
		return nil
	}
	h, ok := parseHeader(rec, size)
	if !ok || !verifyRecord(rec, h, c.l.msg.salt) || int64(h.tailLen) < int64(st.content.prefixLen)+int64(st.content.inlineLen) {
		return nil
	}
	moved, err := c.moveChunks(&st)
	if err != nil {
		return err
	}
	o := s.newOp(opCopyMessage)
	o.outside, o.key, o.serial, o.rcpts, o.content, o.was = true, k, serial, st.rcpts, st.content, placement{msg: c.l.at.msg, states: slices.Clone(c.l.at.states)}
	o.buf = appendMessage(beginRecord(o.buf), &st, &e)
	o.metaLen = uint32(len(o.buf) - recordHead)
	o.body = rec[recordHead+h.metaLen:][:st.content.prefixLen+st.content.inlineLen]
	o.moved = moved
	return c.add(o)
}

// moveChunks writes the chunks of this segment again and puts their new places into st. It returns those it wrote.
func (c *compactor) moveChunks(st *stub) (moved []chunkRef, err error) {
	s := c.s
	buf := blockBufs.Get().(*[blockSize]byte)
	defer blockBufs.Put(buf)
	for i, ch := range st.content.chunks {
		if ch.at.seg != c.g.seq || ch.len > blockSize {
			continue
		}
		data := buf[:ch.len]
		if _, err := s.readAt(ch.at, chunkHead, data); err != nil || checksum(data) != ch.crc {
			continue
		}
		ref, err := s.writeChunk(st.serial, data)
		if err != nil {
			s.x.mu.Lock()
			s.x.dropChunks(moved)
			s.x.mu.Unlock()
			return nil, err
		}
		st.content.chunks[i] = ref
		moved = append(moved, ref)
	}
	return moved, nil
}

// result copies those results of a record that are the latest of their recipients.
func (c *compactor) result(f *found) error {
	s := c.s
	at := locOf(c.g.seq, f.offset())
	_, rec, err := s.readRecord(c.g, f.offset(), make([]byte, f.bytes()))
	if err != nil {
		return nil
	}
	var res result
	d := decoder{b: rec[recordHead:]}
	if d.result(&res); d.bad {
		return nil
	}
	o := s.newOp(opCopyResult)
	s.x.mu.RLock()
	if i, sl := s.x.find(f.key); sl != nil && sl.serial == f.serial {
		kept := res.us[:0]
		for _, u := range res.us {
			if u.Rcpt < int(sl.rcpts) && s.x.state(i, u.Rcpt) == at {
				kept = append(kept, u)
				o.which = append(o.which, u.Rcpt)
			}
		}
		res.us = kept
	}
	s.x.mu.RUnlock()
	if len(o.which) == 0 {
		s.freeOp(o)
		return nil
	}
	o.outside, o.key, o.serial, o.was = true, f.key, f.serial, placement{from: at}
	o.buf = appendResult(beginRecord(o.buf), &res)
	o.metaLen = uint32(len(o.buf) - recordHead)
	return c.add(o)
}

// tombstone copies the record of a removal.
func (c *compactor) tombstone(f *found) error {
	h, rec, err := c.s.readRecord(c.g, f.offset(), make([]byte, f.bytes()))
	if err != nil {
		return err // without it the removed message could come back: the segment has to stay
	}
	o := c.s.newOp(opCopyRemoved)
	o.outside, o.key, o.serial, o.tomb = true, f.key, f.serial, f.n
	o.buf = append(beginRecord(o.buf), rec[recordHead:recordHead+h.metaLen]...)
	o.metaLen = h.metaLen
	return c.add(o)
}

// copyBatch is how many bytes compaction adds to one flush.
const copyBatch = 256 << 10

func (c *compactor) add(o *op) error {
	c.ops = append(c.ops, o)
	if c.bytes += o.size(); c.bytes >= copyBatch {
		return c.flush()
	}
	return nil
}

// flush commits the copies. A copy whose original changed meanwhile is not made.
func (c *compactor) flush() error {
	s := c.s
	err := s.submitAll(c.ops)
	for _, o := range c.ops {
		oerr := err
		if oerr == nil {
			oerr = o.err
		}
		if oerr != nil && len(o.moved) > 0 {
			s.x.mu.Lock()
			s.x.dropChunks(o.moved)
			s.x.mu.Unlock()
		}
		if oerr != nil && !errors.Is(oerr, errStale) && !errors.Is(oerr, queue.ErrNotFound) && err == nil {
			err = oerr
		}
		s.freeOp(o)
	}
	c.ops, c.bytes = c.ops[:0], 0
	return err
}

// fillStep is how many zeros are written at once; every fillSync of them are flushed.
const (
	fillStep = 128 << 10
	fillSync = 1 << 20
)

var zeros [fillStep]byte

// prefill writes zeros ahead of the log, unless it is growing so fast that this would only double the bytes. The first write to
// allocated space makes the file system note that the space now has content, which costs each flush about as much again as the
// data; a second write does not.
func (s *Store) prefill() {
	if s.cfg.NoPrefill {
		return
	}
	for pending := int64(0); !s.stopping() && s.brokenErr() == nil; {
		s.w.mu.Lock()
		g := s.w.seg
		from := s.w.tail
		if g == nil || g.filled >= g.size {
			s.prep.mu.Lock()
			g, from = s.prep.next, segmentPage
			s.prep.mu.Unlock()
		}
		if g == nil || g.filled >= g.size || s.w.bulk {
			s.w.mu.Unlock()
			return
		}
		at := max(g.filled, (from+segmentPage-1)&^(segmentPage-1))
		n := min(fillStep, g.size-at)
		var err error
		if n > 0 {
			_, err = g.f.WriteAt(zeros[:n], at)
		}
		g.filled = at + max(n, 0)
		pending += max(n, 0)
		done := g.filled >= g.size
		s.w.mu.Unlock()
		if err != nil {
			s.m.errors[diskWrite].Inc()
			return // an optimisation; the log's own writes report what is wrong
		}
		if pending >= fillSync || done {
			pending = 0
			start := time.Now()
			if err := s.m.done(diskFsync, start, g.f.Sync()); err != nil {
				s.fail(err)
			}
		}
	}
}
