package dmarc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"blitiri.com.ar/go/chasquid/internal/dns/zone"
	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/message"
	"github.com/google/go-cmp/cmp"
)

// evaluate runs a check for a message whose header is "From: x@domain", or the header itself if it has a colon.
func evaluate(t testing.TB, z *zone.Zone, from, spf string, dkim, maybe []string) Result {
	t.Helper()
	if !strings.Contains(from, ":") {
		from = "From: x@" + from
	}
	h, err := message.Parse([]byte(strings.ReplaceAll(from, "\n", "\r\n") + "\r\n\r\n"))
	if err != nil {
		t.Fatal(err)
	}
	return New(z, nil).Check(context.Background(), Input{Header: h, SPF: spf, DKIM: dkim, Maybe: maybe})
}

func words(s string) []string { return strings.Fields(s) }

// rec is a line of a zone with a DMARC record.
func rec(domain, tags string) string {
	return fmt.Sprintf("_dmarc.%s TXT \"v=DMARC1; %s\"\n", domain, tags)
}

// TestC113Evaluation: discovery, alignment and policy as RFC 9989 section 4 and its examples have them.
func TestC113Evaluation(t *testing.T) {
	bank := rec("bank.example", "p=reject; sp=quarantine; psd=y")
	for _, c := range []struct {
		name, zone, from, spf, dkim string
		want                        string
	}{
		{"no record", "", "example.com", "example.com", "example.com", "none "},
		{"SPF", rec("example.com", "p=reject"), "example.com", "example.com", "", "pass reject"},
		{"DKIM", rec("example.com", "p=reject"), "example.com", "", "example.com", "pass reject"},
		{"one of several signatures", rec("example.com", "p=reject"), "example.com", "esp.example", "esp.example example.com", "pass reject"},
		{"nothing aligned", rec("example.com", "p=reject"), "example.com", "esp.example", "other.example", "fail reject"},
		{"nothing passed", rec("example.com", "p=quarantine"), "example.com", "", "", "fail quarantine"},
		{"case of the domain", rec("example.com", "p=reject"), "EXAMPLE.Com", "example.com", "", "pass reject"},
		{"trailing dot", rec("example.com", "p=reject"), "example.com.", "example.com", "", "pass reject"},
		{"C116 U-label", rec("xn--bcher-kva.example", "p=reject"), "bücher.example", "xn--bcher-kva.example", "", "pass reject"},

		{"relaxed: parent", rec("example.com", "p=reject"), "mail.example.com", "", "example.com", "pass reject"},
		{"relaxed: child", rec("example.com", "p=reject"), "example.com", "mail.example.com", "", "pass reject"},
		{"relaxed: sibling", rec("example.com", "p=reject"), "a.example.com", "b.example.com", "", "pass reject"},
		{"strict SPF", rec("example.com", "p=reject; aspf=S"), "example.com", "mail.example.com", "", "fail reject"},
		{"strict DKIM", rec("example.com", "p=reject; adkim=s"), "example.com", "", "mail.example.com", "fail reject"},
		{"strict DKIM, exact", rec("example.com", "p=reject; adkim=s"), "example.com", "", "example.com", "pass reject"},
		{"strict is for one of them", rec("example.com", "p=reject; adkim=s"), "example.com", "mail.example.com", "", "pass reject"},
		{"a name that only ends alike", rec("example.com", "p=reject"), "example.com", "badexample.com", "", "fail reject"},

		{"sp", rec("example.com", "p=reject; sp=none"), "sub.example.com", "", "", "fail none"},
		{"sp not for the domain itself", rec("example.com", "p=reject; sp=none"), "example.com", "", "", "fail reject"},
		{"record of the subdomain", rec("example.com", "p=reject") + rec("sub.example.com", "p=none"), "sub.example.com", "", "", "fail none"},
		{"np for a name that is not there", rec("example.com", "p=reject; sp=none; np=quarantine"), "sub.example.com", "", "", "fail quarantine"},
		{"np not for one that is", rec("example.com", "p=reject; sp=none; np=quarantine") + "sub.example.com A 192.0.2.1\n", "sub.example.com", "", "", "fail none"},
		{"np not for an empty non-terminal", rec("example.com", "p=reject; sp=none; np=quarantine") + "x.sub.example.com A 192.0.2.1\n", "sub.example.com", "", "", "fail none"},
		{"t=y", rec("example.com", "p=reject; t=y"), "example.com", "", "", "fail quarantine"},
		{"t=y below", rec("example.com", "p=quarantine; t=Y"), "example.com", "", "", "fail none"},
		{"t=n", rec("example.com", "p=reject; t=n"), "example.com", "", "", "fail reject"},
		{"pct is history", rec("example.com", "p=reject; pct=0"), "example.com", "", "", "fail reject"},

		{"the record with the fewest labels", rec("b.example.com", "p=none") + rec("example.com", "p=reject"), "a.b.example.com", "", "", "fail reject"},
		{"psd=n stops the walk", rec("b.example.com", "p=reject; psd=n") + rec("example.com", "p=none"), "a.b.example.com", "", "", "fail reject"},
		{"psd=n keeps the parent out", rec("mail.example.com", "p=reject; psd=n") + rec("example.com", "p=reject"), "mail.example.com", "", "example.com", "fail reject"},
		{"its own organization", rec("mail.example.com", "p=reject"), "mail.example.com", "bounce.example.com", "example.com", "fail reject"},
		{"B.4.1", rec("example.com", "p=reject") + rec("signing.example.com", "p=reject"), "example.com", "", "signing.example.com", "pass reject"},
		{"B.4.2", rec("example.com", "p=reject") + rec("signing.example.com", "p=reject"), "a.b.c.d.e.f.g.h.i.j.k.example.com", "example.com", "", "pass reject"},
		{"B.4.3 aligned", bank + rec("giant.bank.example", "p=quarantine"), "giant.bank.example", "mail.giant.bank.example", "mail.mega.bank.example", "pass quarantine"},
		{"B.4.3 not aligned", bank + rec("giant.bank.example", "p=quarantine"), "giant.bank.example", "", "mail.mega.bank.example", "fail quarantine"},
		{"policy of the public suffix", bank, "mail.giant.bank.example", "", "giant.bank.example", "pass quarantine"},
		{"two registrants", bank, "giant.bank.example", "bank.example", "mega.bank.example", "fail quarantine"},
		{"a public suffix that sends", bank, "bank.example", "mail.bank.example", "", "fail reject"},
		{"several records are none", rec("example.com", "p=reject") + rec("example.com", "p=none"), "example.com", "", "", "none "},
		{"and the walk goes on", rec("a.example.com", "p=reject") + rec("a.example.com", "p=none") + rec("example.com", "p=quarantine"), "a.example.com", "", "", "fail quarantine"},
		{"other TXT records", "_dmarc.example.com TXT \"hello\"\n" + rec("example.com", "p=reject"), "example.com", "", "", "fail reject"},

		{"no p, reports wanted", rec("example.com", "rua=mailto:x@example.com"), "example.com", "", "", "fail none"},
		{"no p, no reports", rec("example.com", "adkim=s"), "example.com", "", "", "none "},
		{"bad p, reports wanted", rec("example.com", "p=block; rua=ftp://x,https://example.com/r!10m"), "example.com", "", "", "fail none"},
		{"bad sp, no reports", rec("example.com", "p=reject; sp=x; rua=mailto:"), "sub.example.com", "", "", "none "},
		{"a record without policy ends the search", rec("mail.example.com", "adkim=s") + rec("example.com", "p=reject"), "mail.example.com", "", "", "none "},
		{"empty parts, odd blanks", rec("example.com", " ; p = Reject ;; foo;\t"), "example.com", "", "", "fail reject"},
		{"duplicate tag", rec("example.com", "p=reject; p=none"), "example.com", "", "", "fail reject"},
		{"version in lower case", "_dmarc.example.com TXT \"v=dmarc1; p=reject\"\n", "example.com", "", "", "none "},
		{"version with more", "_dmarc.example.com TXT \"v=DMARC1x; p=reject\"\n", "example.com", "", "", "none "},
		{"version not first", "_dmarc.example.com TXT \"p=reject; v=DMARC1\"\n", "example.com", "", "", "none "},
		{"version alone", "_dmarc.example.com TXT \"v=DMARC1\"\n", "example.com", "", "", "none "},
		{"blanks around the version", "_dmarc.example.com TXT \"v = DMARC1 ; p=reject\"\n", "example.com", "", "", "fail reject"},

		{"policy unavailable", "_dmarc.example.com SERVFAIL\n", "example.com", "example.com", "", "temperror "},
		{"policy above unavailable", "_dmarc.example.com SERVFAIL\n", "mail.example.com", "example.com", "", "temperror "},
		{"not needed for an exact match", rec("example.com", "p=reject") + "_dmarc.com SERVFAIL\n", "example.com", "", "example.com", "pass reject"},
		{"needed for another", rec("example.com", "p=reject") + "_dmarc.com SERVFAIL\n", "example.com", "", "mail.example.com", "temperror reject"},
		{"an identifier unavailable", rec("example.com", "p=reject") + "_dmarc.mail.example.com SERVFAIL\n", "example.com", "", "mail.example.com", "temperror reject"},
		{"another identifier passes", rec("example.com", "p=reject") + "_dmarc.mail.example.com SERVFAIL\n", "example.com", "b.example.com", "mail.example.com", "pass reject"},
		{"unavailable, but strict", rec("example.com", "p=reject; adkim=s") + "_dmarc.mail.example.com SERVFAIL\n", "example.com", "", "mail.example.com", "fail reject"},
		{"existence unavailable", rec("example.com", "p=reject; sp=none; np=reject") + "sub.example.com SERVFAIL\n", "sub.example.com", "", "", "temperror "},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := evaluate(t, zone.MustNew(c.zone), c.from, c.spf, words(c.dkim), nil)
			if got := r.Value + " " + string(r.Policy); got != c.want {
				t.Errorf("got %q (%s), want %q", got, r.Reason, c.want)
			}
		})
	}
}

