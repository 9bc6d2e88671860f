package monitoring

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"
)

// authority makes certificates for a test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
	dir  string
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{dir: t.TempDir(), pool: x509.NewCertPool()}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.key = key
	a.pool.AddCert(a.cert)
	a.write(t, "ca.pem", "CERTIFICATE", der)
	return a
}

func (a *authority) write(t *testing.T, name, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(a.dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// issue makes name.pem and name.key.
func (a *authority) issue(t *testing.T, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	a.write(t, name+".pem", "CERTIFICATE", der)
	b, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	a.write(t, name+".key", "PRIVATE KEY", b)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// serveTLS runs a server with a web configuration and returns its URL.
func (a *authority) serve(t *testing.T, config string) (*Server, string) {
	t.Helper()
	path := filepath.Join(a.dir, "web.yml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := CheckWebConfig(path); err != nil {
		t.Fatal(err)
	}
	s, url := serve(t, Config{WebConfig: path, Hostname: "mail.example.org"})
	if strings.Contains(config, "cert_file") {
		url = strings.Replace(url, "http://", "https://", 1)
	}
	return s, url
}

func status(t *testing.T, c *http.Client, url, user, pass string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if user != "" {
		req.SetBasicAuth(user, pass)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Logf("%s: %v", url, err)
		return 0
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

// TestWebConfig checks passwords and TLS as the exporter toolkit has them.
func TestWebConfig(t *testing.T) {
	a := newAuthority(t)
	a.issue(t, "server")
	client := a.issue(t, "client")
	hash, err := bcrypt.GenerateFromPassword([]byte("secret"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	httpClient := func(certs ...tls.Certificate) *http.Client {
		return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: a.pool, Certificates: certs}}}
	}
	_, url := a.serve(t, fmt.Sprintf("tls_server_config:\n  cert_file: server.pem\n  key_file: server.key\nbasic_auth_users:\n  # who may look\n  alice: %s\n", hash))
	for _, c := range []struct {
		path, user, pass string
		want             int
	}{{"/", "", "", 401}, {"/metrics", "", "", 401}, {"/", "alice", "secret", 200}, {"/debug/flags", "alice", "secret", 200}, {"/", "alice", "wrong", 401}, {"/", "bob", "secret", 401}} {
		if got := status(t, httpClient(), url+c.path, c.user, c.pass); got != c.want {
			t.Errorf("%s as %q: %d, want %d", c.path, c.user, got, c.want)
		}
	}
	if got := status(t, httpClient(), strings.Replace(url, "https", "http", 1), "", ""); got != 400 {
		t.Errorf("without TLS: %d", got)
	}
	_, url = a.serve(t, "tls_server_config:\n  cert_file: server.pem\n  key_file: server.key\n  client_ca_file: ca.pem\n  client_auth_type: RequireAndVerifyClientCert\n")
	if got := status(t, httpClient(), url, "", ""); got != 0 {
		t.Errorf("without a client certificate: %d", got)
	}
	if got := status(t, httpClient(client), url, "", ""); got != 200 {
		t.Errorf("with a client certificate: %d", got)
	}
}

// TestCredentials checks who sees what from another machine: only who showed a password or certificate that was asked for.
func TestCredentials(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	users := file("users.yml", "basic_auth_users:\n  alice: \"$2y$10$xxxxxxxxxxxxxxxxxxxxxx\"\n")
	none := file("none.yml", "# basic_auth_users:\n#   alice: $2y$10$xxx\nhttp_server_config:\n  http2: false\n")
	empty := file("empty.yml", "basic_auth_users:\nhttp_server_config:\n  http2: false\n")
	for _, c := range []struct {
		config   string
		password bool
		cert     bool
		want     int
	}{{"", false, false, 403}, {"", true, false, 403}, {users, true, false, 200}, {users, false, false, 403}, {none, true, false, 403}, {empty, true, false, 403},
		{none, false, true, 200}, {"", false, true, 403}, {filepath.Join(dir, "missing"), true, false, 403}} {
		s := &entrance{New(Config{}), c.config}
		r := httptest.NewRequest(http.MethodGet, "http://192.0.2.1/", nil)
		r.RemoteAddr = "192.0.2.7:5"
		if c.password {
			r.SetBasicAuth("alice", "secret")
		}
		if c.cert {
			r.TLS = &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{}}}
		}
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Code != c.want {
			t.Errorf("config %q, password %v, certificate %v: %d, want %d", filepath.Base(c.config), c.password, c.cert, w.Code, c.want)
		}
	}
}

// TestBadWebConfig checks that a bad file ends the start with a reason instead of serving openly.
func TestBadWebConfig(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.yml")
	if err := os.WriteFile(bad, []byte("basic_auth_users:\n  alice: plain\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{bad, filepath.Join(dir, "missing.yml")} {
		if err := CheckWebConfig(p); err == nil || !strings.Contains(err.Error(), p) {
			t.Errorf("CheckWebConfig(%s): %v", p, err)
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		if err := New(Config{WebConfig: p}).Serve(ctx, l); err == nil {
			t.Errorf("Serve with %s: no error", p)
		}
		if _, err := net.DialTimeout("tcp", l.Addr().String(), time.Second); err == nil {
			t.Errorf("%s: the listener is still open", p)
		}
	}
}
