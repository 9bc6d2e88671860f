package dns_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"blitiri.com.ar/go/chasquid/internal/dns"
	"blitiri.com.ar/go/chasquid/internal/dns/zone"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	miekg "github.com/miekg/dns"
)

var bg = context.Background()

const records = `
example.com          MX    20 Backup.Example.COM.
example.com          MX    10 mx.example.com
example.com          TXT   "v=spf1 " "mx -all"
example.com          TXT   "with \"quotes\" and \009tab"
mx.example.com       A     192.0.2.1
mx.example.com       AAAA  2001:db8::1
v4.example.com       A     192.0.2.4
alias.example.com    CNAME v4.example.com
dead-end.example.com CNAME nowhere.example.com
loop1.example.com    CNAME loop2.example.com
loop2.example.com    CNAME loop1.example.com
null.example         MX    0 .
odd.example          MX    10 bad\047name.example
1.2.0.192.in-addr.arpa PTR MX.example.com.
_25._tcp.mx.example.com TLSA 3 1 1 0102030405060708090a0b0c0d0e0f100102030405060708090a0b0c0d0e0f10
broken.example       SERVFAIL
signed.example       SECURE
signed.example       TXT   "hello"
half.example         A     192.0.2.9
half.example         SERVFAIL AAAA
`

func serve(t testing.TB, text string) (*zone.Zone, string) {
	t.Helper()
	z := zone.MustNew(text)
	addr, stop, err := z.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return z, addr
}

func newClient(t testing.TB, cfg dns.Config) *dns.Client {
	t.Helper()
	cfg.Hosts = "-"
	return dns.New(cfg)
}

// both runs a test against the client over the wire and against the zone itself: the fake must not differ from the real one.
func both(t *testing.T, f func(t *testing.T, r dns.Resolver)) {
	z, addr := serve(t, records)
	t.Run("wire", func(t *testing.T) { f(t, newClient(t, dns.Config{Servers: []string{addr}})) })
	t.Run("zone", func(t *testing.T) { f(t, z) })
}

func TestMX(t *testing.T) {
	both(t, func(t *testing.T, r dns.Resolver) {
		got, _, err := r.MX(bg, dns.ForMX, "example.com")
		want := []dns.MX{{Pref: 10, Host: "mx.example.com"}, {Pref: 20, Host: "backup.example.com"}}
		if d := cmp.Diff(want, got); d != "" || err != nil {
			t.Errorf("err %v, diff:\n%s", err, d)
		}
		got, _, err = r.MX(bg, dns.ForMX, "null.example")
		if d := cmp.Diff([]dns.MX{{}}, got); d != "" || err != nil {
			t.Errorf("null MX: err %v, diff:\n%s", err, d)
		}
	})
}

// An MX that names no usable host is not "no MX": nobody may fall back to the domain's own address.
func TestMXWithOddHost(t *testing.T) {
	_, addr := serve(t, records)
	c := newClient(t, dns.Config{Servers: []string{addr}})
	mx, _, err := c.MX(bg, dns.ForMX, "odd.example")
	if te := (*dns.TemporaryError)(nil); !errors.As(err, &te) {
		t.Errorf("got %v, %v; want a temporary error", mx, err)
	}
}

func TestIP(t *testing.T) {
	both(t, func(t *testing.T, r dns.Resolver) {
		for host, want := range map[string]string{
			"mx.example.com":    "[192.0.2.1 2001:db8::1] <nil>",
			"MX.Example.Com.":   "[192.0.2.1 2001:db8::1] <nil>",
			"v4.example.com":    "[192.0.2.4] <nil>",
			"alias.example.com": "[192.0.2.4] <nil>",
			"half.example":      "[192.0.2.9] <nil>",
		} {
			ips, meta, err := r.IP(bg, dns.ForMX, host)
			if got := fmt.Sprint(ips, " ", err); got != want {
				t.Errorf("%s: got %s, want %s", host, got, want)
			}
			if meta.TTL <= 0 || meta.TTL > 5*time.Minute {
				t.Errorf("%s: TTL %v", host, meta.TTL)
			}
		}
	})
}

