package main

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// floor is the practical limit of the machine for a store-and-forward server: it accepts, appends to one file with a shared
// fdatasync, answers 250, and hands the message to pooled connections to the next hop. It checks nothing and cannot recover.
//
// With each, it keeps a file per message and flushes each by itself: the design of servers that sync per message, at its best.
type floor struct {
	path    string // of the file; with each, of the directory
	nextHop string
	delay   time.Duration // added to each flush
	each    bool

	file    *os.File
	disk    sync.Mutex // a slow disk flushes one after the other
	serial  atomic.Int64
	pending chan *floorMsg
	out     chan *floorMsg
}

type floorMsg struct {
	from, to []byte
	data     []byte
	done     chan struct{}
	file     string // with each
}

const floorConns = 20 // outgoing connections, as many as the servers under test use for one destination

// runFloor serves forever on listen.
func runFloor(fl *floor, listen string) error {
	fl.pending, fl.out = make(chan *floorMsg, 1000), make(chan *floorMsg, 1<<20)
	if fl.each {
		if err := os.MkdirAll(fl.path, 0700); err != nil {
			return err
		}
	} else {
		f, err := os.OpenFile(fl.path, os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0600)
		if err != nil {
			return err
		}
		if err := unix.Fallocate(int(f.Fd()), 0, 0, 1<<30); err != nil {
			return err
		}
		fl.file = f
		go fl.commit()
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	for range floorConns {
		go fl.deliver()
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go fl.session(c)
	}
}

// flush makes the file durable.
func (fl *floor) flush(f *os.File) {
	if fl.delay > 0 {
		fl.disk.Lock()
		time.Sleep(fl.delay)
		fl.disk.Unlock()
	}
	if err := unix.Fdatasync(int(f.Fd())); err != nil {
		panic(err)
	}
}

// store makes one message durable, as the design says, and has it delivered.
func (fl *floor) store(m *floorMsg) {
	if !fl.each {
		fl.pending <- m
		<-m.done
		return
	}
	m.file = filepath.Join(fl.path, fmt.Sprint(fl.serial.Add(1)))
	f, err := os.Create(m.file)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	if _, err := f.Write(m.data); err != nil {
		panic(err)
	}
	fl.flush(f)
	fl.out <- m
}

// commit writes whatever waits, flushes once for all of it, and releases the sessions.
func (fl *floor) commit() {
	var off int64
	var batch []*floorMsg
	var buf []byte
	for m := range fl.pending {
		batch, buf = append(batch[:0], m), append(buf[:0], m.data...)
	more:
		for len(buf) < 4<<20 {
			select {
			case m := <-fl.pending:
				batch, buf = append(batch, m), append(buf, m.data...)
			default:
				break more
			}
		}
		if off+int64(len(buf)) > 1<<30 {
			off = 0
		}
		if _, err := fl.file.WriteAt(buf, off); err != nil {
			panic(err)
		}
		off += int64(len(buf))
		fl.flush(fl.file)
		for _, m := range batch {
			close(m.done)
			fl.out <- m
		}
	}
}

var floorPool = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, 16<<10) }}

func (fl *floor) session(c net.Conn) {
	defer c.Close()
	r := floorPool.Get().(*bufio.Reader)
	r.Reset(c)
	defer floorPool.Put(r)
	out := []byte("220 floor ESMTP\r\n")
	var m *floorMsg
	for {
		if r.Buffered() == 0 && len(out) > 0 {
			if _, err := c.Write(out); err != nil {
				return
			}
			out = out[:0]
		}
		line, err := r.ReadSlice('\n')
		if err != nil {
			return
		}
		switch strings.ToUpper(string(line[:min(4, len(line))])) {
		case "EHLO":
			out = append(out, "250-floor\r\n250-PIPELINING\r\n250 8BITMIME\r\n"...)
		case "MAIL":
			m = &floorMsg{from: bytes.Clone(line), done: make(chan struct{})}
			out = append(out, "250 ok\r\n"...)
		case "RCPT":
			m.to = append(m.to, line...)
			out = append(out, "250 ok\r\n"...)
		case "DATA":
			out = append(out, "354 go\r\n"...)
			if _, err := c.Write(out); err != nil {
				return
			}
			out = out[:0]
			for {
				line, err := r.ReadSlice('\n')
				if err != nil {
					return
				}
				m.data = append(m.data, line...)
				if len(line) == 3 && line[0] == '.' {
					break
				}
			}
			fl.store(m)
			out = append(out, "250 ok\r\n"...)
		case "QUIT":
			c.Write(append(out, "221 bye\r\n"...))
			return
		default:
			out = append(out, "250 ok\r\n"...)
		}
	}
}

// deliver sends messages over one connection that stays open.
func (fl *floor) deliver() {
	var c net.Conn
	var r *bufio.Reader
	for m := range fl.out {
		for {
			var err error
			if c == nil {
				if c, r, err = fl.dial(); err != nil {
					fmt.Fprintln(os.Stderr, "floor:", err)
					continue
				}
			}
			if err = transfer(c, r, m); err == nil {
				if fl.each {
					os.Remove(m.file)
				}
				break
			}
			c.Close()
			c = nil
		}
	}
}

func (fl *floor) dial() (net.Conn, *bufio.Reader, error) {
	c, err := net.Dial("tcp", fl.nextHop)
	if err != nil {
		return nil, nil, err
	}
	r := bufio.NewReaderSize(c, 4<<10)
	if err := expect(r, "220"); err != nil {
		return nil, nil, err
	}
	fmt.Fprintf(c, "EHLO floor.test\r\n")
	return c, r, expect(r, "250")
}

func transfer(c net.Conn, r *bufio.Reader, m *floorMsg) error {
	rcpts := bytes.Count(m.to, []byte("\n"))
	b := make([]byte, 0, len(m.from)+len(m.to)+8)
	b = append(append(append(b, m.from...), m.to...), "DATA\r\n"...)
	if _, err := c.Write(b); err != nil {
		return err
	}
	for range rcpts + 1 {
		if err := expect(r, "250"); err != nil {
			return err
		}
	}
	if err := expect(r, "354"); err != nil {
		return err
	}
	if _, err := c.Write(m.data); err != nil {
		return err
	}
	return expect(r, "250")
}
