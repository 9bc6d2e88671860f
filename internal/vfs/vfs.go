// Package vfs is the file system as durable code sees it.
//
// The verbs are the few that a program needs which promises to lose nothing: positioned reads and writes, flushes of files and of
// directories, and the operations on names. There is the real file system (OS), one in memory that can lose power (Mem), and a
// wrapper that sees every operation before it happens (Hook), to log it, delay it or let it fail.
package vfs

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// FS is a file system. All methods are safe for concurrent use. Errors are those of package os: errors.Is works with
// fs.ErrNotExist, fs.ErrExist and the errno values of package syscall.
type FS interface {
	// OpenFile opens a file; flag is made of os.O_RDONLY, O_RDWR, O_CREATE, O_EXCL and O_TRUNC. A new name is durable only
	// after SyncDir of its directory.
	OpenFile(name string, flag int, perm fs.FileMode) (File, error)
	Mkdir(name string, perm fs.FileMode) error
	// ReadDir lists a directory, sorted by name.
	ReadDir(name string) ([]Info, error)
	Stat(name string) (Info, error)
	// Rename replaces newname if it exists.
	Rename(oldname, newname string) error
	// Link fails with fs.ErrExist if newname exists.
	Link(oldname, newname string) error
	Remove(name string) error
	// SyncDir makes the names in the directory durable.
	SyncDir(name string) error
	// Lock takes the exclusive lock of the file, creating it if need be, or fails at once with ErrLocked. Closing releases it.
	Lock(name string) (io.Closer, error)
	// Free is the number of bytes an ordinary process may still write in the file system that holds name.
	Free(name string) (int64, error)
}

// File is an open file. Reads and writes at different places may run at once; Close waits for nobody.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// WritevAt writes the buffers one after the other at off, in one operation where the system can.
	WritevAt(bufs [][]byte, off int64) (n int, err error)
	// Sync makes everything written so far, and the size, durable (fdatasync). After an error nothing is known about what was
	// written since the last success: do not try again.
	Sync() error
	Truncate(size int64) error
	// Allocate reserves disk space so that the file can grow to size, and sets its size; it never shrinks a file. It fails with
	// errors.ErrUnsupported where the file system cannot.
	Allocate(size int64) error
	Size() (int64, error)
}

// Info describes a name in a directory.
type Info struct {
	Name    string // without its directory
	Size    int64
	Dir     bool
	ModTime time.Time
}

// ErrLocked is the reason Lock fails when somebody else has the lock.
var ErrLocked = errors.New("locked by another process")

// WriteFile replaces the content of a file durably: a reader sees the old content or the new, also after a crash. The temporary
// file stands in the same directory and begins with a dot.
func WriteFile(fsys FS, name string, data []byte, perm fs.FileMode) error {
	dir, base := filepath.Split(name)
	tmp := filepath.Join(dir, "."+base+".tmp")
	f, err := CreateNew(fsys, tmp, perm)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, 0)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = fsys.Rename(tmp, name)
	}
	if err != nil {
		fsys.Remove(tmp)
		return err
	}
	return fsys.SyncDir(filepath.Clean(dir))
}

// CreateNew creates a temporary file in the place of whatever has its name, what an earlier attempt left or a link that somebody
// put there: nothing is ever written through it.
func CreateNew(fsys FS, name string, perm fs.FileMode) (File, error) {
	f, err := fsys.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, perm)
	if !errors.Is(err, fs.ErrExist) {
		return f, err
	}
	if err := fsys.Remove(name); err != nil {
		return nil, err
	}
	return fsys.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, perm)
}

// ReadFile returns the content of a file.
func ReadFile(fsys FS, name string) ([]byte, error) {
	f, err := fsys.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	data := make([]byte, size)
	n, err := f.ReadAt(data, 0)
	if err == io.EOF {
		err = nil
	}
	return data[:n], err
}

// MkdirAll makes a directory and its parents durably: each new name is followed by a flush of the directory it stands in.
func MkdirAll(fsys FS, name string, perm fs.FileMode) error {
	name = filepath.Clean(name)
	if info, err := fsys.Stat(name); err == nil {
		if !info.Dir {
			return &fs.PathError{Op: "mkdir", Path: name, Err: errNotDir}
		}
		return nil
	}
	parent := filepath.Dir(name)
	if parent != name {
		if err := MkdirAll(fsys, parent, perm); err != nil {
			return err
		}
	}
	if err := fsys.Mkdir(name, perm); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return fsys.SyncDir(parent)
}

// Usage is how full a file system is: bytes and inodes, of which an ordinary process may use the free ones. A file system that does not
// count inodes has none.
type Usage struct {
	Free, Size         int64
	FreeInodes, Inodes int64
}
