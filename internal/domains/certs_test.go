package domains

import (
	"crypto/tls"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// handshake connects a client to the configuration and returns the certificate's first name.
func handshake(t *testing.T, server *tls.Config, client *tls.Config) (tls.ConnectionState, error) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	client.InsecureSkipVerify = true
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		s := tls.Server(a, server)
		s.SetDeadline(time.Now().Add(5 * time.Second))
		if s.Handshake() == nil {
			s.Read(make([]byte, 1)) // until the client closes: TLS 1.3 clients need not wait for the server
		}
		a.Close()
	})
	c := tls.Client(b, client)
	c.SetDeadline(time.Now().Add(5 * time.Second))
	err := c.Handshake()
	st := c.ConnectionState()
	b.Close()
	return st, err
}

// TestCFG11SNI: selection by the name asked for; the first directory is the default. D48: no name does anything else.
func TestCFG11SNI(t *testing.T) {
	d := newDir(t)
	d.cert("b", 90, "b.test")
	d.cert("a", 90, "a.test", "www.a.test")
	d.cert("w", 90, "*.wild.test")
	d.cert("z", 90, "exact.wild.test")
	d.mkdir("domains/x.test")
	conf := d.mustLoad().TLSConfig()
	for name, want := range map[string]string{
		"": "a.test", "a.test": "a.test", "WWW.A.test": "a.test", "b.test": "b.test", "c.test": "a.test",
		"x.wild.test": "*.wild.test", "exact.wild.test": "exact.wild.test", "y.x.wild.test": "a.test", "wild.test": "a.test",
		"../../etc/passwd": "a.test", `b.test\`: "a.test", strings.Repeat("x", 250): "a.test",
	} {
		st, err := handshake(t, conf, &tls.Config{ServerName: name})
		if err != nil || st.PeerCertificates[0].DNSNames[0] != want {
			t.Errorf("%q: %v, want %s", name, err, want)
		}
	}
}

// TestCFG19TLSPolicy: TLS 1.2 at least, no session tickets, and ALPN none or smtp.
func TestCFG19TLSPolicy(t *testing.T) {
	d := newDir(t)
	d.cert("a", 90, "a.test")
	d.mkdir("domains/x.test")
	conf := d.mustLoad().TLSConfig("acme-tls/1")
	tests := []struct {
		name   string
		client *tls.Config
		ok     bool
	}{
		{"TLS 1.1", &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}, false},
		{"TLS 1.2", &tls.Config{MaxVersion: tls.VersionTLS12}, true},
		{"TLS 1.3", &tls.Config{MinVersion: tls.VersionTLS13}, true},
		{"ALPN smtp", &tls.Config{NextProtos: []string{"smtp"}}, true},
		{"ALPN http", &tls.Config{NextProtos: []string{"http/1.1", "h2"}}, false},
		{"ALPN of the challenge", &tls.Config{NextProtos: []string{"acme-tls/1"}}, true},
	}
	for _, tc := range tests {
		if _, err := handshake(t, conf, tc.client); (err == nil) != tc.ok {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	cache := tls.NewLRUClientSessionCache(4)
	for range 2 {
		st, err := handshake(t, conf, &tls.Config{ServerName: "a.test", ClientSessionCache: cache, MaxVersion: tls.VersionTLS12})
		if err != nil || st.DidResume {
			t.Errorf("resumed %v %v", st.DidResume, err)
		}
	}
}

// TestCertReload: connections made after a reload get the renewed certificate, under a configuration made before.
func TestCertReload(t *testing.T) {
	d := newDir(t)
	d.cert("a", 90, "a.test")
	d.mkdir("domains/x.test")
	tab := d.mustLoad()
	conf := tab.TLSConfig()
	first, err := handshake(t, conf, &tls.Config{})
	if err != nil {
		t.Fatal(err)
	}
	d.cert("a", 180, "a.test")
	if changed, _, err := tab.Reload(t.Context()); !changed || err != nil {
		t.Fatal(changed, err)
	}
	second, err := handshake(t, conf, &tls.Config{})
	if err != nil || second.PeerCertificates[0].Equal(first.PeerCertificates[0]) {
		t.Errorf("still the old one (%v)", err)
	}
}

// TestSetExtra: certificates from elsewhere are used for names that certs/ has no valid one for, and change while connections go on.
func TestSetExtra(t *testing.T) {
	d := newDir(t)
	d.cert("a", 90, "a.test")
	d.cert("w", 90, "*.wild.test")
	d.cert("old", 1, "old.test")
	d.mkdir("domains/x.test")
	extra := func(days int, name string) *Cert {
		pair, err := tls.X509KeyPair(makeCert(t, days, name))
		if err != nil {
			t.Fatal(err)
		}
		return MakeCert("acme/"+name, "data/"+name+".pem", pair)
	}
	tab := d.mustLoad()
	conf := tab.TLSConfig()
	serials := func(list ...*Cert) map[string]string {
		all := map[string]string{}
		for _, c := range list {
			all[c.Leaf.SerialNumber.String()] = c.Name
		}
		return all
	}
	list := []*Cert{extra(90, "a.test"), extra(90, "m.test"), extra(90, "x.wild.test"), extra(90, "old.test")}
	tab.SetExtra(list)
	check := func(known map[string]string) {
		t.Helper()
		for name, want := range map[string]string{"m.test": "acme/m.test", "a.test": "", "x.wild.test": "", "none.test": "", "": "", "old.test": "acme/old.test"} {
			st, err := handshake(t, conf, &tls.Config{ServerName: name})
			if err != nil {
				t.Errorf("%s: %v", name, err)
			} else if got := known[st.PeerCertificates[0].SerialNumber.String()]; got != want {
				t.Errorf("%s: %q, want %q", name, got, want)
			}
		}
	}
	check(serials(list...))
	now := time.Now()
	if s := tab.Current(); !s.HasCert("m.test", now) || s.HasOwnCert("m.test", now) || !s.HasOwnCert("a.test", now) || s.HasOwnCert("old.test", now) || len(s.Certs) != 7 {
		t.Errorf("%d certificates, or the wrong ones", len(s.Certs))
	}
	// They stay over a reload, and can be replaced.
	d.mkdir("domains/y.test")
	if changed, _, err := tab.Reload(t.Context()); !changed || err != nil {
		t.Fatal(changed, err)
	}
	check(serials(list...))
	list = []*Cert{extra(90, "m.test"), extra(90, "old.test")}
	tab.SetExtra(list)
	check(serials(list...))
	d.remove("certs")
	tab, _, err := d.load(Config{CertsOptional: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := handshake(t, tab.TLSConfig(), &tls.Config{ServerName: "m.test"}); err == nil {
		t.Error("a handshake without a certificate")
	}
	tab.SetExtra(list)
	if _, err := handshake(t, tab.TLSConfig(), &tls.Config{ServerName: "m.test"}); err != nil {
		t.Error(err)
	}
}

// TestExpiryWarnings: a certificate past or near its end, or not yet valid, is told at load.
func TestExpiryWarnings(t *testing.T) {
	for days, want := range map[int]string{1: "expired on", 3: "expires on", 90: ""} {
		d := newDir(t)
		d.cert("a", days, "a.test")
		d.mkdir("domains/x.test")
		_, warnings, err := d.load(Config{})
		if got := strings.Join(warnings, "\n"); err != nil || !strings.Contains(got, want) || want == "" && got != "" {
			t.Errorf("%d days: %q %v", days, got, err)
		}
	}
}
