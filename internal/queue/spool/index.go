package spool

import (
	"cmp"
	"crypto/sha256"
	"slices"
	"sync"
)

// loc is the place of a record: a segment and an offset in units of recordAlign. The zero value is nowhere.
type loc struct{ seg, off uint32 }

func (l loc) offset() int64 { return int64(l.off) * recordAlign }

func locOf(seg uint32, off int64) loc { return loc{seg, uint32(off / recordAlign)} }

// key stands for an id in the index: ids of up to 16 bytes as they are, others as a hash, which begins with a byte that no short
// id begins with.
type key [16]byte

func keyOf[S ~string | ~[]byte](id S) (k key) {
	if plain := len(id) > 0 && len(id) <= len(k) && id[0] < 0x80; plain {
		for i := range len(id) {
			plain = plain && id[i] != 0 // the padding must not be ambiguous
			k[i] = id[i]
		}
		if plain {
			return k
		}
	}
	sum := sha256.Sum256([]byte(id))
	copy(k[:], sum[:])
	k[0] |= 0x80
	return k
}

// slot is what memory holds of a message. There may be millions: it has no pointers, so the collector does not look at it.
type slot struct {
	serial uint64
	msg    loc    // its record; nowhere while the record is being written
	state  loc    // the latest result of the only recipient, if there is one; of several, extra has them
	size   uint32 // of its record, in units of recordAlign
	rcpts  uint32
}

// extra is what a minority of messages needs besides: those with several recipients of which some have results, and those with
// bytes outside their record.
type extra struct {
	states []loc // by recipient, nil if none has a result
	chunks []chunkRef
	file   int64 // length of the body file, 0 if there is none
}

// slabSize is how many slots are allocated at once.
const slabSize = 4096

// index knows the living messages and the segments. Its lock is held for moments: never while a file is read, written or flushed.
type index struct {
	mu     sync.RWMutex
	byKey  map[key]uint32
	slabs  []*[slabSize]slot
	free   []uint32
	extras map[uint32]*extra
	chunky map[uint64]uint32 // from the serial to the slot, of messages with chunks
	segs   map[uint32]*segment

	// Segments that were taken out of segs and are not yet gone from the disk for certain.
	leaving map[uint32]bool

	messages  int
	bodyBytes int64 // in body files
}

func newIndex() *index {
	return &index{
		byKey:  map[key]uint32{},
		extras: map[uint32]*extra{},
		chunky: map[uint64]uint32{},
		segs:   map[uint32]*segment{},

		leaving: map[uint32]bool{},
	}
}

func (x *index) at(i uint32) *slot { return &x.slabs[i/slabSize][i%slabSize] }

// find returns the slot of an id, nil if there is no such message or it is not yet durable.
func (x *index) find(k key) (uint32, *slot) {
	i, ok := x.byKey[k]
	if !ok {
		return 0, nil
	}
	if s := x.at(i); s.msg != (loc{}) {
		return i, s
	}
	return 0, nil
}

// reserve makes a slot for a message about to be written.
func (x *index) reserve(k key, serial uint64, rcpts uint32) uint32 {
	if len(x.free) == 0 {
		base := uint32(len(x.slabs)) * slabSize
		x.slabs = append(x.slabs, new([slabSize]slot))
		for i := range uint32(slabSize) {
			x.free = append(x.free, base+slabSize-1-i)
		}
	}
	i := x.free[len(x.free)-1]
	x.free = x.free[:len(x.free)-1]
	*x.at(i) = slot{serial: serial, rcpts: rcpts}
	x.byKey[k] = i
	return i
}

// release gives up a slot.
func (x *index) release(k key, i uint32) {
	delete(x.byKey, k)
	delete(x.extras, i)
	*x.at(i) = slot{}
	x.free = append(x.free, i)
}

// onDisk reports whether a segment may be found by the next start.
func (x *index) onDisk(seq uint32) bool { return x.segs[seq] != nil || x.leaving[seq] }

