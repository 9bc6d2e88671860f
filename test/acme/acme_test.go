package acme

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/smtp"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/internal/acmecert"
	"blitiri.com.ar/go/chasquid/test/harness"
)

func trust(pool *x509.CertPool) *tls.Config { return &tls.Config{RootCAs: pool} }

// session greets a server; with roots it also starts TLS under the name, and returns the certificate it was shown.
func session(t *testing.T, addr, name string, roots *x509.CertPool) (offered bool, cert *x509.Certificate, err error) {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, limit)
	if err != nil {
		return false, nil, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(limit))
	c, err := smtp.NewClient(conn, name)
	if err != nil {
		return false, nil, err
	}
	if err := c.Hello("client.test"); err != nil {
		return false, nil, err
	}
	offered, _ = c.Extension("STARTTLS")
	if roots == nil || !offered {
		return offered, nil, nil
	}
	if err := c.StartTLS(&tls.Config{ServerName: name, RootCAs: roots}); err != nil {
		return true, nil, err
	}
	state, _ := c.TLSConnectionState()
	return true, state.PeerCertificates[0], c.Quit()
}

const host = "mail.example.test"

// notAfter is the metric of the certificate.
func notAfter(s *harness.Server) float64 {
	return s.Metrics()[`chasquid_tls_certificate_not_after_timestamp_seconds{name="acme/`+host+`"}`]
}

// newServer makes a server that has no certificate, and gets one from the authority.
func newServer(t *testing.T, a *authority, challenge string) *harness.Server {
	t.Helper()
	return harness.New(t, harness.Options{Certs: map[string]string{}, Conf: fmt.Sprintf("acme { directory_url: %q ca_file: %q email: \"postmaster@example.test\" "+
		"challenge: %q http_address: %q tls_alpn_address: %q }\n", a.Directory, a.CAFile, challenge, a.HTTP, a.TLSALPN)})
}

func launch(t *testing.T, s *harness.Server) {
	t.Helper()
	if err := s.Launch(); err != nil {
		t.Fatal(err)
	}
	harness.WaitFor(t, limit, "the server to listen", func() bool {
		return strings.Contains(s.Get("/metrics"), "chasquid_smtp_in_connections_open") && strings.Contains(s.Log(), "Server listening on "+s.SubmissionTLS)
	})
}