func TestAbsence(t *testing.T) {
	both(t, func(t *testing.T, r dns.Resolver) {
		for name, nx := range map[string]bool{
			"example.com":                              false, // has no TLSA
			"_tcp.mx.example.com":                      false, // an empty non-terminal
			"dead-end.example.com":                     true,
			"nothing.example.com":                      true,
			"bad..name":                                true,
			strings.Repeat("x", 64) + ".example.com":   true,
			strings.Repeat("x.", 127) + "example.com":  true,
			"with space.example.com":                   true,
			"back\\slash.example.com":                  true,
			"(paren;semi\"quote@at$dollar.example.com": true,
			"\x00\xff.example.com":                     true,
			".":                                        true,
			"":                                         true,
		} {
			_, _, err := r.TLSA(bg, dns.Other, name)
			if !errors.Is(err, dns.ErrNotFound) || errors.Is(err, dns.ErrNXDomain) != nx {
				t.Errorf("%q: got %v, want NXDOMAIN %t", name, err, nx)
			}
		}
	})
}

func TestTXT(t *testing.T) {
	both(t, func(t *testing.T, r dns.Resolver) {
		got, _, err := r.TXT(bg, dns.ForSPF, "example.com")
		want := []string{"v=spf1 mx -all", "with \"quotes\" and \ttab"}
		if d := cmp.Diff(want, got, cmpopts.SortSlices(strings.Compare)); d != "" || err != nil {
			t.Errorf("err %v, diff:\n%s", err, d)
		}
	})
}

func TestPTRAndTLSA(t *testing.T) {
	both(t, func(t *testing.T, r dns.Resolver) {
		for _, ip := range []string{"192.0.2.1", "::ffff:192.0.2.1"} {
			names, _, err := r.PTR(bg, dns.ForPTR, netip.MustParseAddr(ip))
			if err != nil || !slices.Equal(names, []string{"mx.example.com"}) {
				t.Errorf("PTR of %s: %q, %v", ip, names, err)
			}
		}
		tlsa, _, err := r.TLSA(bg, dns.ForDANE, "_25._tcp.mx.example.com")
		if err != nil || len(tlsa) != 1 || tlsa[0].Usage != 3 || tlsa[0].Selector != 1 || tlsa[0].Matching != 1 || len(tlsa[0].Data) != 32 {
			t.Errorf("TLSA: %v, %v", tlsa, err)
		}
	})
}

func TestTemporary(t *testing.T) {
	both(t, func(t *testing.T, r dns.Resolver) {
		for _, name := range []string{"broken.example", "loop1.example.com"} {
			_, _, err := r.TXT(bg, dns.ForSPF, name)
			if te := (*dns.TemporaryError)(nil); !errors.As(err, &te) || te.Name == "" || errors.Is(err, dns.ErrNotFound) {
				t.Errorf("%s: %v, want a temporary error", name, err)
			}
		}
	})
}

func TestNullResolverRequery(t *testing.T) {
	// A server that gives only the CNAME: the client asks for the target itself.
	c := newClient(t, dns.Config{Servers: []string{"192.0.2.53"}})
	var asked []string
	c.SetExchange(func(_ context.Context, _ string, _ bool, _ time.Duration, q *miekg.Msg) (*miekg.Msg, error) {
		m := new(miekg.Msg)
		m.SetReply(q)
		asked = append(asked, q.Question[0].Name)
		if q.Question[0].Name == "a.example." {
			m.Answer = []miekg.RR{rr("a.example. 100 CNAME b.example.")}
		} else {
			m.Answer = []miekg.RR{rr("b.example. 50 TXT found")}
		}
		return m, nil
	})
	txt, meta, err := c.TXT(bg, dns.Other, "a.example")
	if err != nil || !slices.Equal(txt, []string{"found"}) || meta.TTL > 50*time.Second {
		t.Errorf("got %q, %v, %v", txt, meta, err)
	}
	if !slices.Equal(asked, []string{"a.example.", "b.example."}) {
		t.Errorf("asked %q", asked)
	}
}

