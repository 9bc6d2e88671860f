// Package message is RFC 5322 header blocks as bytes: find, count, unfold, prepend, remove, convert line endings.
package message

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"sync"
)

// Limits of a header block. Real ones are a few KiB; the limits are those of memory and time, not of taste.
const (
	MaxHeader = 256 << 10 // bytes
	MaxFields = 5000
)

// ErrTooBig is returned for a header block over the limits.
var ErrTooBig = errors.New("message header too big")

// Field is one header field with its folds, or a line of the header that is no field. It points into its Header.
type Field struct {
	raw   []byte
	name  int32 // length of the name; 0 for a line that is no field
	colon int32
	line  int32
}

// Name returns the field name as written, "" for a line that is no field.
func (f Field) Name() string { return string(f.raw[:f.name]) }

// Raw returns the field as it stands in the message, with folds and line ends.
func (f Field) Raw() []byte { return f.raw }

// Body returns what follows the colon as it stands in the message, with folds and line ends.
func (f Field) Body() []byte {
	if f.name == 0 {
		return f.raw
	}
	return f.raw[f.colon+1:]
}

// Value returns what follows the colon, unfolded (RFC 5322 section 2.2.3) and without white space around it.
func (f Field) Value() string { return Unfold(f.Body()) }

// Line returns the number of the line on which the field begins, from 1.
func (f Field) Line() int { return int(f.line) }

// Is reports whether the field has the name; ASCII letters compare without case.
func (f Field) Is(name string) bool {
	return int(f.name) == len(name) && equalFold(f.raw[:f.name], name)
}

func equalFold(b []byte, s string) bool {
	for i := range b {
		if lower(b[i]) != lower(s[i]) {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

// Unfold returns a field body on one line, without white space around it.
func Unfold(b []byte) string {
	b = bytes.Trim(b, " \t\r\n")
	if bytes.IndexByte(b, '\n') < 0 {
		return string(b)
	}
	out := make([]byte, 0, len(b))
	for i := 0; i < len(b); i++ {
		if b[i] == '\n' || b[i] == '\r' && i+1 < len(b) && b[i+1] == '\n' {
			continue
		}
		out = append(out, b[i])
	}
	return string(out)
}

// Header is the header block of one message. It is read-only once made.
type Header struct {
	raw    []byte
	fields []Field
}

// Read reads the header block, and perhaps some of what follows, from r. A message without empty line is all header. Lines end
// in CRLF or LF. The only errors are ErrTooBig and those of r.
func Read(r io.Reader) (*Header, error) {
	first := readBuffers.Get().(*[readSize]byte)
	defer readBuffers.Put(first)
	buf := first[:0]
	for pos := 0; ; {
		n, err := r.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		var end int
		if end, pos = endOfHeader(buf, pos); end < 0 && err == io.EOF {
			end = len(buf)
		}
		switch {
		case end > MaxHeader || end < 0 && len(buf) > MaxHeader:
			return nil, ErrTooBig
		case end >= 0:
			return split(bytes.Clone(buf[:end]))
		case err != nil:
			return nil, fmt.Errorf("reading the header: %w", err)
		}
		if len(buf) == cap(buf) {
			buf = append(make([]byte, 0, 4*cap(buf)), buf...)
		}
	}
}

// readSize is how much is read at first: most headers are smaller.
const readSize = 8 << 10

var readBuffers = sync.Pool{New: func() any { return new([readSize]byte) }}

// Parse is Read for a message in memory.
func Parse(b []byte) (*Header, error) { return Read(bytes.NewReader(b)) }

// endOfHeader looks for the empty line, from the beginning of a line at pos on. It returns the offset behind it, or -1 and where
// to look again when there is more.
func endOfHeader(b []byte, pos int) (end, next int) {
	for {
		i := bytes.IndexByte(b[pos:], '\n')
		if i < 0 {
			return -1, pos
		}
		if i == 0 || i == 1 && b[pos] == '\r' {
			return pos + i + 1, pos
		}
		pos += i + 1
	}
}

// split finds the fields of a whole header block.
func split(b []byte) (*Header, error) {
	h := &Header{raw: b, fields: make([]Field, 0, min(bytes.Count(b, []byte{'\n'})+1, MaxFields))}
	start, line := 0, int32(0) // of the field that is open
	flush := func(end int) {
		if start < end {
			name, colon := fieldName(b[start:end])
			h.fields = append(h.fields, Field{b[start:end:end], int32(name), int32(colon), line})
		}
		start = end
	}
	n := int32(0)
	for pos := 0; pos < len(b); {
		n++
		next := len(b)
		if i := bytes.IndexByte(b[pos:], '\n'); i >= 0 {
			next = pos + i + 1
		}
		empty := b[pos] == '\n' || next == pos+2 && b[pos] == '\r' && b[pos+1] == '\n'
		if empty || pos == 0 || b[pos] != ' ' && b[pos] != '\t' {
			flush(pos)
			line = n
		}
		if empty {
			start = next
		}
		pos = next
	}
	flush(len(b))
	if len(h.fields) > MaxFields {
		return nil, ErrTooBig
	}
	return h, nil
}

// fieldName returns the length of the field name at the beginning of a line and the place of the colon, zeros if the line is no
// field (RFC 5322 section 2.2; white space before the colon as in section 4.5.8).
func fieldName(l []byte) (name, colon int) {
	for i, c := range l {
		switch {
		case c == ':':
			if name == 0 {
				name = i
			}
			return name, i
		case c == ' ' || c == '\t':
			if name == 0 {
				name = i
			}
			if i == 0 {
				return 0, 0
			}
		case c < 33 || c > 126 || name > 0:
			return 0, 0
		}
	}
	return 0, 0
}

// Bytes returns the header block with the empty line that ended it, if there was one.
func (h *Header) Bytes() []byte { return h.raw }

// Len returns the size of the header block with the empty line: the offset at which the body begins.
func (h *Header) Len() int { return len(h.raw) }

// Fields returns all fields and lines that are none, in order.
func (h *Header) Fields() []Field { return h.fields }

// All yields the fields of a name, from the top.
func (h *Header) All(name string) iter.Seq[Field] {
	return func(yield func(Field) bool) {
		for _, f := range h.fields {
			if f.Is(name) && !yield(f) {
				return
			}
		}
	}
}

// First returns the topmost field of the name.
func (h *Header) First(name string) (Field, bool) {
	for _, f := range h.fields {
		if f.Is(name) {
			return f, true
		}
	}
	return Field{}, false
}

// Count returns how many fields have the name.
func (h *Header) Count(name string) (n int) {
	for _, f := range h.fields {
		if f.Is(name) {
			n++
		}
	}
	return n
}

// BadLine returns the number of the first line that is neither a field nor belongs to one, 0 if there is none.
func (h *Header) BadLine() int {
	for _, f := range h.fields {
		if f.name == 0 {
			return int(f.line)
		}
	}
	return 0
}

// MessageID returns the id of the Message-ID field without its angle brackets, cut to 256 bytes; "" if there is none.
func (h *Header) MessageID() string {
	f, ok := h.First("Message-ID")
	if !ok {
		return ""
	}
	v := f.Value()
	if _, rest, ok := strings.Cut(v, "<"); ok {
		v, _, _ = strings.Cut(rest, ">")
	}
	return v[:min(len(v), 256)]
}
