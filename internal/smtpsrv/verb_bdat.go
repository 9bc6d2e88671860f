package smtpsrv

import (
	"strconv"
	"time"

	"blitiri.com.ar/go/chasquid/internal/smtp"
)

// badChunk ends the session: without the size there is no telling the chunk's octets from commands.
var badChunk = end(501, "5.5.4", "Malformed chunk size")

// chunkTooLate answers the chunks of a message that was refused. A client that pipelines could not know, so it is no junk.
var chunkTooLate = say(503, "5.5.1", "The message was refused; send RSET or MAIL")

// bdat handles BDAT (RFC 3030 section 2). The octets of a chunk are always read, even those of a chunk that is refused, or they would be
// taken for commands.
func (s *session) bdat(arg []byte) answer {
	size, last, err := smtp.ParseChunk(arg)
	if err != nil {
		s.linger = true
		s.srv.m.violation(violationSyntax)
		return badChunk
	}
	a := s.chunkWanted()
	var rx *receiver
	if a.Code == 0 {
		rx = &s.tx.rx
	}
	err = s.readChunk(rx, size)
	s.thought = time.Now()
	switch {
	case err != nil:
		s.lost(err)
		return answer{then: bye}
	case rx == nil:
		return a
	case last:
		return s.finish(s.tx)
	case rx.tooBig, rx.hdr.tooBig, rx.err != nil:
		return s.finish(s.tx) // which says what is wrong; the chunks still to come are refused one by one
	}
	return answer{Reply: smtp.Reply{Code: 250, Enh: smtp.EnhancedCode{2, 0, 0}, Text: strconv.FormatInt(size, 10) + " octets received"}}
}

// chunkWanted returns the answer to a chunk that cannot be taken; its code is 0 if it can. The first chunk begins the message.
func (s *session) chunkWanted() answer {
	if s.EHLO == "" {
		return sayHello
	}
	if a, ok := s.ready(); !ok {
		return a
	}
	tx := s.tx
	if tx.chunks {
		return answer{}
	}
	if tx.over {
		return chunkTooLate
	}
	if a, ok := s.begin(tx); !ok {
		return a
	}
	tx.chunks = true
	return answer{}
}

// readChunk reads size octets; rx is nil if they are of no use.
func (s *session) readChunk(rx *receiver, size int64) error {
	p := pace{timeout: s.cfg.DataTimeout}
	for size > 0 {
		b, err := s.c.data(&p)
		if err != nil {
			return err
		}
		b = b[:min(int64(len(b)), size)]
		if rx != nil {
			rx.chunk(b)
		}
		s.c.use(len(b))
		size -= int64(len(b))
	}
	return nil
}
