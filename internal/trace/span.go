package trace

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"blitiri.com.ar/go/log"
)

// Span is one traced operation. A nil *Span is valid and does nothing, so callers never check.
// All methods may be called from any goroutine; after Finish they do nothing but count.
type Span struct {
	up     context.Context // that the span's own goes back to
	labels context.Context // the profiler's labels for who works on the span, nil if there are none of ours
	rec    *Recorder       // nil if the span only carries its id
	id     ID
	sid    SpanID
	parent SpanID
	title  string
	from   *Span // that of the context it began in, nil if there is none
	start  time.Time
	family Family
	logUp  bool // log lines go under the family and title of from
	root   bool // it set the goroutine's labels

	failed bool // under mu, as what follows
	done   bool // finished
	mu     sync.Mutex
	buf    *buffer // once done, the recorder's
	mirror *mirror
	dur    time.Duration // once done

	// Under the recorder's lock.
	state      *state
	seq        uint64 // of starts
	prev, next *Span  // active spans of the family
}

// ID returns the message trace id of the span.
func (s *Span) ID() ID {
	if s == nil {
		return ID{}
	}
	return s.id
}

// SpanID returns the id of the span itself.
func (s *Span) SpanID() SpanID {
	if s == nil {
		return SpanID{}
	}
	return s.sid
}

// Traceparent renders the span as W3C "traceparent", "" for a nil span.
func (s *Span) Traceparent() string {
	if s == nil {
		return ""
	}
	return Traceparent(s.id, s.sid)
}

// Printf adds an event. Arguments are formatted at once. It is logged at verbosity 1.
func (s *Span) Printf(format string, a ...any) {
	if s != nil && s.rec != nil {
		s.printf(Info, log.Debug, format, a)
	}
}

// Print is Printf for a text that needs no formatting.
func (s *Span) Print(text string) {
	if s != nil && s.rec != nil {
		s.print(Info, log.Debug, nil, text)
	}
}

// Debugf adds an event that is logged only at verbosity 1.
func (s *Span) Debugf(format string, a ...any) {
	if s != nil && s.rec != nil {
		s.printf(Debug, log.Debug, format, a)
	}
}

// Debug is Debugf for a text that needs no formatting.
func (s *Span) Debug(text string) {
	if s != nil && s.rec != nil {
		s.print(Debug, log.Debug, nil, text)
	}
}

// Info adds an event that is always logged, and needs no formatting: for lines that are logged for every message. The place keeps where in
// the code that is; it may be nil.
func (s *Span) Info(place *Place, text string) {
	if s != nil && s.rec != nil {
		s.print(Info, log.Info, place, text)
	}
}

// Infof adds an event that is always logged: for the lines that readers of existing logs look for.
func (s *Span) Infof(format string, a ...any) {
	if s != nil && s.rec != nil {
		s.printf(Info, log.Info, format, a)
	}
}

// Errorf adds an error event, marks the span as failed and returns the error. It is always logged.
func (s *Span) Errorf(format string, a ...any) error {
	err := fmt.Errorf(format, a...)
	if s != nil && s.rec != nil {
		s.event(Error, log.Info, 1, nil, []byte(err.Error()))
	}
	return err
}

// Error records err as an error event, if it is not nil, and returns it. It is always logged.
func (s *Span) Error(err error) error {
	if err != nil && s != nil && s.rec != nil {
		s.event(Error, log.Info, 1, nil, []byte(err.Error()))
	}
	return err
}

// Fail marks the span as failed without an event.
func (s *Span) Fail() {
	if s == nil || s.rec == nil {
		return
	}
	s.mu.Lock()
	s.failed = true
	s.mu.Unlock()
}

// Event adds an event made of a name and values, "name key=value ...", without the cost of formatting.
func (s *Span) Event(name string, fields ...Field) {
	if s == nil || s.rec == nil {
		return
	}
	p := s.rec.getScratch()
	b := append((*p)[:0], name...)
	for _, f := range fields {
		b = f.append(b)
	}
	s.event(Debug, log.Debug, 1, nil, b)
	*p = b
	s.rec.putScratch(p)
}

// Field is a value of an Event.
type Field struct {
	key, s string
	n      int64
	kind   uint8
}

// The kinds of fields.
const (
	fieldString = iota
	fieldInt
	fieldDuration
)

// Str is a string value.
func Str(key, value string) Field { return Field{key: key, s: value} }

// Num is an integer value.
func Num(key string, n int64) Field { return Field{key: key, n: n, kind: fieldInt} }

// Took is a duration.
func Took(key string, d time.Duration) Field {
	return Field{key: key, n: int64(d), kind: fieldDuration}
}

func (f *Field) append(b []byte) []byte {
	b = append(b, ' ')
	b = append(b, f.key...)
	b = append(b, '=')
	switch {
	case f.kind == fieldInt:
		return strconv.AppendInt(b, f.n, 10)
	case f.kind == fieldDuration:
		return append(b, time.Duration(f.n).String()...)
	case !bare(f.s):
		return strconv.AppendQuote(b, f.s[:min(len(f.s), maxText)])
	}
	return append(b, f.s...)
}

// bare says that a value needs no quotes.
func bare(s string) bool {
	for i := range len(s) {
		if c := s[i]; c == ' ' || c == '"' || c == '=' {
			return false
		}
	}
	return s != ""
}

// Set sets an attribute shown with the span; key is a constant.
func (s *Span) Set(key, value string) {
	if s == nil || s.rec == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done {
		s.rec.dropped.Add(1)
		return
	}
	c := s.buf.cap()
	if !s.buf.set(key, value) {
		s.rec.dropped.Add(1)
	}
	s.rec.account(int64(s.buf.cap() - c))
	if s.mirror.on() {
		s.mirror.add(Info, printable([]byte(key+" = "+value[:min(len(value), maxText)])))
	}
}

