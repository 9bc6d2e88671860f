package spool

import (
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"blitiri.com.ar/go/chasquid/internal/vfs"
)

// segment is one file of the log.
type segment struct {
	seq  uint32
	salt uint32
	name string // path
	f    vfs.File
	size int64 // what records may fill

	holds  atomic.Int32 // readers
	gone   atomic.Bool  // removed from the index: the last reader closes the file
	closed atomic.Bool

	landing atomic.Int32 // batches that were written and are not yet in the index

	filled int64 // up to here the disk's blocks were written before; guarded by writer.mu

	// Guarded by index.mu.
	sealed      bool  // nothing more is appended
	end         int64 // of the records, once sealed
	refs        int   // living messages and chunks, and chunks of messages being written
	live        int64 // their bytes
	results     int   // latest results of recipients
	resultBytes int64 // of all results ever written here, to estimate what the living ones take
	resultCount int64
	kills       map[uint32]int      // tombstones here of messages in other segments, by segment
	after       map[uint32]struct{} // segments messages were moved here from: those must go first
	retry       time.Time           // not compacted again before
}

// hold counts a living record in, or out.
func (g *segment) hold(n int, bytes int64) {
	g.refs += n
	g.live += bytes
}

// kill notes a tombstone for a message in seg.
func (g *segment) kill(seg uint32) {
	if g.kills == nil {
		g.kills = map[uint32]int{}
	}
	g.kills[seg]++
}

// follow notes that a message was moved here from seg.
func (g *segment) follow(seg uint32) {
	if g.after == nil {
		g.after = map[uint32]struct{}{}
	}
	g.after[seg] = struct{}{}
}

// forget is called when seg is gone from the disk.
func (g *segment) forget(seg uint32) {
	delete(g.kills, seg)
	delete(g.after, seg)
}

// dead reports whether nothing needs the segment any more.
func (g *segment) dead() bool {
	return g.sealed && g.landing.Load() == 0 && g.refs == 0 && g.results == 0 && len(g.kills) == 0 && len(g.after) == 0
}

// tombSize is about what a tombstone takes.
const tombSize = 64

// needed estimates the bytes that compaction would have to copy.
func (g *segment) needed() int64 {
	n := g.live
	if g.resultCount > 0 {
		n += int64(g.results) * g.resultBytes / g.resultCount
	}
	for _, k := range g.kills {
		n += int64(k) * tombSize
	}
	return n
}

// done ends a reader's hold.
func (g *segment) done() {
	if g.holds.Add(-1) == 0 && g.gone.Load() {
		g.close()
	}
}

// close closes the file, once.
func (g *segment) close() error {
	if g.closed.Swap(true) {
		return nil
	}
	return g.f.Close()
}

// Names in the queue directory.
const (
	segmentSuffix = ".seg"
	spareSuffix   = ".spare" // a segment nothing needs, kept because its blocks are already written
	bodySuffix    = ".body"
	lockName      = "lock"
	corruptDir    = "corrupt"
)

func segmentName(seq uint32) string { return fmt.Sprintf("%08x%s", seq, segmentSuffix) }
func spareName(seq uint32) string   { return fmt.Sprintf("%08x%s", seq, spareSuffix) }
func bodyName(serial uint64) string { return fmt.Sprintf("%016x%s", serial, bodySuffix) }

// parseName is the inverse of the functions above.
func parseName(name, suffix string, bits int) (uint64, bool) {
	digits, ok := strings.CutSuffix(name, suffix)
	if !ok || len(digits) != bits/4 {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 16, bits)
	return n, err == nil
}
