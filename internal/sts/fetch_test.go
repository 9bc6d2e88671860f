package sts

import (
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/internal/dns/zone"
)

// ca makes certificates.
type ca struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newCA(t testing.TB) *ca {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Test CA"}, NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<33, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, _ := x509.ParseCertificate(der)
	return &ca{cert, key}
}

func (c *ca) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(c.cert)
	return p
}

// leaf makes a certificate for names, valid until then.
func (c *ca) leaf(t testing.TB, until time.Time, names ...string) tls.Certificate {
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), DNSNames: names, NotBefore: time.Unix(0, 0), NotAfter: until,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, c.cert, &key.PublicKey, c.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// policyHost is a real HTTPS server for policies.
type policyHost struct {
	srv     *httptest.Server
	handler atomic.Value // http.HandlerFunc
	cert    atomic.Pointer[tls.Certificate]
	hits    atomic.Int32
}

func newPolicyHost(t testing.TB, cert tls.Certificate) *policyHost {
	h := &policyHost{}
	h.cert.Store(&cert)
	h.srv = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.hits.Add(1)
		h.handler.Load().(http.HandlerFunc)(w, r)
	}))
	h.srv.TLS = &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return h.cert.Load(), nil }}
	h.srv.Config.ErrorLog = discardLog
	h.srv.StartTLS()
	h.srv.TLS.Certificates = nil
	t.Cleanup(h.srv.Close)
	return h
}

func (h *policyHost) serve(f http.HandlerFunc) { h.handler.Store(f) }

// text serves a policy.
func (h *policyHost) text(policy string) {
	h.serve(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/.well-known/mta-sts.txt" || r.Method != http.MethodGet {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		io.WriteString(w, policy)
	})
}

// client is the production client, but every connection goes to the test server.
func (h *policyHost) client(roots *x509.CertPool) *http.Client {
	c := NewClient(nil, roots, true)
	c.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, h.srv.Listener.Addr().String())
	}
	return c
}

const good = "version: STSv1\r\nmode: enforce\r\nmx: mx.example.com\r\nmx: *.example.net\r\nmax_age: 86400\r\n"

const stsZone = `_mta-sts.example.com TXT "v=STSv1; id=1;"` + "\n"

func far() time.Time { return time.Unix(1<<33, 0) }