// Link refers to another trace that has to do with this one: the connection a message came by, the message a notice is about.
func (s *Span) Link(id ID) {
	if s != nil && s.rec != nil && id != s.id {
		s.link(Link{Trace: id})
	}
}

func (s *Span) link(l Link) {
	s.mu.Lock()
	if !s.done && s.buf != nil && l.Trace != (ID{}) && len(s.buf.links) < maxLinks {
		c := s.buf.cap()
		s.buf.links = append(s.buf.links, l)
		s.rec.account(int64(s.buf.cap() - c))
	}
	s.mu.Unlock()
}

// printf formats an event.
func (s *Span) printf(k Kind, level log.Level, format string, a []any) {
	p := s.rec.getScratch()
	b := fmt.Appendf((*p)[:0], format, a...)
	s.event(k, level, 2, nil, b)
	*p = b
	s.rec.putScratch(p)
}

func (s *Span) print(k Kind, level log.Level, place *Place, text string) {
	p := s.rec.getScratch()
	b := append((*p)[:0], text...)
	s.event(k, level, 2, place, b)
	*p = b
	s.rec.putScratch(p)
}

// event records an event everywhere it belongs. depth is the number of calls between it and whoever annotated, which is done at
// the place, if that is not nil.
func (s *Span) event(k Kind, level log.Level, depth int, place *Place, text []byte) {
	at := time.Since(s.start)
	s.mu.Lock()
	if k == Error {
		s.failed = true
	}
	if s.done {
		s.rec.dropped.Add(1)
	} else {
		c := s.buf.cap()
		n := s.buf.add(at, k, text, s.rec.eventLimit())
		if n > 0 {
			s.rec.dropped.Add(int64(n))
		}
		s.rec.account(int64(s.buf.cap() - c))
		s.mirrorEvent(k, at, text)
	}
	s.mu.Unlock()
	s.watchEvent(k, text)
	if !s.rec.cfg.Log {
		return
	}
	if log.V(level) {
		s.log(k, level, depth+1, place, text)
	} else if f := s.rec.debug.Load(); f != nil {
		(*f)(string(appendEscaped(s.appendPrefix(nil), text[:min(len(text), maxText)])))
	}
}

// log writes an event to the process log, as "<family> <title>: <text>". Filters such as fail2ban's read these lines.
func (s *Span) log(k Kind, level log.Level, depth int, place *Place, text []byte) {
	var room [256]byte
	b := s.appendPrefix(room[:0])
	if k == Error {
		b = append(b, "error: "...)
	}
	line := string(appendEscaped(b, text[:min(len(text), maxText)]))
	if s.rec.cfg.Line != nil {
		s.rec.cfg.Line(level, depth+1, place, line)
		return
	}
	log.Log(level, depth+2, "%s", line)
}

func (s *Span) appendPrefix(b []byte) []byte {
	if s.logUp {
		s = s.from
	}
	b = append(append(b, s.family.String()...), ' ')
	return append(append(b, s.title...), ": "...)
}

// appendEscaped quotes text as Go does, without the outer quotes, so that nothing in it can make a line of its own.
func appendEscaped(b, text []byte) []byte {
	for _, c := range text {
		if c < ' ' || c > '~' || c == '"' || c == '\\' {
			q := strconv.Quote(string(text))
			return append(b, q[1:len(q)-1]...)
		}
	}
	return append(b, text...)
}

// Finish ends the span.
func (s *Span) Finish() {
	if s == nil || s.rec == nil {
		return
	}
	s.mu.Lock()
	if s.done {
		s.mu.Unlock()
		return
	}
	s.dur = time.Since(s.start)
	s.done = true
	m, failed := s.mirror, s.failed
	s.mirror = nil
	s.mu.Unlock()

	s.rec.finished(s, failed)
	if m.on() {
		m.finish(s.id, failed)
	}
	if s.root {
		s.from.resetLabels()
	}
}

// cleanTitle makes a title fit for pages and logs.
func cleanTitle(t string) string {
	if len(t) > maxTitle {
		t = strings.Clone(t[:maxTitle])
	}
	if plain(t) {
		return t
	}
	for i, r := range t {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return escapeUnprintable([]byte(t), i)
		}
	}
	return t
}

// plain says that there is nothing but printable ASCII.
func plain[T string | []byte](t T) bool {
	for i := range len(t) {
		if t[i] < ' ' || t[i] > '~' {
			return false
		}
	}
	return true
}

// printable returns the text with everything in it that is not valid UTF-8 or does not print escaped.
func printable(b []byte) string {
	if plain(b) {
		return string(b)
	}
	for i := 0; i < len(b); {
		r, n := utf8.DecodeRune(b[i:])
		if r == utf8.RuneError && n <= 1 || !unicode.IsPrint(r) {
			return escapeUnprintable(b, i)
		}
		i += n
	}
	return string(b)
}

// escapeUnprintable is printable from the first byte on that is not.
func escapeUnprintable(b []byte, from int) string {
	out := append(make([]byte, 0, len(b)+16), b[:from]...)
	for i := from; i < len(b); {
		r, n := utf8.DecodeRune(b[i:])
		switch {
		case r == utf8.RuneError && n <= 1:
			out = fmt.Appendf(out, `\x%02x`, b[i])
		case r == '\n' || r == '\t' || !unicode.IsPrint(r):
			q := strconv.AppendQuoteRune(nil, r)
			out = append(out, q[1:len(q)-1]...)
		default:
			out = append(out, b[i:i+n]...)
		}
		i += n
	}
	return string(out)
}
