package vfs

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"
	"sync/atomic"
)

// Verb is what an operation does.
type Verb string

// The verbs, as op logs show them.
const (
	OpCreate   Verb = "create" // open with O_CREATE
	OpOpen     Verb = "open"
	OpMkdir    Verb = "mkdir"
	OpReadDir  Verb = "readdir"
	OpStat     Verb = "stat"
	OpRename   Verb = "rename"
	OpLink     Verb = "link"
	OpRemove   Verb = "remove"
	OpSyncDir  Verb = "syncdir"
	OpLock     Verb = "lock"
	OpFree     Verb = "free"
	OpRead     Verb = "read"
	OpWrite    Verb = "write"
	OpSync     Verb = "sync"
	OpTruncate Verb = "truncate"
	OpAllocate Verb = "allocate"
	OpSize     Verb = "size"
	OpClose    Verb = "close"
)

// Changes reports whether the operation changes what is stored, or how safely it is.
func (v Verb) Changes() bool {
	switch v {
	case OpOpen, OpReadDir, OpStat, OpFree, OpRead, OpSize, OpClose, OpLock:
		return false
	}
	return true
}

// Op is one operation about to happen.
type Op struct {
	N    int64 // 1 for the first of the hooked file system
	Verb Verb
	Name string
	To   string // the new name of rename and link
	Off  int64  // of read and write; the size of truncate and allocate
	Len  int    // of read and write
}

// String is the line of an op log, without the number.
func (op Op) String() string {
	switch op.Verb {
	case OpRename, OpLink:
		return fmt.Sprintf("%s %s %s", op.Verb, op.Name, op.To)
	case OpRead, OpWrite:
		return fmt.Sprintf("%s %s off=%d len=%d", op.Verb, op.Name, op.Off, op.Len)
	case OpTruncate, OpAllocate:
		return fmt.Sprintf("%s %s size=%d", op.Verb, op.Name, op.Off)
	}
	return fmt.Sprintf("%s %s", op.Verb, op.Name)
}

// ShortWrite returned by a hook lets N bytes of a write through before it fails with Err.
type ShortWrite struct {
	N   int
	Err error
}

// Error implements error.
func (s *ShortWrite) Error() string { return fmt.Sprintf("short write: %v", s.Err) }

// Unwrap returns the cause.
func (s *ShortWrite) Unwrap() error { return s.Err }

// Hook returns fsys with before called ahead of every operation, from whatever goroutine performs it. An error from before is
// the result of the operation, which then does not happen. Sleeping in before makes a slow disk.
func Hook(fsys FS, before func(Op) error) FS {
	return &hooked{fs: fsys, before: before}
}

type hooked struct {
	fs     FS
	before func(Op) error
	n      atomic.Int64
}

func (h *hooked) do(op Op) error {
	op.N = h.n.Add(1)
	if err := h.before(op); err != nil {
		if _, short := err.(*ShortWrite); short {
			return err
		}
		return &fs.PathError{Op: string(op.Verb), Path: op.Name, Err: err}
	}
	return nil
}

func (h *hooked) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	verb := OpOpen
	if flag&os.O_CREATE != 0 {
		verb = OpCreate
	}
	if err := h.do(Op{Verb: verb, Name: name}); err != nil {
		return nil, err
	}
	f, err := h.fs.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return &hookedFile{h: h, f: f, name: name}, nil
}

func (h *hooked) Mkdir(name string, perm fs.FileMode) error {
	if err := h.do(Op{Verb: OpMkdir, Name: name}); err != nil {
		return err
	}
	return h.fs.Mkdir(name, perm)
}

func (h *hooked) ReadDir(name string) ([]Info, error) {
	if err := h.do(Op{Verb: OpReadDir, Name: name}); err != nil {
		return nil, err
	}
	return h.fs.ReadDir(name)
}

func (h *hooked) Stat(name string) (Info, error) {
	if err := h.do(Op{Verb: OpStat, Name: name}); err != nil {
		return Info{}, err
	}
	return h.fs.Stat(name)
}

func (h *hooked) Rename(oldname, newname string) error {
	if err := h.do(Op{Verb: OpRename, Name: oldname, To: newname}); err != nil {
		return err
	}
	return h.fs.Rename(oldname, newname)
}

