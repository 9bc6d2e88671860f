package smtp

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// Limits of a ReplyReader. They bound what a hostile server can make a client hold or wait through; the smallest limits that
// RFC 5321 section 4.5.3.1.5 demands are far below them.
const (
	DefaultMaxReplyLine  = 8 << 10 // octets of one reply line; the part beyond what is kept is dropped
	DefaultMaxReplyLines = 256     // lines of one reply
	DefaultMaxReplyBytes = 2 << 20 // octets of all replies since the reader was made or Reset

	replyBufSize  = 2048     // a longer line is kept up to this size
	keepReplyText = 16 << 10 // octets of one reply's text that are kept
)

// Errors of ReplyReader. The stream is of no further use after any of them.
var (
	ErrReplySyntax = errors.New("malformed SMTP reply")
	ErrReplyTooBig = errors.New("SMTP reply too long")
)

// ReplyReader reads SMTP replies (RFC 5321 section 4.2) and bounds their lines, their number and their total size.
// It is used by one goroutine. Reading a reply allocates nothing unless its text is asked for.
type ReplyReader struct {
	MaxLine, MaxLines int
	MaxBytes          int64

	src   io.Reader
	buf   []byte
	r, w  int
	total int64
	code  int
	text  []byte // the lines of the last reply without codes, separated by "\n"
}

// NewReplyReader returns a reader of the replies in r with the default limits.
func NewReplyReader(r io.Reader) *ReplyReader {
	return &ReplyReader{
		MaxLine: DefaultMaxReplyLine, MaxLines: DefaultMaxReplyLines, MaxBytes: DefaultMaxReplyBytes,
		src: r, buf: make([]byte, replyBufSize), text: make([]byte, 0, 256),
	}
}

// Reset makes the reader read from r, drops what is buffered and returns how many octets that were.
// The count towards MaxBytes goes on: one session is one budget, before and after STARTTLS.
func (rr *ReplyReader) Reset(r io.Reader) int {
	dropped := rr.w - rr.r
	rr.src, rr.r, rr.w = r, 0, 0
	return dropped
}

// StartBudget starts a new count towards MaxBytes, for the next message on a connection that is used again.
func (rr *ReplyReader) StartBudget() { rr.total = 0 }

// Buffered returns the number of octets received but not yet read as a reply.
func (rr *ReplyReader) Buffered() int { return rr.w - rr.r }

// Next reads one reply and returns its code, 200 to 599. An error is io.EOF if the stream ended before the reply,
// io.ErrUnexpectedEOF if it ended within it, ErrReplySyntax or ErrReplyTooBig (wrapped), or the source's own.
func (rr *ReplyReader) Next() (int, error) {
	rr.code, rr.text = 0, rr.text[:0]
	if err := rr.next(); err != nil {
		rr.code = 0
		return 0, err
	}
	return rr.code, nil
}