// TestC113Questions: what is asked, and in which order.
func TestC113Questions(t *testing.T) {
	example := rec("example.com", "p=reject")
	for _, c := range []struct{ name, zone, from, spf, dkim, want string }{
		{"exact: one question", example, "example.com", "", "example.com", "example.com"},
		{"foreign identifiers are not walked", example, "example.com", "bounce.esp.example", "esp.net", "example.com"},
		{"B.4.1", example + rec("signing.example.com", "p=none"), "example.com", "", "signing.example.com", "example.com com signing.example.com"},
		{"thirteen labels", example, "a.b.c.d.e.f.g.h.i.j.k.example.com", "", "",
			"a.b.c.d.e.f.g.h.i.j.k.example.com g.h.i.j.k.example.com h.i.j.k.example.com i.j.k.example.com j.k.example.com k.example.com example.com com"},
		{"nine labels", "", "x.a.b.c.d.e.f.example.com", "", "",
			"x.a.b.c.d.e.f.example.com b.c.d.e.f.example.com c.d.e.f.example.com d.e.f.example.com e.f.example.com f.example.com example.com com"},
		{"eight labels", "", "a.b.c.d.e.f.example.com", "", "",
			"a.b.c.d.e.f.example.com b.c.d.e.f.example.com c.d.e.f.example.com d.e.f.example.com e.f.example.com f.example.com example.com com"},
		{"psd=n", rec("mail.example.com", "p=reject; psd=n"), "mail.example.com", "", "x.mail.example.com", "mail.example.com x.mail.example.com"},
	} {
		z := zone.MustNew(c.zone)
		evaluate(t, z, c.from, c.spf, words(c.dkim), nil)
		var got []string
		for _, q := range z.Queries() {
			got = append(got, strings.TrimSuffix(strings.TrimPrefix(q, "_dmarc."), " TXT"))
		}
		if d := cmp.Diff(words(c.want), got); d != "" {
			t.Errorf("%s:\n%s", c.name, d)
		}
	}
}

