package smtpsrv

import (
	"bytes"
	"errors"

	"blitiri.com.ar/go/chasquid/internal/esmtp"
	"blitiri.com.ar/go/chasquid/internal/smtp"
)

// answer is the reply to a command and what becomes of the session. A zero reply means that there is nothing (more) to say.
type answer struct {
	smtp.Reply
	then then
}

type then uint8

const (
	goOn then = iota
	junk      // goes on, but it counts against the client
	bye       // ends
)

func say(code int, enh, text string) answer { return answer{Reply: smtp.NewReply(code, enh, text)} }
func bad(code int, enh, text string) answer { return answer{smtp.NewReply(code, enh, text), junk} }
func end(code int, enh, text string) answer { return answer{smtp.NewReply(code, enh, text), bye} }

// verb is one row of the verb table.
type verb struct {
	name string
	run  func(s *session, arg []byte) answer

	noArg bool      // an argument is refused with 501
	hello bool      // refused before EHLO or HELO (RFC 5321 section 4.1.4)
	group groupRule // what may follow it in the same packet (RFC 2920 section 3.1)
	line  int       // bytes of the longest command line
	index int       // of its metrics
}

type groupRule uint8

const (
	inGroup   groupRule = iota
	endGroup            // counted when something follows: many clients are careless here, and it does no harm
	syncPoint           // what follows ends the session: it was meant to be something else
)

// Lengths of command lines without CRLF. The extensions allow MAIL and RCPT more than the 512 octets of RFC 5321 section 4.5.3.1.4 (RFC
// 3461 section 4 and RFC 4954 section 4 add 500 each), and SASL responses may have 12288 (RFC 4954 section 4).
const (
	usualLine = 1000
	paramLine = 2000
	authLine  = 12288 + len("AUTH ") + 32
)

// verbs is the verb table. Rows are looked up by name.
var verbs = [...]verb{
	{name: "MAIL", run: (*session).mail, hello: true, line: paramLine},
	{name: "RCPT", run: (*session).rcpt, hello: true, line: paramLine},
	{name: "DATA", run: (*session).data, hello: true, line: usualLine, noArg: true, group: syncPoint},
	{name: "BDAT", run: (*session).bdat, line: usualLine},
	{name: "EHLO", run: (*session).ehlo, line: usualLine, group: endGroup},
	{name: "HELO", run: (*session).helo, line: usualLine, group: endGroup},
	{name: "RSET", run: (*session).rset, line: usualLine, noArg: true},
	{name: "NOOP", run: (*session).noop, line: usualLine},
	{name: "QUIT", run: (*session).quit, line: usualLine, noArg: true},
	{name: "STARTTLS", run: (*session).starttls, line: usualLine, noArg: true, group: syncPoint},
	{name: "AUTH", run: (*session).auth, line: authLine},
	{name: "HELP", run: (*session).help, line: usualLine},
	{name: "VRFY", run: (*session).notHere, line: usualLine, group: endGroup},
	{name: "EXPN", run: (*session).notHere, line: usualLine, group: endGroup},
	{name: "GET", run: (*session).http, line: usualLine},
	{name: "POST", run: (*session).http, line: usualLine},
	{name: "CONNECT", run: (*session).http, line: usualLine},
}

const (
	firstHTTP = 14 // index of the first row that is not a mail command
	numVerbs  = firstHTTP + 1
	noVerb    = firstHTTP // index of the metrics of what is not in the table
)

var unknownVerb = verb{name: "unknown", line: usualLine, index: noVerb}

// verbIndex is made from the table once: a row knows where its metrics are.
var verbIndex = func() map[string]*verb {
	m := make(map[string]*verb, len(verbs))
	for i := range verbs {
		verbs[i].index = min(i, noVerb)
		m[verbs[i].name] = &verbs[i]
	}
	return m
}()

// lineLimit returns how long a line with this start may be.
func lineLimit(start []byte) int {
	var name [8]byte
	n := copy(name[:], start)
	for i, c := range name[:n] {
		switch {
		case c >= 'a' && c <= 'z':
			name[i] = c - 'a' + 'A'
		case c == ' ':
			if v := verbIndex[string(name[:i])]; v != nil {
				return v.line
			}
			return usualLine
		}
	}
	return usualLine
}

