package policy

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/dkim"
	"blitiri.com.ar/go/chasquid/internal/dmarc"
	"blitiri.com.ar/go/chasquid/internal/dns"
	"blitiri.com.ar/go/chasquid/internal/dns/zone"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/message"
	"blitiri.com.ar/go/chasquid/internal/spf"
	"github.com/emersion/go-msgauth/authres"
	"github.com/google/go-cmp/cmp"
)

// rawMsg is a message as Content.
type rawMsg string

func (s rawMsg) Size() int64            { return int64(len(s)) }
func (s rawMsg) Content() io.ReadSeeker { return strings.NewReader(string(s)) }

func wire(s string) rawMsg { return rawMsg(strings.ReplaceAll(s, "\n", "\r\n")) }

var signKey = func() ed25519.PrivateKey {
	_, k, _ := ed25519.GenerateKey(rand.Reader)
	return k
}()

func authZone() *zone.Zone {
	rec, _ := dkim.Record(signKey.Public())
	return zone.MustNew(`
good.example   TXT "v=spf1 ip4:192.0.2.1 -all"
soft.example   TXT "v=spf1 ~all"
neutral.example TXT "v=spf1"
broken.example SERVFAIL
_dmarc.good.example   TXT "v=DMARC1; p=reject"
_dmarc.broken.example TXT "v=DMARC1; p=reject"
host.good.example TXT "v=spf1 a -all"
host.good.example A 192.0.2.1
sel._domainkey.good.example TXT "` + rec + `"
later._domainkey.good.example SERVFAIL
`)
}

// run takes a message through the checks as the server does and returns the verdict that refuses, or the last.
func run(t testing.TB, r dns.Resolver, enforce bool, s *Session, from string, msg rawMsg) (*Transaction, Verdict, []byte) {
	t.Helper()
	tx := &Transaction{Session: s, Env: &mail.Envelope{From: address.MustParse(from)}}
	v := NewSPF(spf.New(spf.Config{Resolver: r})).Mail(context.Background(), tx)
	header := v.Header
	if v.Refuse != nil {
		return tx, v, header
	}
	keys := func(d string) []dkim.Key {
		if d == "good.example" {
			return []dkim.Key{{Domain: d, Selector: "sel", Signer: signKey}}
		}
		return nil
	}
	for _, c := range []BodyCheck{NewDKIMVerify(dkim.NewVerifier(r, nil)), NewDMARC(dmarc.New(r, nil), enforce), NewDKIMSign(dkim.NewSigner(keys, nil))} {
		v = c.Body(context.Background(), tx, msg)
		header = append(header, v.Header...)
		if v.Refuse != nil {
			return tx, v, header
		}
	}
	return tx, v, header
}

func client(ip, helo string) *Session {
	return &Session{Mode: "SMTP", Remote: netip.AddrPortFrom(netip.MustParseAddr(ip), 25), EHLO: helo, Hostname: "mx.here.example"}
}

// sign returns the message signed by good.example.
func sign(t testing.TB, msg rawMsg) rawMsg {
	t.Helper()
	s := dkim.NewSigner(func(d string) []dkim.Key { return []dkim.Key{{Domain: d, Selector: "sel", Signer: signKey}} }, nil)
	f, err := s.SignMessage(context.Background(), "good.example", msg.Content())
	if err != nil {
		t.Fatal(err)
	}
	return rawMsg(f) + msg
}

// bHash cuts out what a signature has that changes with each run.
func masked(lines []string) (out []string) {
	for _, l := range lines {
		if i := strings.Index(l, "header.b="); i >= 0 {
			l = l[:i+len("header.b=")] + "XXXXXXXXXXXX" + l[i+len("header.b=")+12:]
		}
		out = append(out, l)
	}
	return out
}

