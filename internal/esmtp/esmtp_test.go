package esmtp

import (
	"reflect"
	"strings"
	"testing"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/smtp"
)

func TestAppendEHLO(t *testing.T) {
	cases := []struct {
		s    Session
		want string
	}{
		{Session{}, "|8BITMIME|PIPELINING|SMTPUTF8|ENHANCEDSTATUSCODES|SIZE 0|DSN|CHUNKING|BINARYMIME|HELP"},
		{Session{StartTLS: true, MaxSize: 10, MaxRcpts: 5, MaxMails: 6},
			"|8BITMIME|PIPELINING|SMTPUTF8|ENHANCEDSTATUSCODES|SIZE 10|DSN|CHUNKING|BINARYMIME|LIMITS MAILMAX=6 RCPTMAX=5|STARTTLS|HELP"},
		{Session{StartTLS: true, TLS: true, Auth: "PLAIN LOGIN", MaxSize: 10},
			"|8BITMIME|PIPELINING|SMTPUTF8|ENHANCEDSTATUSCODES|SIZE 10|DSN|CHUNKING|BINARYMIME|REQUIRETLS|AUTH PLAIN LOGIN|HELP"},
	}
	for _, c := range cases {
		if got := strings.ReplaceAll(string(AppendEHLO(nil, &c.s)), "\n", "|"); got != c.want {
			t.Errorf("%+v: %s, want %s", c.s, got, c.want)
		}
	}
}

// What is announced is what is taken, and nothing else (C12).
func TestMailParams(t *testing.T) {
	plain, secure := &Session{MaxSize: 1000}, &Session{TLS: true, Auth: "PLAIN", MaxSize: 1000}
	cases := []struct {
		s      *Session
		params string
		code   int // 0: taken
		kept   string
	}{
		{plain, "", 0, ""},
		{plain, "SIZE=1000 BODY=7bit", 0, "SIZE=1000 BODY=7BIT"},
		{plain, "SIZE=1001", 552, ""},
		{plain, "SIZE=999999999999999999999", 501, ""}, // 21 digits
		{plain, "SIZE=99999999999999999999", 552, ""},
		{plain, "SIZE", 501, ""},
		{plain, "SIZE=1x", 501, ""},
		{plain, "BODY=BINARYMIME SMTPUTF8", 0, "BODY=BINARYMIME SMTPUTF8"},
		{plain, "SMTPUTF8=1", 501, ""},
		{plain, "RET=full ENVID=x+2By", 0, "RET=FULL ENVID=x+2By"},
		{plain, "RET", 501, ""},
		{plain, "ENVID=" + strings.Repeat("x", 101), 501, ""},
		{plain, "ENVID=a+00", 501, ""}, // D12: no control characters behind an escape
		{plain, "AUTH=<>", 555, ""},
		{plain, "REQUIRETLS", 555, ""},
		{plain, "NOTIFY=NEVER", 555, ""}, // of RCPT
		{plain, "HOLDFOR=1", 555, ""},
		{secure, "AUTH=<> REQUIRETLS", 0, "AUTH=<> REQUIRETLS"},
		{secure, "AUTH=a+ZZ", 501, ""},
		{secure, "REQUIRETLS=yes", 501, ""},
	}
	for _, c := range cases {
		ps, err := smtp.ParseParams(c.params)
		if err != nil {
			t.Fatal(err)
		}
		var e mail.Envelope
		r := Mail(c.s, &e, ps)
		if code := codeOf(r); code != c.code || code == 0 && e.Params.String() != c.kept {
			t.Errorf("%q: %v, kept %q", c.params, r, e.Params)
		}
	}
}

