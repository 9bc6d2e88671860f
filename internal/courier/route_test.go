package courier

import (
	"slices"
	"strings"
	"testing"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/dns/zone"
	"blitiri.com.ar/go/chasquid/internal/mail"
)

func TestRoute(t *testing.T) {
	r, err := NewRouter(RouterConfig{
		Local:       func(d string) bool { return d == "local.test" || d == "exämple.test" },
		LocalTarget: "lmtp:/run/lmtp",
		Routes: map[string]string{"Direct.Test": "mx", ".sub.test": "gate.test:26", ".deep.sub.test": "mx", "lit.test": "[2001:db8::1]:2525",
			"xn--rger-koa.test": "smtps://u@h.test"},
		RelayVia: "smtp://relay.test:587",
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		to    string
		via   []string
		trans mail.Transport
		hosts string
		targ  string
		why   string
	}{
		{"a@local.test", nil, mail.Local, "", "lmtp:/run/lmtp", "local.test is a local domain"},
		{"a@xn--exmple-cua.test", nil, mail.Local, "", "lmtp:/run/lmtp", "local domain"},
		{"postmaster", nil, mail.Local, "", "lmtp:/run/lmtp", "without a domain"},
		{"a@remote.test", nil, mail.Relay, "relay.test:587", "smtp://relay.test:587", "relay_via"},
		{"a@direct.test", nil, mail.SMTP, "", "", "the route for direct.test says by MX"},
		{"a@x.sub.test", nil, mail.Relay, "gate.test:26", "", "the route for .sub.test"},
		{"a@x.deep.sub.test", nil, mail.SMTP, "", "", ".deep.sub.test"},
		{"a@sub.test", nil, mail.Relay, "relay.test:587", "smtp://relay.test:587", "relay_via"},
		{"a@lit.test", nil, mail.Relay, "[2001:db8::1]:2525", "", "lit.test"},
		{"a@ärger.test", nil, mail.Relay, "h.test:465", "smtps://u@h.test", "ärger.test"},
		{"a@[192.0.2.1]", nil, mail.SMTP, "", "", "the address names the server"},
		{"a@local.test", []string{"one", "two:25"}, mail.Relay, "one two:25", "", "an alias sends it through one, two:25"},
	} {
		rcpt := mail.Recipient{To: address.MustParse(c.to), Via: c.via}
		if c.via != nil {
			rcpt.Kind = mail.Forward
		}
		got, err := r.Route(t.Context(), rcpt, &mail.Envelope{})
		if err != nil || got.Transport != c.trans || strings.Join(got.Hosts, " ") != c.hosts || got.Target != c.targ || !strings.Contains(got.Why, c.why) {
			t.Errorf("%s: %+v, %v", c.to, got, err)
		}
	}
	pipe, err := r.Route(t.Context(), mail.Recipient{Kind: mail.Pipe, Command: "prog x"}, nil)
	if err != nil || pipe.Transport != mail.Command || pipe.Target != "prog x" {
		t.Errorf("%+v %v", pipe, err)
	}
	for _, bad := range []mail.Recipient{{}, {Kind: mail.Pipe}, {Kind: mail.Forward, To: address.MustParse("a@b.test")}} {
		if got, err := r.Route(t.Context(), bad, nil); err == nil {
			t.Errorf("%+v: %+v", bad, got)
		}
	}
	none, err := NewRouter(RouterConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := none.Route(t.Context(), mail.Recipient{To: address.MustParse("a@x.test")}, nil); err != nil || got.Transport != mail.SMTP || got.Domain != "x.test" {
		t.Errorf("%+v %v", got, err)
	}
}

func TestNewRouterRefuses(t *testing.T) {
	for _, c := range []RouterConfig{
		{RelayVia: "ftp://x"}, {RelayVia: "smtps://user:password@x.test"}, {RelayVia: "a b"}, {RelayVia: "x.test:99999"},
		{Routes: map[string]string{"": "mx"}}, {Routes: map[string]string{"a/b": "mx"}}, {Routes: map[string]string{"a.test": ""}},
		{LocalTarget: "maildir:"}, {LocalTarget: "uucp:x"},
	} {
		if _, err := NewRouter(c); err == nil {
			t.Errorf("%+v was accepted", c)
		}
	}
}

func TestParseSmarthost(t *testing.T) {
	for in, want := range map[string]Smarthost{
		"smtp://relay.test":                  {false, "", "relay.test:25"},
		"smtp://joe@relay.test/":             {false, "joe", "relay.test:587"},
		"SMTPS://joe%40a.test@Relay.Test":    {true, "joe@a.test", "relay.test:465"},
		"smtps://joe@a.test@relay.test:2465": {true, "joe@a.test", "relay.test:2465"},
		"smtp://192.0.2.1:26":                {false, "", "192.0.2.1:26"},
		"smtp://[2001:db8::1]":               {false, "", "[2001:db8::1]:25"},
	} {
		if got, err := ParseSmarthost(in); err != nil || got != want {
			t.Errorf("%s: %+v, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "relay.test", "http://x", "smtp://", "smtp://@x.test", "smtp://a:b@x.test", "smtp://x.test:0", "smtp://x%0a@y.test", "smtp://a/b"} {
		if got, err := ParseSmarthost(in); err == nil {
			t.Errorf("%q: %+v", in, got)
		}
	}
}

// C88: exchangers of one preference are used in equal measure; Site is the same for all who share them.
func TestC88Shuffle(t *testing.T) {
	z := zone.MustNew("a.test MX 10 mx1.test\na.test MX 10 mx2.test\na.test MX 10 mx3.test\na.test MX 5 mx0.test\na.test MX 20 mx9.test\n" +
		"b.test MX 1 mx9.test\nb.test MX 2 mx0.test\nb.test MX 3 mx2.test\nb.test MX 3 mx3.test\nb.test MX 4 mx1.test\nc.test A 192.0.2.1\n")
	s := NewSMTP(Config{Hostname: "me.test", Resolver: z})
	first := map[string]int{}
	for range 600 {
		ts, _, o := s.targets(t.Context(), &mail.Route{Transport: mail.SMTP, Domain: "a.test"})
		if o != nil || len(ts) != 5 || ts[0].name != "mx0.test" || ts[4].name != "mx9.test" {
			t.Fatalf("%+v %+v", ts, o)
		}
		first[ts[1].name]++
	}
	for _, n := range []string{"mx1.test", "mx2.test", "mx3.test"} {
		if first[n] < 120 {
			t.Errorf("%s was the first of its equals only %d of 600 times: %v", n, first[n], first)
		}
	}
	var sites []string
	for _, d := range []string{"a.test", "b.test", "c.test", "d.invalid", "[192.0.2.1]"} {
		sites = append(sites, s.Site(t.Context(), mail.Route{Transport: mail.SMTP, Domain: d}))
	}
	want := []string{"mx0.test,mx1.test,mx2.test,mx3.test,mx9.test", "mx0.test,mx1.test,mx2.test,mx3.test,mx9.test", "c.test", "d.invalid", "[192.0.2.1]"}
	if !slices.Equal(sites, want) {
		t.Errorf("sites %q, want %q", sites, want)
	}
}

// The work for one domain is bounded however many servers and addresses its DNS names.
func TestManyServers(t *testing.T) {
	var b strings.Builder
	for i := range 200 {
		h := "mx" + string(rune('a'+i%26)) + string(rune('a'+i/26)) + ".test"
		b.WriteString("a.test MX 10 " + h + "\n")
	}
	for i := range 50 {
		b.WriteString("mxaa.test A 192.0.2." + string(rune('0'+i%10)) + "\nmxaa.test AAAA 2001:db8::" + string(rune('0'+i%10)) + "\n")
	}
	s := NewSMTP(Config{Hostname: "me.test", Resolver: zone.MustNew(b.String())})
	ts, _, _ := s.targets(t.Context(), &mail.Route{Transport: mail.SMTP, Domain: "a.test"})
	if len(ts) != maxHosts {
		t.Errorf("%d servers", len(ts))
	}
	addrs, _, err := s.addrs(t.Context(), &target{name: "mxaa.test", port: 25})
	if err != nil || len(addrs) > maxAddrs+1 || len(addrs) < 2 || addrs[0].Addr().Is4() || addrs[1].Addr().Is6() {
		t.Errorf("addresses %v %v", addrs, err)
	}
}

func TestProvider(t *testing.T) {
	s := NewSMTP(Config{Providers: map[string]string{"mail.corp.test": "corp"}})
	for host, want := range map[string]string{
		"aspmx.l.google.com": "google", "x-com.mail.protection.outlook.com": "microsoft", "mta5.am0.yahoodns.net": "yahoo",
		"notgoogle.com": "other", "google.com.evil.test": "other", "mx1.mail.corp.test": "corp", "": "other", "mx00.ionos.com": "gmx_web_de",
	} {
		if got := s.provider(host); got != want {
			t.Errorf("%s: %s, want %s", host, got, want)
		}
	}
}