func rr(s string) miekg.RR {
	r, err := miekg.NewRR(s)
	if err != nil {
		panic(err)
	}
	return r
}

// TestAD: the validation bit is believed from loopback servers and when configured, never otherwise (standards D30).
func TestAD(t *testing.T) {
	for _, c := range []struct {
		server string
		trust  bool
		want   bool
	}{
		{"127.0.0.1:53", false, true}, {"[::1]:53", false, true}, {"192.0.2.53", false, false}, {"192.0.2.53", true, true},
		{"127.0.0.1.example:53", false, false}, {"localhost:53", false, true},
	} {
		cl := newClient(t, dns.Config{Servers: []string{c.server}, TrustAD: c.trust})
		cl.SetExchange(func(_ context.Context, _ string, _ bool, _ time.Duration, q *miekg.Msg) (*miekg.Msg, error) {
			m := new(miekg.Msg)
			m.SetReply(q)
			m.AuthenticatedData = true
			m.Answer = []miekg.RR{rr(`signed.example. 60 TXT "x"`)}
			if want := c.want; q.AuthenticatedData != want || q.IsEdns0().Do() != want {
				t.Errorf("%s: query has AD %t, DO %t", c.server, q.AuthenticatedData, q.IsEdns0().Do())
			}
			return m, nil
		})
		_, meta, err := cl.TXT(bg, dns.ForDANE, "signed.example")
		if err != nil || meta.Secure != c.want {
			t.Errorf("%s trust %t: secure %t, %v", c.server, c.trust, meta.Secure, err)
		}
	}
}

// TestN2SetServers: other servers are asked from then on, and nothing of what the old ones said is left, even if it comes later.
func TestN2SetServers(t *testing.T) {
	cl := newClient(t, dns.Config{Servers: []string{"192.0.2.1"}, TrustAD: true})
	asked, release := make(chan struct{}), make(chan struct{})
	cl.SetExchange(func(_ context.Context, server string, _ bool, _ time.Duration, q *miekg.Msg) (*miekg.Msg, error) {
		if q.Question[0].Name == "slow.example." && server == "192.0.2.1:53" {
			close(asked)
			<-release
		}
		m := new(miekg.Msg)
		m.SetReply(q)
		m.AuthenticatedData = true
		m.Answer = []miekg.RR{rr(q.Question[0].Name + ` 600 TXT "` + server + `"`)}
		return m, nil
	})
	ask := func(name string) string {
		txt, meta, err := cl.TXT(bg, dns.ForDANE, name)
		return fmt.Sprint(txt, meta.Secure, err)
	}
	if got, want := ask("fast.example"), "[192.0.2.1:53] true <nil>"; got != want {
		t.Errorf("at first %s, want %s", got, want)
	}
	slow := make(chan string)
	go func() { slow <- ask("slow.example") }()
	<-asked
	cl.SetServers([]string{"192.0.2.2"}, false)
	for _, name := range []string{"fast.example", "slow.example"} {
		if got, want := ask(name), "[192.0.2.2:53] false <nil>"; got != want {
			t.Errorf("%s: then %s, want %s", name, got, want)
		}
	}
	close(release)
	if got, want := <-slow, "[192.0.2.1:53] true <nil>"; got != want {
		t.Errorf("who asked before got %s, want %s", got, want)
	}
	if got, want := ask("slow.example"), "[192.0.2.2:53] false <nil>"; got != want {
		t.Errorf("after the late answer: %s, want %s", got, want)
	}
	if addrs, trusted := cl.Servers(); fmt.Sprint(addrs, trusted) != "[192.0.2.2:53] [false]" {
		t.Errorf("servers %v %v", addrs, trusted)
	}
}

func TestSecureOverWire(t *testing.T) {
	both(t, func(t *testing.T, r dns.Resolver) {
		_, meta, err := r.TXT(bg, dns.ForDANE, "signed.example")
		if err != nil || !meta.Secure {
			t.Errorf("signed: %v, %v", meta, err)
		}
		_, meta, err = r.MX(bg, dns.ForDANE, "nowhere.signed.example")
		if !errors.Is(err, dns.ErrNotFound) || !meta.Secure {
			t.Errorf("signed denial: %v, %v", meta, err)
		}
		_, meta, err = r.TXT(bg, dns.ForDANE, "example.com")
		if err != nil || meta.Secure {
			t.Errorf("unsigned: %v, %v", meta, err)
		}
	})
}

