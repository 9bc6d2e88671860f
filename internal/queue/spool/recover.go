package spool

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/queue"
	"blitiri.com.ar/go/chasquid/internal/vfs"
	"blitiri.com.ar/go/log"
)

// badRecord is something that could not be read at start.
type badRecord struct {
	id  mail.ID // if known
	err error
}

// recovery is the work of one start. Only the goroutine that opens the store uses it.
type recovery struct {
	s      *Store
	segs   []*segment
	ends   map[uint32]int64 // where the records of segments end, as their successors say
	linked map[uint32]bool  // segments that say where the one before ends
	bodies map[uint64]int64 // sizes of the body files found, by serial
	max    uint32           // highest segment number in any name
	lost   []found          // messages of which a part is missing
	stale  []string         // files that nothing needs
}

// recover reads the directory and builds the index. It is the same after a crash and after an orderly end.
func (s *Store) recover() error {
	r := &recovery{s: s, ends: map[uint32]int64{}, linked: map[uint32]bool{}, bodies: map[uint64]int64{}}
	err := r.list()
	if err == nil {
		err = r.readSegments()
	}
	if err != nil {
		for _, g := range r.segs {
			g.close()
		}
		return err
	}
	r.checkBodies()
	s.prep.nextSeq = r.max + 1
	if err := r.begin(); err != nil {
		return err
	}
	return r.removeLost()
}

// list opens the segments and notes what else is there. Names of others, such as the items of an earlier version, are left alone.
func (r *recovery) list() error {
	s := r.s
	infos, err := s.fs.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, info := range infos {
		if serial, ok := parseName(info.Name, bodySuffix, 64); ok {
			r.bodies[serial] = info.Size
			s.serial.Store(max(s.serial.Load(), serial))
		} else if seq, ok := parseName(info.Name, spareSuffix, 32); ok {
			r.max = max(r.max, uint32(seq))
			if err := r.openSpare(info); err != nil {
				return err
			}
		} else if seq, ok := parseName(info.Name, segmentSuffix, 32); ok {
			r.max = max(r.max, uint32(seq))
			if err := r.openSegment(info, uint32(seq)); err != nil {
				return err
			}
		} else if info.Name == corruptDir && info.Dir {
			if bad, err := s.fs.ReadDir(s.path(corruptDir)); err == nil {
				s.corrupt = len(bad)
			}
		}
	}
	slices.SortFunc(r.segs, func(a, b *segment) int { return int(a.seq) - int(b.seq) })
	return nil
}

func (r *recovery) openSpare(info vfs.Info) error {
	s := r.s
	if len(s.prep.spares) >= maxSpares || info.Size != s.cfg.SegmentSize {
		r.stale = append(r.stale, s.path(info.Name))
		return nil
	}
	f, err := s.fs.OpenFile(s.path(info.Name), os.O_RDWR, 0)
	if err == nil {
		s.prep.spares = append(s.prep.spares, spare{name: s.path(info.Name), f: f, size: info.Size, filled: info.Size})
	}
	return err
}

