package courier

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/smtp"
)

// errUnreadable marks a failure to read the message from where we keep it.
type errUnreadable struct{ err error }

func (e *errUnreadable) Error() string { return "reading the message: " + e.err.Error() }
func (e *errUnreadable) Unwrap() error { return e.err }

// sendData sends the message as a dot stream (RFC 5321 section 4.5.2), and takes in the answer.
func (t *transaction) sendData() *fail {
	m, c := &t.d.msg, t.c
	var err error
	if m.whole && m.shape.Lines && !m.shape.Dots {
		end := append(m.buf[:headroom+len(m.body)], ".\r\n"...) // there is room for it
		c.within(c.env.timeouts.DataBlock)
		err = c.write(end[headroom:])
	} else {
		err = t.dotted()
	}
	if err != nil {
		return t.interrupted(err)
	}
	return t.final()
}

// dotted sends the message through a dot writer.
func (t *transaction) dotted() error {
	w := writers.Get().(*bufio.Writer)
	defer writers.Put(w)
	w.Reset(blockWriter{t.c})
	defer w.Reset(nil)
	dots := smtp.NewDotWriter(w)
	if t.d.msg.whole {
		dots.Write(t.d.msg.body)
	} else if err := t.copyTo(dots); err != nil {
		return err
	}
	if err := dots.Close(); err != nil {
		return err
	}
	return w.Flush()
}

// stream sends a message that is not in memory as one chunk (RFC 3030 section 2), and takes in the answer.
func (t *transaction) stream() *fail {
	if len(t.ok) == 0 {
		return nil
	}
	w := writers.Get().(*bufio.Writer)
	defer writers.Put(w)
	w.Reset(blockWriter{t.c})
	defer w.Reset(nil)
	line := append(strconv.AppendInt([]byte("BDAT "), t.d.job.Size, 10), " LAST\r\n"...)
	t.c.log.sentBlock(line)
	w.Write(line)
	err := t.copyTo(w)
	if err == nil {
		err = w.Flush()
	}
	if err != nil {
		return t.interrupted(err)
	}
	return t.final()
}

var writers = sync.Pool{New: func() any { return bufio.NewWriterSize(nil, 32<<10) }}

// blockWriter writes to the connection with the time of one block for each write.
type blockWriter struct{ c *client }

func (w blockWriter) Write(p []byte) (int, error) {
	w.c.within(w.c.env.timeouts.DataBlock)
	if err := w.c.write(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// copyTo copies exactly the message's size; less or more is an error of the place where we keep it.
func (t *transaction) copyTo(w io.Writer) error {
	m := &t.d.msg
	if m.whole {
		_, err := w.Write(m.body)
		return err
	}
	r, err := m.job.Open()
	if err != nil {
		return &errUnreadable{err}
	}
	defer r.Close()
	buf := blocks.Get().(*block)
	defer blocks.Put(buf)
	left := m.job.Size
	for {
		n, err := r.Read(buf[:])
		if left -= int64(n); left < 0 {
			return &errUnreadable{errors.New("it is longer than it should be")}
		}
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return err
			}
		}
		switch {
		case err == io.EOF && left > 0:
			return &errUnreadable{io.ErrUnexpectedEOF}
		case err == io.EOF:
			return nil
		case err != nil:
			return &errUnreadable{err}
		}
	}
}

// interrupted is the failure of a message that could not be sent to its end. The connection is closed without an end of data,
// so the server must throw away what it got (RFC 5321 section 4.1.1.10). If it was the server who lost patience, it may have said why.
func (t *transaction) interrupted(err error) *fail {
	c := t.c
	c.broken = true
	if ours := (*errUnreadable)(nil); errors.As(err, &ours) {
		return &fail{Outcome: mail.Outcome{Reason: mail.ReasonInternal, MTA: c.mta, Err: err}}
	}
	if !isTimeout(err) {
		c.within(2 * time.Second)
		if code, rerr := c.read(cmdEnd); rerr == nil && code >= 400 {
			t.all(t.refused(StageBody))
			return nil
		}
	}
	f := c.lost(StageBody, err)
	f.Err = fmt.Errorf("DATA writing: %w", err)
	return f
}
