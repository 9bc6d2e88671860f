package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/queue"
	"blitiri.com.ar/go/log"
)

// opKind is what an op wants written.
type opKind uint8

const (
	opMessage opKind = iota
	opResult
	opRemoved
	opCopyMessage // compaction: the same message again, with the states of its recipients
	opCopyResult
	opCopyRemoved
	opSeal
)

var opRecord = [...]recordType{recMessage, recResult, recRemoved, recMessage, recResult, recRemoved, recSeal}

// lazy reports the kinds that nobody outside waits for: they tell what became of mail that is already safe.
func (k opKind) lazy() bool { return k == opResult || k == opRemoved }

// isCopy reports the kinds that compaction writes. They come first in a batch: what they repeat was true before it.
func (k opKind) isCopy() bool { return k >= opCopyMessage && k <= opCopyRemoved }

// op is one record that somebody waits for.
type op struct {
	kind    opKind
	outside bool // must not use the last reserve of space
	key     key
	serial  uint64
	rcpts   uint32     // of a message
	content content    // of a message
	which   []int      // the recipients of a result
	tomb    uint32     // of opCopyRemoved: the segment of the removed message
	was     placement  // of a copy: what it repeats
	moved   []chunkRef // of opCopyMessage: chunks that were written again for it

	buf     []byte // room for the head, meta, prefix
	metaLen uint32
	body    []byte // the inline rest of a message, not copied

	slot uint32
	at   loc
	twin *op // an earlier message with the same id in the batch: this one shares its fate
	err  error
	file int64       // of a removal: length of the body file that is to go
	wake chan wakeup // capacity 1
}

// placement is where a message and its results were when compaction read them.
type placement struct {
	msg    loc
	states []loc
	from   loc // of a result: the record it was in
}

type wakeup uint8

const (
	wakeDone wakeup = iota // the op is finished
	wakeLead               // the op is the first of the next batch: run it
)

// maxPooledBuf keeps the buffer of an odd message with thousands of recipients from staying around.
const maxPooledBuf = 16 << 10

func (s *Store) newOp(kind opKind) *op {
	o, _ := s.ops.Get().(*op)
	if o == nil {
		o = &op{wake: make(chan wakeup, 1)}
	}
	*o = op{kind: kind, wake: o.wake, buf: o.buf[:0], which: o.which[:0]}
	return o
}

func (s *Store) freeOp(o *op) {
	if cap(o.buf) > maxPooledBuf {
		o.buf = nil
	}
	o.body, o.twin, o.content, o.was = nil, nil, content{}, placement{}
	o.moved = nil
	s.ops.Put(o)
}

func (o *op) tailLen() int { return len(o.buf) - recordHead - int(o.metaLen) + len(o.body) }

// size is how much of the segment the record takes.
func (o *op) size() int64 { return alignUp(int64(len(o.buf) + len(o.body))) }

// commitQueue is where ops wait for the next flush.
type commitQueue struct {
	mu     sync.Mutex
	ops    []*op
	busy   bool // somebody leads
	closed bool
	idle   sync.Cond     // signalled when busy becomes false
	linger bool          // the leader has only lazy ops and waits for company
	joined chan struct{} // ends the lingering, capacity 1
	took   time.Duration // the last flush; the leader's
	free   [][]*op       // batch slices for reuse
	todo   []*op         // scratch of the leader
	bufs   [][]byte      // scratch of the leader
}

// maxBatch is how many bytes go into one write, more or less.
const maxBatch = 4 << 20

// submit queues an op and returns when it is durable or has failed.
func (s *Store) submit(o *op) error {
	s.q.mu.Lock()
	if s.q.closed {
		s.q.mu.Unlock()
		return queue.ErrClosed
	}
	s.q.ops = append(s.q.ops, o)
	s.q.rouse()
	lead := !s.q.busy
	s.q.busy = true
	s.q.mu.Unlock()
	if lead || <-o.wake == wakeLead {
		s.lead(o)
	}
	return o.err
}

// submitAll is submit for several ops at once.
func (s *Store) submitAll(ops []*op) error {
	if len(ops) == 0 {
		return nil
	}
	s.q.mu.Lock()
	if s.q.closed {
		s.q.mu.Unlock()
		return queue.ErrClosed
	}
	s.q.ops = append(s.q.ops, ops...)
	s.q.rouse()
	lead := !s.q.busy
	s.q.busy = true
	s.q.mu.Unlock()
	for i, o := range ops { // in the order of the queue: the first that is not done is the one that may be asked to lead
		if i == 0 && lead || <-o.wake == wakeLead {
			s.lead(o)
		}
	}
	return nil
}

