package spool

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/internal/vfs"
)

// slowDisk is a file system each flush of which takes d, and counts them.
func slowDisk(d time.Duration, flushes *atomic.Int64) vfs.FS {
	return vfs.Hook(vfs.NewMem(), func(op vfs.Op) error {
		if op.Verb == vfs.OpSync {
			flushes.Add(1)
			time.Sleep(d)
		}
		return nil
	})
}

// A client that sends one message after the other costs one flush each, although what it sent before is removed meanwhile: two
// without the wait. A busy machine may let some removals wait in vain.
func TestOneFlushPerMessage(t *testing.T) {
	var flushes atomic.Int64
	s := openTest(t, testConfig(slowDisk(2*time.Millisecond, &flushes)))
	must(t, put(s, entry("first"), "", "body"))
	before := flushes.Load()
	const n = 40
	var wg sync.WaitGroup
	for i := range n {
		e := entry(fmt.Sprintf("m%02d", i))
		must(t, put(s, e, "", "body"))
		wg.Go(func() {
			if err := s.Remove(e.ID); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(500 * time.Microsecond) // until the client's next message
	}
	wg.Wait()
	if got := flushes.Load() - before; got > n*3/2 {
		t.Errorf("%d flushes for %d messages and their removals", got, n)
	}
}

// A removal that stays alone is flushed after a while, also when the store is closed meanwhile.
func TestRemovalAlone(t *testing.T) {
	var flushes atomic.Int64
	s := openTest(t, testConfig(slowDisk(time.Millisecond, &flushes)))
	for i := range 2 {
		must(t, put(s, entry(fmt.Sprintf("m%02d", i)), "", "body"))
	}
	before := flushes.Load()
	must(t, s.Remove("m00"))
	if got := flushes.Load() - before; got != 1 {
		t.Errorf("%d flushes for a removal", got)
	}
	done := make(chan error)
	go func() { done <- s.Remove("m01") }()
	for busy := false; !busy; {
		s.q.mu.Lock()
		busy = s.q.busy
		s.q.mu.Unlock()
	}
	must(t, s.Close())
	must(t, <-done)
}

// A flush that hangs can be seen from outside for as long as it does.
func TestStalled(t *testing.T) {
	hang := make(chan struct{})
	var hangs atomic.Bool
	s := openTest(t, testConfig(vfs.Hook(vfs.NewMem(), func(op vfs.Op) error {
		if op.Verb == vfs.OpSync && hangs.Load() {
			<-hang
		}
		return nil
	})))
	must(t, put(s, entry("m0"), "", "body"))
	if d := s.Stalled(); d != 0 {
		t.Errorf("idle for %v", d)
	}
	hangs.Store(true)
	done := make(chan error, 1)
	go func() { done <- put(s, entry("m1"), "", "body") }()
	for end := time.Now().Add(10 * time.Second); s.Stalled() < 10*time.Millisecond && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if d := s.Stalled(); d < 10*time.Millisecond {
		t.Errorf("a hung flush is seen as one of %v", d)
	}
	close(hang)
	must(t, <-done)
	if d := s.Stalled(); d != 0 {
		t.Errorf("idle again for %v", d)
	}
}