// TestSMTP53AuthRes: the lines of Authentication-Results and Received-SPF, and what is refused.
func TestSMTP53AuthRes(t *testing.T) {
	plain := wire("From: joe@good.example\nTo: x\nSubject: y\n\nbody\n")
	signed := sign(t, plain)
	changed := rawMsg(strings.Replace(string(signed), "Subject: y", "Subject: z", 1))
	for _, c := range []struct {
		name, ip, helo, from string
		msg                  rawMsg
		enforce              bool
		spf                  string
		authRes              []string
		refuse               string
	}{
		{"all pass", "192.0.2.1", "x", "joe@good.example", signed, true, "pass (matched ip)",
			[]string{"spf=pass (matched ip)", "dkim=pass  header.b=XXXXXXXXXXXX  header.d=good.example", "dmarc=pass  header.from=good.example"}, ""},
		{"SPF fail", "192.0.2.9", "x", "joe@good.example", signed, false, "fail (matched all)", []string{"spf=fail (matched all)"}, "550 5.7.23 SPF check failed: matched all"},
		{"only DKIM", "192.0.2.9", "x", "joe@soft.example", signed, true, "softfail (matched all)",
			[]string{"spf=softfail (matched all)", "dkim=pass  header.b=XXXXXXXXXXXX  header.d=good.example", "dmarc=pass  header.from=good.example"}, ""},
		{"only SPF", "192.0.2.1", "x", "joe@good.example", plain, true, "pass (matched ip)",
			[]string{"spf=pass (matched ip)", "dkim=none", "dmarc=pass  header.from=good.example"}, ""},
		{"nothing, reported", "192.0.2.9", "x", "joe@neutral.example", changed, false, "neutral (<nil>)",
			[]string{"spf=neutral (<nil>)", "dkim=fail  reason=\"signature verification failed\"\r\n  header.b=XXXXXXXXXXXX  header.d=good.example", "dmarc=fail (p=reject)  header.from=good.example"}, ""},
		{"nothing, enforced", "192.0.2.9", "x", "joe@absent.example", plain, true, "none (no DNS record found)",
			[]string{"spf=none (no DNS record found)", "dkim=none", "dmarc=fail (p=reject)  header.from=good.example"},
			"550 5.7.1 Refused by the DMARC policy of the domain in the From field: neither SPF nor DKIM passed for it"},
		{"no policy", "192.0.2.9", "x", "joe@absent.example", wire("From: a@absent.example\n\n"), true, "none (no DNS record found)",
			[]string{"spf=none (no DNS record found)", "dkim=none", "dmarc=none  header.from=absent.example"}, ""},
		{"null sender", "192.0.2.1", "host.good.example", "", plain, true, "pass (matched a)",
			[]string{"spf=pass (matched a)", "dkim=none", "dmarc=pass  header.from=good.example"}, ""},
		{"null sender, HELO of another", "192.0.2.9", "host.good.example", "", plain, true, "fail (matched all)",
			[]string{"spf=fail (matched all)"}, "550 5.7.23 SPF check failed: matched all"},
		{"C118 temporary error", "192.0.2.1", "x", "joe@broken.example", wire("From: joe@broken.example\n\n"), true, "temperror (DNS error)",
			[]string{"spf=temperror (DNS error)", "dkim=none", "dmarc=temperror (not all could be checked)  header.from=broken.example"}, ""},
		{"C118 key unavailable", "192.0.2.9", "x", "joe@absent.example", rawMsg(strings.Replace(string(signed), "s=sel;", "s=later;", 1)), true, "none (no DNS record found)",
			[]string{"spf=none (no DNS record found)", "dkim=temperror  reason=\"key unavailable\"\r\n  header.b=XXXXXXXXXXXX  header.d=good.example",
				"dmarc=temperror (not all could be checked)  header.from=good.example"}, ""},
		{"D24 two From fields", "192.0.2.9", "x", "joe@absent.example", wire("From: a@absent.example\nFrom: joe@good.example\n\n"), true, "none (no DNS record found)",
			[]string{"spf=none (no DNS record found)", "dkim=none", "dmarc=fail (p=reject)  header.from=good.example"},
			"550 5.7.1 Refused by the DMARC policy of the domain in the From field: neither SPF nor DKIM passed for it"},
		{"no From, reported", "192.0.2.1", "x", "joe@good.example", wire("To: x\n\n"), false, "pass (matched ip)",
			[]string{"spf=pass (matched ip)", "dkim=none", "dmarc=permerror (no From field)"}, ""},
		{"no From, enforced", "192.0.2.1", "x", "joe@good.example", wire("To: x\n\n"), true, "pass (matched ip)",
			[]string{"spf=pass (matched ip)", "dkim=none", "dmarc=permerror (no From field)"}, "554 5.6.0 The message has no From field"},
		{"X-6 malformed From, enforced", "192.0.2.1", "x", "joe@good.example", wire("To: x\nFrom: nobody\n\n"), true, "pass (matched ip)",
			[]string{"spf=pass (matched ip)", "dkim=none", "dmarc=fail (p=none)"}, "554 5.6.0 The From field in line 2 of the message names no valid address"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tx, v, header := run(t, authZone(), c.enforce, client(c.ip, c.helo), c.from, c.msg)
			if want := "Received-SPF: " + c.spf + "\r\n"; string(header) != want {
				t.Errorf("header %q, want %q", header, want)
			}
			if d := cmp.Diff(c.authRes, masked(tx.Results.AuthRes)); d != "" {
				t.Error(d)
			}
			got := ""
			if v.Refuse != nil {
				got = v.Refuse.String()
				if v.Label == "" || v.Reason == "" {
					t.Errorf("refusal without label or reason: %+v", v)
				}
			}
			if got != c.refuse {
				t.Errorf("reply %q, want %q", got, c.refuse)
			}
		})
	}
}

