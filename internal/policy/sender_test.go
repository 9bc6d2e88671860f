package policy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/dns"
	"blitiri.com.ar/go/chasquid/internal/mail"
)

// text is a message as Content.
type text string

func (s text) Size() int64            { return int64(len(s)) }
func (s text) Content() io.ReadSeeker { return bytes.NewReader([]byte(s)) }

func owns(_ context.Context, user, from address.Address) (bool, error) {
	if from.Local == "broken" {
		return false, errors.New("backend down")
	}
	return from == user || user.Local == "user" && from.Local == "alias" && from.Domain == user.Domain, nil
}

func verdictCode(v Verdict) string {
	if v.Refuse == nil {
		return ""
	}
	return v.Refuse.String()[:9]
}

// D23, C85: nobody sends as somebody else.
func TestD23SenderOwnership(t *testing.T) {
	const yes, no, temp, syntax = "", "550 5.7.1", "451 4.3.0", "554 5.6.0"
	from := func(lines ...string) string { return strings.Join(lines, "\r\n") + "\r\n\r\nbody\r\n" }
	for _, c := range []struct {
		user, mailFrom, message string
		off, envelope, header   string
	}{
		{"", "user@d.test", from("From: boss@d.test"), yes, yes, yes}, // not logged in: other checks decide
		{"user@d.test", "user@d.test", from("From: user@d.test"), yes, yes, yes},
		{"user@d.test", "alias@d.test", from("From: Me <alias@D.test>"), yes, yes, yes},
		{"user@d.test", "boss@d.test", from("From: user@d.test"), yes, no, no},
		{"user@d.test", "user@far.test", from("From: user@d.test"), yes, no, no},
		{"user@d.test", "", from("From: user@d.test"), yes, yes, yes},
		{"user@d.test", "broken@d.test", from("From: user@d.test"), yes, temp, temp},
		{"user@d.test", "user@d.test", from("From: boss@d.test"), yes, yes, no},
		{"user@d.test", "user@d.test", from("From: user@d.test, boss@d.test"), yes, yes, no},
		{"user@d.test", "user@d.test", from("From: user@d.test, alias@d.test"), yes, yes, yes},
		{"user@d.test", "user@d.test", from("From: \"user@d.test\" <boss@d.test>"), yes, yes, no},
		{"user@d.test", "user@d.test", from("From: boss@d.test (user@d.test)"), yes, yes, no},
		{"user@d.test", "user@d.test", from("From: =?utf-8?q?user=40d.test?= <boss@d.test>"), yes, yes, no},
		{"user@d.test", "user@d.test", from("From: user@d.test", "From: boss@d.test"), yes, yes, syntax}, // D24
		{"user@d.test", "user@d.test", from("from:\tuser@d.test"), yes, yes, yes},
		{"user@d.test", "user@d.test", from("From: team: user@d.test, boss@d.test;"), yes, yes, no},
		{"user@d.test", "user@d.test", from("From: user@d.test\r\n\t, boss@d.test"), yes, yes, no},
		{"user@d.test", "user@d.test", from("Subject: no From"), yes, yes, syntax},
		{"user@d.test", "user@d.test", from("From: "), yes, yes, syntax},
		{"user@d.test", "user@d.test", from("From: user"), yes, yes, syntax},
		{"user@d.test", "user@d.test", from("From: user@d.test\x00boss@d.test"), yes, yes, syntax},
		{"user@d.test", "user@d.test", from("From: broken@d.test"), yes, yes, temp},
	} {
		for match, want := range map[Match]string{MatchOff: c.off, MatchEnvelope: c.envelope, MatchHeader: c.header} {
			mailFrom, err := address.ParsePath(c.mailFrom)
			if err != nil {
				t.Fatal(err)
			}
			s := &Sender{Match: match, Owns: owns}
			tx := &Transaction{Session: &Session{User: c.user}, Env: &mail.Envelope{From: mailFrom}}
			v := s.Mail(t.Context(), tx)
			if v.Refuse == nil {
				v = s.Body(t.Context(), tx, text(c.message))
			}
			if got := verdictCode(v); got != want {
				t.Errorf("%s as %q, %q, match %d: %s (%s), want %s", c.user, c.mailFrom, c.message, match, got, v.Reason, want)
			}
		}
	}
}

func TestSenderHeaderTooBig(t *testing.T) {
	s := &Sender{Match: MatchHeader, Owns: owns}
	tx := &Transaction{Session: &Session{User: "user@d.test"}, Env: &mail.Envelope{}}
	big := text("From: user@d.test\r\n" + strings.Repeat("X: y\r\n", 1<<20) + "\r\n")
	if v := s.Body(t.Context(), tx, big); verdictCode(v) != "554 5.6.0" {
		t.Errorf("%+v", v)
	}
}

// mxResolver answers MX only.
type mxResolver map[string][]dns.MX

func (r mxResolver) MX(_ context.Context, _ dns.Purpose, d string) ([]dns.MX, dns.Meta, error) {
	if mx, ok := r[d]; ok {
		return mx, dns.Meta{}, nil
	}
	return nil, dns.Meta{}, &dns.TemporaryError{Name: d, Err: errors.New("SERVFAIL")}
}

func (mxResolver) IP(context.Context, dns.Purpose, string) ([]netip.Addr, dns.Meta, error) {
	return nil, dns.Meta{}, dns.ErrNotFound
}

func (mxResolver) TXT(context.Context, dns.Purpose, string) ([]string, dns.Meta, error) {
	return nil, dns.Meta{}, dns.ErrNotFound
}

func (mxResolver) PTR(context.Context, dns.Purpose, netip.Addr) ([]string, dns.Meta, error) {
	return nil, dns.Meta{}, dns.ErrNotFound
}

func (mxResolver) TLSA(context.Context, dns.Purpose, string) ([]dns.TLSA, dns.Meta, error) {
	return nil, dns.Meta{}, dns.ErrNotFound
}

// C91: a sender whose domain takes no mail is refused; trouble with the DNS is no reason.
func TestC91SenderNullMX(t *testing.T) {
	s := &Sender{Resolver: mxResolver{"null.test": {{}}, "xn--nll-hoa.test": {{}}, "ok.test": {{Pref: 1, Host: "mx"}}, "odd.test": {{}, {Pref: 1, Host: "mx"}}}}
	for from, want := range map[string]string{
		"a@null.test": "550 5.7.2", "a@nüll.test": "550 5.7.2", "a@ok.test": "", "a@odd.test": "", "a@servfail.test": "", "a@[192.0.2.1]": "", "": "",
	} {
		addr, err := address.ParsePath(from)
		if err != nil {
			t.Fatal(err)
		}
		v := s.Mail(t.Context(), &Transaction{Session: &Session{}, Env: &mail.Envelope{From: addr}})
		if got := verdictCode(v); got != want {
			t.Errorf("%q: %s, want %s", from, got, want)
		}
	}
	v := s.Mail(t.Context(), &Transaction{Session: &Session{User: "u@d.test"}, Env: &mail.Envelope{From: address.MustParse("a@null.test")}})
	if v.Refuse != nil {
		t.Errorf("a user is refused: %+v", v)
	}
}

func TestParseMatch(t *testing.T) {
	for s, want := range map[string]Match{"": MatchOff, "off": MatchOff, "envelope": MatchEnvelope, "header": MatchHeader} {
		if got, err := ParseMatch(s); got != want || err != nil {
			t.Errorf("%q: %v, %v", s, got, err)
		}
	}
	if _, err := ParseMatch("Header"); err == nil {
		t.Error("no error")
	}
}
