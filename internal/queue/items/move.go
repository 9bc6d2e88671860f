package items

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sync/semaphore"

	"blitiri.com.ar/go/chasquid/internal/queue"
	"blitiri.com.ar/go/chasquid/internal/trace"
	"blitiri.com.ar/go/chasquid/internal/vfs"
	"blitiri.com.ar/go/log"
)

// Config says what to move. Store is required.
type Config struct {
	Store queue.Store
	Dir   string // with the item files
	FS    vfs.FS // default: the real file system

	// Progress is told how far it is, if it is not nil: from one goroutine at a time, done never falls, total is 0 if unknown.
	Progress func(done, total int)
}

// Result counts what was moved.
type Result struct {
	Done   int // moved, or found to have been moved before
	Failed int // left where they were, and logged
}

// Items are moved in parallel, so that they share the flushes of the disk. Their bytes are in memory meanwhile, more than once.
const (
	workers   = 16
	maxMemory = 64 << 20
)

// mover runs a job per item.
type mover struct {
	c      Config
	fs     vfs.FS
	total  int
	memory *semaphore.Weighted
	slots  chan struct{}
	wg     sync.WaitGroup

	mu   sync.Mutex
	res  Result
	stop error // ends the work
}

func newMover(c Config, total int) *mover {
	m := &mover{c: c, fs: c.FS, total: total, memory: semaphore.NewWeighted(maxMemory), slots: make(chan struct{}, workers)}
	if m.fs == nil {
		m.fs = vfs.OS
	}
	return m
}

// run starts a job for an item of about size bytes. It returns false if the work is to end.
func (m *mover) run(ctx context.Context, name string, size int64, job func() error) bool {
	m.mu.Lock()
	stopped := m.stop != nil
	m.mu.Unlock()
	if stopped {
		return false
	}
	weight := min(4*size+1, maxMemory)
	if err := m.memory.Acquire(ctx, weight); err != nil {
		m.end(err)
		return false
	}
	m.slots <- struct{}{}
	m.wg.Go(func() {
		m.count(ctx, name, job())
		<-m.slots
		m.memory.Release(weight)
	})
	return true
}

func (m *mover) end(err error) {
	m.mu.Lock()
	if m.stop == nil {
		m.stop = err
	}
	m.mu.Unlock()
}

// count notes the result of a job. Errors of the item are logged; those of the store or the disk end the work.
func (m *mover) count(ctx context.Context, name string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var bad *badItem
	switch {
	case err == nil:
		m.res.Done++
	case errors.As(err, &bad):
		m.res.Failed++
		log.Errorf("queue: item %q is left alone: %v", name, bad.err)
		trace.From(ctx).Errorf("item %q is left alone: %v", name, bad.err)
	case m.stop == nil:
		m.stop = fmt.Errorf("item %q: %w", name, err)
	}
	if m.c.Progress != nil {
		m.c.Progress(m.res.Done+m.res.Failed, m.total)
	}
}

// badItem is an error that concerns one item only.
type badItem struct{ err error }

func (b *badItem) Error() string { return b.err.Error() }
func (b *badItem) Unwrap() error { return b.err }

// Import moves the items of an earlier installation into the store. Each is durable there before its file is removed; when Import
// returns, the removal is durable too, so that no message that is delivered from now on can be imported again. It may be
// interrupted at any point and run again. Items that cannot be read are left in place. It ends early with the error of the store,
// for example queue.ErrFull.
func Import(ctx context.Context, c Config) (Result, error) {
	m := newMover(c, 0)
	infos, err := m.fs.ReadDir(c.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return Result{}, nil
	}
	if err != nil {
		return Result{}, fmt.Errorf("importing queue items: %w", err)
	}
	var files []vfs.Info
	for _, i := range infos {
		if strings.HasPrefix(i.Name, Prefix) && !i.Dir {
			files = append(files, i)
		}
	}
	m.total = len(files)
	for _, f := range files {
		if err := ctx.Err(); err != nil {
			m.end(err)
			break
		}
		if !m.run(ctx, f.Name, f.Size, func() error { return m.importOne(f.Name) }) {
			break
		}
	}
	m.wg.Wait()
	err = m.stop
	if m.res.Done > 0 {
		if serr := m.fs.SyncDir(c.Dir); err == nil {
			err = serr
		}
	}
	if err != nil {
		return m.res, fmt.Errorf("importing queue items: %w", err)
	}
	return m.res, nil
}

func (m *mover) importOne(name string) error {
	path := filepath.Join(m.c.Dir, name)
	text, err := vfs.ReadFile(m.fs, path)
	if err != nil {
		return &badItem{err}
	}
	e, data, err := Parse(name, text)
	if err != nil {
		return &badItem{err}
	}
	d, err := m.c.Store.Create()
	if err != nil {
		return err
	}
	defer d.Discard()
	if _, err := d.Write(data); err != nil {
		return err
	}
	// One that is there already was imported before an interruption.
	if err := d.Commit(&e, nil); err != nil && !errors.Is(err, queue.ErrExists) {
		return err
	}
	return m.fs.Remove(path)
}

// Export writes every message of the store to a file in dir, which is made if need be, for going back to an earlier version. The
// store keeps them. A file is there whole or not at all, whenever it is interrupted; running it again replaces the files. Messages
// that cannot be read are counted and logged.
func Export(ctx context.Context, c Config) (Result, error) {
	m := newMover(c, 0)
	if l, ok := c.Store.(interface{ Len() int }); ok {
		m.total = l.Len()
	}
	if err := vfs.MkdirAll(m.fs, c.Dir, 0700); err != nil {
		return Result{}, fmt.Errorf("exporting queue items: %w", err)
	}
	for e, err := range c.Store.All() {
		if cerr := ctx.Err(); cerr != nil {
			m.end(cerr)
			break
		}
		if err != nil {
			m.count(ctx, string(e.ID), &badItem{err})
			continue
		}
		if !m.run(ctx, string(e.ID), e.Size, func() error { return m.exportOne(&e) }) {
			break
		}
	}
	m.wg.Wait()
	err := m.stop
	if serr := m.fs.SyncDir(c.Dir); err == nil {
		err = serr
	}
	if err != nil {
		return m.res, fmt.Errorf("exporting queue items: %w", err)
	}
	return m.res, nil
}

func (m *mover) exportOne(e *queue.Entry) error {
	body, err := m.c.Store.Open(e.ID)
	if errors.Is(err, queue.ErrNotFound) {
		return nil // delivered meanwhile
	}
	if err != nil {
		return &badItem{err}
	}
	text, err := Format(e, body)
	body.Close()
	if err != nil {
		return &badItem{err}
	}
	return m.write(Prefix+string(e.ID), text)
}

// write replaces a file. Its name becomes durable with the flush of the directory at the end. Names that begin with a dot are
// ignored by whoever reads the items.
func (m *mover) write(name string, text []byte) error {
	tmp, path := filepath.Join(m.c.Dir, "."+name), filepath.Join(m.c.Dir, name)
	f, err := vfs.CreateNew(m.fs, tmp, 0600)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(text, 0)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = m.fs.Rename(tmp, path)
	}
	if err != nil {
		m.fs.Remove(tmp)
	}
	return err
}