// TestC107AuthResParses: another implementation reads the results as they are meant.
func TestC107AuthResParses(t *testing.T) {
	signed := sign(t, wire("From: joe@good.example\n\nbody\n"))
	tx, _, _ := run(t, authZone(), false, client("192.0.2.1", "x"), "joe@good.example", rawMsg(strings.Replace(string(signed), "body", "other", 1)))
	field := "mx.here.example"
	for _, r := range tx.Results.AuthRes {
		field += "\r\n\t;" + r
	}
	id, results, err := authres.Parse(strings.ReplaceAll(field, "\r\n", ""))
	if err != nil || id != "mx.here.example" || len(results) != 3 {
		t.Fatalf("%q: %v, %q", field, err, id)
	}
	if r, ok := results[0].(*authres.SPFResult); !ok || r.Value != authres.ResultPass {
		t.Errorf("%+v", results[0])
	}
	if r, ok := results[1].(*authres.DKIMResult); !ok || r.Value != authres.ResultFail || r.Domain != "good.example" {
		t.Errorf("%+v", results[1])
	}
	if r, ok := results[2].(*authres.DMARCResult); !ok || r.Value != authres.ResultPass || r.From != "good.example" {
		t.Errorf("%+v", results[2])
	}
}

// TestAuthenticated: mail of our users is signed, not checked, with what the server added to it.
func TestAuthenticated(t *testing.T) {
	s := client("192.0.2.9", "laptop")
	s.User = "joe@good.example"
	msg := wire("From: joe@good.example\n\nbody\n")
	tx := &Transaction{Session: s, Env: &mail.Envelope{From: address.MustParse("joe@good.example")}, Added: []byte("Message-ID: <1@here>\r\n")}
	keys := func(string) []dkim.Key {
		return []dkim.Key{{Domain: "good.example", Selector: "sel", Signer: signKey}}
	}
	v := NewDKIMSign(dkim.NewSigner(keys, nil)).Body(context.Background(), tx, msg)
	if v.Refuse != nil || !strings.HasPrefix(string(v.Below), "DKIM-Signature: v=1; a=ed25519-sha256;") {
		t.Fatalf("%+v", v)
	}
	if len(tx.Results.AuthRes) != 0 || len(v.Header) != 0 {
		t.Errorf("checked: %q", tx.Results.AuthRes)
	}
	whole := rawMsg(v.Below) + rawMsg(tx.Added) + msg
	h, _ := message.Read(whole.Content())
	res, err := dkim.NewVerifier(authZone(), nil).Verify(context.Background(), h, func() (io.Reader, error) {
		return strings.NewReader(string(whole[h.Len():])), nil
	})
	if err != nil || res.Valid() != 1 || !bytes.Contains(v.Below, []byte("h=from:message-id:")) {
		t.Errorf("%+v, %v\n%s", res, err, v.Below)
	}
	s2, v2, header := run(t, authZone(), true, s, "someone@absent.example", wire("To: x\n\n"))
	if v2.Refuse != nil || len(v2.Below)+len(header) != 0 || s2.Results.SPF != "" || s2.Results.DMARC != "" {
		t.Errorf("mail of another domain: %+v, %+v", v2, s2.Results)
	}
}

