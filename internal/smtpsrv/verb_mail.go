package smtpsrv

import (
	"errors"
	"strings"
	"time"
	"unicode/utf8"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/esmtp"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/policy"
	"blitiri.com.ar/go/chasquid/internal/smtp"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// Answers of MAIL and RCPT.
var (
	badKeyword   = bad(500, "5.5.2", "Unknown command")
	nestedMail   = bad(503, "5.5.1", "There is a sender already; RSET forgets it")
	needAuth     = bad(530, "5.7.0", "Please log in before sending mail")
	badParams    = bad(501, "5.5.4", "Malformed parameters")
	noParams     = bad(555, "5.5.4", "Parameters need EHLO")
	needUTF8     = say(553, "5.6.7", "An address that is not ASCII needs the SMTPUTF8 parameter of MAIL") // RFC 6531 section 3.5
	noAddress    = bad(500, "5.5.4", "Malformed command: the address is missing")
	senderOK     = say(250, "2.1.5", "Sender accepted")
	rcptOK       = say(250, "2.1.5", "Recipient accepted")
	senderSyntax = bad(501, "5.1.7", "Sender address malformed")
	senderSize   = bad(501, "5.1.7", "Sender address too long")
	senderDomain = bad(501, "5.1.8", "Malformed sender domain (IDNA conversion failed)")
	senderBare   = bad(501, "5.1.8", "The sender address needs a domain")
	rcptSyntax   = bad(501, "5.1.3", "Malformed destination address")
	rcptSize     = bad(501, "5.1.3", "Destination address too long")
	rcptDomain   = bad(501, "5.1.2", "Malformed destination domain (IDNA conversion failed)")
	tooManyRcpts = say(452, "4.5.3", "Too many recipients; send the rest in another message") // RFC 5321 section 4.5.3.1.10
	tooManyMails = end(421, "4.7.0", "Too many messages on one connection; please connect again")
	probing      = end(421, "4.7.1", "Too many unknown recipients, bye")
	undecided    = say(451, "4.3.0", "A check failed to decide, please try again later")
)

// mail handles MAIL (RFC 5321 section 4.1.1.2): it begins a transaction.
func (s *session) mail(arg []byte) answer {
	rest, ok := smtp.CutKeyword(arg, "FROM:")
	switch {
	case !ok:
		return badKeyword
	case s.Submission && s.User == "":
		s.m.reject("auth_required")
		return needAuth
	case s.tx != nil && !s.tx.over:
		return nestedMail
	case len(rest) == 0:
		return noAddress
	case s.mails >= s.cfg.MaxMails:
		return tooManyMails
	}
	line := string(rest)
	from, params, err := smtp.ParsePath(line)
	if err == nil && !from.IsNull() && from.Domain == "" {
		s.m.reject("bad_from")
		return senderBare
	}
	if err != nil {
		s.span.Debugf("MAIL %.300q: %v", line, err)
		s.m.reject("bad_from")
		return badPath(err, senderSyntax, senderSize, senderDomain)
	}
	s.drop(resultAborted)
	tx := s.newTransaction(from)
	tx.span.Event("MAIL", trace.Str("from", line))
	a, ok := s.mailParams(tx, params)
	if ok && foreign(tx, line, params) {
		a, ok = needUTF8, false
	}
	if !ok {
		s.done(tx)
		return a
	}
	at := time.Now()
	for _, c := range s.cfg.MailChecks {
		if a, ok := s.judge(tx, c.Name(), nil, &at, func() policy.Verdict { return c.Mail(tx.ctx, &tx.Transaction) }); !ok {
			s.done(tx)
			return a
		}
	}
	if s.mails == 0 {
		s.setLimit(s.cfg.SessionTimeout)
	}
	s.mails++
	s.tx = tx
	return senderOK
}

// mailParams takes the parameters of MAIL.
func (s *session) mailParams(tx *transaction, params string) (answer, bool) {
	if params != "" {
		if !s.ESMTP {
			return noParams, false
		}
		ps, err := smtp.ParseParams(params)
		if err != nil {
			return badParams, false
		}
		if r := esmtp.Mail(s.extensions(), tx.Env, ps); r != nil {
			return s.badParam(r)
		}
		tx.utf8 = tx.Env.UTF8
		tx.binary = tx.Env.Body == mail.BodyBinary
	}
	return answer{}, true
}

// badParam is the answer to a parameter that an extension refused. A size is an honest mistake; bad syntax is junk.
func (s *session) badParam(r *smtp.Reply) (answer, bool) {
	if r.Code == 552 {
		s.m.reject("too_big")
		return answer{Reply: *r}, false
	}
	return answer{*r, junk}, false
}

// badPath chooses the answer to a path that does not parse.
func badPath(err error, syntax, size, domain answer) answer {
	switch {
	case errors.Is(err, smtp.ErrPathSize):
		return size
	case errors.Is(err, address.ErrDomain):
		return domain
	}
	return syntax
}

// rcpt handles RCPT (RFC 5321 section 4.1.1.3).
func (s *session) rcpt(arg []byte) answer {
	rest, ok := smtp.CutKeyword(arg, "TO:")
	tx := s.tx
	switch {
	case !ok:
		return badKeyword
	case tx == nil:
		return noSender
	case len(rest) == 0:
		return noAddress
	case tx.receiving && !tx.over:
		return bad(503, "5.5.1", "The message has begun; no more recipients") // RFC 3030 section 2
	case len(tx.Env.Rcpts) >= s.cfg.MaxRecipients:
		s.m.recipients[rcptTooMany].Inc()
		return tooManyRcpts
	}
	line := string(rest)
	to, params, err := smtp.ParsePath(line)
	if err == nil && (to.IsNull() || to.Domain == "" && !isPostmaster(to)) {
		err = smtp.ErrNotPath
	}
	if err != nil {
		tx.span.Debugf("RCPT %.300q: %v", line, err)
		s.m.recipients[rcptBadSyntax].Inc()
		a := badPath(err, rcptSyntax, rcptSize, rcptDomain)
		s.refused(tx, nil, a.Reply, "malformed address: "+err.Error())
		return a
	}
	tx.span.Event("RCPT", trace.Str("to", line))
	r := &tx.rcpt
	*r = mail.Recipient{To: to, Orig: to}
	a, ok := s.rcptParams(tx, r, params)
	if ok && foreign(tx, line, params) {
		a, ok = needUTF8, false
	}
	if !ok {
		s.m.recipients[rcptBadSyntax].Inc()
		return a
	}
	at := time.Now()
	for _, c := range s.cfg.RcptChecks {
		if a, ok := s.judge(tx, c.Name(), r, &at, func() policy.Verdict { return c.Rcpt(tx.ctx, &tx.Transaction, r) }); !ok {
			tx.refused++
			return a
		}
	}
	r.Orig = r.To
	tx.Env.Rcpts = append(tx.Env.Rcpts, *r)
	s.m.recipients[rcptAccepted].Inc()
	return rcptOK
}

// rcptParams takes the parameters of RCPT.
func (s *session) rcptParams(tx *transaction, r *mail.Recipient, params string) (answer, bool) {
	if params != "" {
		if !s.ESMTP {
			return noParams, false
		}
		ps, err := smtp.ParseParams(params)
		if err != nil {
			return badParams, false
		}
		if reply := esmtp.Rcpt(s.extensions(), tx.Env, r, ps); reply != nil {
			return s.badParam(reply)
		}
	}
	return answer{}, true
}

// foreign reports a path written with more than ASCII although SMTPUTF8 was not asked for (RFC 6531 section 3.5). What counts is how it is
// written: a domain in A-labels is ASCII, though we know it by its U-labels.
func foreign(tx *transaction, line, params string) bool {
	if tx.utf8 {
		return false
	}
	for i := range len(line) - len(params) {
		if line[i] >= utf8.RuneSelf {
			return true
		}
	}
	return false
}

// isPostmaster: RFC 5321 section 4.5.1, the one address that needs no domain.
func isPostmaster(a address.Address) bool {
	return strings.EqualFold(a.Local, "postmaster")
}
