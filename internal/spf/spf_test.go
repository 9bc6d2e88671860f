package spf

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/dns"
	"blitiri.com.ar/go/chasquid/internal/dns/zone"
	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/spf"
)

const records = `
all.example        TXT "v=spf1 -all"
mx.example         TXT "v=spf1 mx -all"
mx.example         MX  10 host.example
host.example       A   192.0.2.1
host.example       TXT "v=spf1 a -all"
neutral.example    TXT "v=spf1 ip4:198.51.100.1"
broken.example     SERVFAIL
dead.example       TIMEOUT
bad.example        TXT "v=spf1 foo:bar -all"
badip.example      TXT "v=spf1 ip4:300.0.0.1 -all"
badmask.example    TXT "v=spf1 a/99 -all"
badmacro.example   TXT "v=spf1 a:%{z}.example -all"
two.example        TXT "v=spf1 -all"
two.example        TXT "v=spf1 +all"
xn--bcher-kva.example TXT "v=spf1 ip4:192.0.2.1 -all"
sender.example     TXT "v=spf1 exists:%{l}.who.example -all"
joe.who.example    A 127.0.0.2
joe_x.who.example  A 127.0.0.2
helo.example       TXT "v=spf1 exists:%{h}.greeted.example -all"
host.example.greeted.example A 127.0.0.2
slow.example       TXT "v=spf1 include:slow2.example -all"
slow2.example      TXT "v=spf1 -all"
slow.example       DELAY 15s
slow2.example      DELAY 15s
evil.example       TXT "v=spf1 +all"
victim.example     TXT "v=spf1 -all"
`

func TestCheck(t *testing.T) {
	c := New(Config{Resolver: zone.MustNew(records)})
	for _, v := range []struct{ from, helo, ip, want string }{
		{"a@all.example", "x", "192.0.2.1", "fail (matched all) all.example"},
		{"a@mx.example", "x", "192.0.2.1", "pass (matched mx) mx.example"},
		{"a@mx.example", "x", "::ffff:192.0.2.1", "pass (matched mx) mx.example"},
		{"a@mx.example", "x", "2001:db8::1", "fail (matched all) mx.example"},
		{"a@neutral.example", "x", "192.0.2.1", "neutral () neutral.example"},
		{"a@absent.example", "x", "192.0.2.1", "none (no DNS record found) absent.example"},
		{"a@broken.example", "x", "192.0.2.1", "temperror (DNS error) broken.example"},
		{"a@dead.example", "x", "192.0.2.1", "temperror (DNS time-out) dead.example"},
		{"a@bad.example", "x", "192.0.2.1", "permerror (unknown field) bad.example"},
		{"a@badip.example", "x", "192.0.2.1", "permerror (invalid ipX value) badip.example"},
		{"a@badmask.example", "x", "192.0.2.1", "permerror (invalid mask) badmask.example"},
		{"a@badmacro.example", "x", "192.0.2.1", "permerror (invalid macro) badmacro.example"},
		{"a@two.example", "x", "192.0.2.1", "permerror (multiple matching DNS records) two.example"},
		{"a@[192.0.2.1]", "x", "192.0.2.1", "none (not a domain name) "},
		// C116: the look-up uses A-labels.
		{"a@bücher.example", "x", "192.0.2.1", "pass (matched ip) xn--bcher-kva.example"},
		// The null sender is checked by its HELO name (RFC 7208 section 2.4).
		{"", "host.example", "192.0.2.1", "pass (matched a) host.example helo"},
		{"", "HOST.example", "192.0.2.2", "fail (matched all) host.example helo"},
		{"", "[192.0.2.1]", "192.0.2.1", "none (not a domain name)  helo"},
		{"", "localhost", "192.0.2.1", "none (not a domain name) localhost helo"},
		{"", "evil\x00.example", "192.0.2.1", "none (not a domain name)  helo"},
		// Macros see the real local part and HELO name.
		{"joe@sender.example", "x", "192.0.2.1", "pass (matched exists) sender.example"},
		{"jim@sender.example", "x", "192.0.2.1", "fail (matched all) sender.example"},
		{"joe@helo.example", "host.example", "192.0.2.1", "pass (matched exists) helo.example"},
		// An "@" in the local part must not choose another domain.
		{`"x@evil.example"@victim.example`, "x", "192.0.2.1", "fail (matched all) victim.example"},
		{`"joe@x"@sender.example`, "x", "192.0.2.1", "pass (matched exists) sender.example"},
	} {
		r := c.Check(context.Background(), netip.MustParseAddr(v.ip), v.helo, address.MustParse(v.from))
		got := fmt.Sprintf("%s (%s) %s", r.Value, r.Reason, r.Domain)
		if r.Helo {
			got += " helo"
		}
		if got != v.want {
			t.Errorf("from %q helo %q ip %s: got %s, want %s", v.from, v.helo, v.ip, got, v.want)
		}
	}
}

