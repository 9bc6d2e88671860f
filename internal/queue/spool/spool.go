// Package spool is the queue's store on disk: append-only segments, one flush shared by everybody who waits.
//
// A message is one record in a log of segment files; what happens to it later is more records. A commit appends its record and
// waits for a flush of the segment that began after the record was written. Whoever comes while no flush is running starts one
// at once, on its own goroutine; whoever comes while one is running is part of the next. What nobody outside waits for, such as the
// removal of a delivered message, waits a moment for company. So one client is limited by one flush of the device per message, and
// a hundred clients share it.
//
// Memory holds where the living messages are, not what they say: about 80 bytes for one with a single recipient.
// docs/queue-format.md describes the bytes.
package spool

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/queue"
	"blitiri.com.ar/go/chasquid/internal/vfs"
	"blitiri.com.ar/go/log"
)

// Config says where the store is and how it uses the disk. Dir is required; zero values are the defaults.
type Config struct {
	Dir         string // made if it does not exist
	FS          vfs.FS // default: the real file system
	MinFree     int64  // bytes of disk that mail from outside leaves free; default 256 MiB, negative: none
	SegmentSize int64  // bytes; default 32 MiB, at least 256 KiB
	LargeBody   int64  // bytes from which on a body gets a file of its own; default 1 MiB
	NoPrefill   bool   // do not write zeros ahead of the log; commits are slower on new segments
	Metrics     *expvarom.Registry

	manual     bool          // tests: no janitor, they call care
	tiny       bool          // tests: segments may be too small for a block of a message
	eager      bool          // tests: compact everything that is not wholly needed
	spaceCheck time.Duration // how long a look at the free space is good for; negative in tests: not at all
}

// Defaults and limits.
const (
	defaultMinFree     = 256 << 20
	defaultSegmentSize = 32 << 20
	minSegmentSize     = 256 << 10
	defaultLargeBody   = 1 << 20
	defaultSpaceCheck  = 250 * time.Millisecond
	maxIDLen           = 255
)

func (c *Config) setDefaults() {
	if c.FS == nil {
		c.FS = vfs.OS
	}
	if c.MinFree == 0 {
		c.MinFree = defaultMinFree
	}
	if c.SegmentSize == 0 {
		c.SegmentSize = defaultSegmentSize
	}
	if !c.tiny {
		c.SegmentSize = max(c.SegmentSize, minSegmentSize) &^ (segmentPage - 1)
	}
	if c.LargeBody == 0 {
		c.LargeBody = defaultLargeBody
	}
	if c.spaceCheck == 0 {
		c.spaceCheck = defaultSpaceCheck
	}
}

// Store is a queue.Store in a directory.
type Store struct {
	cfg     Config
	minFree atomic.Int64 // Config.MinFree, as it is now

	fs  vfs.FS
	dir string
	m   *metrics

	lock   io.Closer
	x      *index
	w      writer
	prep   preparer
	q      commitQueue
	ops    sync.Pool // of *op; the store's own, as they have channels
	space  space
	serial atomic.Uint64
	broken atomic.Pointer[error]
	hurt   atomic.Int64 // when a write last failed, Unix nanoseconds; 0 since one succeeded
	closed atomic.Bool
	began  atomic.Int64 // when the batch that is being written and flushed was begun, Unix nanoseconds; 0: there is none

	bad     []badRecord // found at start
	corrupt int         // files that were set aside, ever

	trash   trash
	wake    chan struct{} // to the janitor, capacity 1
	stop    chan struct{}
	janitor sync.WaitGroup
}

var _ queue.Store = (*Store)(nil)

