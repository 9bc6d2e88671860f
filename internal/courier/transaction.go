package courier

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/smtp"
)

// transaction sends the message to some recipients over one connection: MAIL, RCPT, DATA or BDAT.
type transaction struct {
	d   *delivery
	c   *client
	idx []int // the recipients, as indexes into the job's

	ok        []int // accepted at RCPT
	over      []int // refused as too many: for a transaction of their own
	binary    bool  // BODY=BINARYMIME
	utf8      bool  // SMTPUTF8
	chunk     bool  // BDAT rather than DATA
	mailOK    bool
	answered  bool // the server said something: the connection was alive
	hungUp    bool // it ended the session before it had the message
	delivered bool
	begin     time.Time // of the present stage
}

// run does the transaction. Every recipient that the server decided about has its outcome when it returns; a failure is about
// the others: the connection broke.
func (t *transaction) run() *fail {
	c := t.c
	t.binary = t.d.binary(c)
	t.chunk = t.binary || !c.lmtp && c.caps.chunking && c.caps.pipelining && t.d.msg.whole && t.d.msg.shape.Lines
	t.begin = time.Now()
	c.messages++
	if c.caps.pipelining {
		return t.pipelined()
	}
	return t.lockstep()
}

// to is the address that the recipient has for this server.
func (t *transaction) to(r *mail.Recipient) address.Address {
	if t.d.rewrite != nil {
		return t.d.rewrite(r)
	}
	return r.To
}

// pipelined sends all commands, and a small message with them if BDAT is known, in one write (RFC 2920, RFC 3030).
func (t *transaction) pipelined() *fail {
	c, m := t.c, &t.d.msg
	var b []byte
	if m.buf != nil {
		b = m.buf[:0:headroom] // from where write moves it up to the message
	}
	dirty := c.dirty
	if dirty {
		b = append(b, "RSET\r\n"...)
	}
	b = t.appendMail(b)
	for _, i := range t.idx {
		b = t.appendRcpt(b, &t.d.job.Rcpts[i])
	}
	single := t.chunk && m.whole
	switch {
	case single:
		b = append(strconv.AppendInt(append(b, "BDAT "...), int64(len(m.body)), 10), " LAST\r\n"...)
	case !t.chunk:
		b = append(b, "DATA\r\n"...)
	}
	c.log.sentBlock(b)
	c.within(max(c.env.timeouts.DataBlock, c.env.timeouts.Mail))
	if f := t.write(b, single); f != nil {
		return f
	}
	if c.env.timeouts.DataBlock > c.env.timeouts.Mail {
		c.within(c.env.timeouts.Mail)
	}
	if f := t.readEnvelope(dirty); f != nil {
		return f
	}
	t.stage(stageEnvelope)
	switch {
	case single && len(t.ok) == 0: // the message went out before it was known that nobody is there to get it
		c.within(c.env.timeouts.DataInit)
		c.spent = true
		c.read(cmdEnd)
		return nil
	case single:
		return t.final()
	case t.chunk:
		return t.stream()
	}
	return t.data()
}

// write sends the envelope, with the message behind it if asked to: in one write when the envelope fits before the message.
func (t *transaction) write(env []byte, withBody bool) *fail {
	m := &t.d.msg
	if withBody && len(env) <= headroom {
		start := headroom - len(env)
		copy(m.buf[start:], env)
		env, withBody = m.buf[start:headroom+len(m.body)], false
	}
	err := t.c.write(env)
	if err == nil && withBody {
		err = t.c.write(m.body)
	}
	if err != nil {
		return t.c.lost(StageMail, err)
	}
	return nil
}

// readEnvelope reads the answers to a pipelined envelope.
func (t *transaction) readEnvelope(reset bool) *fail {
	if reset {
		if f := t.reset(); f != nil {
			return f
		}
	}
	if f := t.read(cmdMAIL, StageMail); f != nil {
		return f
	}
	t.c.dirty = true
	t.gotMail()
	for _, i := range t.idx {
		if f := t.read(cmdRCPT, StageRcpt); f != nil {
			return f
		}
		t.gotRcpt(i)
	}
	return nil
}

// lockstep sends command after command, each after the answer to the one before (RFC 5321 section 4.1.4).
func (t *transaction) lockstep() *fail {
	c := t.c
	if c.dirty {
		if f := t.command(c.env.timeouts.Mail, []byte("RSET\r\n")); f != nil {
			return f
		}
		if f := t.reset(); f != nil {
			return f
		}
	}
	if f := t.command(c.env.timeouts.Mail, t.appendMail(nil)); f != nil {
		return f
	}
	if f := t.read(cmdMAIL, StageMail); f != nil {
		return f
	}
	c.dirty = true
	if t.gotMail(); !t.mailOK {
		return nil
	}
	for _, i := range t.idx {
		if f := t.command(c.env.timeouts.Rcpt, t.appendRcpt(nil, &t.d.job.Rcpts[i])); f != nil {
			return f
		}
		if f := t.read(cmdRCPT, StageRcpt); f != nil {
			return f
		}
		t.gotRcpt(i)
	}
	t.stage(stageEnvelope)
	switch {
	case len(t.ok) == 0:
		return nil
	case t.chunk:
		return t.stream()
	}
	if f := t.command(c.env.timeouts.DataInit, []byte("DATA\r\n")); f != nil {
		return f
	}
	return t.data()
}

