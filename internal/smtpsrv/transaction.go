package smtpsrv

import (
	"context"
	"errors"
	"sync"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/deadline"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/policy"
	"blitiri.com.ar/go/chasquid/internal/smtp"
	"blitiri.com.ar/go/chasquid/internal/timeline"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// transaction is one message on its way in. MAIL makes it; it is gone once the session's pointer to it is nil.
type transaction struct {
	policy.Transaction
	ctx  context.Context
	span *trace.Span

	utf8    bool           // SMTPUTF8 was given
	binary  bool           // BODY=BINARYMIME was given
	refused int            // recipients
	rcpt    mail.Recipient // being decided on; those accepted are in the envelope

	receiving bool // DATA or BDAT has begun
	chunks    bool // it was BDAT
	over      bool // the message was refused; the client may send another for the same envelope, or MAIL
	rx        receiver
	headers   headers        // of the checks up to DATA
	results   policy.Results // of the same
	scratch   []byte         // for the header lines, kept from transaction to transaction

	env     mail.Envelope // what Env points to
	oneRcpt [1]mail.Recipient
}

// transactions are used one after the other: one is large, and each message takes one.
var transactions = sync.Pool{New: func() any { return new(transaction) }}

// maxScratch is how much of a transaction's scratch is kept, in bytes.
const maxScratch = 4 << 10

// newTransaction begins a transaction with a trace of its own.
func (s *session) newTransaction(from address.Address) *transaction {
	tx := transactions.Get().(*transaction)
	tx.Session = &s.Session
	tx.env = mail.Envelope{From: from, Rcpts: tx.oneRcpt[:0], Arrived: s.thought, Client: s.remote, Auth: s.User, Trace: trace.NewID(), Source: mail.FromSMTP}
	tx.Env = &tx.env
	if s.Submission {
		tx.Env.Source = mail.FromSubmission
	}
	ctx := s.ctx
	if s.cfg.Transaction != nil {
		ctx = s.cfg.Transaction(ctx)
	}
	tx.ctx, tx.span = trace.StartMessage(ctx, trace.SMTPTransaction, s.remote, tx.Env.Trace)
	return tx
}

// discard gives up what was received of the message.
func (tx *transaction) discard() { tx.rx.discard() }

// done ends the transaction for good: nobody may use it any more. After a panic somebody still might, so then it is left alone.
func (s *session) done(tx *transaction) {
	tx.span.Finish()
	if s.panicking {
		return
	}
	*tx = transaction{scratch: tx.scratch[:0]}
	if cap(tx.scratch) <= maxScratch {
		transactions.Put(tx)
	}
}

// judge runs a check and returns the answer if it refused. rcpt is what it was about, if it was a recipient. at is when the check begins;
// judge moves it to its end, where the next one begins.
func (s *session) judge(tx *transaction, name string, rcpt *mail.Recipient, at *time.Time, check func() policy.Verdict) (answer, bool) {
	v := check()
	now := time.Now()
	took := now.Sub(*at)
	*at = now
	if rcpt == nil {
		s.srv.m.stage(name, took, tx.Env.Trace)
	}
	tx.headers.place(v)
	if v.Note != "" {
		note := name + ": " + v.Note
		tx.span.Debug(note)
		e := timeline.New(timeline.Check)
		e.At, e.ID, e.Trace, e.Client, e.From, e.Took, e.Text = now, tx.ID, tx.Env.Trace, s.remote, tx.Env.From, took, note
		s.srv.observe(e)
		e.Free()
	}
	if v.Refuse == nil {
		return answer{}, true
	}
	a := answer{Reply: *v.Refuse}
	if a.Positive() || a.Code < 400 || a.Code > 599 {
		a = undecided
	}
	s.m.reject(v.Label)
	if rcpt != nil {
		s.m.recipients[rcptResultOf(v.Label, a.Reply)].Inc()
	}
	s.refused(tx, rcpt, a.Reply, v.Reason)
	switch {
	case a.Code == 421:
		a.then = bye
	case v.Label == "unknown_user":
		if s.unknown++; s.unknown >= maxUnknownUsers {
			s.span.Errorf("too many errors, %d unknown recipients", s.unknown)
			a = probing
		}
	}
	return a, false
}

// Answers at the end of the data.
var (
	badLineEnding = answer{smtp.NewReply(521, "5.5.2", "Error reading DATA: invalid line ending"), bye}
	tooBig        = say(552, "5.3.4", "Message too big")
	looping       = say(554, "5.4.6", "Loop detected: the message was received too often")
	headerTooBig  = say(554, "5.6.0", "The header of the message is too big")
	hasNUL        = say(554, "5.6.0", "The message contains NUL; send it with BDAT and BODY=BINARYMIME")
	cannotQueue   = say(451, "4.3.0", "The message could not be queued, please try again later")
)

// begin gets ready to receive the message. It returns false and the answer if that cannot be.
func (s *session) begin(tx *transaction) (answer, bool) {
	draft, err := s.cfg.Intake.Begin(tx.ctx)
	if err != nil {
		s.m.messages[resultServerError].Inc()
		return s.intakeFailed(tx, err), false
	}
	tx.over, tx.receiving = false, true
	if !tx.rx.begun {
		tx.results = tx.Results
		tx.results.AuthRes = clip(tx.results.AuthRes)
	}
	tx.Transaction = policy.Transaction{Session: tx.Session, Env: tx.Env, Results: tx.results} // nothing of an earlier message is left
	if d, ok := draft.(interface{ ID() mail.ID }); ok {
		tx.ID = d.ID()
	}
	tx.rx = receiver{draft: draft, begun: true, max: s.cfg.MaxSize}
	tx.rx.hdr = headerFilter{w: draft, hostname: s.Hostname, also: s.cfg.Hostname}
	if s.Submission || s.User != "" {
		tx.rx.hdr.fixups = &fixups{id: tx.ID, trace: tx.Env.Trace, host: s.Hostname, now: s.thought}
	}
	status := "plain"
	if s.TLS != nil {
		status = "tls"
	}
	s.srv.m.tlsCount.Inc(status)
	return answer{}, true
}

// intakeFailed is the answer when the queue does not take the message. What it says to the client is a reply; the rest is for us.
func (s *session) intakeFailed(tx *transaction, err error) answer {
	tx.span.Errorf("queueing: %v", err)
	var r smtp.Reply
	if !errors.As(err, &r) || r.Code < 400 || r.Code > 599 {
		r = cannotQueue.Reply
	}
	label := "other"
	if r.Code == 452 {
		label = "queue_full"
	}
	s.m.reject(label)
	s.refused(tx, nil, r, "")
	return answer{Reply: r}
}

// finish is the end of the data: it checks the message, hands it to the queue and gives the reply that says whose it is now.
func (s *session) finish(tx *transaction) answer {
	received := s.thought
	s.thought = time.Now()
	s.srv.m.stage("data_receive", s.thought.Sub(received), tx.Env.Trace)
	a, r := s.take(tx)
	took := time.Since(s.thought)
	s.m.messages[r].Inc()
	s.m.accepted(r).ObserveTrace(took.Seconds(), tx.Env.Trace)
	if r != resultAccepted {
		tx.discard()
		tx.over, tx.receiving, tx.chunks = true, false, false // the envelope stays, and DATA may come again
		return a
	}
	for _, l := range s.cfg.learners {
		l.Accepted(tx.ctx, &tx.Transaction)
	}
	s.m.size.Observe(float64(tx.rx.size))
	s.m.rcpts.Observe(float64(len(tx.Env.Rcpts)))
	s.tx = nil
	s.done(tx)
	return a
}

// take does the work of finish and classes its result.
func (s *session) take(tx *transaction) (answer, result) {
	tx.rx.end()
	tx.describe()
	if a, label := s.flaw(tx); a.Code != 0 {
		s.m.reject(label)
		s.refused(tx, nil, a.Reply, "")
		return a, resultRejected
	}
	if err := tx.rx.err; err != nil {
		return s.intakeFailed(tx, err), resultServerError
	}
	upToData := tx.headers
	defer func() { tx.headers = upToData }()
	tx.scratch = appendReceived(tx.scratch[:0], s, tx)
	tx.headers.received = clip(tx.scratch)
	if a, ok := s.checkBody(tx); !ok {
		if a.Temporary() {
			return a, resultTempfail
		}
		return a, resultRejected
	}
	from := len(tx.scratch)
	tx.scratch = append(tx.headers.compose(&tx.Transaction, tx.scratch), tx.Added...)
	if tx.rx.hdr.needsBlank() {
		tx.scratch = append(tx.scratch, '\r', '\n')
	}
	start := time.Now()
	id, err := tx.rx.draft.Commit(tx.ctx, tx.Env, tx.scratch[from:])
	s.srv.m.stage("queue_put", time.Since(start), tx.Env.Trace)
	if err != nil {
		a := s.intakeFailed(tx, err)
		if a.Permanent() {
			return a, resultRejected
		}
		return a, resultServerError
	}
	tx.rx.draft = nil
	tx.span.Event("queued", trace.Str("id", string(id)), trace.Num("size", tx.rx.size))
	return answer{Reply: smtp.Reply{Code: 250, Enh: smtp.EnhancedCode{2, 0, 0}, Text: "Message queued as " + string(id)}}, resultAccepted
}

// bodyTime bounds all checks of a message together: its client waits ten minutes for the reply (RFC 5321 section 4.5.3.2.6).
const bodyTime = 5 * time.Minute

func (s *session) checkBody(tx *transaction) (answer, bool) {
	if len(s.cfg.BodyChecks) == 0 {
		return answer{}, true
	}
	ctx, cancel := deadline.After(tx.ctx, bodyTime)
	defer cancel()
	tx.Prefix = func() []byte { return tx.headers.compose(&tx.Transaction, nil) }
	at := time.Now()
	for _, c := range s.cfg.BodyChecks {
		if a, ok := s.judge(tx, c.Name(), nil, &at, func() policy.Verdict { return c.Body(ctx, &tx.Transaction, tx.rx.draft) }); !ok {
			return a, false
		}
	}
	return answer{}, true
}

// flaw returns the answer to a message that is refused for what it is, and the label of the reason.
func (s *session) flaw(tx *transaction) (answer, string) {
	rx := &tx.rx
	switch {
	case rx.tooBig:
		return tooBig, "too_big"
	case rx.hdr.tooBig:
		return headerTooBig, "bad_content"
	case rx.hdr.received > s.cfg.MaxReceived: // RFC 5321 section 6.3
		s.srv.m.loops.Inc()
		return looping, "loop"
	case rx.nul && !tx.chunks: // RFC 5321 section 4.1.1.4 leaves no room for it
		return hasNUL, "bad_content"
	}
	return answer{}, ""
}

// describe puts into the envelope what was learned of the message.
func (tx *transaction) describe() {
	rx := &tx.rx
	tx.Env.MessageID = rx.hdr.messageID()
	switch {
	case tx.chunks && (tx.binary || rx.nul || rx.ragged):
		tx.Env.Body = mail.BodyBinary
	case rx.eightBit:
		tx.Env.Body = mail.Body8Bit
	default:
		tx.Env.Body = mail.Body7Bit
	}
	tx.Env.LongLines = tx.Env.Body != mail.BodyBinary && rx.lines.tooLong()
	// RFC 6531 section 3.6: only what needs the extension is bound to it. A domain alone can be written in ASCII.
	tx.Env.UTF8 = tx.utf8 && (rx.hdr.eightBit || !tx.Env.From.ASCIILocal())
	for i := range tx.Env.Rcpts {
		tx.Env.UTF8 = tx.Env.UTF8 || tx.utf8 && !tx.Env.Rcpts[i].To.ASCIILocal()
	}
}

func clip[T any](s []T) []T { return s[:len(s):len(s)] }
