package spool

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/queue"
	"blitiri.com.ar/go/chasquid/internal/vfs"
	"blitiri.com.ar/go/log"
)

// A draft holds its last bytes in one of two sizes of buffer: most messages fit in the small one.
const smallBuf = 8 << 10

var (
	smallBufs = sync.Pool{New: func() any { return new([smallBuf]byte) }}
	blockBufs = sync.Pool{New: func() any { return new([blockSize]byte) }}
)

// draft is a message being written. What does not fit in its buffer goes to the disk in blocks, once: into the log up to
// Config.LargeBody bytes, into a file of its own from there on. The buffer's rest becomes part of the message's record.
type draft struct {
	s      *Store
	serial uint64
	small  *[smallBuf]byte
	block  *[blockSize]byte
	buf    []byte // the bytes in small or block
	flushd int64  // bytes on disk
	chunks []chunkRef
	file   vfs.File
	fileAt int64 // length of the file
	crcs   []uint32
	err    error // of an earlier write; sticks
	ended  bool
}

// Create implements queue.Store.
func (s *Store) Create() (queue.Incoming, error) {
	if s.closed.Load() {
		return nil, queue.ErrClosed
	}
	if err := s.brokenErr(); err != nil {
		return nil, err
	}
	return &draft{s: s, serial: s.serial.Add(1)}, nil
}

// Size implements queue.Incoming.
func (d *draft) Size() int64 { return d.flushd + int64(len(d.buf)) }

// errEnded is what a draft answers after Commit or Discard.
var errEnded = errors.New("queue: the message was committed or discarded already")

// Write implements queue.Incoming.
func (d *draft) Write(p []byte) (n int, err error) {
	if d.ended {
		return 0, errEnded
	}
	for len(p) > 0 && d.err == nil {
		if len(d.buf) == cap(d.buf) {
			if d.err = d.more(len(p)); d.err != nil {
				break
			}
		}
		m := min(len(p), cap(d.buf)-len(d.buf))
		d.buf = append(d.buf, p[:m]...)
		p = p[m:]
		n += m
	}
	return n, d.err
}

// more makes room in the buffer.
func (d *draft) more(want int) error {
	switch {
	case d.block != nil:
		if err := d.flushBlock(); err != nil {
			return err
		}
		d.buf = d.block[:0]
	case d.small == nil && want <= smallBuf:
		d.small = smallBufs.Get().(*[smallBuf]byte)
		d.buf = d.small[:0]
	default:
		d.block = blockBufs.Get().(*[blockSize]byte)
		d.buf = append(d.block[:0], d.buf...)
		d.freeSmall()
	}
	return nil
}

func (d *draft) freeSmall() {
	if d.small != nil {
		smallBufs.Put(d.small)
		d.small = nil
	}
}

// flushBlock writes the full buffer to the disk. It uses up to three quarters of the reserve: notices may be large too, and
// whether the message may be accepted is decided at commit.
func (d *draft) flushBlock() error {
	if err := d.s.checkReserve(d.s.minFree.Load() / 4); err != nil {
		return err
	}
	if d.file == nil && d.flushd+blockSize <= d.s.cfg.LargeBody {
		ref, err := d.s.writeChunk(d.serial, d.buf)
		if err != nil {
			return err
		}
		d.chunks = append(d.chunks, ref)
	} else if err := d.writeFile(); err != nil {
		return err
	}
	d.flushd += int64(len(d.buf))
	return nil
}

func (d *draft) writeFile() error {
	s := d.s
	if s.closed.Load() {
		return queue.ErrClosed
	}
	if d.file == nil {
		f, err := s.fs.OpenFile(s.path(bodyName(d.serial)), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0600)
		if err != nil {
			s.m.errors[diskWrite].Inc()
			return s.writeErr(err)
		}
		d.file = f
	}
	start := time.Now()
	if _, err := d.file.WriteAt(d.buf, d.fileAt); s.m.done(diskWrite, start, err) != nil {
		return s.writeErr(err)
	}
	d.fileAt += int64(len(d.buf))
	d.crcs = append(d.crcs, checksum(d.buf))
	return nil
}

// syncFile makes the body file and its name durable. It comes before the record that names the file.
func (d *draft) syncFile() error {
	s := d.s
	start := time.Now()
	if err := s.m.done(diskFsync, start, d.file.Sync()); err != nil {
		// The file is this message's alone: it is thrown away, the store goes on.
		return s.writeErr(err)
	}
	err := d.file.Close()
	d.file = nil
	if err != nil {
		return s.writeErr(err)
	}
	return s.syncDir()
}

// Commit implements queue.Incoming. Notices (mail.FromDSN) may use the reserve of disk space.
func (d *draft) Commit(e *queue.Entry, prefix []byte) error {
	if d.ended {
		return errEnded
	}
	err := d.commit(e, prefix)
	if err != nil {
		d.drop()
	}
	d.end()
	return err
}

