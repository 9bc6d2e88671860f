package smtpsrv

import (
	"bytes"
	"encoding/base64"
	"errors"
	"math/rand/v2"
	"strings"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/smtp"
	"blitiri.com.ar/go/chasquid/internal/timeline"
)

// authTime is what every authentication takes at least; up to a fifth of what is left of it is added, so that the time tells nothing.
const authTime = 100 * time.Millisecond

// Answers of AUTH.
var (
	noAuth        = bad(502, "5.5.1", "Logging in is not offered here")
	authNeedsTLS  = bad(503, "5.7.10", "Logging in needs TLS: send STARTTLS first")
	authedAlready = bad(503, "5.5.1", "You are logged in already")
	authInMail    = bad(503, "5.5.1", "Not within a mail transaction") // RFC 4954 section 4
	authMech      = bad(534, "5.7.9", "The mechanisms are PLAIN and LOGIN")
	authCancel    = bad(501, "5.7.0", "Authentication cancelled")
	authTooLong   = bad(500, "5.5.6", "Authentication exchange line is too long")
	authOK        = say(235, "2.7.0", "Authentication successful")
	authBad       = bad(535, "5.7.8", "Incorrect user or password")
	authTemp      = say(454, "4.7.0", "Temporary authentication failure")
	authTooMany   = bad(454, "4.7.0", "Too many failed logins, please try again later")
)

// Reasons a SASL response is not taken; they are shown to the client.
var (
	errBase64   = errors.New("invalid base64")
	errPieces   = errors.New("it does not have three parts")
	errIdentity = errors.New("the identities differ")
	errNobody   = errors.New("the identity is empty")
	errUser     = errors.New("invalid user name")
	errCancel   = errors.New("cancelled")
)

// auth handles AUTH (RFC 4954 section 4).
func (s *session) auth(arg []byte) answer {
	mech, initial, has := bytes.Cut(arg, []byte{' '})
	switch {
	case s.cfg.Auth == nil:
		return noAuth
	case s.TLS == nil:
		s.m.auth.With(s.m.label, "none", "tls_required").Inc()
		return authNeedsTLS
	case s.User != "":
		return authedAlready
	case s.tx != nil:
		return authInMail
	}
	plain := bytes.EqualFold(mech, []byte("PLAIN"))
	if !plain && !bytes.EqualFold(mech, []byte("LOGIN")) {
		s.m.auth.With(s.m.label, "none", "malformed").Inc()
		return authMech
	}
	var first []byte
	if has {
		first = bytes.TrimSpace(initial)
	}
	exchange := s.authLogin
	if plain {
		exchange = s.authPlain
	}
	user, password, err := exchange(first)
	s.thought = time.Now()
	switch {
	case err == nil:
		return s.login(user, password)
	case errors.Is(err, errCancel):
		return authCancel
	case errors.Is(err, errLineTooLong):
		return authTooLong
	case errors.Is(err, smtp.ErrBareLF):
		return badLine
	case errors.Is(err, errBase64), errors.Is(err, errPieces), errors.Is(err, errIdentity), errors.Is(err, errNobody), errors.Is(err, errUser):
		s.m.auth.With(s.m.label, "none", "malformed").Inc()
		return bad(501, "5.5.2", "Error decoding AUTH response: "+err.Error())
	}
	s.lost(err)
	return answer{then: bye}
}

// authPlain is RFC 4616: authzid NUL authcid NUL password. The password may hold anything, NUL included.
func (s *session) authPlain(initial []byte) (user address.Address, password string, err error) {
	b, err := s.response(initial, initial != nil, "")
	if err != nil {
		return user, "", err
	}
	defer clear(b)
	parts := bytes.SplitN(b, []byte{0}, 3)
	if len(parts) != 3 {
		return user, "", errPieces
	}
	authz, authc := parts[0], parts[1]
	switch {
	case len(authz) == 0 && len(authc) == 0:
		return user, "", errNobody
	case len(authc) == 0:
		authc = authz
	case len(authz) > 0 && !bytes.Equal(authz, authc):
		return user, "", errIdentity // nobody may act for somebody else
	}
	user, err = identity(authc)
	return user, string(parts[2]), err
}