func (h *hooked) Link(oldname, newname string) error {
	if err := h.do(Op{Verb: OpLink, Name: oldname, To: newname}); err != nil {
		return err
	}
	return h.fs.Link(oldname, newname)
}

func (h *hooked) Remove(name string) error {
	if err := h.do(Op{Verb: OpRemove, Name: name}); err != nil {
		return err
	}
	return h.fs.Remove(name)
}

func (h *hooked) SyncDir(name string) error {
	if err := h.do(Op{Verb: OpSyncDir, Name: name}); err != nil {
		return err
	}
	return h.fs.SyncDir(name)
}

func (h *hooked) Lock(name string) (io.Closer, error) {
	if err := h.do(Op{Verb: OpLock, Name: name}); err != nil {
		return nil, err
	}
	return h.fs.Lock(name)
}

func (h *hooked) Free(name string) (int64, error) {
	if err := h.do(Op{Verb: OpFree, Name: name}); err != nil {
		return 0, err
	}
	return h.fs.Free(name)
}

type hookedFile struct {
	h    *hooked
	f    File
	name string
}

func (f *hookedFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.h.do(Op{Verb: OpRead, Name: f.name, Off: off, Len: len(p)}); err != nil {
		return 0, err
	}
	return f.f.ReadAt(p, off)
}

func (f *hookedFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.h.do(Op{Verb: OpWrite, Name: f.name, Off: off, Len: len(p)}); err != nil {
		return f.failWrite([][]byte{p}, off, err)
	}
	return f.f.WriteAt(p, off)
}

func (f *hookedFile) WritevAt(bufs [][]byte, off int64) (int, error) {
	n := 0
	for _, b := range bufs {
		n += len(b)
	}
	if err := f.h.do(Op{Verb: OpWrite, Name: f.name, Off: off, Len: n}); err != nil {
		return f.failWrite(bufs, off, err)
	}
	return f.f.WritevAt(bufs, off)
}

// failWrite lets the first bytes of a short write through.
func (f *hookedFile) failWrite(bufs [][]byte, off int64, err error) (n int, _ error) {
	short, ok := err.(*ShortWrite)
	if !ok {
		return 0, err
	}
	for _, b := range bufs {
		b = b[:min(len(b), short.N-n)]
		m, err := f.f.WriteAt(b, off+int64(n))
		if n += m; err != nil {
			return n, err
		}
	}
	return n, &fs.PathError{Op: string(OpWrite), Path: f.name, Err: short.Err}
}

func (f *hookedFile) Sync() error {
	if err := f.h.do(Op{Verb: OpSync, Name: f.name}); err != nil {
		return err
	}
	return f.f.Sync()
}

func (f *hookedFile) Truncate(size int64) error {
	if err := f.h.do(Op{Verb: OpTruncate, Name: f.name, Off: size}); err != nil {
		return err
	}
	return f.f.Truncate(size)
}

func (f *hookedFile) Allocate(size int64) error {
	if err := f.h.do(Op{Verb: OpAllocate, Name: f.name, Off: size}); err != nil {
		return err
	}
	return f.f.Allocate(size)
}

func (f *hookedFile) Size() (int64, error) {
	if err := f.h.do(Op{Verb: OpSize, Name: f.name}); err != nil {
		return 0, err
	}
	return f.f.Size()
}

// Close closes the file whatever the hook says: an injected error must not leak descriptors.
func (f *hookedFile) Close() error {
	herr := f.h.do(Op{Verb: OpClose, Name: f.name})
	if err := f.f.Close(); err != nil {
		return err
	}
	return herr
}

// Log collects the text of operations. Its zero value is ready.
type Log struct {
	mu    sync.Mutex
	lines []string
}

// Add is a hook that notes the operations that change something.
func (l *Log) Add(op Op) error {
	if op.Verb.Changes() {
		l.mu.Lock()
		l.lines = append(l.lines, op.String())
		l.mu.Unlock()
	}
	return nil
}

// Take returns the lines since the last Take, each with its line end.
func (l *Log) Take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := strings.Join(l.lines, "\n")
	if s != "" {
		s += "\n"
	}
	l.lines = nil
	return s
}