// TestD35Refusals: a header over the limits is refused for good, a broken disk for now.
func TestD35Refusals(t *testing.T) {
	big := wire("From: a@b\n" + strings.Repeat("X: y\n", message.MaxFields) + "\n")
	_, v, _ := run(t, authZone(), false, client("192.0.2.1", "x"), "joe@good.example", big)
	if v.Refuse == nil || v.Refuse.Code != 554 || v.Refuse.Enh.String() != "5.6.0" || v.Label != "bad_content" {
		t.Errorf("too big: %+v", v)
	}
	tx := &Transaction{Session: client("192.0.2.1", "x"), Env: &mail.Envelope{}}
	v = NewDKIMVerify(dkim.NewVerifier(authZone(), nil)).Body(context.Background(), tx, brokenContent{})
	if v.Refuse == nil || v.Refuse.Code != 451 || strings.Contains(v.Refuse.Text, "disk") || !strings.Contains(v.Reason, "disk") {
		t.Errorf("broken: %+v", v)
	}
	s := client("192.0.2.1", "x")
	s.User = "joe@good.example"
	tx = &Transaction{Session: s, Env: &mail.Envelope{From: address.MustParse("joe@good.example")}}
	v = NewDKIMSign(dkim.NewSigner(func(string) []dkim.Key { return make([]dkim.Key, 1) }, nil)).Body(context.Background(), tx, brokenContent{})
	if v.Refuse == nil || v.Refuse.Code != 451 {
		t.Errorf("signing: %+v", v)
	}
}

type brokenContent struct{}

func (brokenContent) Size() int64            { return 1 }
func (brokenContent) Content() io.ReadSeeker { return brokenReader{} }

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error)       { return 0, errors.New("disk error") }
func (brokenReader) Seek(int64, int) (int64, error) { return 0, errors.New("disk error") }

// TestNoStrangerBytes: what a sender controls gets into replies and Authentication-Results only in a harmless form (X-3, D13).
func TestNoStrangerBytes(t *testing.T) {
	evil := "a@good.example)\x1b[2J;dkim=pass"
	for _, from := range []string{evil, "<x@\"evil;dmarc=pass\">", "x@[127.0.0.1;dmarc=pass]", "x@a.b;dmarc=pass", "x@é\x00"} {
		tx, v, _ := run(t, authZone(), true, client("192.0.2.1", "evil)\r\nX: y"), "", wire("From: "+from+"\n\n"))
		all := fmt.Sprint(tx.Results.AuthRes)
		if v.Refuse != nil {
			all += v.Refuse.String()
		}
		if strings.ContainsAny(all, "\x1b;\x00\r\n") {
			t.Errorf("%q: %q", from, all)
		}
	}
}

// BenchmarkChecks is what one message without signature costs with the answers in memory: SPF, DKIM and DMARC.
func BenchmarkChecks(b *testing.B) {
	z := authZone()
	addr, stop, err := z.Listen("127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer stop()
	r := dns.New(dns.Config{Servers: []string{addr}})
	checks := []any{NewSPF(spf.New(spf.Config{Resolver: r})), NewDKIMVerify(dkim.NewVerifier(r, nil)), NewDMARC(dmarc.New(r, nil), false)}
	msg := wire("Received: from a (b [192.0.2.1])\n\tby c with ESMTPS id 1;\n\tMon, 1 Jan 2024 00:00:00 +0000\nFrom: Joe <joe@good.example>\nTo: Suzie <s@example.net>\n" +
		"Subject: Is dinner ready?\nDate: Fri, 11 Jul 2003 21:00:37 -0700\nMessage-ID: <1@good.example>\nMIME-Version: 1.0\nContent-Type: text/plain\n\nHi.\n")
	s := client("192.0.2.1", "host.good.example")
	ctx := context.Background()
	b.ReportAllocs()
	for b.Loop() {
		tx := &Transaction{Session: s, Env: &mail.Envelope{From: address.Address{Local: "joe", Domain: "good.example"}}}
		for _, c := range checks {
			switch c := c.(type) {
			case MailCheck:
				c.Mail(ctx, tx)
			case BodyCheck:
				c.Body(ctx, tx, msg)
			}
		}
		if tx.Results.DMARC != dmarc.Pass {
			b.Fatalf("%+v", tx.Results)
		}
	}
}
