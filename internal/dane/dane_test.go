package dane

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/internal/dns"
	"blitiri.com.ar/go/chasquid/internal/dns/zone"
	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/tlspolicy"
	"github.com/google/go-cmp/cmp"
)

var bg = context.Background()

// certificate is a certificate with its key.
type certificate struct {
	*x509.Certificate
	key *ecdsa.PrivateKey
}

var serial int64

// issue makes a certificate; a nil issuer makes it self-signed.
func issue(t testing.TB, issuer *certificate, isCA bool, until time.Time, names ...string) *certificate {
	t.Helper()
	serial++
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: fmt.Sprint("cert ", serial)}, DNSNames: names,
		NotBefore: time.Unix(0, 0), NotAfter: until, IsCA: isCA, BasicConstraintsValid: true}
	parent, signer := tmpl, key
	if issuer != nil {
		parent, signer = issuer.Certificate, issuer.key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &certificate{c, key}
}

func tlsa(usage, selector, matching uint8, c *certificate) dns.TLSA {
	data := c.Raw
	if selector == 1 {
		data = c.RawSubjectPublicKeyInfo
	}
	switch matching {
	case 1:
		s := sha256.Sum256(data)
		data = s[:]
	case 2:
		s := sha512.Sum512(data)
		data = s[:]
	}
	return dns.TLSA{Usage: usage, Selector: selector, Matching: matching, Data: data}
}

func state(chain ...*certificate) *tls.ConnectionState {
	s := &tls.ConnectionState{}
	for _, c := range chain {
		s.PeerCertificates = append(s.PeerCertificates, c.Certificate)
	}
	return s
}

// TestC99Matrix: every usage, selector and matching type against good and bad certificates (RFC 7672 section 3).
func TestC99Matrix(t *testing.T) {
	far, past := time.Unix(1<<33, 0), time.Unix(1000, 0)
	root := issue(t, nil, true, far)
	inter := issue(t, root, true, far)
	oldInter := issue(t, root, true, past)
	leaf := issue(t, inter, false, far, "mx.example.com")
	chains := map[string][]*certificate{
		"good":           {leaf, inter, root},
		"no root":        {leaf, inter},
		"leaf alone":     {leaf},
		"next-hop name":  {issue(t, inter, false, far, "example.com"), inter, root},
		"other name":     {issue(t, inter, false, far, "mx.example.org"), inter, root},
		"expired":        {issue(t, inter, false, past, "mx.example.com"), inter, root},
		"expired issuer": {issue(t, oldInter, false, far, "mx.example.com"), oldInter, root},
		"self-signed":    {issue(t, nil, false, far, "mx.example.com")},
		"other issuer":   {issue(t, issue(t, nil, true, far), false, far, "mx.example.com")},
		"by a leaf":      {issue(t, leaf, false, far, "mx.example.com"), leaf, inter, root},
	}
	names := []string{"mx.example.com", "example.com"}
	check := func(what string, rec dns.TLSA, chain string, want bool) {
		t.Helper()
		if !isUsable(rec) {
			t.Errorf("%s: not usable", what)
		}
		if err := verify([]dns.TLSA{rec}, names, state(chains[chain]...)); (err == nil) != want {
			t.Errorf("%s, chain %q: %v, want %t", what, chain, err, want)
		}
	}
	for selector := range uint8(2) {
		for matching := range uint8(3) {
			what := fmt.Sprintf("%d %d", selector, matching)
			for name, chain := range chains {
				// C100: DANE-EE proves the leaf whatever its name, dates and issuer.
				check("3 "+what+" of its leaf", tlsa(3, selector, matching, chain[0]), name, true)
				if name != "good" {
					check("3 "+what+" of another leaf", tlsa(3, selector, matching, leaf), name, chain[0] == leaf)
				}
			}
			check("3 "+what+" of the issuer", tlsa(3, selector, matching, inter), "good", false)

			for name, want := range map[string]bool{"good": true, "next-hop name": true, "other name": false, "expired": false, "expired issuer": false, "self-signed": false, "other issuer": false, "by a leaf": false} {
				check("2 "+what+" of the root", tlsa(2, selector, matching, root), name, want)
			}
			for name, want := range map[string]bool{"good": true, "no root": true, "other name": false, "expired": false, "expired issuer": false, "by a leaf": false} {
				check("2 "+what+" of the intermediate", tlsa(2, selector, matching, inter), name, want)
			}
			check("2 "+what+" of its leaf", tlsa(2, selector, matching, chains["other name"][0]), "other name", false)
			check("2 "+what+" of its leaf", tlsa(2, selector, matching, chains["expired"][0]), "expired", false)
			check("2 "+what+" of the self-signed leaf", tlsa(2, selector, matching, chains["self-signed"][0]), "self-signed", true)
			// An anchor that the server does not send can only be used if the record has all of it.
			check("2 "+what+" of an absent root", tlsa(2, selector, matching, root), "no root", matching == 0)
			check("2 "+what+" of an absent intermediate", tlsa(2, selector, matching, inter), "leaf alone", matching == 0)
		}
	}
	ok := tlsa(3, 1, 1, leaf)
	for _, bad := range []dns.TLSA{{}, tlsa(0, 1, 1, leaf), tlsa(1, 1, 1, leaf), tlsa(4, 1, 1, leaf), tlsa(3, 2, 1, leaf), {Usage: 3, Selector: 1, Matching: 3, Data: ok.Data},
		{Usage: 3, Selector: 1, Matching: 1, Data: ok.Data[:31]}, {Usage: 3, Selector: 1, Matching: 2, Data: ok.Data}, {Usage: 2, Selector: 0, Matching: 0, Data: []byte("x")}, {Usage: 2, Selector: 1, Matching: 0, Data: []byte("x")}} {
		if isUsable(bad) {
			t.Errorf("usable: %+v", bad)
		}
	}
	for _, s := range []*tls.ConnectionState{nil, {}} {
		if verify([]dns.TLSA{ok}, names, s) == nil {
			t.Error("no certificate passes")
		}
	}
	// One good record among others is enough.
	if err := verify([]dns.TLSA{tlsa(2, 0, 1, leaf), tlsa(3, 0, 1, root), ok}, names, state(chains["good"]...)); err != nil {
		t.Error(err)
	}
	var re tlspolicy.ReportError
	if err := verify([]dns.TLSA{ok}, names, state(chains["other name"]...)); !errors.As(err, &re) || re.ResultType() != "validation-failure" {
		t.Errorf("result type of %v", err)
	}
}

