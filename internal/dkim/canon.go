package dkim

import (
	"bytes"
	"crypto/sha256"
	"hash"

	"blitiri.com.ar/go/chasquid/internal/message"
)

// appendHeader appends a header field in canonical form, with CRLF at the end (RFC 6376 section 3.4.1, 3.4.2).
func appendHeader(b []byte, raw []byte, relaxed bool) []byte {
	if !relaxed {
		b = append(b, raw...)
		if !bytes.HasSuffix(raw, crlf) {
			b = append(b, crlf...)
		}
		return b
	}
	name, value, _ := bytes.Cut(raw, colon)
	for _, c := range bytes.TrimRight(name, " \t") {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		b = append(b, c)
	}
	b = append(b, ':')
	space := false
	for _, c := range bytes.TrimLeft(value, " \t\r\n") {
		switch c {
		case ' ', '\t', '\r', '\n':
			space = true
			continue
		}
		if space {
			b = append(b, ' ')
			space = false
		}
		b = append(b, c)
	}
	return append(b, crlf...)
}

var (
	crlf  = []byte("\r\n")
	colon = []byte(":")
)

// bodyHash is the hash of a body in canonical form, of its first limit bytes if limit is not negative.
type bodyHash struct {
	relaxed bool
	limit   int64
	h       hash.Hash

	size    int64 // canonical bytes so far
	pending int64 // line ends not yet counted: they may be the empty lines at the end
	cr      bool  // a CR was read that may begin a line end
	space   bool  // relaxed: white space was read that may stand at the end of a line
	out     []byte
}

// outSize is how many canonical bytes a relaxed bodyHash collects before it hashes them.
const outSize = 2 << 10

func newBodyHash(relaxed bool, limit int64) *bodyHash {
	return &bodyHash{relaxed: relaxed, limit: limit, h: sha256.New()}
}

func (h *bodyHash) write(p []byte) {
	if h.relaxed {
		h.writeRelaxed(p)
	} else {
		h.writeSimple(p)
	}
}

// emit hashes canonical bytes, as far as the limit lets it.
func (h *bodyHash) emit(p []byte) {
	n := int64(len(p))
	if h.limit >= 0 {
		p = p[:min(n, max(h.limit-h.size, 0))]
	}
	h.size += n
	h.h.Write(p)
}

var manyCRLF = bytes.Repeat(crlf, 256)

// flush emits the line ends that turned out not to stand at the end of the body.
func (h *bodyHash) flush() {
	for h.pending > 0 {
		n := min(h.pending, 256)
		h.emit(manyCRLF[:2*n])
		h.pending -= n
	}
}

// writeSimple is the canonicalisation of RFC 6376 section 3.4.3.
func (h *bodyHash) writeSimple(p []byte) {
	if len(p) == 0 {
		return
	}
	if h.cr {
		h.cr = false
		if p[0] == '\n' {
			h.pending++
			p = p[1:]
		} else {
			h.flush()
			h.emit(crlf[:1])
		}
	}
	if n := len(p); n > 0 && p[n-1] == '\r' {
		h.cr = true
		p = p[:n-1]
	}
	content := p
	for bytes.HasSuffix(content, crlf) {
		content = content[:len(content)-2]
	}
	if len(content) > 0 {
		h.flush()
		h.emit(content)
	}
	h.pending += int64(len(p)-len(content)) / 2
}

// writeRelaxed is the canonicalisation of RFC 6376 section 3.4.4.
func (h *bodyHash) writeRelaxed(p []byte) {
	if h.out == nil {
		h.out = make([]byte, 0, outSize)
	}
	for i := 0; i < len(p); {
		c := p[i]
		if h.cr {
			h.cr = false
			if c == '\n' {
				h.pending++
				h.space = false
				i++
				continue
			}
			h.put(crlf[:1])
		}
		switch c {
		case '\r':
			h.cr = true
			i++
		case ' ', '\t':
			h.space = true
			i++
		default:
			end := i + runLength(p[i:])
			h.put(p[i:end])
			i = end
		}
	}
}

// runLength is how much of p, which begins with content, is canonical as it stands: words with single spaces between them.
func runLength(p []byte) int {
	n := 1
	for n < len(p) {
		switch {
		case !isBlank[p[n]]:
			n++
		case p[n] == ' ' && n+1 < len(p) && !isBlank[p[n+1]]:
			n += 2
		default:
			return n
		}
	}
	return n
}

// isBlank marks the bytes at which writeRelaxed has to look.
var isBlank = [256]bool{' ': true, '\t': true, '\r': true}

// put takes content bytes of a line, after the line ends and the white space that stood before them.
func (h *bodyHash) put(p []byte) {
	if h.pending > 0 {
		h.drain()
		h.flush()
	}
	if len(h.out)+len(p)+1 > cap(h.out) {
		h.drain()
	}
	if h.space {
		h.out = append(h.out, ' ')
		h.space = false
	}
	if len(p) >= cap(h.out)/2 {
		h.drain()
		h.emit(p)
		return
	}
	h.out = append(h.out, p...)
}

func (h *bodyHash) drain() {
	h.emit(h.out)
	h.out = h.out[:0]
}

// sum ends the body and returns its hash. size is then the length of the canonical body.
func (h *bodyHash) sum() []byte {
	if h.relaxed {
		if h.cr {
			h.put(crlf[:1])
		}
		h.drain()
		if h.size > 0 {
			h.emit(crlf)
		}
		return h.h.Sum(nil)
	}
	if h.cr {
		h.flush()
		h.emit(crlf[:1])
	}
	h.emit(crlf) // a body that is empty, or lacks the last line end, gets one
	return h.h.Sum(nil)
}

// picker hands out the header fields that an h= list names: of a name that stands there several times, from the bottom up
// (RFC 6376 section 5.4.2). Its work is linear in the header and the list.
type picker struct {
	byName map[string][]message.Field
}

func newPicker(h *message.Header) *picker {
	p := &picker{byName: make(map[string][]message.Field, len(h.Fields()))}
	var buf [64]byte
	for _, f := range h.Fields() {
		if f.Name() == "" {
			continue
		}
		k := lowerName(buf[:0], f.Name())
		p.byName[string(k)] = append(p.byName[string(k)], f)
	}
	return p
}

// start begins with a list.
func (p *picker) start() *picking { return &picking{p, map[string]int{}} }

type picking struct {
	p    *picker
	used map[string]int
}

// next returns the field for the next mention of a name, false if there is none left: that is not an error.
func (p *picking) next(name string) (message.Field, bool) {
	var buf [64]byte
	k := lowerName(buf[:0], name)
	l := p.p.byName[string(k)]
	n := p.used[string(k)]
	if n >= len(l) {
		return message.Field{}, false
	}
	p.used[string(k)] = n + 1
	return l[len(l)-1-n], true
}

func lowerName(b []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		b = append(b, c)
	}
	return b
}