// TestD28Bombs: records made to make us ask much do not; see also the suite's processing limits.
func TestD28Bombs(t *testing.T) {
	var text strings.Builder
	for i := range 10 {
		fmt.Fprintf(&text, "bomb.example MX %d mx%d.bomb.example\n", i, i)
	}
	fmt.Fprintf(&text, "bomb.example TXT \"v=spf1%s -all\"\n", strings.Repeat(" include:bomb.example mx", 100)[:230])
	fmt.Fprintf(&text, "void.example TXT \"v=spf1 a:a.void.example a:b.void.example a:c.void.example a:d.void.example -all\"\n")
	text.WriteString("macro.example TXT \"v=spf1 include:%{d}.%{d}.%{d}.%{d} redirect=macro.example\"\n")
	long := strings.Repeat(`"`+strings.Repeat("a:x.example ", 20)+`" `, 250)
	text.WriteString("long.example TXT \"v=spf1 \" " + long + "\n")
	z := zone.MustNew(text.String())
	c := New(Config{Resolver: z})
	for domain, limit := range map[string]int{"bomb.example": 200, "void.example": 8, "macro.example": 40, "long.example": 30} {
		z.ResetQueries()
		r := c.Check(context.Background(), netip.MustParseAddr("192.0.2.1"), "x", address.Address{Local: "a", Domain: domain})
		if r.Value != PermError {
			t.Errorf("%s: %s (%s)", domain, r.Value, r.Reason)
		}
		if n := len(z.Queries()); n > limit {
			t.Errorf("%s: %d questions", domain, n)
		}
	}
}

// TestR13Budget: a check takes 20 s at most.
func TestR13Budget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New(Config{Resolver: zone.MustNew(records)})
		start := time.Now()
		r := c.Check(context.Background(), netip.MustParseAddr("192.0.2.1"), "x", address.MustParse("a@slow.example"))
		if took := time.Since(start); r.Value != TempError || took != 20*time.Second {
			t.Errorf("%+v after %v", r, took)
		}
	})
}

// TestMemo: a result is used again while its records live, for the same address and domain, unless a macro made it personal.
func TestMemo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := zone.MustNew(records + "short.example 30 TXT \"v=spf1 a:short2.example -all\"\nshort2.example 20 A 192.0.2.1\n")
		c := New(Config{Resolver: z})
		ask := func(from, ip string) int {
			z.ResetQueries()
			c.Check(t.Context(), netip.MustParseAddr(ip), "x", address.MustParse(from))
			return len(z.Queries())
		}
		for i, s := range []struct {
			wait     time.Duration
			from, ip string
			fresh    bool
		}{
			{0, "a@short.example", "192.0.2.1", true}, {0, "b@short.example", "192.0.2.1", false}, {0, "a@short.example", "192.0.2.2", true},
			{19 * time.Second, "a@short.example", "192.0.2.1", false}, {2 * time.Second, "a@short.example", "192.0.2.1", true},
			{0, "joe@sender.example", "192.0.2.1", true}, {0, "joe@sender.example", "192.0.2.1", true},
			{0, "a@broken.example", "192.0.2.1", true}, {0, "a@broken.example", "192.0.2.1", true},
			{0, "a@absent.example", "192.0.2.1", true}, {0, "a@absent.example", "192.0.2.1", false},
		} {
			time.Sleep(s.wait)
			if n := ask(s.from, s.ip); (n > 0) != s.fresh {
				t.Errorf("step %d, %s from %s: %d questions, want fresh %t", i, s.from, s.ip, n, s.fresh)
			}
		}
	})
}