const signed = `
example.com          MX   10 mx.example.com
mx.example.com       A    192.0.2.1
_25._tcp.mx.example.com TLSA 3 1 1 0102030405060708090a0b0c0d0e0f100102030405060708090a0b0c0d0e0f10
`

const unusable = "_25._tcp.mx.example.com TLSA 0 0 1 0102030405060708090a0b0c0d0e0f100102030405060708090a0b0c0d0e0f10\n"

// TestC98Secure: DANE applies only where everything is validated; what cannot be looked up is an error, never plain text.
func TestC98Secure(t *testing.T) {
	noTLSA := strings.Join(strings.Split(signed, "\n")[:3], "\n") + "\n"
	for _, c := range []struct {
		name, zone, domain, host string
		want                     string
	}{
		{"all signed", signed + ". SECURE", "example.com", "mx.example.com", "verify"},
		{"case and dot", signed + ". SECURE", "Example.com", "MX.example.com.", "verify"},
		{"nothing signed", signed, "example.com", "mx.example.com", "nothing"},
		{"MX not signed", signed + "mx.example.com SECURE", "example.com", "mx.example.com", "nothing"},
		{"address not signed", signed + "_25._tcp.mx.example.com SECURE\n", "example.com", "mx.example.com", "nothing"},
		{"no TLSA", noTLSA + ". SECURE", "example.com", "mx.example.com", "nothing"},
		{"unusable", noTLSA + unusable + ". SECURE", "example.com", "mx.example.com", "TLS"},
		{"usable and not", signed + unusable + ". SECURE", "example.com", "mx.example.com", "verify"},
		{"MX bogus", signed + "example.com SERVFAIL\n. SECURE", "example.com", "mx.example.com", "error"},
		{"address bogus", signed + "mx.example.com SERVFAIL\n. SECURE", "example.com", "mx.example.com", "error"},
		{"TLSA bogus", signed + "_25._tcp.mx.example.com SERVFAIL\n. SECURE", "example.com", "mx.example.com", "error"},
		{"TLSA times out", signed + "_25._tcp.mx.example.com TIMEOUT\n. SECURE", "example.com", "mx.example.com", "error"},
		{"unsigned, TLSA broken", signed + "_25._tcp.mx.example.com SERVFAIL\n", "example.com", "mx.example.com", "nothing"},
		{"no MX, own host", "example.com A 192.0.2.1\n_25._tcp.example.com TLSA 3 1 1 0102030405060708090a0b0c0d0e0f100102030405060708090a0b0c0d0e0f10\n. SECURE", "example.com", "example.com", "verify"},
		{"no MX, other host", signed + ". SECURE", "other.example", "mx.example.com", "nothing"},
		{"IDN", "xn--bcher-kva.example MX 1 mx.example.com\n" + signed + ". SECURE", "bücher.example", "mx.example.com", "verify"},
		{"literal", signed + ". SECURE", "[192.0.2.1]", "192.0.2.1", "nothing"},
		{"host without address", "example.com MX 1 gone.example.com\n. SECURE", "example.com", "gone.example.com", "nothing"},
	} {
		t.Run(c.name, func(t *testing.T) {
			reports := 0
			s := New(Config{Resolver: zone.MustNew(c.zone), Metrics: expvarom.New(), Report: func(tlspolicy.Report) { reports++ }})
			rule, err := s.HostRule(bg, c.domain, c.host)
			got := "nothing"
			switch {
			case err != nil:
				got = "error"
			case rule.Verify != nil:
				got = "verify"
			case rule.RequireTLS:
				got = "TLS"
			}
			if got != c.want || (rule.RequireTLS || rule.Verify != nil) != (rule.Source == "dane") || rule.Verify != nil && !rule.RequireTLS {
				t.Errorf("got %s (%+v, %v), want %s", got, rule, err, c.want)
			}
			if (reports == 1) != (got == "error") {
				t.Errorf("%d reports", reports)
			}
			sum := 0.0
			for _, l := range s.m.lookups {
				sum += l.Value()
			}
			if sum != 1 {
				t.Errorf("counted %v", sum)
			}
		})
	}
}

