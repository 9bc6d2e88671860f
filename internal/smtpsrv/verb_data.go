package smtpsrv

import (
	"errors"
	"time"

	"blitiri.com.ar/go/chasquid/internal/smtp"
)

// Answers of DATA and BDAT before anything is received.
var (
	needRcpt    = bad(503, "5.5.1", "Need an address to deliver to: send RCPT first")
	noValidRcpt = say(554, "5.5.1", "No recipient was accepted, so there is nothing to do") // RFC 2920 section 3.1
	needChunks  = bad(503, "5.5.1", "BODY=BINARYMIME needs BDAT")                           // RFC 3030 section 3
	inChunks    = bad(503, "5.5.1", "The message has begun with BDAT, so it must end with it")
	startData   = smtp.NewReply(354, "", "Go ahead, end with a dot on a line by itself")
)

// data handles DATA (RFC 5321 section 4.1.1.4).
func (s *session) data([]byte) answer {
	if a, ok := s.ready(); !ok {
		return a
	}
	tx := s.tx
	switch {
	case tx.chunks:
		return inChunks
	case tx.binary:
		return needChunks
	}
	if a, ok := s.begin(tx); !ok {
		return a
	}
	s.put(startData)
	if err := s.readDots(&tx.rx); err != nil {
		return s.dataFailed(err)
	}
	return s.finish(tx)
}

// ready reports whether the transaction has what a message needs; if not, it returns the answer.
func (s *session) ready() (answer, bool) {
	switch {
	case s.tx == nil:
		return noSender, false
	case len(s.tx.Env.Rcpts) == 0 && s.tx.refused > 0:
		s.m.reject("no_valid_rcpt")
		return noValidRcpt, false
	case len(s.tx.Env.Rcpts) == 0:
		return needRcpt, false
	}
	return answer{}, true
}

// readDots receives a message up to its final dot.
func (s *session) readDots(rx *receiver) error {
	var d smtp.DotReader
	p := pace{timeout: s.cfg.DataTimeout}
	for {
		b, err := s.c.data(&p)
		if err != nil {
			return err
		}
		for len(b) > 0 {
			run, n, done, err := d.Next(b)
			if err != nil {
				return err
			}
			if len(run) > 0 {
				rx.content(run)
			}
			s.c.use(n)
			if done {
				return nil
			}
			b = b[n:]
		}
	}
}

// dataFailed is the end of a session whose message did not come to its end, so that there is no telling where the next command begins.
func (s *session) dataFailed(err error) answer {
	kind := violationSmuggling
	switch {
	case errors.Is(err, smtp.ErrBareCR):
		kind = violationBareCR
	case errors.Is(err, smtp.ErrBareLF):
		kind = violationBareLF
	case !errors.Is(err, smtp.ErrSmuggling):
		s.lost(err)
		return answer{then: bye}
	}
	s.srv.m.violation(kind)
	s.m.reject("bad_content")
	s.refused(s.tx, nil, badLineEnding.Reply, "invalid line ending")
	s.drop(resultRejected)
	s.linger = true
	s.thought = time.Now()
	return badLineEnding
}
