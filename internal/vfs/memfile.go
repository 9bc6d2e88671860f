package vfs

import (
	"io"
	"slices"
	"syscall"
	"time"
)

// memFile is an open file of a Mem.
type memFile struct {
	m        *Mem
	n        *memNode
	name     string
	writable bool
	closed   bool
}

func (f *memFile) check(op string, write bool) error {
	switch {
	case f.closed:
		return perr(op, f.name, errClosedFile)
	case write && !f.writable:
		return perr(op, f.name, syscall.EBADF)
	}
	return nil
}

// ReadAt implements io.ReaderAt.
func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if err := f.check("read", false); err != nil {
		return 0, err
	}
	if off >= int64(len(f.n.data)) {
		if len(p) == 0 {
			return 0, nil
		}
		return 0, io.EOF
	}
	n := copy(p, f.n.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt implements io.WriterAt. A full file system takes what fits and then fails with ENOSPC, like a real one.
func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	return f.write(p, off)
}

// WritevAt implements File.
func (f *memFile) WritevAt(bufs [][]byte, off int64) (int, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	return f.write(slices.Concat(bufs...), off)
}

func (f *memFile) write(p []byte, off int64) (int, error) {
	if err := f.check("write", true); err != nil {
		return 0, err
	}
	var full error
	if grow := off + int64(len(p)) - int64(len(f.n.data)); grow > 0 && f.m.Capacity > 0 && f.m.used+grow > f.m.Capacity {
		fits := max(0, f.m.Capacity-f.m.used+int64(len(f.n.data))-off)
		p, full = p[:min(int64(len(p)), fits)], perr("write", f.name, syscall.ENOSPC)
	}
	if len(p) > 0 {
		f.m.change(f.n, memChange{off, slices.Clone(p)})
	}
	return len(p), full
}

// change applies a change now and remembers it until the next flush.
func (m *Mem) change(n *memNode, c memChange) {
	before := len(n.data)
	n.data = c.apply(n.data)
	m.used += int64(len(n.data) - before)
	n.pending = append(n.pending, c)
	n.mod = time.Now()
}

func (m *Mem) resize(n *memNode, size int64) { m.change(n, memChange{off: size}) }

// Sync implements File.
func (f *memFile) Sync() error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if err := f.check("sync", false); err != nil {
		return err
	}
	for _, c := range f.n.pending {
		f.n.durable = c.apply(f.n.durable)
	}
	f.n.pending = nil
	return nil
}

// Truncate implements File.
func (f *memFile) Truncate(size int64) error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if err := f.check("truncate", true); err != nil {
		return err
	}
	f.m.resize(f.n, size)
	return nil
}

// Allocate implements File.
func (f *memFile) Allocate(size int64) error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if err := f.check("allocate", true); err != nil {
		return err
	}
	grow := size - int64(len(f.n.data))
	switch {
	case grow <= 0:
		return nil
	case f.m.Capacity > 0 && f.m.used+grow > f.m.Capacity:
		return perr("allocate", f.name, syscall.ENOSPC)
	}
	f.m.resize(f.n, size)
	return nil
}

// Size implements File.
func (f *memFile) Size() (int64, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if err := f.check("size", false); err != nil {
		return 0, err
	}
	return int64(len(f.n.data)), nil
}

// Close implements io.Closer.
func (f *memFile) Close() error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if err := f.check("close", false); err != nil {
		return err
	}
	f.closed = true
	f.m.unlink(f.n)
	return nil
}