// TestC101Fetch: a real HTTPS server, and everything that can be wrong with it (RFC 8461 section 3.3).
func TestC101Fetch(t *testing.T) {
	authority, other := newCA(t), newCA(t)
	cert := authority.leaf(t, far(), "mta-sts.example.com")
	host := newPolicyHost(t, cert)
	client := host.client(authority.pool())
	client.Timeout = 2 * time.Second
	z := zone.MustNew(stsZone)
	plain := func(status int, ctype, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			if ctype != "" {
				w.Header().Set("Content-Type", ctype)
			} else {
				w.Header()["Content-Type"] = nil
			}
			w.WriteHeader(status)
			io.WriteString(w, body)
		}
	}
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	for _, c := range []struct {
		name string
		cert *tls.Certificate
		f    http.HandlerFunc
		want string // kind of the error, or empty
		as   string // label of the metric
	}{
		{"good", nil, plain(200, "text/plain", good), "", "ok"},
		{"with parameters", nil, plain(200, "Text/Plain;charset=us-ascii", good), "", "ok"},
		{"404", nil, plain(404, "text/plain", good), kindFetch, "http_error"},
		{"500", nil, plain(500, "text/plain", good), kindFetch, "http_error"},
		{"204", nil, plain(204, "text/plain", ""), kindFetch, "http_error"},
		{"redirect", nil, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://mta-sts.example.com/elsewhere", http.StatusMovedPermanently)
		}, kindFetch, "http_error"},
		{"HTML", nil, plain(200, "text/html", good), kindInvalid, "bad_policy"},
		{"no media type", nil, plain(200, "", good), kindInvalid, "bad_policy"},
		{"not a policy", nil, plain(200, "text/plain", "hello"), kindInvalid, "bad_policy"},
		{"the policy behind the limit", nil, plain(200, "text/plain", strings.Repeat("x: y\r\n", 4000)+good), kindInvalid, "bad_policy"},
		{"endless", nil, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/plain")
			io.WriteString(w, good)
			for range 1000 {
				if _, err := io.WriteString(w, strings.Repeat("x: y\r\n", 1000)); err != nil {
					return
				}
			}
		}, "", "ok"},
		{"compressed", nil, func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Accept-Encoding") != "" {
				t.Error("compression asked for")
			}
			w.Header().Set("Content-Type", "text/plain")
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			io.WriteString(z, good)
			z.Close()
		}, kindInvalid, "bad_policy"},
		{"big header", nil, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Bomb", strings.Repeat("x", 2*maxHeader))
			io.WriteString(w, good)
		}, kindFetch, "http_error"},
		{"cut off", nil, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/plain")
			w.Header().Set("Content-Length", "5000")
			io.WriteString(w, good)
		}, kindFetch, "http_error"},
		{"hangs", nil, func(w http.ResponseWriter, _ *http.Request) { <-release }, kindFetch, "timeout"},
		{"wrong name", ptr(authority.leaf(t, far(), "www.example.com")), plain(200, "text/plain", good), kindPKIX, "tls_error"},
		{"expired", ptr(authority.leaf(t, time.Now().Add(-time.Hour), "mta-sts.example.com")), plain(200, "text/plain", good), kindPKIX, "tls_error"},
		{"unknown authority", ptr(other.leaf(t, far(), "mta-sts.example.com")), plain(200, "text/plain", good), kindPKIX, "tls_error"},
	} {
		t.Run(c.name, func(t *testing.T) {
			host.serve(c.f)
			host.cert.Store(&cert)
			if c.cert != nil {
				host.cert.Store(c.cert)
			}
			p, id, err := Fetch(bg, z, client, "example.com")
			kind := ""
			var fe *FetchError
			if errors.As(err, &fe) {
				kind = fe.Kind
			}
			if kind != c.want || (err == nil) != (c.want == "") {
				t.Errorf("error %v, want kind %q", err, c.want)
			}
			if got := fetchResult(err); got != c.as {
				t.Errorf("counted as %q, want %q", got, c.as)
			}
			if err == nil && (p.Mode != Enforce || id != "1") {
				t.Errorf("policy %+v, id %q", p, id)
			}
		})
	}
}

func ptr[T any](v T) *T { return &v }

// TestRecord: the TXT record says whether there is a policy (RFC 8461 section 3.1).
func TestRecord(t *testing.T) {
	for _, c := range []struct {
		zone, id string
		err      error
	}{
		{`_mta-sts.example.com TXT "v=STSv1; id=20160831085700Z;"`, "20160831085700Z", nil},
		{`_mta-sts.example.com TXT "v=STSv1;id=a"`, "a", nil},
		{`_mta-sts.example.com TXT "v=STSv1; foo=bar"`, "", nil},
		{`_mta-sts.example.com TXT "v=STSv2; id=1"`, "", ErrNoPolicy},
		{`_mta-sts.example.com TXT "v=STSv1"`, "", ErrNoPolicy},
		{`_mta-sts.example.com TXT "hello"` + "\n" + `_mta-sts.example.com TXT "v=STSv1; id=2;"`, "2", nil},
		{`_mta-sts.example.com TXT "v=STSv1; id=1;"` + "\n" + `_mta-sts.example.com TXT "v=STSv1; id=2;"`, "", ErrNoPolicy},
		{"", "", ErrNoPolicy},
	} {
		id, err := lookupID(bg, zone.MustNew(c.zone), "example.com")
		if id != c.id || !errors.Is(err, c.err) {
			t.Errorf("%q: %q, %v", c.zone, id, err)
		}
	}
	if _, err := lookupID(bg, zone.MustNew("_mta-sts.example.com SERVFAIL"), "example.com"); err == nil || errors.Is(err, ErrNoPolicy) {
		t.Errorf("SERVFAIL: %v", err)
	}
	// IDN domains are asked for by their A-labels.
	host := newPolicyHost(t, tls.Certificate{})
	z := zone.MustNew("_mta-sts.xn--bcher-kva.example TXT \"v=STSv1; id=1;\"")
	_, _, err := Fetch(bg, z, host.client(nil), "bücher.example")
	if fe := (*FetchError)(nil); !errors.As(err, &fe) || !strings.Contains(err.Error(), "https://mta-sts.xn--bcher-kva.example/.well-known/mta-sts.txt") {
		t.Errorf("IDN: %v", err)
	}
}