func (rr *ReplyReader) next() error {
	for n := 0; ; n++ {
		if n >= rr.MaxLines {
			return fmt.Errorf("%w: over %d lines", ErrReplyTooBig, rr.MaxLines)
		}
		line, err := rr.line()
		if err != nil {
			if err == io.EOF && n > 0 {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		code, more, err := rr.parse(line)
		if err != nil {
			return err
		}
		// RFC 5321 section 4.2.1: all lines carry the same code. Some servers differ within the class, where the last one
		// counts; a reply that says both yes and no says nothing.
		if n > 0 && code/100 != rr.code/100 {
			return fmt.Errorf("%w: code changes from %d to %d", ErrReplySyntax, rr.code, code)
		}
		if n == 0 || code != rr.code {
			rr.code = code
		}
		if !more {
			return nil
		}
	}
}

// Code returns the code of the last reply that Next read, 0 after an error.
func (rr *ReplyReader) Code() int { return rr.code }

// Reply returns the last reply that Next read. Octets that are not printable UTF-8 text are replaced, so the text is safe in
// logs and notices; an enhanced code (RFC 2034 section 4) that fits the code's class is taken out of the text.
func (rr *ReplyReader) Reply() Reply {
	text := cleanText(rr.text)
	r := Reply{Code: rr.code, Text: text}
	word, _, _ := strings.Cut(firstLine(text), " ")
	if enh, ok := ParseEnhancedCode(word); ok && int(enh[0]) == rr.code/100 {
		r.Enh, r.Text = enh, cutEnhanced(text, word)
	}
	return r
}

// Lines calls f for each line of the last reply, without the code. The slice is valid during the call only.
func (rr *ReplyReader) Lines(f func(line []byte)) {
	rest, more := rr.text, true
	for more {
		var line []byte
		line, rest, more = bytes.Cut(rest, []byte{'\n'})
		f(line)
	}
}

// Raw returns the text of the last reply as it came, valid until the next call of Next.
func (rr *ReplyReader) Raw() []byte { return rr.text }

// parse takes one line apart: code, separator, text.
func (rr *ReplyReader) parse(line []byte) (code int, more bool, err error) {
	if len(line) < 3 {
		return 0, false, fmt.Errorf("%w: %q", ErrReplySyntax, line)
	}
	for _, c := range line[:3] {
		if c < '0' || c > '9' {
			return 0, false, fmt.Errorf("%w: %q", ErrReplySyntax, clip(line, 80))
		}
		code = code*10 + int(c-'0')
	}
	if code < 200 || code > 599 {
		return 0, false, fmt.Errorf("%w: code %d", ErrReplySyntax, code)
	}
	text := line[3:]
	if len(text) > 0 {
		switch text[0] {
		case '-':
			more = true
		case ' ', '\t':
		default:
			return 0, false, fmt.Errorf("%w: %q", ErrReplySyntax, clip(line, 80))
		}
		text = text[1:]
	}
	if rr.code != 0 && len(rr.text) < keepReplyText {
		rr.text = append(rr.text, '\n')
	}
	rr.text = append(rr.text, clip(text, keepReplyText-len(rr.text))...)
	return code, more, nil
}

// line returns the next line without its end. A line over the buffer's size is cut, one over MaxLine is an error.
// A bare LF ends a line too: no harm can come of it here, and such servers exist.
func (rr *ReplyReader) line() ([]byte, error) {
	for scanned := rr.r; ; {
		if i := bytes.IndexByte(rr.buf[scanned:rr.w], '\n'); i >= 0 {
			line := rr.buf[rr.r : scanned+i]
			rr.r = scanned + i + 1
			return bytes.TrimSuffix(line, []byte{'\r'}), nil
		}
		if rr.w-rr.r == len(rr.buf) {
			return rr.longLine()
		}
		if rr.r > 0 {
			copy(rr.buf, rr.buf[rr.r:rr.w])
			rr.w -= rr.r
			rr.r = 0
		}
		scanned = rr.w
		if err := rr.fill(); err != nil {
			if err == io.EOF && rr.w > rr.r {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
}

// longLine keeps the first half of the full buffer as the line and drops the rest of it.
func (rr *ReplyReader) longLine() ([]byte, error) {
	half := len(rr.buf) / 2
	for size := half; ; { // octets of the line before buf[half:]
		i := bytes.IndexByte(rr.buf[half:rr.w], '\n')
		if i >= 0 && size+i <= rr.MaxLine {
			rr.r = half + i + 1
			return rr.buf[:half], nil
		}
		if size += rr.w - half; size > rr.MaxLine {
			return nil, fmt.Errorf("%w: line over %d octets", ErrReplyTooBig, rr.MaxLine)
		}
		rr.w = half
		if err := rr.fill(); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
}

// fill reads once into the free part of the buffer, which is not empty.
func (rr *ReplyReader) fill() error {
	if rr.total >= rr.MaxBytes {
		return fmt.Errorf("%w: over %d octets in one session", ErrReplyTooBig, rr.MaxBytes)
	}
	for range 100 {
		n, err := rr.src.Read(rr.buf[rr.w:])
		if n > 0 {
			rr.w += n
			rr.total += int64(n)
			return nil // an error comes again with the next Read
		}
		if err != nil {
			return err
		}
	}
	return io.ErrNoProgress
}

func clip(b []byte, n int) []byte {
	if n < 0 {
		n = 0
	}
	if len(b) > n {
		b = b[:n]
	}
	return b
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// cutEnhanced removes the enhanced code from the start of every line that has it.
func cutEnhanced(text, code string) string {
	if !strings.Contains(text, "\n") {
		return strings.TrimLeft(text[len(code):], " ")
	}
	lines := strings.Split(text, "\n")
	for i, l := range lines {
		if rest, ok := strings.CutPrefix(l, code); ok && (rest == "" || rest[0] == ' ') {
			lines[i] = strings.TrimLeft(rest, " ")
		}
	}
	return strings.Join(lines, "\n")
}

// cleanText turns octets of a stranger into text: control characters become spaces, invalid UTF-8 becomes "?".
func cleanText(b []byte) string {
	clean := true
	for _, c := range b {
		if c != '\n' && (c < ' ' || c >= 0x7f) {
			clean = false
			break
		}
	}
	if clean {
		return string(b)
	}
	var s strings.Builder
	s.Grow(len(b))
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		switch {
		case r == utf8.RuneError && n <= 1:
			s.WriteByte('?')
		case r == '\n':
			s.WriteByte('\n')
		case r < ' ' || r >= 0x7f && r < 0xa0 || bidi(r):
			s.WriteByte(' ')
		default:
			s.WriteRune(r)
		}
		b = b[n:]
	}
	return s.String()
}

// bidi reports characters that reorder or hide the text around them on a terminal or page.
func bidi(r rune) bool {
	return r >= 0x200b && r <= 0x200f || r >= 0x2028 && r <= 0x202e || r >= 0x2066 && r <= 0x2069 || r == 0xfeff
}
