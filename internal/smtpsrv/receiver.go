package smtpsrv

import (
	"bytes"
	"encoding/binary"

	"blitiri.com.ar/go/chasquid/internal/mail"
)

// receiver passes the content of one message, as it arrives, through the header filter into the draft, and looks at it on the way.
type receiver struct {
	draft mail.Draft
	hdr   headerFilter
	begun bool
	size  int64 // bytes received: with CRLF, without dot stuffing (RFC 1870 section 3)
	max   int64
	err   error // of the draft

	tooBig   bool
	nul      bool
	eightBit bool
	lines    lineMeter
	ragged   bool // a CR or LF that is not part of a CRLF: only BDAT lets it in
	lastCR   bool
}

// content takes more of the message. After an error or too much it only counts.
func (rx *receiver) content(p []byte) {
	rx.size += int64(len(p))
	if rx.tooBig || rx.hdr.tooBig || rx.err != nil {
		return
	}
	if rx.size > rx.max {
		rx.tooBig = true
		rx.discard() // whatever may still come, it is not kept
		return
	}
	rx.nul = rx.nul || bytes.IndexByte(p, 0) >= 0
	rx.eightBit = rx.eightBit || hasEightBit(p)
	rx.lines.look(p)
	rx.err = rx.hdr.write(p)
	if rx.hdr.tooBig {
		rx.discard()
	}
}

// chunk is content that came by BDAT: its line ends are whatever they are.
func (rx *receiver) chunk(p []byte) {
	if !rx.ragged {
		rx.ragged = rx.isRagged(p)
	}
	rx.lastCR = p[len(p)-1] == '\r'
	rx.content(p)
}

func (rx *receiver) isRagged(p []byte) bool {
	if rx.lastCR && p[0] != '\n' {
		return true
	}
	crs := bytes.Count(p, []byte{'\r'})
	if rx.lastCR {
		crs++
	}
	if p[len(p)-1] == '\r' {
		crs-- // judged with the next piece
	}
	last := rx.lastCR
	for i := 0; i < len(p); {
		j := bytes.IndexByte(p[i:], '\n')
		if j < 0 {
			break
		}
		j += i
		if j > 0 && p[j-1] != '\r' || j == 0 && !last {
			return true
		}
		crs--
		i = j + 1
	}
	return crs != 0
}

// end is the end of the message.
func (rx *receiver) end() {
	if rx.lastCR {
		rx.ragged = true
	}
	if rx.err == nil && !rx.tooBig && !rx.hdr.tooBig {
		rx.err = rx.hdr.end()
	}
}

func (rx *receiver) discard() {
	if rx.draft != nil {
		rx.draft.Discard()
		rx.draft = nil
	}
}

// lineMeter finds out whether a text has a line longer than mail.MaxLine, without looking at most of it.
type lineMeter struct {
	at   int  // octets of the last line so far
	long bool // there was one that is too long
}

// look takes the next piece of the text.
func (m *lineMeter) look(p []byte) {
	const most = mail.MaxLine + 2 // with its CRLF
	for !m.long && m.at+len(p) >= most {
		// A line that is not too long ends within this window; which lines end before its last one does not matter.
		i := bytes.LastIndexByte(p[:most-m.at], '\n')
		m.long = i < 0
		m.at, p = 0, p[i+1:]
	}
	if i := bytes.LastIndexByte(p, '\n'); i >= 0 {
		m.at, p = 0, p[i+1:]
	}
	m.at += len(p)
}

// tooLong reports a line that is too long, the last one included though it may not have come to its end.
func (m *lineMeter) tooLong() bool { return m.long || m.at > mail.MaxLine }

// hasEightBit reports an octet above 127, eight at a time.
func hasEightBit(p []byte) bool {
	const high = 0x8080808080808080
	for len(p) >= 32 {
		a, b := binary.LittleEndian.Uint64(p), binary.LittleEndian.Uint64(p[8:])
		c, d := binary.LittleEndian.Uint64(p[16:]), binary.LittleEndian.Uint64(p[24:])
		if (a|b|c|d)&high != 0 {
			return true
		}
		p = p[32:]
	}
	for _, c := range p {
		if c >= 0x80 {
			return true
		}
	}
	return false
}
