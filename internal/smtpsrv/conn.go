package smtpsrv

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"blitiri.com.ar/go/chasquid/internal/smtp"
)

// Sizes of buffers and limits of what a client may send, in bytes.
const (
	smallBuffer   = 1024     // what an idle connection holds: a usual command group
	bigBuffer     = 32 << 10 // while a message is received, from a pool
	outBuffer     = 320      // replies, before more is allocated
	flushAt       = 4 << 10  // replies are written when there are this many
	maxSkippedRun = 1 << 20  // of an endless line, before the session ends
)

// deadlineSlack is how much later than asked for a deadline may strike, so that it is not set anew for every command.
const deadlineSlack = 15 * time.Second

// Errors of conn besides those of the network and of package smtp.
var (
	errLineTooLong = errors.New("line too long")
	errEndlessLine = errors.New("line without end")
	errDraining    = errors.New("the server stops")
)

var bigBuffers = sync.Pool{New: func() any { return new([bigBuffer]byte) }}

// conn is the buffered connection under a session. Replies collect in out and leave in one write when the next read would block
// (RFC 2920 section 3.2). Only drain and cut are called by other goroutines than the session's.
type conn struct {
	raw net.Conn // what was accepted: deadlines and closing
	nc  net.Conn // raw, or TLS over it: reading and writing

	buf   []byte // unread: buf[r:w]
	r, w  int
	big   *[bigBuffer]byte // what buf is made of, if not small
	out   []byte
	armed time.Time // the deadline set on raw
	limit time.Time // of the whole session
	m     *modeMetrics

	mu       sync.Mutex
	idle     bool // waiting for a command
	draining bool

	room *room
}

// room is the small buffers of a connection. They are given back when it is closed.
type room struct {
	in  [smallBuffer]byte
	out [outBuffer]byte
}

var rooms = sync.Pool{New: func() any { return new(room) }}

func (c *conn) init(nc net.Conn, m *modeMetrics) {
	c.raw, c.nc, c.m = nc, nc, m
	c.room = rooms.Get().(*room)
	c.buf, c.out = c.room.in[:], c.room.out[:0]
}

// buffered returns how many bytes were received and not yet used.
func (c *conn) buffered() int { return c.w - c.r }

// grow takes a big buffer from the pool; shrink gives it back if what is unread fits the small one.
func (c *conn) grow() {
	if c.big != nil {
		return
	}
	c.big = bigBuffers.Get().(*[bigBuffer]byte)
	c.move(c.big[:])
}

func (c *conn) shrink() {
	if &c.buf[0] == &c.room.in[0] || c.buffered() > smallBuffer {
		return
	}
	c.move(c.room.in[:])
	c.dropBig()
}

func (c *conn) dropBig() {
	if c.big != nil {
		bigBuffers.Put(c.big)
		c.big = nil
	}
}

func (c *conn) move(to []byte) {
	c.w = copy(to, c.buf[c.r:c.w])
	c.r = 0
	c.buf = to
}

// arm sets the deadline for reads and writes to d or up to deadlineSlack later, but not past the session's limit.
func (c *conn) arm(d time.Time) {
	if !c.limit.IsZero() && d.After(c.limit) {
		d = c.limit
	}
	if !c.armed.Before(d) && c.armed.Sub(d) <= deadlineSlack {
		return
	}
	c.armAt(d.Add(deadlineSlack))
}

func (c *conn) armAt(d time.Time) {
	c.armed = d
	c.raw.SetDeadline(d)
}

// hasLine reports whether a whole line is there already.
func (c *conn) hasLine() bool { return bytes.IndexByte(c.buf[c.r:c.w], '\n') >= 0 }

// line returns the next command line without its CRLF, valid until the next call. It has until the deadline to come to its end. limit
// returns how long it may be, given its start. After errLineTooLong and smtp.ErrBareLF the line was skipped and the stream is in step
// (RFC 5321 section 4.5.3.1.9). A bare LF ends a line so that the client hears of its mistake.
func (c *conn) line(deadline time.Time, limit func(start []byte) int) ([]byte, error) {
	c.shrink()
	for seen := 0; ; {
		unread := c.buf[c.r:c.w]
		if i := bytes.IndexByte(unread[seen:], '\n'); i >= 0 {
			line := unread[:seen+i]
			c.r += len(line) + 1
			if len(line) == 0 || line[len(line)-1] != '\r' {
				return nil, smtp.ErrBareLF
			}
			if line = line[:len(line)-1]; len(line) > limit(line) {
				return nil, errLineTooLong
			}
			return line, nil
		}
		seen = len(unread)
		if seen == len(c.buf) || seen > smallBuffer {
			most := limit(unread) + len("\r\n")
			if seen >= most {
				return nil, c.skipLine(deadline)
			}
			if seen == len(c.buf) {
				c.move(make([]byte, most))
			}
		}
		if err := c.waitCommand(deadline); err != nil {
			return nil, err
		}
	}
}