// lead runs one batch, which begins with self, and passes the lead on to the first of those who came meanwhile.
func (s *Store) lead(self *op) {
	q := &s.q
	runtime.Gosched()
	q.mu.Lock()
	q.wait()
	batch := q.take(min(maxBatch, s.cfg.SegmentSize/4))
	q.mu.Unlock()

	s.began.Store(time.Now().UnixNano())
	s.runBatch(batch)
	s.began.Store(0)

	q.mu.Lock()
	var next *op
	if len(q.ops) > 0 {
		next = q.ops[0]
	} else {
		q.busy = false
		q.idle.Broadcast()
	}
	q.mu.Unlock()
	if next != nil {
		next.wake <- wakeLead
	}
	for _, o := range batch {
		if o != self {
			o.wake <- wakeDone // from here on its owner may use it again
		}
	}
	q.mu.Lock()
	clear(batch)
	q.free = append(q.free, batch[:0])
	q.mu.Unlock()
}

const (
	lingerOps = 3                    // so many lazy ops are company enough
	lingerMax = 5 * time.Millisecond // however slow the disk is
)

// trickle reports whether all that waits is a few lazy ops.
func (q *commitQueue) trickle() bool {
	if len(q.ops) >= lingerOps {
		return false
	}
	for _, o := range q.ops {
		if !o.kind.lazy() {
			return false
		}
	}
	return true
}

// wait holds a flush back that would be for one or two lazy ops alone, for as long as two flushes take: a client that sends one
// message after the other is about to commit the next, and would have to wait for that flush before its own. Called by the leader.
func (q *commitQueue) wait() {
	if q.took == 0 || q.closed || !q.trickle() {
		return
	}
	q.linger = true
	q.mu.Unlock()
	t := time.NewTimer(min(2*q.took, lingerMax))
	select {
	case <-q.joined:
	case <-t.C:
	}
	t.Stop()
	q.mu.Lock()
	q.linger = false
	select {
	case <-q.joined:
	default:
	}
}

// rouse ends the leader's wait if there is reason.
func (q *commitQueue) rouse() {
	if q.linger && !q.trickle() {
		q.linger = false
		q.joined <- struct{}{}
	}
}

// take removes the ops of the next batch from the queue: at least one, and no more than limit bytes otherwise.
func (q *commitQueue) take(limit int64) []*op {
	var batch []*op
	if n := len(q.free); n > 0 {
		batch, q.free = q.free[n-1], q.free[:n-1]
	}
	n, bytes := 0, int64(0)
	for n < len(q.ops) && (n == 0 || bytes+q.ops[n].size() <= limit) {
		bytes += q.ops[n].size()
		n++
	}
	batch = append(batch, q.ops[:n]...)
	rest := copy(q.ops, q.ops[n:])
	clear(q.ops[rest:])
	q.ops = q.ops[:rest]
	return batch
}

// runBatch writes the records of all ops, flushes, and sets their errors. There is one at a time.
func (s *Store) runBatch(batch []*op) {
	defer s.survive(batch)
	if err := s.brokenErr(); err != nil {
		for _, o := range batch {
			o.err = err
		}
		return
	}
	todo := s.admit(batch)
	for len(todo) > 0 {
		seg, end, err := s.writeBatch(todo)
		if errors.Is(err, queue.ErrFull) {
			// Mail from outside yields to what frees the disk again.
			if rest := s.refuseOutside(todo, err); len(rest) < len(todo) {
				todo = rest
				continue
			}
		}
		written := err == nil
		if written {
			err = s.flush(seg, end)
		}
		s.settle(todo, err)
		if written {
			s.leave(seg)
		}
		break
	}
	for _, o := range batch {
		if o.twin != nil {
			if o.err = o.twin.err; o.err == nil {
				o.err = queue.ErrExists
			}
		}
	}
}

