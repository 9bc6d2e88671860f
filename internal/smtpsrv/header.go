package smtpsrv

import (
	"bytes"
	"io"
	"strings"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// Limits of the header block of a message, in bytes but for the lines. The work per byte is constant.
const (
	maxHeaderBytes = 1 << 20
	maxHeaderLines = 20_000
	maxHeaderPart  = 2 << 10  // of a line that is looked at before it is passed on
	maxFieldName   = 998      // with its colon: a line may not be longer (RFC 5322 section 2.1.1)
	maxHeldField   = 16 << 10 // of an Authentication-Results field
	maxMessageID   = 256      // in the envelope
)

// headerFilter passes a message on as it arrives. In its header it counts and notes what the server wants to know, leaves out
// Authentication-Results that pretend to be ours (RFC 8601 section 5) and, for mail from our users, Bcc, and adds what submission must
// (RFC 6409 section 8). All else passes byte for byte, the body unseen.
type headerFilter struct {
	w              io.Writer
	hostname, also string  // our authserv-ids
	fixups         *fixups // for submission; nil: the message is not ours to touch

	done    bool   // the header has ended
	inLine  bool   // the start of the present line was dealt with
	part    []byte // the start of the present line while that is too short to tell
	pending []byte // kept and not yet written; part of what write was given
	held    []byte // an Authentication-Results field that is not yet decided on
	action  action // for the field being read
	capture bool   // the field is the Message-ID

	lines, bytes int
	noHeader     bool // the first line is not one of a header
	tooBig       bool
	eightBit     bool
	received     int
	hasDate      bool
	hasID        bool
	msgID        []byte
	lastByte     byte
	err          error
}

type action uint8

const (
	keep action = iota
	leaveOut
	hold
)

// fixups is what submission adds to a header.
type fixups struct {
	id    mail.ID
	trace trace.ID
	host  string
	now   time.Time
}

// write passes on p, which is not empty.
func (h *headerFilter) write(p []byte) error {
	for i := 0; i < len(p) && h.err == nil && !h.tooBig; {
		if h.done {
			h.put(p[i:], true)
			break
		}
		end, whole := len(p), false
		if j := bytes.IndexByte(p[i:], '\n'); j >= 0 {
			end, whole = i+j+1, true
		}
		h.piece(p[i:end], whole)
		i = end
	}
	h.flush()
	return h.err
}

// piece takes the next part of a line of the header; whole tells that the line ends with it.
func (h *headerFilter) piece(p []byte, whole bool) {
	h.eightBit = h.eightBit || hasEightBit(p)
	h.bytes += len(p)
	h.lastByte = p[len(p)-1]
	if whole {
		h.lines++
	}
	if h.bytes > maxHeaderBytes || h.lines > maxHeaderLines {
		h.tooBig = true
		return
	}
	switch {
	case h.inLine:
		h.put(p, true)
		h.inLine = !whole
	case len(h.part) > 0 || !whole && len(p) < maxHeaderPart:
		h.flush()
		h.part = append(h.part, p...)
		if whole || len(h.part) >= maxHeaderPart {
			h.startLine(h.part)
			h.put(h.part, false)
			h.part = h.part[:0]
			h.inLine = !whole
		}
	default:
		h.startLine(p)
		h.put(p, true)
		h.inLine = !whole
	}
}

// startLine decides what to do with the line that begins so.
func (h *headerFilter) startLine(line []byte) {
	switch {
	case line[0] == '\n' || line[0] == '\r' && len(line) == 2 && line[1] == '\n':
		h.endField()
		h.addMissing()
		h.done = true
		return
	case (line[0] == ' ' || line[0] == '\t') && h.bytes > len(line):
		return // it goes with the field it continues
	}
	h.endField()
	name, ok := fieldName(line)
	if !ok {
		if h.bytes <= len(line) {
			h.noHeader, h.done, h.eightBit = true, true, false
		}
		return
	}
	h.field(name)
}

// fieldName returns the name of the field that a line begins (RFC 5322 section 2.2, and section 4.5 for blanks before the colon).
func fieldName(line []byte) ([]byte, bool) {
	i := bytes.IndexByte(line[:min(len(line), maxFieldName)], ':')
	if i <= 0 {
		return nil, false
	}
	name := bytes.TrimRight(line[:i], " \t")
	for _, c := range name {
		if c <= ' ' || c >= 0x7f {
			return nil, false
		}
	}
	return name, len(name) > 0
}

func (h *headerFilter) field(name []byte) {
	is := func(n string) bool { return len(name) == len(n) && strings.EqualFold(string(name), n) }
	switch name[0] | 0x20 {
	case 'r':
		if is("Received") {
			h.received++
		} else if h.fixups != nil && is("Resent-Bcc") {
			h.action = leaveOut
		}
	case 'a':
		if is("Authentication-Results") {
			h.action = hold
		}
	case 'b':
		if h.fixups != nil && is("Bcc") {
			h.action = leaveOut
		}
	case 'd':
		h.hasDate = h.hasDate || is("Date")
	case 'm':
		if is("Message-ID") {
			h.capture = !h.hasID
			h.hasID = true
		}
	}
}

// endField decides about a field that was held back.
func (h *headerFilter) endField() {
	if h.action == hold {
		h.decide()
		h.held = h.held[:0]
	}
	h.action, h.capture = keep, false
}

// decide settles a held field: it is passed on, or it is ours and forged, and left out.
func (h *headerFilter) decide() {
	id, ok := authservID(h.held)
	if !ok || h.isOurs(id) {
		h.action = leaveOut
		return
	}
	h.action = keep
	h.flush()
	h.emit(h.held)
}

// put does to a piece of a line what was decided for its field. alias tells that p is part of what write was given.
func (h *headerFilter) put(p []byte, alias bool) {
	if h.capture && len(h.msgID) < 4*maxMessageID {
		h.msgID = append(h.msgID, p...)
	}
	switch {
	case h.action == hold:
		h.flush()
		h.held = append(h.held, p...)
		if len(h.held) > maxHeldField {
			h.decide()
			h.held = nil
		}
	case h.action == leaveOut:
		h.flush()
	case alias && len(h.pending) > 0:
		h.pending = h.pending[:len(h.pending)+len(p)] // it follows directly
	case alias:
		h.pending = p
	default:
		h.flush()
		h.emit(p)
	}
}

func (h *headerFilter) flush() {
	if len(h.pending) > 0 {
		h.emit(h.pending)
		h.pending = nil
	}
}

func (h *headerFilter) emit(p []byte) {
	if h.err == nil && len(p) > 0 {
		_, h.err = h.w.Write(p)
	}
}

// end is the end of a message, which may come within the header.
func (h *headerFilter) end() error {
	if !h.done {
		if len(h.part) > 0 {
			h.startLine(h.part)
			h.put(h.part, false)
			h.part = nil
		}
		if !h.done {
			h.endField()
			if h.fixups != nil && h.bytes > 0 && h.lastByte != '\n' {
				h.emit([]byte("\r\n"))
			}
			h.addMissing()
		}
		h.flush()
	}
	return h.err
}

// needsBlank reports that an empty line must part what is put on top of the message from its content, which has no header.
func (h *headerFilter) needsBlank() bool { return h.noHeader || h.bytes == 0 && h.fixups == nil }

// addMissing adds the fields a submitted message must have (RFC 6409 sections 8.2 and 8.3).
func (h *headerFilter) addMissing() {
	if h.fixups == nil || h.noHeader {
		return
	}
	h.flush()
	var b []byte
	if !h.hasDate {
		b = append(b, "Date: "...)
		b = h.fixups.now.AppendFormat(b, time.RFC1123Z)
		b = append(b, "\r\n"...)
	}
	if !h.hasID {
		id := string(h.fixups.id)
		if id == "" {
			id = h.fixups.trace.String()
		}
		h.msgID = append(h.msgID, "Message-ID: <"+id+"@"+h.fixups.host+">\r\n"...)
		b = append(b, h.msgID...)
	}
	h.emit(b)
}

// messageID returns what stands in angle brackets in the Message-ID field.
func (h *headerFilter) messageID() string {
	_, v, _ := bytes.Cut(h.msgID, []byte{':'})
	if _, after, ok := bytes.Cut(v, []byte{'<'}); ok {
		v, _, _ = bytes.Cut(after, []byte{'>'})
	}
	v = bytes.TrimSpace(v)
	v = v[:min(len(v), maxMessageID)]
	return strings.Map(func(r rune) rune {
		if r <= ' ' || r == 0x7f || r == '\uFFFD' {
			return -1
		}
		return r
	}, string(v))
}

// isOurs compares an authserv-id with our names; domains may be written in upper case or as A-labels.
func (h *headerFilter) isOurs(id string) bool {
	if d, err := address.NormalizeDomain(strings.TrimSuffix(id, ".")); err == nil {
		id = d
	}
	for _, own := range [...]string{h.hostname, h.also} {
		if d, err := address.NormalizeDomain(own); err == nil {
			own = d
		}
		if strings.EqualFold(id, own) {
			return true
		}
	}
	return false
}

// authservID returns the authserv-id of an Authentication-Results field (RFC 8601 section 2.2); ok is false if none can be made out.
func authservID(field []byte) (id string, ok bool) {
	i := bytes.IndexByte(field, ':')
	if i < 0 {
		return "", false
	}
	v, ok := skipCFWS(field[i+1:])
	if !ok || len(v) == 0 {
		return "", false
	}
	if v[0] != '"' {
		end := bytes.IndexAny(v, " \t\r\n;(")
		if end < 0 {
			end = len(v)
		}
		return string(v[:end]), end > 0
	}
	var b []byte
	for i := 1; i < len(v); i++ {
		switch v[i] {
		case '"':
			return string(b), true
		case '\\':
			if i++; i == len(v) {
				return "", false
			}
		case '\r', '\n':
			continue
		}
		b = append(b, v[i])
	}
	return "", false
}

// skipCFWS skips blanks, line ends and comments (RFC 5322 section 3.2.2); ok is false if a comment does not end.
func skipCFWS(v []byte) ([]byte, bool) {
	depth := 0
	for i := 0; i < len(v); i++ {
		switch c := v[i]; {
		case c == '(':
			depth++
		case c == ')' && depth > 0:
			depth--
		case c == '\\' && depth > 0:
			i++
		case depth == 0 && c != ' ' && c != '\t' && c != '\r' && c != '\n':
			return v[i:], true
		}
	}
	return nil, depth == 0
}