// TestD29Floods: long names and many identifiers ask a bounded number of questions.
func TestD29Floods(t *testing.T) {
	z := zone.MustNew(rec("example.com", "p=reject"))
	evaluate(t, z, strings.Repeat("a.", 115)+"example.com", "", nil, nil)
	if n := len(z.Queries()); n > maxWalk {
		t.Errorf("%d questions for a long name", n)
	}
	z.ResetQueries()
	var ids []string
	for i := range 100 {
		ids = append(ids, fmt.Sprintf("a.b.c.d.e.f.s%d.org%d.com", i, i))
	}
	evaluate(t, z, "example.com", "", ids, nil)
	if n := len(z.Queries()); n > maxWalk*maxIDs {
		t.Errorf("%d questions for many identifiers", n)
	}
	z.ResetQueries()
	many := "From: a@0.example"
	for i := range 1000 {
		many += fmt.Sprintf(",\n a@%d.example", i)
	}
	r := evaluate(t, z, many, "", nil, nil)
	if n := len(z.Queries()); n > maxWalk*maxAuthors || r.Value != Fail {
		t.Errorf("%d questions for many authors: %+v", n, r)
	}
}

// TestMaybe: what could not be checked now is not a failure (C118).
func TestMaybe(t *testing.T) {
	z := zone.MustNew(rec("example.com", "p=reject"))
	for maybe, want := range map[string]string{"example.com": TempError, "mail.example.com": TempError, "example.org": Fail, "": Fail} {
		if r := evaluate(t, z, "example.com", "", nil, words(maybe)); r.Value != want {
			t.Errorf("%q: %s, want %s", maybe, r.Value, want)
		}
	}
	if r := evaluate(t, z, "example.com", "example.com", nil, words("example.com")); r.Value != Pass {
		t.Errorf("SPF passed: %s", r.Value)
	}
}

