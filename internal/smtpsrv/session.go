package smtpsrv

import (
	"context"
	"errors"
	"io"
	"net"
	"runtime/debug"
	"strings"
	"time"

	"blitiri.com.ar/go/chasquid/internal/esmtp"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/policy"
	"blitiri.com.ar/go/chasquid/internal/smtp"
	"blitiri.com.ar/go/chasquid/internal/timeline"
	"blitiri.com.ar/go/chasquid/internal/trace"
	"blitiri.com.ar/go/log"
)

// Limits of a client's patience with us, and of ours with it.
const (
	maxJunk         = 3  // unknown verbs, bad syntax, bad sequence and failed logins; the last is answered with 421
	maxUnknownUsers = 20 // recipients refused because they do not exist; the last is answered with 421
)

// session is one connection. It is used by its own goroutine only, but for c.drain and cut.
type session struct {
	srv    *Server
	cfg    *Config
	ln     *listener
	m      *modeMetrics
	remote string // "ip:port", for logs
	start  time.Time
	ctx    context.Context
	cancel context.CancelFunc
	span   *trace.Span

	policy.Session
	ext esmtp.Session
	tx  *transaction // nil outside of one

	mails   int // transactions begun
	junk    int
	unknown int
	thought time.Time // when the present command was complete, for its metrics
	said    time.Time // when the last one was answered
	linger  bool      // the client may be sending when we close
	end     endReason

	panicking bool

	c conn
}

func newSession(srv *Server, cfg *Config, ln *listener, nc net.Conn) *session {
	s := &session{srv: srv, cfg: cfg, ln: ln, m: &srv.m.modes[ln.mode], start: time.Now()}
	s.Session = policy.Session{Mode: ln.mode.String(), Submission: ln.mode != SMTP, Hostname: cfg.Hostname}
	s.c.init(nc, s.m)
	return s
}

// cut ends the session wherever it is. It may be called from any goroutine.
func (s *session) cut() {
	s.c.mu.Lock()
	cancel := s.cancel
	s.c.mu.Unlock()
	if cancel != nil {
		cancel()
	}
	s.c.raw.Close()
}

// run serves the connection to its end. A panic ends this session and nothing else.
func (s *session) run(ctx context.Context) {
	defer s.srv.forget(s)
	s.srv.open.Add(1)
	s.ln.open.Add(1)
	s.m.open.Inc()
	ctx, cancel := context.WithCancel(ctx)
	s.c.mu.Lock()
	s.cancel = cancel
	s.c.mu.Unlock()
	s.ctx = ctx
	defer func() {
		if p := recover(); p != nil {
			s.panicked(p)
		}
		cancel()
		s.drop(resultAborted)
		s.c.close(s.linger)
		s.span.Finish()
		s.srv.open.Add(-1)
		s.ln.open.Add(-1)
		s.m.open.Dec()
		s.m.sessionDuration[s.end].Observe(time.Since(s.start).Seconds())
	}()
	s.serve()
}

// panicked records the panic and tells the client.
func (s *session) panicked(p any) {
	s.srv.m.panics.Inc()
	s.end, s.panicking = endError, true
	s.span.Errorf("panic: %v", p)
	log.Errorf("SMTP session of %s: panic: %v\n%s", s.remote, p, debug.Stack())
	s.c.armAt(time.Now().Add(time.Second))
	s.put(smtp.NewReply(421, "4.3.0", "Internal error, please try again later"))
}

