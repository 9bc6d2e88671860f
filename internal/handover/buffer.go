package handover

import (
	"bytes"
	"io"
	"os"
)

// maxMemory is how much of a message is kept in memory before it goes to a file.
const maxMemory = 256 << 10

// buffer keeps the content of a message that has no place in the queue yet: in memory, or in a file that has no name any more, so that
// nothing is left of it whatever happens.
type buffer struct {
	dir  string
	mem  []byte
	file *os.File
	size int64
}

func (b *buffer) Write(p []byte) (int, error) {
	if b.file == nil && len(b.mem)+len(p) > maxMemory {
		if err := b.spill(); err != nil {
			return 0, err
		}
	}
	if b.file == nil {
		b.mem = append(b.mem, p...)
		b.size += int64(len(p))
		return len(p), nil
	}
	n, err := b.file.WriteAt(p, b.size)
	b.size += int64(n)
	return n, err
}

// spill moves what is in memory to a file.
func (b *buffer) spill() error {
	f, err := os.CreateTemp(b.dir, ".handover-*")
	if err != nil {
		return err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return err
	}
	if _, err := f.WriteAt(b.mem, 0); err != nil {
		f.Close()
		return err
	}
	b.file, b.mem = f, nil
	return nil
}

// content reads from the start what was written so far.
func (b *buffer) content() io.ReadSeeker {
	if b.file != nil {
		return io.NewSectionReader(b.file, 0, b.size)
	}
	return bytes.NewReader(b.mem)
}

func (b *buffer) close() {
	if b.file != nil {
		b.file.Close()
	}
	b.file, b.mem = nil, nil
}
