package policy

import (
	"context"
	"errors"
	"testing"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/smtp"
)

func localTest(d string) bool { return d == "d.test" || d == "ñ.test" || d == "p.test" }

func TestRecipient(t *testing.T) { // compat 5.6, rows 8 to 11
	var asked []string
	c := &Recipient{
		Local: localTest,
		Exists: func(_ context.Context, a address.Address) (bool, error) {
			asked = append(asked, a.String())
			switch a.Local {
			case "user", "us.er+tag", "ñandú":
				return true, nil
			case "broken":
				return false, errors.New("backend down at /etc/secret")
			case "loop":
				return false, errors.New("loop")
			}
			return false, nil
		},
		Primary: func() string { return "p.test" },
		Reverse: func(a address.Address) (address.Address, error) {
			switch a.Local {
			case "SRS0=good":
				return address.MustParse("Sender@far.test"), nil
			case "SRS0=ours":
				return address.MustParse("USER@d.test"), nil
			case "SRS0=gone":
				return address.MustParse("nobody@d.test"), nil
			}
			return address.Address{}, errors.New("not rewritten, or forged")
		},
		ErrorReply: func(err error) smtp.Reply {
			if err.Error() == "loop" {
				return smtp.NewReply(554, "5.4.6", "loop")
			}
			return replyCheckFailed
		},
	}
	for _, x := range []struct {
		to, user string
		code     string // of the refusal; empty: accepted
		label    string
		asked    string
		stored   string // empty: as given
	}{
		{"x@far.test", "", "503 5.7.1", "relay_denied", "", ""},
		{"X.y@far.test", "u@d.test", "", "", "", ""},                                          // remote: as given
		{"user%far.test@d.test", "", "550 5.1.1", "unknown_user", "user%far.test@d.test", ""}, // D18
		{"far.test!user@d.test", "", "550 5.1.1", "unknown_user", "far.test!user@d.test", ""}, // D18
		{`"user@far.test"@d.test`, "", "550 5.1.1", "unknown_user", `"user@far.test"@d.test`, ""},
		{"user@[192.0.2.1]", "", "503 5.7.1", "relay_denied", "", ""},
		{"USER@d.test", "", "", "", "user@d.test", "user@d.test"}, // SMTP-35
		{"Us.Er+Tag@D.test", "", "", "", "us.er+tag@d.test", "us.er+tag@d.test"},
		{"ÑANDÚ@Ñ.TEST", "", "", "", "ñandú@ñ.test", "ñandú@ñ.test"},
		{`"a b"@d.test`, "", "550 5.1.3", "syntax", "", ""},
		{"henry\u2163@d.test", "", "550 5.1.3", "syntax", "", ""},
		{"broken@d.test", "", "451 4.4.3", "tempfail", "broken@d.test", ""},
		{"loop@d.test", "", "554 5.4.6", "loop", "loop@d.test", ""}, // D42
		{"nobody@d.test", "", "550 5.1.1", "unknown_user", "nobody@d.test", ""},
		{"nobody@d.test", "u@d.test", "550 5.1.1", "unknown_user", "nobody@d.test", ""},
		{"Postmaster", "", "", "", "postmaster@p.test", "postmaster@p.test"}, // C18, R-7
		{"POSTMASTER@d.test", "", "", "", "postmaster@d.test", "postmaster@d.test"},
		{"postmaster@far.test", "", "503 5.7.1", "relay_denied", "", ""},
		{"SRS0=good@d.test", "", "", "", "", ""}, // its case is kept: the queue reverses it
		{"SRS0=ours@d.test", "", "", "", "user@d.test", "srs0=ours@d.test"},
		{"SRS0=gone@d.test", "", "550 5.1.1", "unknown_user", "nobody@d.test", ""},
		{"SRS0=forged@d.test", "", "550 5.1.1", "unknown_user", "srs0=forged@d.test", ""},
		{"SRS0=good@far.test", "", "503 5.7.1", "relay_denied", "", ""},
	} {
		asked = nil
		to := address.MustParse(x.to)
		r := mail.Recipient{To: to, Orig: to}
		v := c.Rcpt(t.Context(), &Transaction{Session: &Session{User: x.user}, Env: &mail.Envelope{}}, &r)
		code, got := "", ""
		if v.Refuse != nil {
			code = smtp.Reply{Code: v.Refuse.Code, Enh: v.Refuse.Enh}.String()
			if v.Reason == "" {
				t.Errorf("%s: no reason for the log", x.to)
			}
		} else if x.stored == "" {
			x.stored = to.String()
		}
		if len(asked) > 0 {
			got = asked[0]
		}
		if code != x.code || v.Label != x.label || got != x.asked || len(asked) > 1 {
			t.Errorf("%s: %s %s, asked %v; want %s %s, asked %s", x.to, code, v.Label, asked, x.code, x.label, x.asked)
		}
		if v.Refuse == nil && r.To.String() != x.stored {
			t.Errorf("%s: stored as %s, want %s", x.to, r.To, x.stored)
		}
	}
}

// What is not configured is not needed.
func TestRecipientBare(t *testing.T) {
	c := &Recipient{Local: localTest, Exists: func(context.Context, address.Address) (bool, error) { return false, errors.New("down") }}
	for to, want := range map[string]int{"postmaster": 503, "x@d.test": 451, "SRS0=good@d.test": 451} {
		r := mail.Recipient{To: address.MustParse(to)}
		if v := c.Rcpt(t.Context(), &Transaction{Session: &Session{}, Env: &mail.Envelope{}}, &r); v.Refuse == nil || v.Refuse.Code != want {
			t.Errorf("%s: %+v", to, v)
		}
	}
}