func TestSTS3Parse(t *testing.T) {
	for _, c := range []struct {
		text string
		want error
	}{
		{good, nil},
		{strings.ReplaceAll(good, "\r\n", "\n"), nil},
		{" version : STSv1 \nmode:enforce\nmx:a.b\nmax_age: 1\nunknown: x\nno colon\n\n", nil},
		{"version: STSv0\nversion: STSv1\nmode: none\nmode: testing\nmx: a.b\nmax_age: 2\nmax_age: 31557600", nil},
		{"version: STSv1\nmode: none\nmax_age: 86400\n", nil},
		{"version: STSv1\nmode: enforce\nmx: bad_*.name\nmx: a.b\nmax_age: 86400\n", nil},
		{"version: STSv2\nmode: enforce\nmx: a.b\nmax_age: 1\n", errVersion},
		{"mode: enforce\nmx: a.b\nmax_age: 1\n", errVersion},
		{"version: STSv1\nmode: Enforce\nmx: a.b\nmax_age: 1\n", errMode},
		{"version: STSv1\nmx: a.b\nmax_age: 1\n", errMode},
		{"version: STSv1\nmode: enforce\nmx: a.b\n", errMaxAge},
		{"version: STSv1\nmode: enforce\nmx: a.b\nmax_age: 0\n", errMaxAge},
		{"version: STSv1\nmode: enforce\nmx: a.b\nmax_age: -1\n", errMaxAge},
		{"version: STSv1\nmode: enforce\nmx: a.b\nmax_age: 31557601\n", errMaxAge},
		{"version: STSv1\nmode: enforce\nmx: a.b\nmax_age: 99999999999999999999\n", errMaxAge},
		{"version: STSv1\nmode: enforce\nmax_age: 1\n", errNoMX},
		{"version: STSv1\nmode: enforce\nmx: *\nmx: *.*.a\nmx: a/b\nmx:\nmax_age: 1\n", errNoMX},
		{"", errVersion},
	} {
		if _, err := Parse(c.text); !errors.Is(err, c.want) {
			t.Errorf("%q: %v, want %v", c.text, err, c.want)
		}
	}
	if _, err := Parse("version: STSv1\nmode: enforce\nmax_age: 1\n" + strings.Repeat("mx: a.b\n", 1000)); err == nil {
		t.Error("1000 mx accepted")
	}
}

// TestC103Match: a wildcard is one left label.
func TestC103Match(t *testing.T) {
	p := &Policy{MXs: []string{"mx1.Example.com.", "*.mail.example.com", "*.bücher.example", "bad/name"}}
	for host, want := range map[string]bool{
		"mx1.example.com": true, "MX1.EXAMPLE.COM": true, "mx1.example.com.": true, "mx2.example.com": false, "a.mx1.example.com": false,
		"a.mail.example.com": true, "a.b.mail.example.com": false, "mail.example.com": false, "xmail.example.com": false, ".mail.example.com": false,
		"a.xn--bcher-kva.example": true, "a.bücher.example": true, "": false, "[192.0.2.1]": false, "bad/name": false, "*.mail.example.com": false,
	} {
		if got := p.Allows(host); got != want {
			t.Errorf("%q: %t, want %t", host, got, want)
		}
	}
}
