package spool

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/queue"
	"blitiri.com.ar/go/chasquid/internal/vfs"
)

// These tests hold the rules by which segments depend on one another: each describes one way in which a removed message could
// come back.

// bench is a store on a disk that a test can break, with a known segment layout.
type bench struct {
	t    *testing.T
	mem  *vfs.Mem
	s    *Store
	mu   sync.Mutex
	fail func(op vfs.Op) error
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t, mem: vfs.NewMem()}
	c := testConfig(vfs.Hook(b.mem, func(op vfs.Op) error {
		b.mu.Lock()
		fail := b.fail
		b.mu.Unlock()
		if fail == nil {
			return nil
		}
		return fail(op)
	}))
	b.s = openTest(t, c)
	return b
}

func (b *bench) on(fail func(op vfs.Op) error) {
	b.mu.Lock()
	b.fail = fail
	b.mu.Unlock()
}

// rotate makes the store begin a new segment.
func (b *bench) rotate() {
	b.t.Helper()
	b.s.w.mu.Lock()
	defer b.s.w.mu.Unlock()
	must(b.t, b.s.rotate())
}

func (b *bench) put(id string, size int) {
	b.t.Helper()
	must(b.t, put(b.s, entry(id), "", randomBody(size)))
}

// segments lists the segments of the log, without those made ahead.
func (b *bench) segments() string {
	b.s.x.mu.RLock()
	defer b.s.x.mu.RUnlock()
	var seqs []string
	for seq := range uint32(100) {
		if b.s.x.segs[seq] != nil {
			seqs = append(seqs, fmt.Sprint(seq))
		}
	}
	return strings.Join(seqs, " ")
}

// afterCrash returns what a store finds that is opened after the process was killed now.
func (b *bench) afterCrash() string {
	b.t.Helper()
	s := openTest(b.t, testConfig(b.mem.Kill()))
	return contents(b.t, s)
}

func (b *bench) wantSegments(want string) {
	b.t.Helper()
	if got := b.segments(); got != want {
		b.t.Errorf("segments %s, want %s", got, want)
	}
}

func (b *bench) wantAfterCrash(want string) {
	b.t.Helper()
	if got := b.afterCrash(); got != want {
		b.t.Errorf("after a crash:\n%swant\n%s", got, want)
	}
}

// TestTombstoneStays: the record of a removal stays as long as the segment of its message, also when it was itself moved; when
// that segment is gone, so is the record.
func TestTombstoneStays(t *testing.T) {
	b := newBench(t)
	b.put("stays", 60_000)
	b.put("gone", 10)
	b.put("gone2", 10)
	b.put("stays2", 60_000)
	b.rotate() // segment 1 is half full: it stays
	must(t, b.s.Remove("gone"))
	b.rotate()
	must(t, b.s.Remove("gone2"))
	b.rotate()
	b.s.care()
	b.wantSegments("1 2 3 4") // 2 and 3 are young
	b.rotate()
	b.rotate()
	b.s.care() // moves the tombstones to 6
	b.wantSegments("1 6")
	b.wantAfterCrash("stays 60000\nstays2 60000\n")
	b.rotate()
	b.s.care()
	b.rotate()
	b.rotate()
	b.rotate()
	b.s.care() // and again
	if got := b.segments(); strings.Contains(got, "6") || !strings.Contains(got, "1 ") {
		t.Errorf("segments %s", got)
	}
	b.wantAfterCrash("stays 60000\nstays2 60000\n")
	must(t, b.s.Remove("stays"))
	must(t, b.s.Remove("stays2"))
	b.rotate()
	b.s.care()
	if got := len(strings.Fields(b.segments())); got != 1 {
		t.Errorf("segments %s of an empty store", b.segments())
	}
	b.wantAfterCrash("")
}