// TestN3MemoBounded: the results of strangers' domains do not pile up.
func TestN3MemoBounded(t *testing.T) {
	c := New(Config{Resolver: fixed{txt: "v=spf1 -all"}})
	for i := range 3 * maxMemo {
		c.Check(context.Background(), netip.MustParseAddr("192.0.2.1"), "x", address.Address{Local: "a", Domain: fmt.Sprintf("d%d.example", i)})
	}
	if n := len(c.memo.m); n > maxMemo || n < maxMemo/2 {
		t.Errorf("%d results kept", n)
	}
}

func TestMetrics(t *testing.T) {
	reg := expvarom.New()
	c := New(Config{Resolver: zone.MustNew(records), Metrics: reg})
	for _, from := range []string{"a@all.example", "a@all.example", "a@absent.example"} {
		c.Check(context.Background(), netip.MustParseAddr("192.0.2.1"), "x", address.MustParse(from))
	}
	for res, want := range map[string]int64{"fail": 2, "none": 1, "pass": 0} {
		if got := c.m.legacy.Value(res); got != want {
			t.Errorf("legacy %s: %d, want %d", res, got, want)
		}
		if got := c.m.checks[res].Value(); got != float64(want) {
			t.Errorf("typed %s: %v, want %d", res, got, want)
		}
	}
}

func FuzzRecord(f *testing.F) {
	for _, s := range []string{"v=spf1 a:foo/bar.example/24//64 ~mx ?ptr:%{d2r-}.x -all", "v=spf1 redirect=%{s}", "v=spf1 exp=a.b x=%%%_%- ip6:::1/0", "V=SPF1"} {
		f.Add(s)
	}
	ctx := context.Background()
	f.Fuzz(func(t *testing.T, rec string) {
		if !isSPF(rec) {
			return
		}
		out, err := checkRecord(rec)
		if err != nil {
			if reason(err) == "invalid record" {
				t.Fatalf("%q: unnamed error %v", rec, err)
			}
			return
		}
		// What passes the check is no syntax error to the library either.
		z := txtResolver{resolver{dns.Std{Resolver: fixed{}}}, out}
		v, err := spf.CheckHostWithSender([]byte{192, 0, 2, 1}, "helo.example", "a@example.com", spf.WithResolver(z), spf.WithContext(ctx))
		if v == spf.PermError && (err == spf.ErrUnknownField || err == spf.ErrInvalidIP || err == spf.ErrInvalidMask) {
			t.Fatalf("%q passes, the library says %v", rec, err)
		}
	})
}

// txtResolver answers every TXT question with one record and nothing else.
type txtResolver struct {
	spf.DNSResolver
	txt string
}

func (r txtResolver) LookupTXT(context.Context, string) ([]string, error) {
	return []string{r.txt}, nil
}

func BenchmarkCheck(b *testing.B) {
	c := New(Config{Resolver: fixed{"v=spf1 include:_spf.example.com ip4:198.51.100.0/24 mx -all"}})
	from := address.MustParse("joe@example.com")
	ip := netip.MustParseAddr("198.51.100.7")
	ctx := context.Background()
	for _, fresh := range []bool{true, false} {
		b.Run(fmt.Sprintf("fresh=%t", fresh), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if fresh {
					clear(c.memo.m)
				}
				c.Check(ctx, ip, "mail.example.com", from)
			}
		})
	}
}