// TestRule: the rule verifies connections and reports them.
func TestRule(t *testing.T) {
	leaf := issue(t, nil, false, time.Unix(1000, 0), "whatever")
	rec := tlsa(3, 1, 1, leaf)
	z := zone.MustNew(fmt.Sprintf("example.com MX 10 mx.example.com\nmx.example.com A 192.0.2.1\n_2525._tcp.mx.example.com TLSA 3 1 1 %x\n. SECURE", rec.Data))
	var reports []tlspolicy.Report
	s := New(Config{Resolver: z, Port: 2525, Report: func(r tlspolicy.Report) { reports = append(reports, r) }})
	rule, err := s.HostRule(bg, "example.com", "mx.example.com")
	if err != nil {
		t.Fatal(err)
	}
	if err := rule.Verify("mx.example.com", state(leaf)); err != nil {
		t.Error(err)
	}
	bad := rule.Verify("mx.example.com", state(issue(t, nil, false, time.Unix(1<<33, 0), "mx.example.com")))
	if bad == nil {
		t.Error("another certificate passes")
	}
	rule.Report("mx.example.com", bad)
	want := []tlspolicy.Report{{Domain: "example.com", Policy: "tlsa", MX: []string{"mx.example.com"}, Host: "mx.example.com",
		Text: []string{fmt.Sprintf("_2525._tcp.mx.example.com. IN TLSA 3 1 1 %X", rec.Data)}}}
	if len(reports) == 1 {
		reports[0].Err = nil
	}
	if d := cmp.Diff(want, reports); d != "" {
		t.Error(d)
	}
	if s.m.pass.Value() != 1 || s.m.fail.Value() != 1 {
		t.Errorf("pass %v, fail %v", s.m.pass.Value(), s.m.fail.Value())
	}
}

// TestHandshake: what crypto/tls gives after a handshake is what the rule takes.
func TestHandshake(t *testing.T) {
	leaf := issue(t, nil, false, time.Unix(1<<33, 0), "unrelated.example")
	a, b := net.Pipe()
	done := make(chan error, 1)
	go func() {
		srv := tls.Server(b, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{leaf.Raw}, PrivateKey: leaf.key}}})
		done <- srv.Handshake()
	}()
	c := tls.Client(a, &tls.Config{ServerName: "mx.example.com", InsecureSkipVerify: true})
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	cs := c.ConnectionState()
	if err := verify([]dns.TLSA{tlsa(3, 1, 2, leaf)}, []string{"mx.example.com"}, &cs); err != nil {
		t.Error(err)
	}
	go b.Close()
	a.Close()
}

func FuzzTLSA(f *testing.F) {
	leaf := issue(f, nil, true, time.Unix(1<<33, 0), "mx.example.com")
	f.Add(uint8(2), uint8(0), uint8(0), leaf.Raw)
	f.Add(uint8(2), uint8(1), uint8(0), leaf.RawSubjectPublicKeyInfo)
	f.Add(uint8(3), uint8(1), uint8(1), make([]byte, 32))
	other := issue(f, nil, false, time.Unix(1<<33, 0), "mx.example.com")
	f.Fuzz(func(t *testing.T, usage, selector, matching uint8, data []byte) {
		r := dns.TLSA{Usage: usage, Selector: selector, Matching: matching, Data: data}
		// Nothing made up proves a certificate it is not about.
		if isUsable(r) && verify([]dns.TLSA{r}, []string{"mx.example.com"}, state(other)) == nil && !matches(r, other.Certificate) {
			t.Fatalf("%+v proves it", r)
		}
	})
}