// TestMovedMessage: as long as the place a message was moved from is on the disk, because something else keeps it there, so is
// what tells of its removal.
func TestMovedMessage(t *testing.T) {
	b := newBench(t)
	d, err := b.s.Create() // a slow client, whose chunk keeps segment 1
	must(t, err)
	_, err = d.Write([]byte(randomBody(blockSize + 1)))
	must(t, err)
	b.put("moved", 1000)
	b.rotate()
	b.rotate()
	b.rotate()
	b.s.cfg.eager = true
	b.s.care()
	b.wantSegments("1 4")
	if p := placeOf(b.s, "moved"); p.seg != 4 {
		t.Fatalf("the message is in segment %d", p.seg)
	}
	b.rotate()
	must(t, b.s.Remove("moved"))
	b.rotate()
	b.rotate()
	b.rotate()
	b.s.care()
	b.wantAfterCrash("")
	d.Discard()
	b.s.care()
	b.wantAfterCrash("")
	if got := len(strings.Fields(b.segments())); got != 1 {
		t.Errorf("segments %s of an empty store", b.segments())
	}
}

func placeOf(s *Store, id mail.ID) loc {
	s.x.mu.RLock()
	defer s.x.mu.RUnlock()
	if _, sl := s.x.find(keyOf(id)); sl != nil {
		return sl.msg
	}
	return loc{}
}

// TestFailedWriteLeavesNothing: a write that failed after all its bytes were written is not found later, when the segment that
// tells where the log ended is gone.
func TestFailedWriteLeavesNothing(t *testing.T) {
	b := newBench(t)
	b.put("stays", 100_000)
	b.put("stays2", 50_000)
	failed := false
	b.on(func(op vfs.Op) error {
		if op.Verb == vfs.OpWrite && !failed {
			failed = true
			return &vfs.ShortWrite{N: op.Len, Err: syscall.EIO}
		}
		return nil
	})
	if err := put(b.s, entry("again"), "", "body"); !errors.Is(err, queue.ErrBroken) {
		t.Fatalf("failed write: %v", err)
	}
	b.put("again", 10) // in segment 2
	must(t, b.s.Remove("again"))
	b.wantSegments("1 2")
	b.rotate()
	b.rotate()
	b.rotate()
	b.s.care()
	b.wantAfterCrash("stays 100000\nstays2 50000\n")
	must(t, b.s.Close())
	s := openTest(t, testConfig(b.mem))
	s.care()
	must(t, s.Close())
	if got := contents(t, openTest(t, testConfig(b.mem.Kill()))); got != "stays 100000\nstays2 50000\n" {
		t.Errorf("after two more starts:\n%s", got)
	}
}

// TestFailedBatch: of two messages whose common write failed, the second is not found behind the first when only that is written
// again.
func TestFailedBatch(t *testing.T) {
	b := newBench(t)
	b.put("before", 10)
	gate := make(chan struct{})
	entered := make(chan struct{})
	state := 0 // 0: hold the flush, 1: fail the next write, 2: done
	b.on(func(op vfs.Op) error {
		switch {
		case op.Verb == vfs.OpSync && state == 0:
			state = 1
			close(entered)
			<-gate
		case op.Verb == vfs.OpWrite && state == 1 && op.Len > 200:
			state = 2
			return &vfs.ShortWrite{N: op.Len, Err: syscall.ENOSPC}
		}
		return nil
	})
	var wg sync.WaitGroup
	wg.Go(func() { put(b.s, entry("held"), "", "x") })
	<-entered
	errs := make([]error, 2)
	for i := range errs {
		wg.Go(func() { errs[i] = put(b.s, entry(fmt.Sprint("m", i)), "", "body of the same length") })
		for queued := 0; queued <= i; { // in this order
			b.s.q.mu.Lock()
			queued = len(b.s.q.ops)
			b.s.q.mu.Unlock()
		}
	}
	close(gate)
	wg.Wait()
	for i, err := range errs {
		if !errors.Is(err, queue.ErrFull) {
			t.Fatalf("commit %d: %v", i, err)
		}
	}
	must(t, put(b.s, entry("m0"), "", "body of the same length"))
	b.wantAfterCrash("before 10\nheld 1\nm0 23\n")
}