// authLogin is the LOGIN mechanism, as clients do it: two prompts. An initial response is the user name.
func (s *session) authLogin(initial []byte) (user address.Address, password string, err error) {
	name, err := s.response(initial, initial != nil, "VXNlcm5hbWU6") // "Username:"
	if err != nil {
		return user, "", err
	}
	if user, err = identity(name); err != nil {
		return user, "", err
	}
	b, err := s.response(nil, false, "UGFzc3dvcmQ6") // "Password:"
	if err != nil {
		return user, "", err
	}
	defer clear(b)
	return user, string(b), nil
}

// response decodes the initial response, if there is one, or asks for a line with the challenge, which is base64. What came over the
// wire is wiped.
func (s *session) response(initial []byte, has bool, challenge string) ([]byte, error) {
	line := initial
	if !has {
		s.put(smtp.Reply{Code: 334, Text: challenge})
		var err error
		line, err = s.c.line(time.Now().Add(s.cfg.CommandTimeout), func([]byte) int { return authLine })
		if err != nil {
			return nil, err
		}
		if string(line) == "*" {
			return nil, errCancel
		}
	}
	defer clear(line)
	if has && string(line) == "=" { // RFC 4954 section 4: an empty initial response
		return nil, nil
	}
	b := make([]byte, base64.StdEncoding.DecodedLen(len(line)))
	n, err := base64.StdEncoding.Strict().Decode(b, line)
	if err != nil || bytes.ContainsAny(line, "\r\n") {
		clear(b)
		return nil, errBase64
	}
	return b[:n], nil
}

// identity makes "user@domain" comparable (RFC 8265 section 3.3). Without a domain only some authenticators know the user.
func identity(b []byte) (address.Address, error) {
	user, domain, has := strings.Cut(string(b), "@")
	if user == "" {
		return address.Address{}, errNobody
	}
	u, err := address.NormalizeUser(user)
	if err != nil {
		return address.Address{}, errUser
	}
	if !has || domain == "" {
		return address.Address{Local: u}, nil
	}
	d, err := address.NormalizeDomain(domain)
	if err != nil {
		return address.Address{}, errUser
	}
	return address.Address{Local: u, Domain: d}, nil
}

// login asks the authenticator and answers, never sooner than authTime.
func (s *session) login(user address.Address, password string) answer {
	start := time.Now()
	attempt, wait := s.cfg.Throttle.Begin(start, s.Remote.Addr(), user)
	if attempt == nil {
		s.span.Errorf("AUTH failed: 454  too many failures before, %v to wait", wait.Round(time.Second))
		return authTooMany
	}
	defer attempt.Cancel()
	ok, backend, err := s.cfg.Auth.Authenticate(s.ctx, user, password)
	s.srv.m.authDuration(backend, ok, time.Since(start))
	s.waitUntil(start.Add(authTime))

	e := &timeline.Event{Kind: timeline.Auth, Mode: s.Mode, Client: s.remote, User: user.String()}
	a, result := authOK, "ok"
	switch {
	case err != nil:
		a, result, e.Err = authTemp, "backend_error", err
	case !ok:
		attempt.Done(time.Now(), false)
		a, result, e.Err = authBad, "bad_credentials", errWrong
		s.srv.m.authFailed.Set(float64(time.Now().Unix()))
	default:
		attempt.Done(time.Now(), true)
		s.User = user.String()
	}
	e.Reply = a.Reply
	s.srv.observe(e)
	s.m.auth.With(s.m.label, backendLabel(backend), result).Inc()
	return a
}

var errWrong = errors.New("wrong user or password")

// waitUntil waits until t and for up to a fifth of that time longer, or until the session is cut.
func (s *session) waitUntil(t time.Time) {
	left := time.Until(t)
	if left <= 0 {
		return
	}
	timer := time.NewTimer(left + time.Duration(rand.Int64N(int64(left)/5+1)))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.ctx.Done():
	}
}