// Open takes the directory, reads what is in it and gets ready. It fails with vfs.ErrLocked (wrapped) if another store has it.
func Open(cfg Config) (*Store, error) {
	cfg.setDefaults()
	s := &Store{
		cfg:  cfg,
		fs:   cfg.FS,
		dir:  cfg.Dir,
		m:    newMetrics(cfg.Metrics),
		x:    newIndex(),
		wake: make(chan struct{}, 1),
		stop: make(chan struct{}),
	}
	s.minFree.Store(cfg.MinFree)
	s.q.idle.L = &s.q.mu
	s.q.joined = make(chan struct{}, 1)
	if err := vfs.MkdirAll(s.fs, s.dir, 0700); err != nil {
		return nil, fmt.Errorf("queue directory: %w", err)
	}
	lock, err := s.fs.Lock(s.path(lockName))
	if err != nil {
		return nil, fmt.Errorf("queue directory: %w", err)
	}
	s.lock = lock
	start := time.Now()
	if err := s.recover(); err != nil {
		s.closeFiles()
		lock.Close()
		return nil, fmt.Errorf("reading the queue in %s: %w", s.dir, err)
	}
	log.Debugf("queue: %d messages in %d segments read in %v", s.x.messages, len(s.x.segs), time.Since(start))
	if !cfg.manual {
		s.janitor.Go(s.runJanitor)
	}
	return s, nil
}

func (s *Store) path(name string) string { return filepath.Join(s.dir, name) }

// Close waits for the commits that are running, writes the mark of an orderly end and lets go of the directory. Bodies that are
// being read can be read to their end.
func (s *Store) Close() error {
	if s.closed.Swap(true) {
		return queue.ErrClosed
	}
	s.q.mu.Lock()
	s.q.closed = true
	for s.q.busy {
		s.q.idle.Wait()
	}
	s.q.mu.Unlock()
	close(s.stop)
	s.janitor.Wait()
	s.emptyTrash()

	err := s.brokenErr()
	if err == nil {
		err = s.writeSeal()
	}
	if cerr := s.closeFiles(); err == nil {
		err = cerr
	}
	if cerr := s.lock.Close(); err == nil {
		err = cerr
	}
	return err
}

// writeSeal ends the log so that the next start knows that nothing after it was lost. A store that wrote nothing since the last
// flush needs it too: the mark says that all before it was durable.
func (s *Store) writeSeal() error {
	o := s.newOp(opSeal)
	defer s.freeOp(o)
	o.buf = beginRecord(o.buf[:0])
	s.runBatch([]*op{o})
	if errors.Is(o.err, queue.ErrFull) {
		return nil
	}
	return o.err
}

func (s *Store) closeFiles() error {
	s.x.mu.Lock()
	segs := s.x.segs
	s.x.segs = map[uint32]*segment{}
	s.x.mu.Unlock()
	var err error
	for _, g := range segs {
		g.gone.Store(true)
		if g.holds.Load() > 0 {
			continue // its last reader closes it
		}
		if cerr := g.close(); err == nil {
			err = cerr
		}
	}
	for _, sp := range s.prep.spares {
		sp.f.Close()
	}
	if s.prep.next != nil {
		s.prep.next.close()
	}
	return err
}

// Err returns nil while the store can take mail from outside, else the reason it cannot: it wraps queue.ErrBroken after a failed
// flush, which only a restart mends, and after a failed write until one succeeds; queue.ErrFull while the disk is full.
func (s *Store) Err() error {
	if err := s.brokenErr(); err != nil {
		return err
	}
	if s.closed.Load() {
		return queue.ErrClosed
	}
	if at := s.hurt.Load(); at != 0 && time.Since(time.Unix(0, at)) < hurtFor {
		return fmt.Errorf("%w: the last write failed", queue.ErrBroken)
	}
	return s.checkSpace()
}

// Stalled is how long the write or flush that somebody waits for has been under way, 0 if there is none.
func (s *Store) Stalled() time.Duration {
	if at := s.began.Load(); at != 0 {
		return time.Since(time.Unix(0, at))
	}
	return 0
}

// hurtFor is how long Err reports a failed write if nothing is written after it.
const hurtFor = 10 * time.Second