// openSegment opens a segment and reads its header and link. One that was being made when the power failed is stale.
func (r *recovery) openSegment(info vfs.Info, seq uint32) error {
	s := r.s
	g := &segment{seq: seq, name: s.path(info.Name), size: info.Size}
	f, err := s.fs.OpenFile(g.name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	g.f, g.filled = f, g.size
	page := make([]byte, segmentPage+recordHead+linkMeta)
	n, err := f.ReadAt(page, 0)
	if err != nil && err != io.EOF {
		f.Close()
		return err
	}
	version, got, salt, ok := parseSegmentPage(page[:n])
	if ok && got == seq {
		if version != formatVersion {
			f.Close()
			return fmt.Errorf("%s is of format version %d, this program knows %d", info.Name, version, formatVersion)
		}
		g.salt = salt
		r.segs = append(r.segs, g)
		rec := page[segmentPage:]
		if h, ok := parseHeader(rec, recordHead+alignUp(linkMeta)); ok && h.typ == recLink && h.metaLen == linkMeta && verifyRecord(rec, h, salt) {
			prev, end, _ := parseLink(rec[recordHead:])
			r.ends[prev] = end
			r.linked[seq] = true
		}
		return nil
	}
	defer f.Close()
	if ok || empty(f, info.Size) {
		// A spare that was being made into this segment, or a new file: its header was not durable, so it was never used.
		r.stale = append(r.stale, g.name)
		return nil
	}
	return r.setAsideFile(g)
}

// empty reports a file of zeros.
func empty(f vfs.File, size int64) bool {
	buf := make([]byte, scanWindow)
	for off := int64(0); off < size; off += int64(len(buf)) {
		n, err := f.ReadAt(buf, off)
		for _, c := range buf[:n] {
			if c != 0 {
				return false
			}
		}
		if n < len(buf) && off+int64(n) < size && err != nil {
			return false
		}
	}
	return true
}

// setAsideFile moves a segment without a legible header away.
func (r *recovery) setAsideFile(g *segment) error {
	s := r.s
	to := filepath.Join(s.path(corruptDir), filepath.Base(g.name))
	err := vfs.MkdirAll(s.fs, s.path(corruptDir), 0700)
	if err == nil {
		err = s.fs.Link(g.name, to)
	}
	if err == nil {
		err = s.fs.SyncDir(s.path(corruptDir))
	}
	if err == nil {
		err = s.fs.Remove(g.name)
	}
	r.report("", fmt.Errorf("%w: segment %08x has no legible header; set aside as %s", queue.ErrCorrupt, g.seq, to), err)
	return nil
}

// report notes damage for All, the log and the metrics. aside is the error of setting it aside.
func (r *recovery) report(id mail.ID, err, aside error) {
	s := r.s
	if aside != nil {
		err = fmt.Errorf("%w (setting it aside failed: %w)", err, aside)
	} else {
		s.corrupt++
	}
	s.m.errors[diskParse].Inc()
	log.Errorf("queue: %v", err)
	s.bad = append(s.bad, badRecord{id, err})
}

// part is what the scan of one segment sends: some records, or at the end the rest of what it found.
type part struct {
	records []found
	end     *scanned
	err     error
}

// partSize is how many records travel at once, and partsAhead how many parts wait: it bounds memory, not the queue.
const (
	partSize   = 2048
	partsAhead = 16
)

// readSegments scans the segments on all processors and puts what they hold into the index, in their order.
func (r *recovery) readSegments() error {
	if err := r.retireUnused(); err != nil {
		return err
	}
	outs := make([]chan part, len(r.segs))
	for i := range outs {
		outs[i] = make(chan part, partsAhead)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var next atomic.Int64
	for range min(runtime.GOMAXPROCS(0), len(r.segs)) {
		wg.Go(func() { // each takes the first segment that nobody has: the one being merged is always among those being scanned
			for i := next.Add(1) - 1; int(i) < len(r.segs); i = next.Add(1) - 1 {
				r.scan(r.segs[i], outs[i], stop)
			}
		})
	}
	var err error
	for i, g := range r.segs {
		if err = r.absorb(g, outs[i], i == len(r.segs)-1); err != nil {
			break
		}
	}
	close(stop)
	wg.Wait()
	return err
}

// limit is where the records of a segment end, as far as its successor tells.
func (r *recovery) limit(g *segment) int64 {
	if end, ok := r.ends[g.seq]; ok {
		return min(g.size, end)
	}
	return g.size
}

// scan sends the records of a segment.
func (r *recovery) scan(g *segment, out chan<- part, stop <-chan struct{}) {
	send := func(p part) error {
		select {
		case out <- p:
			return nil
		case <-stop:
			return queue.ErrClosed
		}
	}
	var records []found
	sc, err := scan(g, r.limit(g), func(f *found) error {
		if records == nil {
			records = make([]found, 0, partSize)
		}
		if records = append(records, *f); len(records) < partSize {
			return nil
		}
		full := records
		records = nil
		return send(part{records: full})
	})
	if len(records) > 0 {
		send(part{records: records})
	}
	send(part{end: sc, err: err})
}

// absorb merges what the scan of a segment sends, and then deals with what is not records: the torn end of the last segment is
// cut, damage is set aside.
func (r *recovery) absorb(g *segment, in <-chan part, last bool) error {
	s := r.s
	var held []found // of the last segment: some may be torn
	s.x.segs[g.seq] = g
	g.sealed = true
	for p := range in {
		if p.err != nil {
			return p.err
		}
		if p.end == nil {
			if last {
				held = append(held, p.records...)
			} else {
				r.merge(g, p.records)
			}
			continue
		}
		sc := p.end
		s.serial.Store(max(s.serial.Load(), sc.serial))
		if end, known := r.ends[g.seq]; known {
			if end = min(end, g.size); end > sc.end { // its successor says that there was more
				sc.bad = append(sc.bad, region{off: sc.end, end: end})
				sc.end = end
			}
			if err := r.cutLeftovers(sc); err != nil {
				return err
			}
		}
		if last {
			held, err := r.verifyTail(sc, held)
			if err != nil {
				return err
			}
			r.merge(g, held)
		}
		g.end = sc.end
		return r.mend(sc, last)
	}
	return nil
}

// retireUnused sorts out the segments that were made ahead and never written to: those without a link to the one before, unless
// the link is damaged and records follow.
func (r *recovery) retireUnused() error {
	used := r.segs[:0]
	for _, g := range r.segs {
		if !r.linked[g.seq] {
			sc, err := scan(g, r.limit(g), func(*found) error { return nil })
			if err != nil {
				return err
			}
			if !sc.used() {
				r.retire(g)
				continue
			}
		}
		used = append(used, g)
	}
	r.segs = used
	return nil
}

// cutLeftovers cuts a segment that has records behind its end.
func (r *recovery) cutLeftovers(sc *scanned) error {
	w := &window{f: sc.seg.f, buf: make([]byte, scanWindow), limit: sc.seg.size}
	at, err := resync(w, sc.end-recordAlign, sc.seg.salt, 0)
	if err != nil || at < 0 {
		return err
	}
	return r.s.cut(sc.seg, sc.end)
}

// mend sets damaged regions aside. Damage in what was durable is reported; in what a crash interrupted it is to be expected, but
// the bytes are kept all the same.
func (r *recovery) mend(sc *scanned, last bool) error {
	if len(sc.bad) == 0 {
		return nil
	}
	for _, b := range sc.bad {
		r.setAside(sc.seg, b, !last || b.off < sc.synced)
	}
	start := time.Now()
	return r.s.m.done(diskFsync, start, sc.seg.f.Sync())
}

// retire makes a segment without records a spare, or removes it.
func (r *recovery) retire(g *segment) {
	s := r.s
	if len(s.prep.spares) < maxSpares && g.size == s.cfg.SegmentSize {
		s.prep.spares = append(s.prep.spares, spare{name: g.name, f: g.f, size: g.size, filled: segmentPage})
		return
	}
	g.close()
	r.stale = append(r.stale, g.name)
}

// verifyTail checks the bytes of the messages that were written after the last flush that is known to have succeeded: of these
// the record may be whole and the rest torn. It returns the records that count.
func (r *recovery) verifyTail(sc *scanned, records []found) ([]found, error) {
	kept := records[:0]
	for _, f := range records {
		if f.offset() >= sc.synced && f.typ == recMessage {
			whole, err := r.whole(sc.seg, &f)
			if err != nil {
				return nil, err
			}
			if !whole {
				sc.bad = append(sc.bad, region{off: f.offset(), end: f.offset() + f.bytes()})
				continue
			}
		}
		kept = append(kept, f)
	}
	for n := len(sc.bad); n > 0 && sc.bad[n-1].end == sc.end && sc.bad[n-1].off >= sc.synced; n-- {
		sc.end = sc.bad[n-1].off // the torn end
		sc.bad = sc.bad[:n-1]
	}
	return kept, nil
}

// whole reports whether all bytes of a message that are in the log match their checksums.
func (r *recovery) whole(g *segment, f *found) (bool, error) {
	rec := make([]byte, f.bytes())
	if _, err := g.f.ReadAt(rec, f.offset()); err != nil {
		return false, err
	}
	h, ok := parseHeader(rec, f.bytes())
	if !ok {
		return false, nil
	}
	d := decoder{b: rec[recordHead : recordHead+h.metaLen]}
	var st stub
	d.stub(&st)
	c, tail := &st.content, rec[recordHead+h.metaLen:]
	if d.bad || uint64(len(tail)) < uint64(c.prefixLen)+uint64(c.inlineLen) ||
		checksum(tail[:c.prefixLen]) != c.prefixCRC || checksum(tail[c.prefixLen:][:c.inlineLen]) != c.inlineCRC {
		return false, nil
	}
	if c.fileLen > 0 && r.bodies[st.serial] < c.fileLen {
		return false, nil // removed when the commit failed
	}
	for _, ch := range c.chunks {
		i := slices.IndexFunc(r.segs, func(g *segment) bool { return g.seq == ch.at.seg })
		if i < 0 || ch.len > blockSize {
			return false, nil
		}
		data := make([]byte, ch.len)
		if _, err := r.segs[i].f.ReadAt(data, ch.at.offset()+chunkHead); err != nil || checksum(data) != ch.crc {
			return false, nil
		}
	}
	return true, nil
}

// setAside copies a region to a file of its own, and then marks it so that the next start does not find it again.
func (r *recovery) setAside(g *segment, b region, report bool) {
	s := r.s
	name := filepath.Join(s.path(corruptDir), fmt.Sprintf("%08x-%08x", g.seq, b.off))
	err := r.copyOut(g, b, name)
	// Without a copy, what is reported stays as it is for the next start to try again. What is not would be taken for damage then.
	if (err == nil || !report) && b.end-b.off >= recordHead {
		head := make([]byte, recordHead)
		sealRecord(head, header{typ: recSkip, tailLen: uint32(b.end - b.off - recordHead)}, g.salt)
		if _, werr := g.f.WriteAt(head, b.off); werr != nil {
			err = werr
		}
	}
	if report {
		r.report(b.id, fmt.Errorf("%w: segment %08x from %d to %d; set aside as %s", queue.ErrCorrupt, g.seq, b.off, b.end, name), err)
	} else {
		log.Infof("queue: segment %08x from %d to %d was being written at the crash; kept as %s, error %v", g.seq, b.off, b.end, name, err)
	}
}

func (r *recovery) copyOut(g *segment, b region, name string) error {
	s := r.s
	if err := vfs.MkdirAll(s.fs, s.path(corruptDir), 0700); err != nil {
		return err
	}
	data := make([]byte, b.end-b.off)
	n, err := g.f.ReadAt(data, b.off)
	if n == 0 && err != nil {
		return err
	}
	return vfs.WriteFile(s.fs, name, data[:n], 0600)
}

// merge applies records of a segment to the index, in order.
func (r *recovery) merge(g *segment, records []found) {
	x := r.s.x
	var one [1]uint32
	for i := range records {
		f := &records[i]
		at := locOf(g.seq, f.offset())
		switch f.typ {
		case recMessage:
			r.mergeMessage(f, g, at)
		case recResult:
			which := f.which(&one)
			g.resultBytes += f.bytes()
			g.resultCount += int64(len(which))
			if i, sl := x.find(f.key); sl != nil && sl.serial == f.serial {
				for _, n := range which {
					if n < sl.rcpts {
						x.setState(i, int(n), at)
					}
				}
			}
		case recRemoved:
			was := uint32(0)
			if i, sl := x.find(f.key); sl != nil && sl.serial == f.serial {
				was = sl.msg.seg
				x.remove(f.key, i, g.seq)
			}
			if f.n != was && f.n != g.seq && x.segs[f.n] != nil {
				g.kill(f.n)
			}
		}
	}
}

// mergeMessage adds a message, or moves it: compaction repeats what it moves, with the results so far.
func (r *recovery) mergeMessage(f *found, g *segment, at loc) {
	x := r.s.x
	if i, sl := x.find(f.key); sl != nil {
		if sl.serial == f.serial && sl.msg.seg != g.seq {
			g.follow(sl.msg.seg)
		}
		x.remove(f.key, i, 0)
	}
	c := &content{}
	if f.more != nil {
		c = &f.more.content
	}
	for _, ch := range c.chunks {
		if seg := x.segs[ch.at.seg]; seg != nil {
			seg.hold(1, chunkSize(ch.len))
		} // else this record was superseded, or checkBodies will find it
	}
	x.place(x.reserve(f.key, f.serial, f.n), at, f.bytes(), c)
}

// checkBodies finds messages of which chunks or the body file are missing, and body files without a message.
func (r *recovery) checkBodies() {
	x := r.s.x
	known := map[uint64]bool{}
	for k, i := range x.byKey {
		e := x.extras[i]
		if e == nil {
			continue
		}
		sl := x.at(i)
		lost := slices.ContainsFunc(e.chunks, func(c chunkRef) bool { return x.segs[c.at.seg] == nil })
		if e.file > 0 {
			known[sl.serial] = true
			lost = lost || r.bodies[sl.serial] < e.file
		}
		if lost {
			r.lost = append(r.lost, found{key: k, serial: sl.serial})
		}
	}
	for serial := range r.bodies {
		if !known[serial] {
			r.stale = append(r.stale, r.s.path(bodyName(serial)))
		}
	}
}

// begin starts a new segment after the last one and removes what nothing needs.
func (r *recovery) begin() error {
	s := r.s
	var last *segment
	for _, g := range s.x.segs {
		if last == nil || g.seq > last.seq {
			last = g
		}
	}
	if last != nil {
		s.w.prevSeq, s.w.prevEnd = last.seq, last.end
	}
	for _, name := range r.stale {
		if err := s.remove(name); err != nil {
			log.Errorf("queue: removing %s: %v", name, err)
		}
	}
	s.dropDead() // into spares
	if last != nil && !last.gone.Load() {
		if err := s.cut(last, last.end); err != nil {
			return err
		}
	}
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	err := s.rotate()
	if errors.Is(err, queue.ErrFull) {
		log.Errorf("queue: there is no space to write to: %v", err)
		return nil // reading works; writing will, once there is space
	}
	return err
}

// removeLost sets the messages aside of which a part is missing: their records are kept as files.
func (r *recovery) removeLost() error {
	s := r.s
	for _, f := range r.lost {
		_, sl := s.x.find(f.key)
		if sl == nil || sl.serial != f.serial {
			continue // removed later, or dealt with
		}
		g := s.x.segs[sl.msg.seg]
		b := region{off: sl.msg.offset(), end: sl.msg.offset() + int64(sl.size)*recordAlign}
		_, rec, err := s.readRecord(g, b.off, make([]byte, b.end-b.off))
		var st stub
		if err == nil {
			d := decoder{b: rec[recordHead:]}
			st.id = mail.ID(d.stub(&st))
		}
		name := filepath.Join(s.path(corruptDir), fmt.Sprintf("%08x-%08x", g.seq, b.off))
		err = r.copyOut(g, b, name)
		if err == nil {
			err = s.Remove(st.id)
		}
		r.report(st.id, fmt.Errorf("%w: the body of message %q is missing; the rest is set aside as %s", queue.ErrCorrupt, st.id, name), err)
	}
	return nil
}

// cut makes a segment that is not written to any more end where its records end: what is behind them is torn, or was written by a
// failed operation, and must not be found when the link of the next segment is gone.
func (s *Store) cut(g *segment, end int64) error {
	if g.size <= end {
		return nil
	}
	if err := g.f.Truncate(end); err != nil {
		return s.m.done(diskWrite, time.Now(), err)
	}
	g.size, g.filled = end, end
	start := time.Now()
	return s.m.done(diskFsync, start, g.f.Sync())
}