// skipLine drops what is buffered and the rest of the line.
func (c *conn) skipLine(deadline time.Time) error {
	for skipped := c.buffered(); skipped < maxSkippedRun; skipped += c.buffered() {
		c.r, c.w = 0, 0
		if err := c.waitCommand(deadline); err != nil {
			return err
		}
		if i := bytes.IndexByte(c.buf[:c.w], '\n'); i >= 0 {
			c.r = i + 1
			return errLineTooLong
		}
	}
	return errEndlessLine
}

// waitCommand sends the replies and reads more of a command. It is where drain finds idle clients.
func (c *conn) waitCommand(deadline time.Time) error {
	if len(c.out) > 0 {
		c.arm(deadline)
		if err := c.flush(); err != nil {
			return err
		}
	}
	c.mu.Lock()
	if c.draining {
		c.mu.Unlock()
		return errDraining
	}
	c.idle = true
	c.arm(deadline)
	c.mu.Unlock()
	err := c.fill()
	c.mu.Lock()
	c.idle = false
	if c.draining { // and the deadline may be in the past
		err = errDraining
	}
	c.mu.Unlock()
	return err
}

// fill reads once into the free part of the buffer.
func (c *conn) fill() error {
	if c.r > 0 {
		c.move(c.buf)
	}
	for range 100 {
		n, err := c.nc.Read(c.buf[c.w:])
		if n > 0 {
			c.w += n
			c.m.received.Add(float64(n))
			return nil // an error comes again with the next read
		}
		if err != nil {
			return err
		}
	}
	return io.ErrNoProgress
}

// flush writes the replies that have collected.
func (c *conn) flush() error {
	if len(c.out) == 0 {
		return nil
	}
	n, err := c.nc.Write(c.out)
	c.m.sent.Add(float64(n))
	c.out = c.room.out[:0]
	return err
}

// pace is how fast a message comes: each block has a time limit, so that a trickle does not hold a session.
type pace struct {
	timeout time.Duration
	got     int // bytes of the present block
	until   time.Time
}

const paceBlock = 16 << 10 // bytes

// data returns bytes of a message that were received, at least one, waiting for them if need be. The caller says with use how many of
// them it used.
func (c *conn) data(p *pace) ([]byte, error) {
	if c.buffered() > 0 {
		return c.buf[c.r:c.w], nil
	}
	c.grow()
	if p.until.IsZero() || p.got >= paceBlock {
		p.until, p.got = time.Now().Add(p.timeout), 0
	}
	c.arm(p.until)
	if err := c.flush(); err != nil {
		return nil, err
	}
	if err := c.fill(); err != nil {
		return nil, err
	}
	p.got += c.buffered()
	return c.buf[c.r:c.w], nil
}

func (c *conn) use(n int) { c.r += n }

// drain makes the session end when it next waits for a command; if it does so now, at once.
func (c *conn) drain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.draining = true
	if c.idle {
		c.raw.SetReadDeadline(time.Unix(1, 0))
	}
}

// Closing while the client still sends would reset the connection and could take the last reply with it. So what the client sends is
// read for a little while.
const (
	lingerTime  = time.Second
	lingerBytes = 256 << 10
)

// close ends the connection. If linger is set the client may still be sending.
func (c *conn) close(linger bool) {
	c.flushLast()
	if half, ok := c.nc.(interface{ CloseWrite() error }); ok && linger && half.CloseWrite() == nil {
		c.raw.SetDeadline(time.Now().Add(lingerTime))
		for n := 0; n < lingerBytes; {
			k, err := c.raw.Read(c.buf)
			if n += k; err != nil {
				break
			}
		}
	}
	c.nc.Close()
	if c.nc != c.raw {
		c.raw.Close()
	}
	c.buf, c.out = nil, nil // no more is read or written
	c.r, c.w = 0, 0
	c.dropBig()
	rooms.Put(c.room)
	c.room = nil
}

// flushLast is flush before the connection is closed: the kernel is told that more follows, so that the last reply and the end of the
// stream leave in one segment.
func (c *conn) flushLast() {
	sc, ok := c.nc.(syscall.Conn)
	if !ok || len(c.out) == 0 {
		c.flush()
		return
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return // it is closed
	}
	n := 0
	rc.Write(func(fd uintptr) bool {
		n, _ = syscall.SendmsgN(int(fd), c.out, nil, nil, syscall.MSG_MORE|syscall.MSG_DONTWAIT|syscall.MSG_NOSIGNAL)
		return true
	})
	c.m.sent.Add(float64(max(n, 0)))
	c.out = c.out[max(n, 0):]
	c.flush() // what did not fit at once
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &ne) && ne.Timeout()
}