// TestTwins: of two commits of one id at once the second is told of the first only if that is durable.
func TestTwins(t *testing.T) {
	for _, fail := range []bool{false, true} {
		b := newBench(t)
		gate, entered := make(chan struct{}), make(chan struct{})
		flushes := 0
		b.on(func(op vfs.Op) error {
			if op.Verb != vfs.OpSync {
				return nil
			}
			if flushes++; flushes == 1 {
				close(entered)
				<-gate
			} else if fail {
				return syscall.EIO
			}
			return nil
		})
		var wg sync.WaitGroup
		wg.Go(func() { put(b.s, entry("held"), "", "x") })
		<-entered
		errs := make([]error, 3)
		for i := range errs {
			wg.Go(func() { errs[i] = put(b.s, entry("twin"), "", "x") })
		}
		for queued := 0; queued < 3; {
			b.s.q.mu.Lock()
			queued = len(b.s.q.ops)
			b.s.q.mu.Unlock()
		}
		close(gate)
		wg.Wait()
		counts := map[string]int{}
		for _, err := range errs {
			switch {
			case err == nil:
				counts["ok"]++
			case errors.Is(err, queue.ErrExists):
				counts["exists"]++
			case errors.Is(err, queue.ErrBroken):
				counts["broken"]++
			}
		}
		if want := map[bool]string{false: "map[exists:2 ok:1]", true: "map[broken:3]"}[fail]; fmt.Sprint(counts) != want {
			t.Errorf("flush fails %v: %v, want %s", fail, counts, want)
		}
	}
}

// TestLoaderSeesNewRecords: what a loader read ahead of the log's end does not hide what is written there later.
func TestLoaderSeesNewRecords(t *testing.T) {
	b := newBench(t)
	b.put("m0", 10)
	b.put("m1", 10)
	state := func(n int) queue.RcptUpdate { return queue.RcptUpdate{State: queue.RcptStatus{Attempts: n}} }
	must(t, b.s.Update("m0", state(1)))
	l := b.s.newLoader()
	load := func(id mail.ID) int {
		t.Helper()
		b.s.x.mu.RLock()
		i, _ := b.s.x.find(keyOf(id))
		l.take(b.s.x, i)
		b.s.x.mu.RUnlock()
		defer l.release()
		e, _, err := l.load()
		if err != nil || e.ID != id {
			t.Fatalf("%s: %s, %v", id, e.ID, err)
		}
		return e.Status[0].Attempts
	}
	if n := load("m0"); n != 1 {
		t.Errorf("attempts %d", n)
	}
	must(t, b.s.Update("m1", state(2)))
	if n := load("m1"); n != 2 {
		t.Errorf("attempts %d", n)
	}
	b.put("m2", 10)
	if n := load("m2"); n != 0 {
		t.Errorf("attempts %d", n)
	}
	if n := b.s.m.errors[diskParse].Value(); n != 0 {
		t.Errorf("%v errors counted", n)
	}
}

// TestRotationDuringFlush: a segment that fills while its last records are being flushed is not taken for empty.
func TestRotationDuringFlush(t *testing.T) {
	b := newBench(t)
	b.rotate() // the records begin in segment 2
	gate, entered := make(chan struct{}), make(chan struct{})
	var flushes atomic.Int64
	b.on(func(op vfs.Op) error {
		if op.Verb == vfs.OpSync && flushes.Add(1) == 1 {
			close(entered)
			<-gate
		}
		return nil
	})
	var err error
	var wg sync.WaitGroup
	wg.Go(func() { err = put(b.s, entry("slow"), "", "text") })
	<-entered
	b.rotate()
	b.s.care()
	close(gate)
	wg.Wait()
	must(t, err)
	if got := contents(t, b.s); got != "slow 4\n" {
		t.Errorf("messages:\n%s", got)
	}
	b.wantAfterCrash("slow 4\n")
	must(t, b.s.Remove("slow"))
	b.s.care()
	b.wantSegments("3")
}