func (t *transaction) command(timeout time.Duration, line []byte) *fail {
	t.c.within(timeout)
	t.c.log.sentBlock(line)
	if err := t.c.write(line); err != nil {
		return t.c.lost(StageMail, err)
	}
	return nil
}

// read reads one answer. 421 ends the session whatever it answers (RFC 5321 section 3.8): the recipients without an outcome
// may be taken elsewhere.
func (t *transaction) read(command int, stage Stage) *fail {
	code, err := t.c.read(command)
	if err != nil {
		return t.c.lost(stage, err)
	}
	if code == 421 {
		t.hungUp = stage != StageBody
		return t.c.refusal(stage)
	}
	t.answered = true
	return nil
}

// reset takes in the answer to RSET.
func (t *transaction) reset() *fail {
	code, err := t.c.rr.Next()
	if err != nil {
		return t.c.lost(StageMail, err)
	}
	t.c.log.got(code, t.c.rr.Raw())
	if code/100 != 2 {
		return t.c.refusal(StageMail)
	}
	t.c.dirty, t.answered = false, true
	return nil
}

// gotMail takes in the answer to MAIL. A refusal is for all recipients.
func (t *transaction) gotMail() {
	if t.mailOK = t.c.rr.Code()/100 == 2; t.mailOK {
		return
	}
	o := t.refused(StageMail)
	for _, i := range t.idx {
		t.d.set(i, o)
	}
}

// gotRcpt takes in the answer to RCPT.
func (t *transaction) gotRcpt(i int) {
	switch {
	case !t.mailOK: // it says no more than that there is no transaction
	case t.c.rr.Code()/100 == 2:
		t.ok = append(t.ok, i)
	default:
		o := t.refused(StageRcpt)
		if tooMany(&o) {
			o.Disposition = mail.Deferred
			t.over = append(t.over, i)
		}
		t.d.set(i, o)
	}
}

// refused is the outcome that the last answer makes at this stage.
func (t *transaction) refused(stage Stage) mail.Outcome {
	o := t.c.refusal(stage).Outcome
	o.TLS = t.c.protection()
	return o
}

// tooMany reports a refusal that is about the number of recipients, not about this one (RFC 5321 section 4.5.3.1.10, where
// 552 is the code of old servers).
func tooMany(o *mail.Outcome) bool {
	r := &o.Reply
	switch {
	case r.Code != 452 && r.Code != 552:
		return false
	case r.Enh[1] == 5 && r.Enh[2] == 3:
		return true
	case r.Enh != (smtp.EnhancedCode{}):
		return false
	}
	return strings.Contains(strings.ToLower(r.Text), "too many") || r.Code == 452 && o.Reason == mail.ReasonRemoteOther
}

// stage ends one stage for the metrics and begins the next.
func (t *transaction) stage(stage int) {
	now := time.Now()
	t.c.env.metrics.stage[stage].Observe(now.Sub(t.begin).Seconds())
	t.begin = now
}

// data takes in the answer to DATA, and sends the message if it is wanted.
func (t *transaction) data() *fail {
	c := t.c
	c.within(c.env.timeouts.DataInit)
	if f := t.read(cmdDATA, StageData); f != nil {
		return f
	}
	code := c.rr.Code()
	switch {
	case len(t.ok) == 0:
		if code == 354 { // it wants a message for nobody: it gets none, not even an empty one
			c.broken = true
		}
		return nil
	case code != 354:
		o := t.refused(StageData)
		t.all(o)
		return nil
	}
	return t.sendData()
}

// all gives the accepted recipients the same outcome.
func (t *transaction) all(o mail.Outcome) {
	for _, i := range t.ok {
		t.d.set(i, o)
	}
}

// final takes in the answer to the end of the message: one, or with LMTP one for each accepted recipient (RFC 2033 section 4.2).
func (t *transaction) final() *fail {
	c := t.c
	c.within(c.env.timeouts.DataDone)
	defer t.stage(stageData)
	if c.lmtp {
		for n, i := range t.ok {
			if f := t.read(cmdEnd, StageBody); f != nil {
				t.ok = t.ok[n:]
				return f
			}
			t.d.set(i, t.verdict())
		}
		c.dirty = false
		return nil
	}
	if f := t.read(cmdEnd, StageBody); f != nil {
		if f.Reply.IsZero() {
			f.Err = fmt.Errorf("%w: whether the message was taken is not known, so it is sent again", f.Err)
		}
		return f
	}
	o := t.verdict()
	t.all(o)
	c.dirty = false
	c.spent = t.chunk && !t.delivered // whether a server reads all of a chunk that it refuses is not worth relying on
	return nil
}

// verdict is the outcome that the answer to the end of the message makes.
func (t *transaction) verdict() mail.Outcome {
	c := t.c
	if c.rr.Code()/100 != 2 {
		return t.refused(StageBody)
	}
	t.delivered = true
	o := mail.Outcome{Disposition: mail.Delivered, Reply: c.rr.Reply(), MTA: c.mta, TLS: c.protection(), Relayed: !c.caps.dsn && !c.lmtp}
	if t.d.span != nil {
		t.d.span.Print(o.MTA + " (" + o.TLS + "): " + o.Reply.String())
	}
	t.d.s.metrics.sent[t.d.job.Route.Transport&3].Add(float64(t.d.job.Size))
	return o
}