func TestRcptParams(t *testing.T) {
	cases := []struct {
		utf8   bool
		params string
		code   int
	}{
		{false, "NOTIFY=NEVER", 0},
		{false, "NOTIFY=success,failure,delay", 0},
		{false, "NOTIFY=NEVER,DELAY", 501},
		{false, "NOTIFY=DELAY,DELAY", 501},
		{false, "NOTIFY=DELAY,", 501},
		{false, "NOTIFY", 501},
		{false, "ORCPT=rfc822;a+40b", 0},
		{false, "ORCPT=rfc822;", 501},
		{false, "ORCPT=;a", 501},
		{false, "ORCPT=rfc822", 501},
		{false, "ORCPT=rfc822;a+0D+0Ab", 501}, // D12
		{false, "ORCPT=rfc822;" + strings.Repeat("a", 500), 501},
		{true, "ORCPT=rfc822;+C3+B1@x", 0},
		{false, "ORCPT=rfc822;+C3+B1@x", 0},
		{true, "ORCPT=rfc822;+C3+0A+B1@x", 501},
		{true, "ORCPT=rfc822;+C3@x", 501},
		{true, "ORCPT=rfc822;+C3+B1+0A@x", 501},
		{true, "ORCPT=x400;+C3+B1@x", 501},
		{false, `ORCPT=utf-8;\x{F1}@x`, 0},
		{false, "ORCPT=utf-8;ñ@x", 501},
		{true, "ORCPT=utf-8;ñ@x", 0},
		{true, `ORCPT=utf-8;\x{G}@x`, 501},
		{true, `ORCPT=utf-8;\x{}@x`, 501},
		{true, `ORCPT=utf-8;\`, 501},
		{false, "SIZE=1", 555},
	}
	for _, c := range cases {
		ps, err := smtp.ParseParams(c.params)
		if err != nil {
			t.Fatal(err)
		}
		var rcpt mail.Recipient
		r := Rcpt(&Session{}, &mail.Envelope{UTF8: c.utf8}, &rcpt, ps)
		if codeOf(r) != c.code {
			t.Errorf("%q: %v", c.params, r)
		}
		if r == nil && len(rcpt.Params) == 0 {
			t.Errorf("%q was not kept", c.params)
		}
	}
}

func codeOf(r *smtp.Reply) int {
	if r == nil {
		return 0
	}
	return r.Code
}

func TestParseOffers(t *testing.T) {
	got := ParseOffers("mx.test hello\nSIZE 100 \n8bitmime\nAUTH=LOGIN PLAIN\n\n no/keyword\nLIMITS RCPTMAX=5\nX " + strings.Repeat("y", maxOfferArg+1))
	want := Offers{"SIZE": "100", "8BITMIME": "", "AUTH": "LOGIN PLAIN", "LIMITS": "RCPTMAX=5"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%v", got)
	}
	if len(ParseOffers("")) != 0 || len(ParseOffers("PIPELINING")) != 0 {
		t.Error("the greeting is no keyword")
	}
	var many strings.Builder
	for i := range 10 * maxOffers {
		many.WriteString("\nX" + strings.Repeat("Y", i%900) + string(rune('A'+i%26)))
	}
	if n := len(ParseOffers(many.String())); n > maxOffers {
		t.Errorf("%d offers kept", n)
	}
}

func job(from string, params string, body mail.Body, utf8 bool, rcpts ...string) *mail.Job {
	ps, err := smtp.ParseParams(params)
	if err != nil {
		panic(err)
	}
	e := &mail.Envelope{From: address.MustParse(from), Params: ps, Body: body, UTF8: utf8}
	j := &mail.Job{Env: e, From: e.From, Size: 500}
	for _, r := range rcpts {
		addr, params, _ := strings.Cut(r, " ")
		ps, err := smtp.ParseParams(params)
		if err != nil {
			panic(err)
		}
		j.Rcpts = append(j.Rcpts, mail.Recipient{To: address.MustParse(addr), Params: ps})
	}
	return j
}

// C44, C53, C56, C60, C64, C66 as the client: what goes to which peer.
func TestRelay(t *testing.T) {
	everything := "x\n8BITMIME\nPIPELINING\nSMTPUTF8\nSIZE 1000\nDSN\nCHUNKING\nBINARYMIME\nREQUIRETLS\nLIMITS RCPTMAX=7 mailmax=9 RCPTDOMAINMAX=1\nENHANCEDSTATUSCODES"
	cases := []struct {
		name   string
		job    *mail.Job
		offers string
		mail   string
		rcpt   string // of the first recipient
		refuse string
		fail   string // of the first recipient
	}{
		{"nothing offered", job("<a@b>", "SIZE=5 RET=HDRS BODY=8BITMIME", mail.Body7Bit, false, "c@d NOTIFY=NEVER"), "x", "", "", "", ""},
		{"all offered", job("<a@b>", "SIZE=5 RET=HDRS ENVID=q AUTH=<>", mail.Body7Bit, false, "c@d NOTIFY=NEVER ORCPT=rfc822;x"), everything,
			"BODY=8BITMIME SIZE=500 RET=HDRS ENVID=q", "NOTIFY=NEVER ORCPT=rfc822;x", "", ""},
		{"too big", job("<a@b>", "", 0, false, "c@d"), "x\nSIZE 499", "", "", "552 5.3.4", ""},
		{"no fixed limit", job("<a@b>", "", 0, false, "c@d"), "x\nSIZE 0", "SIZE=500", "", "", ""},
		{"no limit told", job("<a@b>", "", 0, false, "c@d"), "x\nSIZE", "SIZE=500", "", "", ""},
		{"8 bit refused", job("<a@b>", "", mail.Body8Bit, false, "c@d"), "x", "", "", "554 5.6.3", ""},
		{"8 bit", job("<a@b>", "", mail.Body8Bit, false, "c@d"), "x\n8BITMIME", "BODY=8BITMIME", "", "", ""},
		{"binary", job("<a@b>", "", mail.BodyBinary, false, "c@d"), "x\n8BITMIME\nCHUNKING\nBINARYMIME", "BODY=BINARYMIME", "", "", ""},
		{"binary without chunks", job("<a@b>", "", mail.BodyBinary, false, "c@d"), "x\n8BITMIME\nBINARYMIME", "", "", "554 5.6.3", ""},
		{"binary refused", job("<a@b>", "", mail.BodyBinary, false, "c@d"), "x\n8BITMIME\nCHUNKING", "", "", "554 5.6.3", ""},
		{"UTF-8 header", job("<a@b>", "SMTPUTF8", 0, true, "c@d"), "x", "", "", "550 5.6.7", ""},
		{"UTF-8 header, taken", job("<a@b>", "SMTPUTF8", 0, true, "c@d"), "x\nSMTPUTF8", "SMTPUTF8", "", "", ""},
		{"asked for, not needed", job("<a@b>", "SMTPUTF8", 0, false, "c@d"), everything, "BODY=8BITMIME SIZE=500", "", "", ""},
		{"UTF-8 sender", job("<ñ@b>", "", 0, false, "c@d"), "x", "", "", "550 5.6.7", ""},
		{"UTF-8 recipient", job("<a@b>", "", 0, false, "ñ@d", "c@d"), "x", "", "", "", "550 5.6.7"},
		{"UTF-8 domain has another form", job("<a@ñ>", "", 0, false, "c@ñ"), "x", "", "", "", ""},
		{"UTF-8 domain", job("<a@ñ>", "", 0, false, "c@ñ"), "x\nSMTPUTF8", "SMTPUTF8", "", "", ""},
		{"REQUIRETLS", job("<a@b>", "REQUIRETLS", 0, false, "c@d"), "x\nREQUIRETLS", "REQUIRETLS", "", "", ""},
		{"REQUIRETLS refused", job("<a@b>", "REQUIRETLS", 0, false, "c@d"), "x", "", "", "550 5.7.30", ""},
	}
	for _, c := range cases {
		p := Relay(c.job, ParseOffers(c.offers))
		refuse, fail := "", ""
		if p.Refuse != nil {
			refuse = p.Refuse.String()
		}
		if p.Fail[0] != nil {
			fail = p.Fail[0].String()
		}
		if refuse != "" && c.refuse != "" {
			if !strings.HasPrefix(refuse, c.refuse+" ") {
				t.Errorf("%s: refused with %s", c.name, refuse)
			}
			continue
		}
		if refuse != c.refuse || !strings.HasPrefix(fail, c.fail) || (fail == "") != (c.fail == "") || p.Mail.String() != c.mail || p.Rcpt[0].String() != c.rcpt {
			t.Errorf("%s: MAIL %q, RCPT %q, refuse %q, fail %q", c.name, p.Mail, p.Rcpt[0], refuse, fail)
		}
	}
	p := Relay(job("<a@b>", "", 0, false, "c@d"), ParseOffers(everything))
	if !p.Pipelining || !p.Chunking || p.Binary || !p.DSN || p.MaxRcpts != 7 || p.MaxMails != 9 {
		t.Errorf("%+v", p)
	}
	if p = Relay(job("<a@b>", "", 0, false, "c@d"), ParseOffers("x\nLIMITS RCPTMAX=0 MAILMAX=1234567")); p.MaxRcpts != 0 || p.MaxMails != 0 || p.DSN || p.Pipelining {
		t.Errorf("%+v", p)
	}
	if p = Relay(job("<a@b>", "", 0, false, "ñ@d", "c@d"), Offers{}); p.Fail[1] != nil {
		t.Errorf("the other recipient fails: %v", p.Fail[1])
	}
}

func TestDemands(t *testing.T) {
	if d := Demands(&mail.Envelope{}); len(d) != 0 {
		t.Errorf("%v", d)
	}
	d := Demands(job("<a@b>", "REQUIRETLS", 0, false).Env)
	if len(d) != 1 || !d[0].RequireTLS || !d[0].RequirePKIX || d[0].Source != "requiretls" {
		t.Errorf("%+v", d)
	}
}

func FuzzParams(f *testing.F) {
	f.Add("SIZE=1 BODY=8BITMIME RET=HDRS ENVID=x AUTH=<> SMTPUTF8 REQUIRETLS")
	f.Add(`NOTIFY=SUCCESS,DELAY ORCPT=utf-8;\x{F1}@x`)
	f.Fuzz(func(t *testing.T, s string) {
		ps, err := smtp.ParseParams(s)
		if err != nil {
			return
		}
		x := &Session{TLS: true, Auth: "PLAIN", MaxSize: 1000}
		var e mail.Envelope
		if Mail(x, &e, ps) == nil && len(ps) > 0 {
			// what was taken can be said again, and is taken again
			again, err := smtp.ParseParams(e.Params.String())
			if err != nil || Mail(x, &e, again) != nil {
				t.Fatalf("%q was taken as %q, which is not", s, e.Params)
			}
		}
		ps, _ = smtp.ParseParams(s)
		var r mail.Recipient
		Rcpt(x, &e, &r, ps)
		Relay(&mail.Job{Env: &e, Rcpts: []mail.Recipient{r}}, ParseOffers("x\n"+s))
	})
}
