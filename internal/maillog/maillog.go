// Package maillog writes the mail log: an observer of the timeline that makes one line of each event.
package maillog

import (
	"log/syslog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/stamp"
	"blitiri.com.ar/go/chasquid/internal/timeline"
	"blitiri.com.ar/go/log"
)

// maxBuffered bounds the bytes that wait for a slow destination; lines beyond are dropped and counted.
const maxBuffered = 1 << 20

// Config says where the log goes.
type Config struct {
	// Path is "<syslog>", "<stdout>", "<stderr>" or a file, which is made (with its directory) and appended to.
	Path string
	// OnError is called for each failed or dropped write; nil: nothing.
	OnError func()
}

// Log is the mail log. Lines are handed to one goroutine that writes whatever has come together, so no session waits for a disk.
type Log struct {
	onError func()

	mu      sync.Mutex
	buf     []byte
	clock   stamp.Clock
	dest    *Destination // that the lines in buf are for
	done    []handover   // destinations that are left, with the lines that are still for them
	failing bool         // the last write failed, and that was reported

	wake  chan struct{} // holds one token when there is something to write
	quit  chan struct{}
	ended chan struct{}
}

// Destination is where a log goes, open.
type Destination struct {
	path  string
	timed bool // lines begin with the time; syslog has its own
	w     writer
}

// handover is a destination that is not used any more, but for some lines.
type handover struct {
	dest  *Destination
	lines []byte
}

type writer interface {
	Write([]byte) (int, error)
	Close() error
}

// Open opens the destination and starts the writer; Close stops it.
func Open(conf Config) (*Log, error) {
	dest, err := OpenDestination(conf.Path)
	if err != nil {
		return nil, err
	}
	if conf.OnError == nil {
		conf.OnError = func() {}
	}
	l := &Log{onError: conf.OnError, dest: dest, wake: make(chan struct{}, 1), quit: make(chan struct{}), ended: make(chan struct{})}
	go l.run()
	return l, nil
}

// OpenDestination opens the destination of Config.Path.
func OpenDestination(path string) (*Destination, error) {
	w, err := open(path)
	if err != nil {
		return nil, err
	}
	return &Destination{path: path, timed: path != "<syslog>" && path != "", w: w}, nil
}

// Close closes a destination that no log was given.
func (d *Destination) Close() error { return d.w.Close() }

// Use sends what is observed from now on to another destination. The old one is closed when it has what was observed before.
func (l *Log) Use(d *Destination) {
	l.mu.Lock()
	l.done = append(l.done, handover{l.dest, l.buf})
	l.dest, l.buf = d, nil
	l.mu.Unlock()
	l.poke()
}

// poke wakes the writer.
func (l *Log) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func open(path string) (writer, error) {
	switch path {
	case "<syslog>", "":
		return syslog.New(syslog.LOG_INFO|syslog.LOG_MAIL, "chasquid")
	case "<stdout>":
		return standard{os.Stdout}, nil
	case "<stderr>":
		return standard{os.Stderr}, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0775); err != nil {
		return nil, err
	}
	return os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0644)
}

// standard is an output of the process, which is not ours to close.
type standard struct{ *os.File }

func (standard) Close() error { return nil }

// Reopen opens a file destination again, for log rotation. On an error the old one stays in use.
func (l *Log) Reopen() error {
	l.mu.Lock()
	old := l.dest
	l.mu.Unlock()
	if _, ok := old.w.(*os.File); !ok {
		return nil
	}
	dest, err := OpenDestination(old.path)
	if err != nil {
		return err
	}
	l.Use(dest)
	return nil
}

// Close writes what is left and closes the destination. Events observed later are dropped.
func (l *Log) Close() error {
	close(l.quit)
	<-l.ended
	return l.dest.w.Close()
}

// run writes what has come together until Close.
func (l *Log) run() {
	defer close(l.ended)
	var spare []byte
	more := time.NewTimer(gather)
	defer more.Stop()
	for open := true; open; {
		select {
		case <-l.wake:
		case <-l.quit:
			open = false
		}
		l.mu.Lock()
		left := l.done
		lines, dest := l.buf, l.dest
		l.done, l.buf = nil, spare[:0]
		l.mu.Unlock()
		for _, h := range left {
			l.write(h.dest, h.lines)
			if err := h.dest.w.Close(); err != nil {
				log.Errorf("mail log: closing %s: %v", h.dest.path, err)
			}
		}
		if len(lines) > 0 {
			l.write(dest, lines)
			more.Reset(gather)
			select { // lines come together, unless the log is being closed
			case <-more.C:
			case <-l.quit:
			}
		}
		spare = lines
	}
}

// gather is how long lines are gathered after a write before the next, so that a busy server does not make a system call for each.
const gather = 2 * time.Millisecond

func (l *Log) write(dest *Destination, lines []byte) {
	if len(lines) == 0 {
		return
	}
	var err error
	if dest.timed {
		_, err = dest.w.Write(lines)
	} else {
		err = writeEach(dest.w, lines)
	}
	if err == nil {
		l.failing = false
		return
	}
	l.onError()
	if !l.failing {
		l.failing = true
		log.Errorf("mail log: cannot write to %s: %v (reported once until it works again)", dest.path, err)
	}
}