func TestTruncatedGoesToTCP(t *testing.T) {
	var text strings.Builder
	for i := range 40 {
		fmt.Fprintf(&text, "big.example TXT \"%02d %s\"\n", i, strings.Repeat("x", 100))
	}
	_, addr := serve(t, text.String())
	c := newClient(t, dns.Config{Servers: []string{addr}})
	txt, _, err := c.TXT(bg, dns.Other, "big.example")
	if err != nil || len(txt) != 40 {
		t.Errorf("got %d records, %v", len(txt), err)
	}
}

func TestServerWithoutEDNS(t *testing.T) {
	c := newClient(t, dns.Config{Servers: []string{"192.0.2.53"}})
	c.SetExchange(func(_ context.Context, _ string, _ bool, _ time.Duration, q *miekg.Msg) (*miekg.Msg, error) {
		m := new(miekg.Msg)
		m.SetReply(q)
		if q.IsEdns0() != nil {
			m.Rcode = miekg.RcodeFormatError
			return m, nil
		}
		m.Answer = []miekg.RR{rr(`x.example. 60 TXT "old"`)}
		return m, nil
	})
	if txt, _, err := c.TXT(bg, dns.Other, "x.example"); err != nil || len(txt) != 1 {
		t.Errorf("got %q, %v", txt, err)
	}
}

// TestForgedQuestion: an answer to something else is not taken.
func TestForgedQuestion(t *testing.T) {
	c := newClient(t, dns.Config{Servers: []string{"192.0.2.53"}})
	c.SetExchange(func(_ context.Context, _ string, _ bool, _ time.Duration, q *miekg.Msg) (*miekg.Msg, error) {
		m := new(miekg.Msg)
		m.SetReply(q)
		m.Question[0].Name = "other.example."
		m.Answer = []miekg.RR{rr(`x.example. 60 TXT "forged"`)}
		return m, nil
	})
	if txt, _, err := c.TXT(bg, dns.Other, "x.example"); err == nil {
		t.Errorf("took %q", txt)
	}
}

func TestFailover(t *testing.T) {
	c := newClient(t, dns.Config{Servers: []string{"192.0.2.1", "192.0.2.2", "192.0.2.3"}})
	var asked []string
	c.SetExchange(func(_ context.Context, s string, _ bool, _ time.Duration, q *miekg.Msg) (*miekg.Msg, error) {
		asked = append(asked, s)
		m := new(miekg.Msg)
		m.SetReply(q)
		switch s {
		case "192.0.2.1:53":
			return nil, &net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}
		case "192.0.2.2:53":
			m.Rcode = miekg.RcodeServerFailure
			return m, nil
		}
		m.Answer = []miekg.RR{rr(q.Question[0].Name + ` 60 TXT "ok"`)}
		return m, nil
	})
	for _, name := range []string{"a.example", "b.example"} {
		if _, _, err := c.TXT(bg, dns.Other, name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The second look-up begins with the server that answered.
	if want := []string{"192.0.2.1:53", "192.0.2.2:53", "192.0.2.3:53", "192.0.2.3:53"}; !slices.Equal(asked, want) {
		t.Errorf("asked %q, want %q", asked, want)
	}
}

// TestDeadResolver: nobody answers; look-ups end in time, the failure is remembered for a moment and shown.
func TestDeadResolver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, dns.Config{Servers: []string{"192.0.2.1", "192.0.2.2"}})
		var tries atomic.Int32
		c.SetExchange(func(ctx context.Context, _ string, _ bool, timeout time.Duration, _ *miekg.Msg) (*miekg.Msg, error) {
			tries.Add(1)
			ctx, cancel := context.WithTimeout(ctx, timeout)
			defer cancel()
			<-ctx.Done()
			return nil, ctx.Err()
		})
		start := time.Now()
		_, _, err := c.MX(bg, dns.ForMX, "x.example")
		if te := (*dns.TemporaryError)(nil); !errors.As(err, &te) || !te.Timeout() {
			t.Errorf("err %v, want a time-out", err)
		}
		if took := time.Since(start); took != 12*time.Second || tries.Load() != 4 {
			t.Errorf("took %v, %d tries", took, tries.Load())
		}
		start = time.Now()
		if _, _, err := c.MX(bg, dns.ForMX, "x.example"); err == nil || time.Since(start) != 0 || tries.Load() != 4 {
			t.Errorf("again: %v after %v", err, time.Since(start))
		}
		time.Sleep(6 * time.Second)
		c.MX(bg, dns.ForMX, "x.example")
		if tries.Load() != 8 {
			t.Errorf("%d tries after the failure was forgotten", tries.Load())
		}
		f := c.Failures()
		if len(f) != 2 || f[0].Name != "x.example" || f[0].Purpose != dns.ForMX || f[0].Type != "MX" || f[0].At.Before(f[1].At) {
			t.Errorf("failures %+v", f)
		}
		w := httptest.NewRecorder()
		c.ServeHTTP(w, nil)
		if !strings.Contains(w.Body.String(), "x.example") || !strings.Contains(w.Body.String(), "192.0.2.2:53") {
			t.Errorf("page:\n%s", w.Body)
		}
	})
}