// survive stops the store for good if a batch ends in a panic, so that whoever waits gets an answer.
func (s *Store) survive(batch []*op) {
	p := recover()
	if p == nil {
		return
	}
	log.Errorf("queue: panic in a commit: %v\n%s", p, debug.Stack())
	err := s.fail(fmt.Errorf("panic: %v", p))
	for _, o := range batch {
		o.err = err
	}
}

// admit decides which ops are to be written, copies first, and reserves what they need in the index.
func (s *Store) admit(batch []*op) []*op {
	todo := s.q.todo[:0]
	s.x.mu.Lock()
	defer s.x.mu.Unlock()
	for _, o := range batch {
		if o.kind.isCopy() {
			if o.err = s.admitCopy(o); o.err == nil {
				todo = append(todo, o)
			}
		}
	}
	for _, o := range batch {
		if !o.kind.isCopy() {
			if o.err = s.admitOp(o, batch); o.err == nil && o.twin == nil {
				todo = append(todo, o)
			}
		}
	}
	s.q.todo = todo
	return todo
}

// errStale is what a copy gets when what it repeats has changed: compaction looks again.
var errStale = errors.New("changed meanwhile")

func (s *Store) admitCopy(o *op) error {
	if o.kind == opCopyRemoved {
		return nil
	}
	i, sl := s.x.find(o.key)
	if sl == nil || sl.serial != o.serial || sl.msg != o.was.msg {
		return errStale
	}
	if o.kind == opCopyResult {
		for _, r := range o.which {
			if s.x.state(i, r) != o.was.from {
				return errStale
			}
		}
	} else {
		for r := range int(sl.rcpts) {
			if at := s.x.state(i, r); len(o.was.states) == 0 && at != (loc{}) || len(o.was.states) > 0 && at != o.was.states[r] {
				return errStale
			}
		}
	}
	o.slot = i
	return nil
}

func (s *Store) admitOp(o *op, batch []*op) error {
	switch o.kind {
	case opMessage:
		if i, ok := s.x.byKey[o.key]; ok {
			if s.x.at(i).msg != (loc{}) {
				return queue.ErrExists
			}
			for _, t := range batch {
				if t.kind == opMessage && t.key == o.key && t != o && t.twin == nil && t.err == nil {
					o.twin = t
					return nil
				}
			}
			return fmt.Errorf("%w: unfinished message in the index", queue.ErrBroken)
		}
		o.slot = s.x.reserve(o.key, o.serial, o.rcpts)
	case opResult, opRemoved:
		i, sl := s.x.find(o.key)
		if sl == nil || sl.serial != o.serial {
			return queue.ErrNotFound
		}
		o.slot = i
		if o.kind == opRemoved {
			// A copy of the message in this very batch goes to the same segment as this record: they vanish together.
			binary.LittleEndian.PutUint32(o.buf[recordHead:], sl.msg.seg)
		}
	}
	return nil
}

// refuseOutside fails the ops that must not use the reserve and returns the others.
func (s *Store) refuseOutside(todo []*op, err error) []*op {
	rest := todo[:0:0]
	s.x.mu.Lock()
	for _, o := range todo {
		if o.outside {
			s.undo(o, err)
		} else {
			rest = append(rest, o)
		}
	}
	s.x.mu.Unlock()
	return rest
}

// flush makes what was written to the segment durable.
func (s *Store) flush(seg *segment, end int64) error {
	start := time.Now()
	if err := s.m.done(diskFsync, start, seg.f.Sync()); err != nil {
		return s.fail(err)
	}
	s.q.took = time.Since(start)
	s.w.mu.Lock()
	if s.w.seg == seg {
		s.w.flushes++
		s.w.synced = max(s.w.synced, end)
	}
	s.w.mu.Unlock()
	return nil
}

// settle brings the index up to date with what is now durable, or undoes the reservations.
func (s *Store) settle(todo []*op, err error) {
	s.x.mu.Lock()
	defer s.x.mu.Unlock()
	messages, care := 0, false
	for _, o := range todo {
		if err != nil {
			s.undo(o, err)
			continue
		}
		if o.kind == opMessage {
			messages++
		}
		care = s.apply(o) || care
	}
	if messages > 0 {
		s.m.itemsWritten.Add(int64(messages))
	}
	if care {
		s.wakeJanitor()
	}
}

// leave ends what writeBatch began: from here on the index knows what the segment holds.
func (s *Store) leave(seg *segment) {
	seg.landing.Add(-1)
	s.x.mu.RLock()
	dead := seg.dead()
	s.x.mu.RUnlock()
	if dead {
		s.wakeJanitor()
	}
}