// place records where a message is and counts it with its segments. Its chunks were counted when they were written.
func (x *index) place(i uint32, at loc, size int64, c *content) {
	s := x.at(i)
	s.msg, s.size = at, uint32(size/recordAlign)
	x.segs[at.seg].hold(1, size)
	x.messages++
	if len(c.chunks) > 0 || c.fileLen > 0 {
		x.extra(i).chunks, x.extra(i).file = c.chunks, c.fileLen
		x.bodyBytes += c.fileLen
	}
	if len(c.chunks) > 0 {
		x.chunky[s.serial] = i
	}
}

func (x *index) extra(i uint32) *extra {
	e := x.extras[i]
	if e == nil {
		e = new(extra)
		x.extras[i] = e
	}
	return e
}

// state returns where the latest result of a recipient is.
func (x *index) state(i uint32, rcpt int) loc {
	s := x.at(i)
	if s.rcpts == 1 {
		return s.state
	}
	if e := x.extras[i]; e != nil && e.states != nil {
		return e.states[rcpt]
	}
	return loc{}
}

// setState records where the latest result of a recipient is; nowhere means with the message.
func (x *index) setState(i uint32, rcpt int, at loc) {
	s := x.at(i)
	old := x.state(i, rcpt)
	if old == at {
		return
	}
	if seg := x.segs[old.seg]; seg != nil {
		seg.results--
	}
	if seg := x.segs[at.seg]; seg != nil {
		seg.results++
	}
	if s.rcpts == 1 {
		s.state = at
		return
	}
	e := x.extra(i)
	if e.states == nil {
		e.states = make([]loc, s.rcpts)
	}
	e.states[rcpt] = at
}

// clearStates forgets all results: the message's record has them.
func (x *index) clearStates(i uint32) {
	for r := range int(x.at(i).rcpts) {
		x.setState(i, r, loc{})
	}
	if e := x.extras[i]; e != nil {
		e.states = nil
		if len(e.chunks) == 0 && e.file == 0 {
			delete(x.extras, i)
		}
	}
}

// appendStates appends where the results of all recipients are, nothing if there are none.
func (x *index) appendStates(to []loc, i uint32) []loc {
	s := x.at(i)
	if s.rcpts == 1 {
		if s.state == (loc{}) {
			return to
		}
		return append(to, s.state)
	}
	if e := x.extras[i]; e != nil {
		return append(to, e.states...)
	}
	return to
}

// remove forgets a message; tomb is the segment with the record that removes it, which has to stay as long as the message's.
// It returns the length of the message's body file.
func (x *index) remove(k key, i uint32, tomb uint32) (file int64) {
	s := x.at(i)
	x.segs[s.msg.seg].hold(-1, -int64(s.size)*recordAlign)
	if t := x.segs[tomb]; t != nil && tomb != s.msg.seg {
		t.kill(s.msg.seg)
	}
	x.clearStates(i)
	if e := x.extras[i]; e != nil {
		file = e.file
		x.dropChunks(e.chunks)
		if len(e.chunks) > 0 {
			delete(x.chunky, s.serial)
		}
	}
	x.bodyBytes -= file
	x.messages--
	x.release(k, i)
	return file
}

// dropChunks forgets chunks of a message that is removed, moved or was never committed.
func (x *index) dropChunks(cs []chunkRef) {
	for _, c := range cs {
		if seg := x.segs[c.at.seg]; seg != nil {
			seg.hold(-1, -chunkSize(c.len))
		}
	}
}

func chunkSize(n uint32) int64 { return alignUp(chunkHead + int64(n)) }

// inOrder returns the slots of all messages by serial: the order of arrival.
func (x *index) inOrder() []ordered {
	x.mu.RLock()
	defer x.mu.RUnlock()
	all := make([]ordered, 0, x.messages)
	for _, i := range x.byKey {
		if s := x.at(i); s.msg != (loc{}) {
			all = append(all, ordered{s.serial, i})
		}
	}
	slices.SortFunc(all, func(a, b ordered) int { return cmp.Compare(a.serial, b.serial) })
	return all
}

// ordered is a slot and the serial it had.
type ordered struct {
	serial uint64
	slot   uint32
}