func TestResolvConf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "resolv.conf")
		write := func(s string) {
			if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write("nameserver 192.0.2.1\nnameserver 2001:db8::1\nsearch corp.example\n")
		c := newClient(t, dns.Config{ResolvConf: path})
		var asked []string
		c.SetExchange(func(_ context.Context, s string, _ bool, _ time.Duration, q *miekg.Msg) (*miekg.Msg, error) {
			if q.Question[0].Qtype == miekg.TypeA {
				asked = append(asked, s+" "+q.Question[0].Name)
			}
			m := new(miekg.Msg)
			m.SetReply(q)
			m.Rcode = miekg.RcodeNameError
			if q.Question[0].Name == "hub.corp.example." {
				m.Rcode = 0
				if q.Question[0].Qtype == miekg.TypeA {
					m.Answer = []miekg.RR{rr("hub.corp.example. 60 A 192.0.2.7")}
				}
			}
			return m, nil
		})
		if ips, _, err := c.IP(bg, dns.ForMX, "hub"); err != nil || fmt.Sprint(ips) != "[192.0.2.7]" {
			t.Errorf("hub: %v, %v", ips, err)
		}
		// A name in somebody's SPF record is not completed.
		if ips, _, err := c.IP(bg, dns.ForSPF, "hub"); err == nil {
			t.Errorf("hub for SPF: %v", ips)
		}
		write("nameserver 192.0.2.99\n# longer, so that it differs\n")
		time.Sleep(6 * time.Second)
		c.IP(bg, dns.ForSPF, "later.example")
		write("garbage that names no server at all, which changes nothing\n")
		time.Sleep(6 * time.Second)
		c.IP(bg, dns.ForSPF, "latest.example")
		want := []string{"192.0.2.1:53 hub.corp.example.", "192.0.2.1:53 hub.", "192.0.2.99:53 later.example.", "192.0.2.99:53 latest.example."}
		if d := cmp.Diff(want, asked); d != "" {
			t.Error(d)
		}
	})
}

func TestHostsFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(path, []byte("# comment\n192.0.2.5 Relay.Example relay # x\n2001:db8::5 relay.example\nbad line\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, addr := serve(t, "relay.example A 192.0.2.6\n")
	c := dns.New(dns.Config{Servers: []string{addr}, Hosts: path})
	for _, s := range []struct {
		p    dns.Purpose
		host string
		want string
	}{
		{dns.ForMX, "relay.example", "[192.0.2.5 2001:db8::5]"}, {dns.Other, "RELAY", "[192.0.2.5]"}, {dns.ForSPF, "relay.example", "[192.0.2.6]"},
		{dns.ForMX, "localhost", "[127.0.0.1 ::1]"}, {dns.Other, "x.localhost", "[127.0.0.1 ::1]"}, {dns.ForSPF, "localhost", "[]"},
	} {
		ips, _, _ := c.IP(bg, s.p, s.host)
		if got := fmt.Sprint(ips); got != s.want {
			t.Errorf("%s %s: %s, want %s", s.p, s.host, got, s.want)
		}
	}
}

func TestStd(t *testing.T) {
	z, _ := serve(t, records)
	s := dns.Std{Resolver: z, Purpose: dns.ForSPF}
	if mx, err := s.LookupMX(bg, "null.example"); err != nil || len(mx) != 1 || mx[0].Host != "." {
		t.Errorf("null MX: %v, %v", mx, err)
	}
	if ips, err := s.LookupIPAddr(bg, "mx.example.com"); err != nil || len(ips) != 2 {
		t.Errorf("IPs: %v, %v", ips, err)
	}
	if names, err := s.LookupAddr(bg, "192.0.2.1"); err != nil || !slices.Equal(names, []string{"mx.example.com"}) {
		t.Errorf("names: %v, %v", names, err)
	}
	var de *net.DNSError
	if _, err := s.LookupTXT(bg, "nothing.example"); !errors.As(err, &de) || !de.IsNotFound || de.Temporary() {
		t.Errorf("absent: %#v", err)
	}
	if _, err := s.LookupTXT(bg, "broken.example"); !errors.As(err, &de) || de.IsNotFound || !de.Temporary() {
		t.Errorf("broken: %#v", err)
	}
}

func FuzzReadAnswer(f *testing.F) {
	for _, s := range []string{"example.com. 60 TXT \"a\\\"b\\000\"", "example.com. 60 CNAME example.com.", "example.com. 60 MX 10 a\\.b.example."} {
		m := new(miekg.Msg)
		m.SetQuestion("example.com.", miekg.TypeTXT)
		m.Answer = []miekg.RR{rr(s)}
		b, _ := m.Pack()
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m := new(miekg.Msg)
		if m.Unpack(data) != nil {
			return
		}
		for _, q := range []uint16{miekg.TypeTXT, miekg.TypeMX, miekg.TypeA, miekg.TypeTLSA, miekg.TypePTR} {
			e, next := dns.ReadAnswer(m, "example.com", q)
			if e == nil {
				t.Fatal("no entry")
			}
			if _, ok := dns.Canonical(next); next != "" && !ok {
				t.Fatalf("bad next name %q", next)
			}
		}
	})
}

func FuzzEscape(f *testing.F) {
	f.Add("a b.c\\d\x00\xff")
	f.Fuzz(func(t *testing.T, s string) {
		name, ok := dns.Canonical(s)
		if !ok {
			return
		}
		buf := make([]byte, 512)
		n, err := miekg.PackDomainName(dns.Escape(name), buf, 0, nil, false)
		if err != nil {
			t.Fatalf("%q: %v", name, err)
		}
		// The wire form is the labels with their lengths, byte for byte.
		want := ""
		for l := range strings.SplitSeq(name, ".") {
			want += string(rune(len(l)))[:1] + l
		}
		if got := string(buf[:n]); got != want+"\x00" {
			t.Fatalf("%q packs to %q, want %q", name, got, want)
		}
	})
}

func BenchmarkHit(b *testing.B) {
	_, addr := serve(b, records)
	c := newClient(b, dns.Config{Servers: []string{addr}})
	for i := range 2000 {
		c.TXT(bg, dns.Other, fmt.Sprintf("n%d.example", i))
	}
	b.ReportAllocs()
	for b.Loop() {
		if txt, _, err := c.TXT(bg, dns.ForSPF, "example.com"); err != nil || len(txt) != 2 {
			b.Fatal(err)
		}
	}
}

func BenchmarkHitParallel(b *testing.B) {
	_, addr := serve(b, records)
	c := newClient(b, dns.Config{Servers: []string{addr}})
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			c.MX(bg, dns.ForMX, "example.com")
		}
	})
}
