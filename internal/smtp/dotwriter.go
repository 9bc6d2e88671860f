package smtp

import (
	"bytes"
	"encoding/binary"
	"io"
)

// DotWriter writes a message as the data stream of RFC 5321 section 4.5.2: lines that begin with a dot get another one, and
// Close ends the stream with CRLF.CRLF. Its input is the wire form with CRLF line ends and passes unchanged otherwise,
// except that a stray LF becomes CRLF and a stray CR a space, so that nothing a server might take for a line end goes out
// unseen by the dot rule (RFC 5321 section 2.3.8).
//
// It writes pieces of its input directly: give it a writer with a buffer.
type DotWriter struct {
	w    io.Writer
	last byte // the last octet of the input: what may begin a line or be half of a line end
	held bool // a CR at the end of the input, not yet written
	err  error
}

// NewDotWriter returns a writer at the start of a message.
func NewDotWriter(w io.Writer) *DotWriter { return &DotWriter{w: w, last: '\n'} }

// Reset makes the writer start a new message into w.
func (d *DotWriter) Reset(w io.Writer) { *d = DotWriter{w: w, last: '\n'} }

var (
	crlf    = []byte("\r\n")
	dot     = []byte(".")
	space   = []byte(" ")
	dotEnd  = []byte(".\r\n")
	lineEnd = []byte("\r\n.\r\n")
)

// Write stuffs p. It returns len(p) unless the underlying writer fails.
func (d *DotWriter) Write(p []byte) (int, error) {
	n := len(p)
	if n > 0 && d.held {
		d.held = false
		if p[0] == '\n' {
			d.put(crlf)
			d.last, p = '\n', p[1:]
		} else {
			d.put(space)
			d.last = ' '
		}
	}
	for len(p) > 0 && d.err == nil {
		p = p[d.run(p):]
	}
	if d.err != nil {
		return 0, d.err
	}
	return n, nil
}

// run writes the longest prefix of p that needs no change, then what stands in for the octets after it; it returns how many
// octets of p are dealt with. p is not empty.
func (d *DotWriter) run(p []byte) int {
	if d.last == '\n' && p[0] == '.' {
		d.put(dot)
	}
	i := 0
	for {
		j := bytes.IndexByte(p[i:], '\n')
		end := len(p)
		if j >= 0 {
			end = i + j
		}
		if k := bytes.IndexByte(p[i:end], '\r'); k >= 0 && i+k != end-1 {
			return d.replace(p, i+k, space) // a CR inside a line
		}
		if j < 0 {
			return d.tail(p)
		}
		if end == 0 || p[end-1] != '\r' {
			return d.replace(p, end, crlf) // a LF without CR
		}
		i = end + 1
		if i < len(p) && p[i] == '.' {
			d.put(p[:i])
			d.last = '\n'
			return i
		}
		if i == len(p) {
			d.put(p)
			d.last = '\n'
			return i
		}
	}
}

// tail writes p, which ends within a line, and keeps back a final CR until its LF is seen.
func (d *DotWriter) tail(p []byte) int {
	n := len(p)
	if p[n-1] == '\r' {
		d.held = true
		d.put(p[:n-1])
		return n
	}
	d.put(p)
	d.last = p[n-1]
	return n
}

// replace writes p up to i, and with instead of the octet at i.
func (d *DotWriter) replace(p []byte, i int, with []byte) int {
	d.put(p[:i])
	d.put(with)
	d.last = with[len(with)-1]
	return i + 1
}

func (d *DotWriter) put(p []byte) {
	if d.err == nil && len(p) > 0 {
		_, d.err = d.w.Write(p)
	}
}

// Close ends the data: a last line without CRLF gets one, then the lone dot follows. It does not close the underlying writer.
func (d *DotWriter) Close() error {
	if d.held {
		d.held = false
		d.put(space)
		d.last = ' '
	}
	if d.last == '\n' {
		d.put(dotEnd)
	} else {
		d.put(lineEnd)
	}
	return d.err
}

// Shape is what a scan of a message found.
type Shape struct {
	Lines   bool // every CR and LF is part of a CRLF, and the last octet ends a line
	Dots    bool // a line begins with a dot
	Longest int  // octets of the longest line, without its CRLF
}

// Scan looks at a whole message in wire form. An empty one has whole lines.
func Scan(p []byte) Shape {
	s := Shape{Lines: true}
	crs := bytes.Count(p, crlf[:1])
	for len(p) > 0 {
		s.Dots = s.Dots || p[0] == '.'
		i := bytes.IndexByte(p, '\n')
		if i < 0 {
			s.Lines = false
			s.Longest = max(s.Longest, len(p))
			break
		}
		if i == 0 || p[i-1] != '\r' {
			s.Lines = false
			s.Longest = max(s.Longest, i)
		} else {
			s.Longest = max(s.Longest, i-1)
			crs--
		}
		p = p[i+1:]
	}
	s.Lines = s.Lines && crs == 0
	return s
}

// EightBit reports an octet above 127.
func EightBit(p []byte) bool {
	for len(p) >= 8 {
		if binary.LittleEndian.Uint64(p)&0x8080808080808080 != 0 {
			return true
		}
		p = p[8:]
	}
	for _, c := range p {
		if c >= 0x80 {
			return true
		}
	}
	return false
}