// TestFirstCertificate: the server serves without a certificate while the authority is away, says so everywhere, and offers TLS as soon
// as the authority gives one, without a restart. It keeps it over restarts, and nobody can make it ask.
func TestFirstCertificate(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, 90*24*time.Hour, nil)
	s := newServer(t, a, "http-01")
	launch(t, s)
	harness.WaitFor(t, limit, "the failed attempt", func() bool { return strings.Contains(s.Log(), "acme: no new certificate for "+host) })
	if offered, _, err := session(t, s.SMTP, host, nil); offered || err != nil {
		t.Errorf("STARTTLS offered: %v, %v", offered, err)
	}
	for what, text := range map[string]string{"log": s.Log(), "readyz": s.Get("/readyz?verbose"), "certificates page": s.Get("/debug/certs?format=text")} {
		if !strings.Contains(text, "check that this machine reaches "+a.Directory) {
			t.Errorf("the %s does not say what to do:\n%s", what, text)
		}
	}
	if m := s.Metrics(); m[`chasquid_acme_failing_names`] != 1 || m[`chasquid_acme_attempts_total{result="failed"}`] != 1 {
		t.Errorf("metrics: %v %v", m[`chasquid_acme_failing_names`], m[`chasquid_acme_attempts_total{result="failed"}`])
	}
	harness.WaitFor(t, limit+20*time.Second, "the problem on the index page", func() bool {
		return strings.Contains(s.Get("/?format=text"), "there is no TLS for this name until it works")
	})

	a.start()
	s.Signal(syscall.SIGHUP)
	harness.WaitFor(t, limit, "STARTTLS", func() bool { offered, _, _ := session(t, s.SMTP, host, nil); return offered })
	cert := shown(t, s, a.roots())
	if got := notAfter(s); got != float64(cert.NotAfter.Unix()) {
		t.Errorf("the metric says %v, the certificate %v", got, cert.NotAfter)
	}
	if page := s.Get("/debug/certs?format=text"); !strings.Contains(page, "acme/"+host) || !strings.Contains(page, "in use") {
		t.Errorf("the page of certificates:\n%s", page)
	}
	harness.WaitFor(t, limit, "readiness", func() bool { return strings.HasPrefix(s.Get("/readyz"), "ready") })

	// Strangers' names change nothing: they are shown what there is.
	for _, name := range []string{"stranger.test", "other.example.test", "mail.example.test.evil.test"} {
		conn, err := tls.Dial("tcp", s.SubmissionTLS, &tls.Config{ServerName: name, InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
	roots := a.roots()
	if n := a.orders(); n != 1 {
		t.Errorf("%d orders", n)
	}
	a.stop()
	if err := s.Stop(limit); err != nil {
		t.Fatal(err)
	}
	launch(t, s)
	if again := shown(t, s, roots); !again.Equal(cert) {
		t.Error("another certificate after the restart")
	}
	for _, f := range []string{"account.key", host + ".pem"} {
		if st, err := os.Stat(filepath.Join(s.DataDir, "acme", f)); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", f, st, err)
		}
	}
}

// shown is the certificate that clients get, by STARTTLS and with TLS from the first byte.
func shown(t *testing.T, s *harness.Server, roots *x509.CertPool) *x509.Certificate {
	t.Helper()
	_, cert, err := session(t, s.SMTP, host, roots)
	if err != nil || cert == nil {
		t.Fatalf("STARTTLS: %v %v", cert, err)
	}
	conn, err := tls.Dial("tcp", s.SubmissionTLS, &tls.Config{ServerName: host, RootCAs: roots})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if !conn.ConnectionState().PeerCertificates[0].Equal(cert) {
		t.Error("the ports show different certificates")
	}
	return cert
}

// TestRenewal: short certificates are renewed by themselves. When the authority goes away the present one stays in use, and the
// trouble is told.
func TestRenewal(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, 15*time.Second, nil)
	a.start()
	s := newServer(t, a, "tls-alpn-01")
	launch(t, s)
	harness.WaitFor(t, limit, "a certificate", func() bool { return notAfter(s) > 0 })
	first, pid := notAfter(s), s.PID()
	cert := shown(t, s, a.roots())
	harness.WaitFor(t, limit+15*time.Second, "its renewal", func() bool { return notAfter(s) > first })
	renewed := shown(t, s, a.roots())
	if renewed.Equal(cert) || s.PID() != pid {
		t.Error("the old certificate is shown, or the server was restarted")
	}
	if !slices.Equal(renewed.RawSubjectPublicKeyInfo, cert.RawSubjectPublicKeyInfo) {
		t.Error("the key changed")
	}
	a.stop()
	harness.WaitFor(t, limit+15*time.Second, "a failed renewal", func() bool { return strings.Contains(s.Log(), "acme: no new certificate for "+host) })
	if !strings.Contains(s.Log(), "certificate is in use") {
		t.Errorf("the log does not say what clients get:\n%s", s.Log())
	}
	last := notAfter(s)
	conn, err := tls.Dial("tcp", s.SubmissionTLS, &tls.Config{ServerName: host, InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := conn.ConnectionState().PeerCertificates[0].NotAfter.Unix(); float64(got) != last || last == 0 {
		t.Errorf("a certificate until %v is shown, %v is known", got, last)
	}
	if m := s.Metrics(); m["chasquid_acme_failing_names"] != 1 || m["chasquid_acme_next_attempt_timestamp_seconds"] < float64(time.Now().Unix()+20) {
		t.Errorf("failing %v, next attempt in %v s", m["chasquid_acme_failing_names"], m["chasquid_acme_next_attempt_timestamp_seconds"]-float64(time.Now().Unix()))
	}
}

// manager asks the authority for names, without a server around it.
func manager(t *testing.T, a *authority, c acmecert.Config) *acmecert.Manager {
	t.Helper()
	c.Dir, c.DirectoryURL, c.Roots = filepath.Join(t.TempDir(), "acme"), a.Directory, readPool(t, a.CAFile)
	if c.Address == "" {
		c.Address = a.HTTP
	}
	m, err := acmecert.New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { m.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	return m
}

// outcome waits until every name was tried, and tells how it ended: empty, or the error with its remedy.
func outcome(t *testing.T, m *acmecert.Manager) map[string]string {
	t.Helper()
	got := map[string]string{}
	harness.WaitFor(t, 2*limit, "an attempt for each name", func() bool {
		for _, s := range m.Status() {
			if s.Err == nil && s.NotAfter.IsZero() {
				return false
			}
			got[s.Name] = ""
			if s.Err != nil {
				var r interface{ Remedy() string }
				errors.As(s.Err, &r)
				got[s.Name] = s.Err.Error() + " | " + r.Remedy()
			}
		}
		return true
	})
	return got
}

// TestRefusals: one name that is refused does not keep the others from their certificates, and each refusal has its remedy.
func TestRefusals(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, time.Hour, nil)
	a.start()
	check := func(got map[string]string, want map[string]string) {
		t.Helper()
		for name, w := range want {
			if w == "" && got[name] != "" || !strings.Contains(got[name], w) {
				t.Errorf("%s: %s, want %q", name, got[name], w)
			}
		}
	}
	check(outcome(t, manager(t, a, acmecert.Config{Names: []string{"blocked.test", "nowhere.example.test", "elsewhere.example.test", "other.example.test"}})), map[string]string{
		"blocked.test":           "does not certify blocked.test: correct acme.hostname",
		"nowhere.example.test":   "port 80 of nowhere.example.test has to lead here: check the A and AAAA records",
		"elsewhere.example.test": "port 80 of elsewhere.example.test has to lead here",
		"other.example.test":     ""})
	// Somebody else has the port.
	l, err := net.Listen("tcp", a.HTTP)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	check(outcome(t, manager(t, a, acmecert.Config{Names: []string{host}})), map[string]string{host: "let that program forward /.well-known/acme-challenge/"})
	check(outcome(t, manager(t, a, acmecert.Config{Names: []string{host}, Challenge: acmecert.TLSALPN01})), map[string]string{host: `or use acme.challenge "http-01"`})
	check(outcome(t, manager(t, a, acmecert.Config{Names: []string{host}, Challenge: acmecert.TLSALPN01, Address: a.TLSALPN})), map[string]string{host: ""})
	check(outcome(t, manager(t, a, acmecert.Config{Names: []string{host}, Challenge: "dns-99"})), map[string]string{host: "set another acme.challenge"})
	// An authority that nobody trusts, and one that is none.
	check(outcome(t, untrusting(t, a)), map[string]string{host: "acme.ca_file"})
	a.Directory = strings.Replace(a.Directory, "/dir", "/nothing", 1)
	check(outcome(t, manager(t, a, acmecert.Config{Names: []string{host}})), map[string]string{host: "check acme.directory_url"})
}

func untrusting(t *testing.T, a *authority) *acmecert.Manager {
	m, err := acmecert.New(acmecert.Config{Dir: filepath.Join(t.TempDir(), "acme"), DirectoryURL: a.Directory, Names: []string{host}, Roots: x509.NewCertPool()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { m.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	return m
}

// TestExternalAccount: an authority that wants an account made elsewhere gets it, and says so to those who have none.
func TestExternalAccount(t *testing.T) {
	t.Parallel()
	const key = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
	a := newAuthority(t, time.Hour, map[string]any{"externalAccountBindingRequired": true, "externalAccountMACKeys": map[string]string{"kid-1": key}})
	a.start()
	mac, err := base64.RawURLEncoding.DecodeString(key)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		id   string
		key  []byte
		want string
	}{
		{"", nil, "set acme.eab_key_id and acme.eab_key_file"},
		{"kid-2", mac, "check acme.eab_key_id"},
		{"kid-1", mac[1:], "check acme.eab_key_id"},
		{"kid-1", mac, ""},
	} {
		got := outcome(t, manager(t, a, acmecert.Config{Names: []string{host}, KeyID: c.id, MACKey: c.key}))[host]
		if c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("%s: %s, want %q", c.id, got, c.want)
		}
	}
}
