package vfs

import (
	"errors"
	"fmt"
	"io"
	"runtime"

	"golang.org/x/sys/unix"
)

// maxIovecs is how many buffers go into one system call. Up to this many need no memory of their own.
const maxIovecs = 512

// WritevAt writes with pwritev, going on after short writes.
func (f *osFile) WritevAt(bufs [][]byte, off int64) (n int, err error) {
	defer runtime.KeepAlive(f.File)
	for len(bufs) > 0 {
		m, err := unix.Pwritev(f.fd, bufs[:min(len(bufs), maxIovecs)], off)
		if err == unix.EINTR {
			continue
		}
		if m > 0 {
			n += m
			off += int64(m)
		}
		if err != nil {
			return n, f.pathErr("write", err)
		}
		if m == 0 && total(bufs) > 0 {
			return n, f.pathErr("write", io.ErrShortWrite)
		}
		bufs = advance(bufs, m)
	}
	return n, nil
}

// advance returns what is left of bufs after n bytes, without changing the caller's slices.
func advance(bufs [][]byte, n int) [][]byte {
	for len(bufs) > 0 && n >= len(bufs[0]) {
		n -= len(bufs[0])
		bufs = bufs[1:]
	}
	if n > 0 {
		rest := append([][]byte(nil), bufs...)
		rest[0] = rest[0][n:]
		return rest
	}
	return bufs
}

func total(bufs [][]byte) (n int) {
	for _, b := range bufs {
		n += len(b)
	}
	return n
}

// Sync is fdatasync: data and size, but not the times, which nobody here depends on.
func (f *osFile) Sync() error {
	defer runtime.KeepAlive(f.File)
	for {
		err := unix.Fdatasync(f.fd)
		if err != unix.EINTR {
			return f.pathErr("fdatasync", err)
		}
	}
}

// Allocate uses fallocate.
func (f *osFile) Allocate(size int64) error {
	defer runtime.KeepAlive(f.File)
	for {
		err := unix.Fallocate(f.fd, 0, 0, size)
		switch {
		case err == unix.EINTR:
			continue
		case errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS):
			return f.pathErr("fallocate", fmt.Errorf("%w: %w", errors.ErrUnsupported, err))
		}
		return f.pathErr("fallocate", err)
	}
}

func (osFS) Free(name string) (int64, error) {
	u, err := Look(name)
	return u.Free, err
}

// Look asks the operating system for the file system that holds name.
func Look(name string) (Usage, error) {
	var st unix.Statfs_t
	for {
		err := unix.Statfs(name, &st)
		if err == unix.EINTR {
			continue
		}
		block := int64(st.Bsize)
		return Usage{Free: int64(st.Bavail) * block, Size: int64(st.Blocks) * block, FreeInodes: int64(st.Ffree), Inodes: int64(st.Files)}, err
	}
}
