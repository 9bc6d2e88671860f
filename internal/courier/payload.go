package courier

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/smtp"
)

const (
	smallMessage = 64 << 10 // a message up to this size is sent from memory, with as few writes as possible
	headroom     = 8 << 10  // before it, for the envelope that goes out in the same write
	tailroom     = 16       // after it, for the end of the data
	headerPeek   = 64 << 10 // octets of a message searched for header fields
)

// msgBuffer holds one small message between its envelope and the end of the data.
type msgBuffer [headroom + smallMessage + tailroom]byte

var msgBuffers = sync.Pool{New: func() any { return new(msgBuffer) }}

// payload is the content of a job, read when first needed and at most once if it is small.
type payload struct {
	job    *mail.Job
	buf    *msgBuffer
	body   []byte // the whole message, if it is small
	whole  bool
	loaded bool
	shape  smtp.Shape // of a whole message
	tlsOpt int8       // TLS-Required: No is there: 0 not looked yet, 1 yes, -1 no
}

// load makes the message ready to be sent. An error is ours: the message cannot be read.
func (m *payload) load() error {
	if m.loaded {
		return nil
	}
	if m.job.Open == nil {
		return errors.New("the message has no content")
	}
	if m.job.Size > smallMessage {
		r, err := m.job.Open() // a message that cannot be opened is better found out now
		if err != nil {
			return fmt.Errorf("opening the message: %w", err)
		}
		m.loaded = true
		return r.Close()
	}
	r, err := m.job.Open()
	if err != nil {
		return fmt.Errorf("opening the message: %w", err)
	}
	defer r.Close()
	if m.buf == nil {
		m.buf = msgBuffers.Get().(*msgBuffer)
	}
	n, err := io.ReadFull(r, m.buf[headroom:headroom+int(m.job.Size)])
	if err != nil {
		return fmt.Errorf("reading the message: %d of %d bytes: %w", n, m.job.Size, err)
	}
	m.body, m.whole, m.loaded = m.buf[headroom:headroom+n], true, true
	m.shape = smtp.Scan(m.body)
	return nil
}

// release gives the buffer back.
func (m *payload) release() {
	if m.buf != nil {
		msgBuffers.Put(m.buf)
		m.buf, m.body = nil, nil
	}
}

// each calls f with the message, piece by piece, until it returns false.
func (m *payload) each(f func(p []byte) bool) error {
	if m.whole {
		f(m.body)
		return nil
	}
	r, err := m.job.Open()
	if err != nil {
		return fmt.Errorf("opening the message: %w", err)
	}
	defer r.Close()
	buf := blocks.Get().(*block)
	defer blocks.Put(buf)
	for {
		n, err := r.Read(buf[:])
		if n > 0 && !f(buf[:n]) {
			return nil
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading the message: %w", err)
		}
	}
}

// block is a piece of a message too large for memory.
type block [32 << 10]byte

var blocks = sync.Pool{New: func() any { return new(block) }}

// eightBit reports an octet above 127 in the message. What cannot be read is not known to be 7-bit.
func (m *payload) eightBit() bool {
	found := false
	err := m.each(func(p []byte) bool {
		found = smtp.EightBit(p)
		return !found
	})
	return found || err != nil
}

// text reports a message that is text although it was declared binary: whole lines of at most 998 octets, no NUL (RFC 3030 section 3).
func (m *payload) text() bool {
	if m.whole {
		return m.shape.Lines && m.shape.Longest <= 998 && bytes.IndexByte(m.body, 0) < 0
	}
	ok, length, last := true, 0, byte('\n')
	err := m.each(func(p []byte) bool {
		for _, c := range p {
			switch {
			case c == 0, c == '\n' && last != '\r', last == '\r' && c != '\n':
				ok = false
			case c == '\n':
				length = -1
			}
			if length++; length > 999 { // with the CR
				ok = false
			}
			last = c
		}
		return ok
	})
	return ok && err == nil && last == '\n'
}

// header returns what is at hand of the message's header block.
func (m *payload) header() []byte {
	head := m.body
	if !m.whole {
		m.each(func(p []byte) bool {
			head = append(head, p...)
			return len(head) < headerPeek && !bytes.Contains(head, []byte("\r\n\r\n"))
		})
	}
	if i := bytes.Index(head, []byte("\r\n\r\n")); i >= 0 {
		head = head[:i+2]
	}
	return head
}

// tlsOptional reports a sender who prefers delivery to protection with "TLS-Required: No" (RFC 8689 section 3).
func (m *payload) tlsOptional() bool {
	if m.tlsOpt == 0 {
		m.tlsOpt = -1
		if m.load() == nil {
			for line := range bytes.Lines(m.header()) {
				name, value, ok := strings.Cut(string(line[:min(len(line), 128)]), ":")
				if ok && strings.EqualFold(name, "TLS-Required") && strings.EqualFold(strings.TrimSpace(value), "No") {
					m.tlsOpt = 1
				}
			}
		}
	}
	return m.tlsOpt > 0
}
