//go:build !linux

package vfs

import (
	"errors"
	"math"
	"os"
)

// WritevAt writes the buffers one by one.
func (f *osFile) WritevAt(bufs [][]byte, off int64) (n int, err error) {
	for _, b := range bufs {
		m, err := f.WriteAt(b, off+int64(n))
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// Sync is fsync: fdatasync is not everywhere.
func (f *osFile) Sync() error { return f.File.Sync() }

// Allocate is not supported here.
func (f *osFile) Allocate(size int64) error { return f.pathErr("allocate", errors.ErrUnsupported) }

// Look is not supported here.
func Look(name string) (Usage, error) {
	return Usage{}, &os.PathError{Op: "statfs", Path: name, Err: errors.ErrUnsupported}
}

// Free is not known here: there is always enough.
func (osFS) Free(name string) (int64, error) { return math.MaxInt64, nil }
