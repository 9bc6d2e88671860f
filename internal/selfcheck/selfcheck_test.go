package selfcheck

import (
	"context"
	"crypto/ed25519"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"blitiri.com.ar/go/chasquid/internal/dkim"
	"blitiri.com.ar/go/chasquid/internal/dns"
	"blitiri.com.ar/go/chasquid/internal/dns/zone"
	"blitiri.com.ar/go/chasquid/internal/domains"
	"blitiri.com.ar/go/chasquid/internal/expvarom"
)

const good = `
mail.example.test A 192.0.2.7
7.2.0.192.in-addr.arpa PTR mail.example.test
example.test MX 10 mail.example.test
example.test TXT "v=spf1 mx -all"
_dmarc.example.test TXT "v=DMARC1; p=reject"
`

// site is one domain with a key, and a zone with its record and further lines; what begins with "-" takes lines away.
func site(t *testing.T, lines ...string) (Config, *domains.Domain) {
	t.Helper()
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	record, err := dkim.Record(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	text := good + "s1._domainkey.example.test TXT " + dkim.QuoteTXT(record) + "\n"
	for _, l := range lines {
		if prefix, less := strings.CutPrefix(l, "-"); less {
			all := strings.Split(text, "\n")
			text = strings.Join(slices.DeleteFunc(all, func(s string) bool { return strings.HasPrefix(s, prefix) }), "\n")
		} else {
			text += l + "\n"
		}
	}
	return Config{Resolver: zone.MustNew(text), Hostname: "mail.example.test", HasCert: func(host string) bool { return host == "mail.example.test" }},
		&domains.Domain{Name: "example.test", Dir: "domains/example.test", Keys: []domains.Key{{Domain: "example.test", Selector: "s1", Signer: key}}}
}

func TestFindings(t *testing.T) {
	for _, c := range []struct {
		name, check string
		lines       []string
		hostname    string
		want        Result
		text, fix   string
	}{
		{"mx", MX, nil, "", OK, "MX leads to this server", ""},
		{"no mx", MX, []string{"-example.test MX"}, "", Fail, "there is no MX record", "example.test. MX 10 mail.example.test."},
		{"null mx", MX, []string{"-example.test MX", "example.test MX 0 ."}, "", Fail, "null MX", "example.test. MX 10"},
		{"mx without address", MX, []string{"example.test MX 20 gone.example.test"}, "", Fail, "gone.example.test has no address", "A and AAAA"},
		{"other mx", MX, []string{"-example.test MX", "example.test MX 10 mx.example.test", "mx.example.test A 192.0.2.9"}, "", Warn, "no MX is this server", "add it"},
		{"spf", SPF, nil, "", OK, "SPF lets 192.0.2.7 send", ""},
		{"no spf", SPF, []string{"-example.test TXT"}, "", Warn, "no SPF record", "v=spf1 mx -all"},
		{"spf of others", SPF, []string{"-example.test TXT", `example.test TXT "v=spf1 ip4:192.0.2.99 -all"`}, "", Fail, "does not let 192.0.2.7 send", "ip4:192.0.2.7"},
		{"bad spf", SPF, []string{"-example.test TXT", `example.test TXT "v=spf1 bogus -all"`}, "", Fail, "in error", "correct"},
		{"key", DKIM, nil, "", OK, "s1 is published", ""},
		{"no key", DKIM, []string{"-s1._domainkey"}, "", Fail, "s1 is not published", "s1._domainkey.example.test. TXT"},
		{"other key", DKIM, []string{"-s1._domainkey", `s1._domainkey.example.test TXT "v=DKIM1; k=ed25519; p=AAAA"`}, "", Fail, "does not fit", "TXT"},
		{"dmarc", DMARC, nil, "", OK, "policy is reject", ""},
		{"no dmarc", DMARC, []string{"-_dmarc"}, "", Warn, "no valid DMARC", "v=DMARC1"},
		{"no sts", STS, nil, "", OK, "no MTA-STS policy", ""},
		{"certificate", Certificate, nil, "", OK, "mail.example.test", ""},
		{"no certificate", Certificate, nil, "other.example.test", Fail, "no valid certificate is for the host name other.example.test", "get a certificate"},
		{"ptr", PTR, nil, "", OK, "192.0.2.7", ""},
		{"no ptr", PTR, []string{"-7.2.0.192"}, "", Warn, "no reverse name", "mail.example.test"},
		{"other ptr", PTR, []string{"-7.2.0.192", "7.2.0.192.in-addr.arpa PTR host7.isp.test"}, "", Warn, "host7.isp.test", "mail.example.test"},
		{"no address", PTR, []string{"-mail.example.test A"}, "", Warn, "no address", "publish"},
	} {
		conf, d := site(t, c.lines...)
		if c.hostname != "" {
			conf.Hostname = c.hostname
		}
		found := append(conf.Domain(t.Context(), d), conf.Host(t.Context())...)
		ok := slices.ContainsFunc(found, func(f Finding) bool {
			return f.Check == c.check && f.Result == c.want && strings.Contains(f.Text, c.text) && strings.Contains(f.Fix, c.fix)
		})
		if !ok {
			t.Errorf("%s: not in %+v", c.name, found)
		}
	}
}

// status is the metric, by check.
func status(t *testing.T, reg *expvarom.Registry) map[string]float64 {
	t.Helper()
	fams, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range fams {
		if f.GetName() != "chasquid_selfcheck_status" {
			continue
		}
		for _, m := range f.Metric {
			for _, l := range m.Label {
				if l.GetName() == "check" {
					got[l.GetValue()] = m.GetGauge().GetValue()
				}
			}
		}
	}
	return got
}

// switched answers TXT from a resolver that is exchanged while it is used, and not at all while there is none.
type switched struct {
	dns.Resolver
	txt atomic.Pointer[dns.Resolver]
}

func (s *switched) TXT(ctx context.Context, p dns.Purpose, name string) ([]string, dns.Meta, error) {
	r := s.txt.Load()
	if r == nil {
		return nil, dns.Meta{}, errors.New("no answer")
	}
	return (*r).TXT(ctx, p, name)
}

// TestRunner: off there is nothing; on, the domains are looked at in a while, once a day, and every hour while something is wrong. What the
// resolver cannot say does not count as wrong.
func TestRunner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		good, d := site(t)
		bad, _ := site(t, "-s1._domainkey")
		resolver := &switched{Resolver: bad.Resolver}
		resolver.txt.Store(&bad.Resolver)
		conf := good
		conf.Resolver = resolver
		reg, looks := expvarom.New(), atomic.Int32{}
		r := New(RunnerConfig{Metrics: reg, Domains: func() []*domains.Domain { return []*domains.Domain{d} }, Checks: func() Config { looks.Add(1); return conf }})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); r.Run(ctx) }()
		wait := func(d time.Duration) { t.Helper(); time.Sleep(d); synctest.Wait() }
		want := func(n int32, dkim, mx float64) {
			t.Helper()
			if got := status(t, reg); looks.Load() != n || got[DKIM] != dkim || got[MX] != mx {
				t.Errorf("%d looks, %v; want %d looks, DKIM %v, MX %v", looks.Load(), got, n, dkim, mx)
			}
		}

		wait(48 * time.Hour)
		if got := status(t, reg); looks.Load() != 0 || len(got) != 0 {
			t.Errorf("it is off: %d looks, %v", looks.Load(), got)
		}
		r.Set(true)
		wait(2 * time.Minute)
		want(1, 0, 1)
		if got := len(r.Last("example.test").Findings); got < 7 {
			t.Errorf("%d findings", got)
		}
		wait(time.Hour)
		want(2, 0, 1)
		resolver.txt.Store(nil)
		wait(time.Hour)
		want(3, 0, 1)
		resolver.txt.Store(&good.Resolver)
		wait(time.Hour)
		want(4, 1, 1)
		resolver.txt.Store(nil)
		wait(22 * time.Hour)
		want(4, 1, 1)
		wait(2 * time.Hour)
		want(5, 1, 1)
		r.Set(false)
		if got := status(t, reg); len(got) != 0 || len(r.Last("example.test").Findings) != 0 {
			t.Errorf("it is off again: %v", got)
		}
		wait(48 * time.Hour)
		if n := looks.Load(); n != 5 {
			t.Errorf("%d looks, although it is off", n)
		}
		cancel()
		<-done
	})
}