// TestD24From: From fields made to show one author and pass as another.
func TestD24From(t *testing.T) {
	z := zone.MustNew(rec("bank.example", "p=reject") + rec("evil.example", "p=none"))
	for _, c := range []struct {
		header string
		want   string // result, author domain
		err    error
	}{
		{"From: a@evil.example", "pass evil.example", nil},
		{"From: <a@evil.example>\nFrom: <admin@bank.example>", "fail bank.example", ErrManyFrom},
		{"From: <admin@bank.example>\nfrom: <a@evil.example>", "fail bank.example", ErrManyFrom},
		{"From : <admin@bank.example>\nFrom: <a@evil.example>", "fail bank.example", ErrManyFrom},
		{"From\x00: <admin@bank.example>\nFrom: <a@evil.example>", "fail bank.example", ErrManyFrom},
		{"From\u00a0: <admin@bank.example>\nFrom: <a@evil.example>", "fail bank.example", ErrManyFrom},
		{" From: <admin@bank.example>\nFrom: <a@evil.example>", "fail bank.example", ErrManyFrom},
		{"From: <a@evil.example>, <admin@bank.example>", "fail bank.example", ErrManyDomains},
		{"From: <admin@bank.example>, <a@evil.example>", "fail bank.example", ErrManyDomains},
		{"From: admin@bank.example <a@evil.example>", "fail bank.example", ErrMalformed},
		{"From: <admin@bank.example><a@evil.example>", "fail bank.example", ErrMalformed},
		{"From: <admin@bank.example>\x00,<a@evil.example>", "fail bank.example", ErrMalformed},
		{"From: \"<admin@bank.example>\" <a@evil.example>", "pass evil.example", nil},
		{"From: admin@bank.example(x)@evil.example", "fail bank.example", ErrMalformed},
		{"From: <@evil.example:admin@bank.example>", "fail bank.example", nil},
		{"From: admin@bank.example\\,a@evil.example", "fail bank.example", ErrMalformed},
		{"From: =?utf-8?b?YWRtaW5AYmFuay5leGFtcGxl?= <a@evil.example>", "pass evil.example", nil},
		{"From: Bank: <admin@bank.example>, <a@evil.example>;", "fail bank.example", ErrManyDomains},
		{"From: (<admin@bank.example>) a@evil.example", "pass evil.example", nil},
		{"From: admin@bank.example\n\tx@evil.example", "fail bank.example", ErrMalformed},
		{"From: a@evil.example, b@evil.example", "pass evil.example", nil},
		{"From: a@evil.example.", "pass evil.example", ErrMalformed},
		{"From: a@[192.0.2.1]", "fail ", ErrMalformed},
		{"From: nobody", "fail ", ErrMalformed},
		{"From: undisclosed-recipients:;", "fail ", ErrMalformed},
		{"From:", "fail ", ErrMalformed},
		{"Sender: a@evil.example", "permerror ", ErrNoFrom},
		{"From: a@ev\til.example", "fail ", ErrMalformed},
	} {
		r := evaluate(t, z, c.header, "evil.example", []string{"evil.example"}, nil)
		if got := r.Value + " " + r.Domain; got != c.want && !(c.want == "fail " && r.Value == Fail) {
			t.Errorf("%q: got %q (%v), want %q", c.header, got, r.Author, c.want)
		}
		if !errors.Is(r.Author, c.err) || (r.Author == nil) != (c.err == nil) {
			t.Errorf("%q: error %v, want %v", c.header, r.Author, c.err)
		}
	}
	// An unprotected name beside one that passes: in doubt it is a failure.
	if r := evaluate(t, z, "From: a@evil.example, b@unprotected.example", "evil.example", nil, nil); r.Value != Fail {
		t.Errorf("unprotected: %+v", r)
	}
}