func (d *draft) commit(e *queue.Entry, prefix []byte) error {
	s := d.s
	if d.err != nil {
		return d.err
	}
	if err := checkEntry(e); err != nil {
		return err
	}
	if s.exists(e.ID) == nil {
		return queue.ErrExists
	}
	outside := e.Env.Source != mail.FromDSN
	if outside {
		if err := s.checkSpace(); err != nil {
			return err
		}
	}
	if d.file != nil {
		if err := d.syncFile(); err != nil {
			return err
		}
	}
	o := s.newOp(opMessage)
	defer s.freeOp(o)
	o.outside, o.key, o.serial, o.rcpts, o.body = outside, keyOf(e.ID), d.serial, uint32(len(e.Env.Rcpts)), d.buf
	o.content = content{
		prefixLen: uint32(len(prefix)), prefixCRC: checksum(prefix),
		inlineLen: uint32(len(d.buf)), inlineCRC: checksum(d.buf),
		chunks: d.chunks, fileLen: d.fileAt, fileCRCs: d.crcs,
	}
	st := stub{serial: d.serial, id: e.ID, rcpts: o.rcpts, content: o.content}
	o.buf = appendMessage(beginRecord(o.buf), &st, e)
	o.metaLen = uint32(len(o.buf) - recordHead)
	o.buf = append(o.buf, prefix...)
	return s.submit(o)
}

// appendMessage encodes the meta part of a message record.
func appendMessage(b []byte, st *stub, e *queue.Entry) []byte {
	return appendStates(appendEnvelope(appendStub(b, st), &e.Env), e.Status)
}

// checkEntry refuses what could not be read back, or exported to a file.
func checkEntry(e *queue.Entry) error {
	switch {
	case e.ID == "" || len(e.ID) > maxIDLen || strings.ContainsAny(string(e.ID), "/\x00"):
		return fmt.Errorf("queue: unusable message id %q", e.ID)
	case len(e.Env.Rcpts) == 0:
		return errors.New("queue: message without recipients")
	case len(e.Status) != 0 && len(e.Status) != len(e.Env.Rcpts):
		return fmt.Errorf("queue: %d states for %d recipients", len(e.Status), len(e.Env.Rcpts))
	}
	return nil
}

// Discard implements queue.Incoming.
func (d *draft) Discard() {
	if !d.ended {
		d.drop()
		d.end()
	}
}

// drop gives up what is on disk.
func (d *draft) drop() {
	if len(d.chunks) > 0 {
		d.s.x.mu.Lock()
		d.s.x.dropChunks(d.chunks)
		d.s.x.mu.Unlock()
		d.s.wakeJanitor()
	}
	if d.file == nil && d.fileAt == 0 {
		return
	}
	if d.file != nil {
		d.file.Close()
		d.file = nil
	}
	if err := d.s.remove(d.s.path(bodyName(d.serial))); err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Errorf("queue: removing the body of a message that was not committed: %v", err)
	}
}

// end gives back the buffers.
func (d *draft) end() {
	d.ended = true
	d.freeSmall()
	if d.block != nil {
		blockBufs.Put(d.block)
		d.block = nil
	}
	if d.file != nil { // committed
		d.file.Close()
		d.file = nil
	}
	d.buf = nil
}

// Content implements queue.Incoming. Readers are good until the message is committed or discarded.
func (d *draft) Content() io.ReadSeeker { return &draftReader{d: d} }

type draftReader struct {
	d   *draft
	off int64
}

// Seek implements io.Seeker.
func (r *draftReader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += r.off
	case io.SeekEnd:
		offset += r.d.Size()
	}
	if offset < 0 {
		return 0, errors.New("queue: seek before the beginning of the message")
	}
	r.off = offset
	return offset, nil
}

// Read implements io.Reader.
func (r *draftReader) Read(p []byte) (int, error) {
	d := r.d
	if d.ended {
		return 0, errEnded
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := 0, error(nil)
	switch inChunks := d.flushd - d.fileAt; {
	case r.off >= d.Size():
		return 0, io.EOF
	case r.off >= d.flushd:
		n = copy(p, d.buf[r.off-d.flushd:])
	case r.off < inChunks:
		i, at := r.off/blockSize, r.off%blockSize
		c := d.chunks[i]
		n, err = d.s.readAt(c.at, chunkHead+at, p[:min(int64(len(p)), int64(c.len)-at)])
	default:
		at := r.off - inChunks
		n, err = d.file.ReadAt(p[:min(int64(len(p)), d.fileAt-at)], at)
	}
	r.off += int64(n)
	if n > 0 {
		err = nil
	} else if err == io.EOF {
		err = io.ErrUnexpectedEOF // the disk has less than was written
	}
	return n, err
}