// serve is the life of a session: addresses, TLS if it comes first, greeting, commands.
func (s *session) serve() {
	if h, ok := s.c.raw.(interface{ ReadHeader() error }); ok {
		if err := h.ReadHeader(); err != nil {
			s.m.refuse(refusedProxy)
			s.end = endError
			return
		}
	}
	s.Remote = addrPort(s.c.raw.RemoteAddr())
	s.remote = s.c.raw.RemoteAddr().String()
	if s.Remote.IsValid() {
		s.remote = s.Remote.String()
	}
	s.ctx, s.span = trace.Start(s.ctx, trace.SMTPConn, s.remote)

	if !s.srv.nets.enter(s.Remote.Addr(), s.cfg.MaxConnsPerIP) {
		s.m.refuse(refusedPerIP)
		s.span.Printf("refused: too many connections from this network")
		s.end = endError
		if s.ln.mode != SubmissionTLS {
			s.c.armAt(time.Now().Add(time.Second))
			s.c.out = append(s.c.out, turnedAway...)
		}
		return
	}
	defer s.srv.nets.leave(s.Remote.Addr())

	if s.ln.mode == SubmissionTLS {
		if err := s.handshake(); err != nil {
			s.m.refuse(refusedTLS)
			s.end = endError
			return
		}
	}
	if s.greet() {
		s.commands()
	}
}

// greet sends the greeting, unless the client spoke first (RFC 5321 section 3.1).
func (s *session) greet() bool {
	s.setLimit(s.cfg.SessionTimeout / 3)
	early, err := s.early()
	switch {
	case err != nil:
		s.lost(err)
		return false
	case early:
		s.srv.m.violation(violationEarly)
		s.span.Errorf("spoke before the greeting")
		s.linger, s.end = true, endErrors
		s.c.armAt(time.Now().Add(time.Second))
		s.c.out = append(s.c.out, "554 5.5.1 The client must wait for the greeting\r\n"...)
		return false
	}
	s.c.out = append(s.c.out, "220 "...)
	s.c.out = append(s.c.out, s.Hostname...)
	s.c.out = append(s.c.out, " ESMTP chasquid\r\n"...)
	return true
}

// early reports whether the client sent something before the greeting. Without a delay it sees only what is there already.
func (s *session) early() (bool, error) {
	if s.cfg.GreetingDelay <= 0 {
		return s.TLS == nil && pendingInput(s.c.raw), nil
	}
	s.c.armAt(time.Now().Add(s.cfg.GreetingDelay))
	switch err := s.c.fill(); {
	case err == nil:
		return true, nil
	case isTimeout(err):
		return false, nil
	default:
		return false, err
	}
}

// setLimit is when the session ends at the latest, counted from its start.
func (s *session) setLimit(d time.Duration) { s.c.limit = s.start.Add(d) }

// commands reads and answers commands until the session ends.
func (s *session) commands() {
	timeout := s.cfg.CommandTimeout
	if s.srv.open.Load() > int64(s.cfg.MaxConns)*3/4 {
		timeout = min(timeout, s.cfg.ScarceTimeout)
	}
	s.said = time.Now()
	for {
		here := s.c.hasLine()
		line, err := s.c.line(s.said.Add(timeout), lineLimit)
		timeout = s.cfg.CommandTimeout
		if s.thought = s.said; !here {
			s.thought = time.Now()
		}
		var v *verb
		var a answer
		switch {
		case err == nil:
			v, a = s.command(line)
		case errors.Is(err, smtp.ErrBareLF):
			s.srv.m.violation(violationBareLF)
			v, a = &unknownVerb, badLine
		case errors.Is(err, errLineTooLong):
			s.srv.m.violation(violationLongLine)
			v, a = &unknownVerb, tooLong
		default:
			s.lost(err)
			return
		}
		if !s.answer(v, a) {
			return
		}
		if len(s.c.out) >= flushAt {
			if err := s.c.flush(); err != nil {
				s.lost(err)
				return
			}
		}
	}
}

// lost is the end of a session whose connection failed, timed out or is not wanted any more.
func (s *session) lost(err error) {
	switch {
	case errors.Is(err, errDraining):
		s.end = endShutdown
		s.c.armAt(time.Now().Add(time.Second))
		s.put(smtp.NewReply(421, "4.3.2", "The server is stopping, please try again later")) // RFC 5321 section 3.8
	case isTimeout(err):
		s.end = endTimeout
		s.span.Errorf("timeout")
		s.c.armAt(time.Now().Add(time.Second))
		s.put(smtp.NewReply(421, "4.4.2", "Timeout, closing the connection"))
	case errors.Is(err, errEndlessLine):
		s.end, s.linger = endErrors, true
		s.srv.m.violation(violationLongLine)
		s.span.Errorf("line without end")
		s.put(smtp.NewReply(421, "4.5.0", "Line too long, bye"))
	case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed):
		s.end = endEOF
		s.span.Debugf("connection closed by the client")
	default:
		s.end = endError
		s.span.Debugf("connection lost: %v", err)
	}
}