func (s *Store) undo(o *op, err error) {
	o.err = err
	if o.kind == opMessage {
		s.x.release(o.key, o.slot)
	}
}

// apply makes a durable op visible. It reports whether the janitor may have work.
func (s *Store) apply(o *op) bool {
	x := s.x
	switch o.kind {
	case opMessage:
		x.place(o.slot, o.at, o.size(), &o.content)
		return false
	case opCopyRemoved:
		if x.onDisk(o.tomb) {
			x.segs[o.at.seg].kill(o.tomb)
		}
		return false
	case opSeal:
		return false
	}
	i, sl := x.find(o.key)
	if sl == nil || sl.serial != o.serial {
		o.err = queue.ErrNotFound // removed earlier in this batch
		return false
	}
	old := x.segs[sl.msg.seg]
	switch o.kind {
	case opRemoved:
		o.file = x.remove(o.key, i, o.at.seg)
		if o.file > 0 {
			s.trash.add(o.serial)
		}
		return o.file > 0 || old.sealed && s.sparse(old)
	case opCopyMessage:
		s.applyCopy(i, sl, o)
	case opResult, opCopyResult:
		g := x.segs[o.at.seg]
		g.resultBytes += o.size()
		g.resultCount += int64(len(o.which))
		for _, r := range o.which {
			x.setState(i, r, o.at)
		}
	}
	return false
}

// applyCopy moves a message to where compaction wrote it.
func (s *Store) applyCopy(i uint32, sl *slot, o *op) {
	x := s.x
	x.segs[sl.msg.seg].hold(-1, -int64(sl.size)*recordAlign)
	x.clearStates(i)
	to := x.segs[o.at.seg]
	to.hold(1, o.size())
	if o.at.seg != sl.msg.seg {
		to.follow(sl.msg.seg)
	}
	sl.msg, sl.size = o.at, uint32(o.size()/recordAlign)
	if e := x.extras[i]; e != nil && len(e.chunks) > 0 {
		for c, old := range e.chunks {
			if old.at != o.content.chunks[c].at {
				x.dropChunks(e.chunks[c : c+1])
			}
		}
		e.chunks = o.content.chunks
	}
}

// Update implements queue.Store.
func (s *Store) Update(id mail.ID, us ...queue.RcptUpdate) error {
	if len(us) == 0 || id == "" {
		return s.exists(id)
	}
	o := s.newOp(opResult)
	defer s.freeOp(o)
	o.key = keyOf(id)
	s.x.mu.RLock()
	_, sl := s.x.find(o.key)
	if sl == nil {
		s.x.mu.RUnlock()
		return queue.ErrNotFound
	}
	o.serial = sl.serial
	rcpts := int(sl.rcpts)
	s.x.mu.RUnlock()
	for _, u := range us {
		if u.Rcpt < 0 || u.Rcpt >= rcpts {
			return fmt.Errorf("queue: message %s has no recipient %d", id, u.Rcpt)
		}
		o.which = append(o.which, u.Rcpt)
	}
	o.buf = appendResult(beginRecord(o.buf), &result{id: id, serial: o.serial, us: us})
	o.metaLen = uint32(len(o.buf) - recordHead)
	return s.submit(o)
}

func (s *Store) exists(id mail.ID) error {
	if id != "" {
		s.x.mu.RLock()
		defer s.x.mu.RUnlock()
		if _, sl := s.x.find(keyOf(id)); sl != nil {
			return nil
		}
	}
	return queue.ErrNotFound
}

// Remove implements queue.Store.
func (s *Store) Remove(id mail.ID) error {
	if id == "" {
		return queue.ErrNotFound
	}
	o := s.newOp(opRemoved)
	defer s.freeOp(o)
	o.key = keyOf(id)
	s.x.mu.RLock()
	_, sl := s.x.find(o.key)
	if sl == nil {
		s.x.mu.RUnlock()
		return queue.ErrNotFound
	}
	o.serial = sl.serial
	s.x.mu.RUnlock()
	o.buf = appendRemoved(beginRecord(o.buf), removed{id: id, serial: o.serial})
	o.metaLen = uint32(len(o.buf) - recordHead)
	return s.submit(o)
}