// writeEach gives syslog one line at a time, as one write is one message there.
func writeEach(dest writer, lines []byte) (err error) {
	start := 0
	for i, c := range lines {
		if c == '\n' {
			if _, e := dest.Write(lines[start:i]); e != nil {
				err = e
			}
			start = i + 1
		}
	}
	return err
}

// Observe appends the line of the event, if it has one.
func (l *Log) Observe(e *timeline.Event) {
	if !hasLine(e.Kind) {
		return
	}
	l.mu.Lock()
	if len(l.buf) > maxBuffered {
		l.mu.Unlock()
		l.onError()
		return
	}
	if l.dest.timed {
		l.buf = l.clock.Append(l.buf, e.At)
	}
	l.buf = append(appendLine(l.buf, e), '\n')
	l.mu.Unlock()
	l.poke()
}

// hasLine reports whether appendLine knows the kind. Most events of a message have none.
func hasLine(k timeline.Kind) bool {
	return k != timeline.Check && k != timeline.Expanded && k != timeline.Notice
}

// appendLine appends the text of the event; the layouts are those that log readers of existing installations parse.
func appendLine(b []byte, e *timeline.Event) []byte {
	switch e.Kind {
	case timeline.Listen:
		return appendText(append(b, "daemon listening on "...), e.Text)
	case timeline.Auth:
		b = append(b, e.Client...)
		if e.Err == nil {
			b = append(b, " auth succeeded for "...)
		} else {
			b = append(b, " auth failed for "...)
		}
		return appendText(b, e.User)
	case timeline.Refused:
		return appendRefused(b, e)
	case timeline.Queued:
		b = append(appendFrom(append(b, e.ID...), e), " queued ip="...)
		b = append(append(b, e.Client...), " to="...)
		return appendList(b, e.Rcpts)
	case timeline.Attempt:
		return appendAttempt(b, e)
	case timeline.LoopEnd:
		b = append(appendFrom(append(b, e.ID...), e), " completed loop, next in "...)
		return append(b, e.Wait.Round(time.Millisecond).String()...)
	case timeline.Final:
		return append(appendFrom(append(b, e.ID...), e), " all done"...)
	case timeline.Operator:
		return appendText(append(appendFrom(append(b, e.ID...), e), " operator: "...), e.Text)
	}
	return b
}

func appendRefused(b []byte, e *timeline.Event) []byte {
	b = append(append(b, e.Client...), " rejected"...)
	if e.From != (address.Address{}) || len(e.Rcpts) > 0 {
		b = appendFrom(b, e)
	}
	if len(e.Rcpts) > 0 {
		b = appendList(append(b, " to="...), e.Rcpts)
	}
	return appendText(append(b, " - "...), e.Text)
}

func appendAttempt(b []byte, e *timeline.Event) []byte {
	b = append(appendFrom(append(b, e.ID...), e), " to="...)
	if e.Rcpt.Kind == mail.Pipe {
		b = appendText(b, e.Rcpt.Target())
	} else {
		b = appendAddress(b, e.Rcpt.To)
	}
	if e.Outcome.Disposition == mail.Delivered {
		return append(b, " sent"...)
	}
	if e.Outcome.Disposition == mail.Failed {
		b = append(b, " failed (permanent): "...)
	} else {
		b = append(b, " failed (temporary): "...)
	}
	if e.Outcome.Err != nil {
		return appendText(b, e.Outcome.Err.Error())
	}
	return appendText(b, e.Outcome.Reply.String())
}

func appendFrom(b []byte, e *timeline.Event) []byte {
	return appendAddress(append(b, " from="...), e.From)
}

func appendList(b []byte, as []address.Address) []byte {
	b = append(b, '[')
	for i, a := range as {
		if i > 0 {
			b = append(b, ' ')
		}
		b = appendAddress(b, a)
	}
	return append(b, ']')
}

func appendAddress(b []byte, a address.Address) []byte {
	if a.IsNull() {
		return append(b, "<>"...)
	}
	start := len(b)
	b = a.AppendTo(b)
	for _, c := range b[start:] {
		if c < ' ' || c >= 0x7f {
			return appendText(b[:start], string(b[start:]))
		}
	}
	return b
}

// appendText appends s with everything that could break a line or a terminal escaped.
func appendText(b []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		if s[i] < ' ' || s[i] >= 0x7f {
			return appendEscaped(b, s)
		}
	}
	return append(b, s...)
}

func appendEscaped(b []byte, s string) []byte {
	for _, r := range s {
		if r == '"' || r == '\\' {
			b = append(b, byte(r))
			continue
		}
		q := strconv.AppendQuoteRune(nil, r)
		if r == '\'' {
			q = []byte(`'''`)
		}
		b = append(b, q[1:len(q)-1]...)
	}
	return b
}