// answer sends the answer to a command and reports whether the session goes on.
func (s *session) answer(v *verb, a answer) bool {
	if a.then == junk {
		if s.junk++; s.junk >= maxJunk {
			s.logFailure(v, a.Reply)
			s.span.Errorf("too many errors, closing the connection")
			a = tooManyErrors
		}
	}
	if a.Code >= 500 {
		s.logFailure(v, a.Reply)
	}
	if a.Code != 0 {
		s.put(a.Reply)
	}
	s.said = time.Now()
	s.srv.m.command(v, s.said.Sub(s.thought), s.traceID())
	if a.then == bye {
		if s.end == endOpen {
			s.end = endErrors
		}
		return false
	}
	return true
}

// logFailure writes what fail2ban and others look for.
func (s *session) logFailure(v *verb, r smtp.Reply) {
	text := r.Text
	if r.Enh != (smtp.EnhancedCode{}) {
		text = r.Enh.String() + " " + text
	}
	s.span.Errorf("%s failed: %d  %s", v.name, r.Code, text)
}

// traceID is that of the message, if there is one.
func (s *session) traceID() trace.ID {
	if s.tx != nil {
		return s.tx.Env.Trace
	}
	return trace.ID{}
}

// put adds a reply to those to be sent.
func (s *session) put(r smtp.Reply) {
	s.srv.m.response(r.Code)
	if !plainText(r.Text) {
		r.Text = cleanText(r.Text)
	}
	s.c.out = r.AppendTo(s.c.out)
}

// maxReplyText keeps a reply line within 512 octets with code, enhanced code and CRLF (RFC 5321 section 4.5.3.1.5).
const maxReplyText = 490

// plainText reports text that may stand in a reply as it is: printable ASCII in short lines.
func plainText(t string) bool {
	run := 0
	for i := 0; i < len(t); i++ {
		if c := t[i]; c == '\n' {
			run = 0
			continue
		} else if c < ' ' || c > '~' {
			return false
		}
		if run++; run > maxReplyText {
			return false
		}
	}
	return true
}

// cleanText makes text from outside, such as a hook's, fit for a reply.
func cleanText(t string) string {
	lines := strings.Split(t, "\n")
	for i, l := range lines {
		l = strings.Map(func(r rune) rune {
			if r < ' ' || r > '~' {
				return '?'
			}
			return r
		}, strings.TrimRight(l, "\r"))
		lines[i] = l[:min(len(l), maxReplyText)]
	}
	return strings.Join(lines, "\n")
}

// drop ends the transaction, if there is one, without its message having been taken.
func (s *session) drop(r result) {
	if s.tx == nil {
		return
	}
	tx := s.tx
	s.tx = nil
	tx.discard()
	if tx.receiving {
		s.m.messages[r].Inc()
	}
	s.done(tx)
}

// refused tells the log, the timeline and the pages about a refusal.
func (s *session) refused(tx *transaction, rcpt *mail.Recipient, r smtp.Reply, reason string) {
	if reason == "" {
		reason = r.Text
	}
	e := &timeline.Event{
		Kind: timeline.Refused, Mode: s.Mode, Client: s.remote, User: s.User, Reply: r, Text: reason,
	}
	if tx != nil {
		e.Trace, e.From, e.MessageID = tx.Env.Trace, tx.Env.From, tx.Env.MessageID
		tx.span.Printf("refused: %s (%s)", r, reason)
		for i := range tx.Env.Rcpts {
			e.Rcpts = append(e.Rcpts, tx.Env.Rcpts[i].Orig)
		}
	}
	if rcpt != nil {
		e.Rcpts = append(e.Rcpts[:0:0], rcpt.To)
	}
	s.srv.observe(e)
	s.srv.rejects.add(e)
}