// Answers that several verbs give.
var (
	badLine       = bad(500, "5.5.2", "Lines must end in CRLF and hold no NUL")
	tooLong       = bad(500, "5.5.2", "Line too long") // RFC 5321 section 4.5.3.1.9
	unknown       = bad(500, "5.5.1", "Unknown command")
	takesNoArg    = bad(501, "5.5.4", "This command takes no argument")
	sayHello      = bad(503, "5.5.1", "Please say EHLO or HELO first")
	noSender      = bad(503, "5.5.1", "Sender not yet given")
	outOfStep     = end(554, "5.5.1", "The client must wait for the reply to this command")
	tooManyErrors = end(421, "4.5.0", "Too many errors, bye")
	done          = say(250, "2.0.0", "OK")
)

// command runs one command line.
func (s *session) command(line []byte) (*verb, answer) {
	cmd, err := smtp.ParseCommand(line)
	if err != nil {
		kind := violationSyntax
		if errors.Is(err, smtp.ErrBareCR) {
			kind = violationBareCR
		}
		s.srv.m.violation(kind)
		return &unknownVerb, badLine
	}
	v := verbIndex[string(cmd.Verb)]
	if v == nil {
		s.srv.m.unknownCommand(s.ln.mode, cmd.Verb)
		s.srv.m.violation(violationUnknown)
		s.span.Debugf("unknown command %.40q", cmd.Verb)
		return &unknownVerb, unknown
	}
	s.srv.m.count(s.ln.mode, v)
	if s.c.buffered() > 0 {
		switch v.group {
		case syncPoint:
			s.srv.m.violation(violationPipelining)
			s.span.Errorf("the client did not wait for the reply to %s", v.name)
			s.linger = true
			return v, outOfStep
		case endGroup:
			s.srv.m.violation(violationPipelining)
		}
	}
	switch {
	case v.noArg && cmd.Arg != nil:
		return v, takesNoArg
	case v.hello && s.EHLO == "":
		return v, sayHello
	}
	return v, v.run(s, cmd.Arg)
}

// ehlo starts over (RFC 5321 section 4.1.4) and says what we can do (section 4.1.1.1).
func (s *session) ehlo(arg []byte) answer {
	if a, ok := s.hello(arg, true); !ok {
		return a
	}
	text := append(make([]byte, 0, 320), s.Hostname...)
	text = append(text, " at your service"...)
	return answer{Reply: smtp.Reply{Code: 250, Text: string(esmtp.AppendEHLO(text, s.extensions()))}}
}

func (s *session) helo(arg []byte) answer {
	if a, ok := s.hello(arg, false); !ok {
		return a
	}
	return answer{Reply: smtp.Reply{Code: 250, Text: "Hello, at your service"}}
}

// hello takes the client's name: the first word of the argument.
func (s *session) hello(arg []byte, extended bool) (answer, bool) {
	name, _, _ := bytes.Cut(arg, []byte{' '})
	if !smtp.ValidHelo(name) {
		return answer{smtp.Reply{Code: 501, Text: "Please give your host name or address"}, junk}, false
	}
	s.drop(resultAborted)
	if s.EHLO != string(name) {
		s.EHLO = string(name)
	}
	s.ESMTP = extended
	s.span.Debug("hello from " + s.EHLO)
	return answer{}, true
}

// extensions is what an extension may know of the session as it is now.
func (s *session) extensions() *esmtp.Session {
	s.ext = esmtp.Session{TLS: s.TLS != nil, StartTLS: s.cfg.TLS != nil && s.cfg.tlsReady(), MaxSize: s.cfg.MaxSize, MaxRcpts: s.cfg.MaxRecipients, MaxMails: s.cfg.MaxMails}
	if s.ext.TLS && s.cfg.Auth != nil {
		s.ext.Auth = "PLAIN LOGIN"
	}
	return &s.ext
}

func (s *session) rset([]byte) answer {
	s.drop(resultAborted)
	return done
}

func (s *session) noop([]byte) answer { return done }

func (s *session) help([]byte) answer {
	return say(214, "2.0.0", "This is chasquid, a mail server. Commands are those of RFC 5321 and of the extensions that EHLO lists")
}

// notHere answers VRFY and EXPN, which would tell who exists.
func (s *session) notHere([]byte) answer {
	return bad(502, "5.5.1", "Not offered here; just send your mail")
}

func (s *session) quit([]byte) answer {
	s.end = endQuit
	return end(221, "2.0.0", "Good bye")
}

// http ends sessions of browsers and of those who make them speak to us.
func (s *session) http([]byte) answer {
	s.srv.m.violation(violationHTTP)
	s.span.Errorf("http command, closing the connection")
	s.end, s.linger = endProtocol, true
	return end(502, "5.7.0", "This is a mail server; browsers have no business here")
}