func (s *Store) brokenErr() error {
	if p := s.broken.Load(); p != nil {
		return *p
	}
	return nil
}

// fail stops the store for good: after a failed flush nobody knows what the disk has, and asking again may hide it.
func (s *Store) fail(err error) error {
	err = fmt.Errorf("%w: %w", queue.ErrBroken, err)
	if s.broken.CompareAndSwap(nil, &err) {
		log.Errorf("queue: the disk failed, no more mail is accepted until a restart: %v", err)
	}
	return s.brokenErr()
}

// writeErr classifies the error of a write: no space is queue.ErrFull, all else is queue.ErrBroken, which a later write may mend.
func (s *Store) writeErr(err error) error {
	if err == nil || errors.Is(err, queue.ErrBroken) || errors.Is(err, queue.ErrFull) {
		return err
	}
	if noSpace(err) {
		s.space.forget()
		return fmt.Errorf("%w: %w", queue.ErrFull, err)
	}
	s.hurt.Store(time.Now().UnixNano())
	return fmt.Errorf("%w: %w", queue.ErrBroken, err)
}

func noSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// Stats is what the store holds.
type Stats struct {
	Messages  int
	LiveBytes int64 // of messages, with their envelopes
	DiskBytes int64 // of all files
	Segments  int
	Spares    int // segments kept for reuse
	Corrupt   int // files set aside because they could not be read, in the directory "corrupt"
}

// Stats returns what the store holds now.
func (s *Store) Stats() Stats {
	s.prep.mu.Lock()
	st := Stats{Spares: len(s.prep.spares), Corrupt: s.corrupt}
	for _, sp := range s.prep.spares {
		st.DiskBytes += sp.size
	}
	if s.prep.next != nil {
		st.DiskBytes += s.prep.next.size
	}
	s.prep.mu.Unlock()
	s.x.mu.RLock()
	defer s.x.mu.RUnlock()
	st.Messages, st.Segments = s.x.messages, len(s.x.segs)
	st.LiveBytes = s.x.bodyBytes
	st.DiskBytes += s.x.bodyBytes
	for _, g := range s.x.segs {
		st.LiveBytes += g.live
		st.DiskBytes += g.size
	}
	return st
}

// Len returns the number of messages.
func (s *Store) Len() int {
	s.x.mu.RLock()
	defer s.x.mu.RUnlock()
	return s.x.messages
}

// space remembers how much disk is free, so that not every commit asks.
type space struct {
	checked atomic.Int64 // Unix nanoseconds
	free    atomic.Int64
}

func (sp *space) forget() { sp.checked.Store(0) }

// freeBytes returns the free space, as of a moment ago; while it is short, as of now.
func (s *Store) freeBytes() (int64, error) {
	now := time.Now().UnixNano()
	free := s.space.free.Load()
	if s.cfg.spaceCheck > 0 && now-s.space.checked.Load() < int64(s.cfg.spaceCheck) && free >= s.minFree.Load() {
		return free, nil
	}
	free, err := s.fs.Free(s.dir)
	if err != nil {
		return 0, fmt.Errorf("free space of the queue directory: %w", err)
	}
	s.space.free.Store(free)
	s.space.checked.Store(now)
	return free, nil
}

// checkSpace returns queue.ErrFull if mail from outside would use the reserve.
func (s *Store) checkSpace() error { return s.checkReserve(s.minFree.Load()) }

// SetMinFree changes Config.MinFree; 0 is its default.
func (s *Store) SetMinFree(bytes int64) {
	if bytes == 0 {
		bytes = defaultMinFree
	}
	s.minFree.Store(bytes)
}

func (s *Store) checkReserve(reserve int64) error {
	if s.minFree.Load() < 0 {
		return nil
	}
	free, err := s.freeBytes()
	if err != nil {
		return s.writeErr(err)
	}
	if free < reserve {
		return fmt.Errorf("%w: %d MiB are left, of which mail from outside may use none", queue.ErrFull, free>>20)
	}
	return nil
}