func TestAuthorLine(t *testing.T) {
	h, _ := message.Parse([]byte("To: x\r\n y\r\nFrom: bad\r\n\r\n"))
	_, err := Authors(h)
	if err == nil || err.Error() != "line 3: the From field is malformed" {
		t.Errorf("got %v", err)
	}
}

func TestMetrics(t *testing.T) {
	c := New(zone.MustNew(rec("example.com", "p=none")), expvarom.New())
	for _, from := range []string{"example.com", "example.com", "example.org"} {
		h, _ := message.Parse([]byte("From: a@" + from + "\r\n\r\n"))
		c.Check(context.Background(), Input{Header: h, SPF: "example.com"})
	}
	if p, n := c.results[Pass].Value(), c.results[None].Value(); p != 2 || n != 1 {
		t.Errorf("pass %v, none %v", p, n)
	}
}

func FuzzRecord(f *testing.F) {
	f.Add("v=DMARC1; p=reject; sp=none; np=quarantine; rua=mailto:a@b; adkim=s; t=y; psd=u")
	f.Fuzz(func(t *testing.T, s string) {
		r, ok := ParseRecord(s)
		if !ok {
			return
		}
		valid := []Policy{PolicyNone, PolicyQuarantine, PolicyReject}
		if !slices.Contains(valid, r.Policy) || !slices.Contains(valid, r.Subdomains) || r.Absent != "" && !slices.Contains(valid, r.Absent) {
			t.Fatalf("%q: %+v", s, r)
		}
	})
}

func FuzzAuthors(f *testing.F) {
	f.Add([]byte("From: a@b.c\r\nFrom : <x@y.z>, G: (c) d@e;\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := message.Parse(b)
		if err != nil {
			return
		}
		l, err := Authors(h)
		if len(l) == 0 && err == nil || len(l) > maxAuthors || len(l) > 1 && err == nil {
			t.Fatalf("%q: %q, %v", b, l, err)
		}
		for _, d := range l {
			if strings.ContainsAny(d, "\x00\r\n @<>/\\()\";") {
				t.Fatalf("%q: domain %q", b, d)
			}
		}
	})
}

func BenchmarkCheck(b *testing.B) {
	z := zone.MustNew(rec("example.com", "p=reject; rua=mailto:dmarc@example.com"))
	h, _ := message.Parse([]byte("From: Joe <joe@example.com>\r\n\r\n"))
	c := New(z, nil)
	b.ReportAllocs()
	for b.Loop() {
		z.ResetQueries()
		if r := c.Check(context.Background(), Input{Header: h, SPF: "example.com"}); r.Value != Pass {
			b.Fatal(r)
		}
	}
}
