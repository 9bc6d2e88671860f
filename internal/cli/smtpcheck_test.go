package cli

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"log"
	"net"
	"regexp"
	"strings"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/internal/dns/zone"
	"blitiri.com.ar/go/chasquid/internal/sts"
)

// tlsServer greets, and does STARTTLS with a certificate for mx.example.com.
func tlsServer(t *testing.T, greeting string) (addr string, roots *x509.CertPool) {
	t.Helper()
	certPEM, keyPEM, err := selfSigned("mx.example.com", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	roots = x509.NewCertPool()
	roots.AppendCertsFromPEM(certPEM)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go speakSMTP(c, greeting, &tls.Config{Certificates: []tls.Certificate{pair}})
		}
	}()
	return l.Addr().String(), roots
}

func speakSMTP(c net.Conn, greeting string, conf *tls.Config) {
	defer func() { c.Close() }()
	c.Write([]byte(greeting + "\r\n"))
	r := bufio.NewReader(c)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		switch strings.ToUpper(strings.Fields(line + " .")[0]) {
		case "EHLO":
			c.Write([]byte("250-mx\r\n250 STARTTLS\r\n"))
		case "STARTTLS":
			c.Write([]byte("220 go\r\n"))
			c = tls.Server(c, conf)
			r = bufio.NewReader(c)
		default:
			c.Write([]byte("221 bye\r\n"))
			return
		}
	}
}

// TestCLI20SMTPCheck: every step says what it found, and one problem fails the whole.
func TestCLI20SMTPCheck(t *testing.T) {
	addr, roots := tlsServer(t, "220 mx.example.com")
	refusing, _ := tlsServer(t, "554 no")
	const good = "example.com MX 10 mx.example.com\nexample.com TXT \"v=spf1 mx -all\"\nmx.example.com A 127.0.0.1\n"
	policy := &sts.Policy{Version: "STSv1", Mode: sts.Enforce, MXs: []string{"mx.example.com"}, MaxAge: time.Hour}
	other := &sts.Policy{Version: "STSv1", Mode: sts.Enforce, MXs: []string{"other.example.com"}, MaxAge: time.Hour}
	for _, c := range []struct {
		name, zone, addr string
		policy           *sts.Policy
		roots            *x509.CertPool
		skipTLS          bool
		exit             int
		says             []string
	}{
		{"good", good, addr, policy, roots, false, 0, []string{"=== STS policy", "OK", "=== MX: 10  mx.example.com", "SPF pass", "TLS OK: TLS 1.3 - TLS_", "=== Success"}},
		{"no policy", good, addr, nil, roots, false, 0, []string{"Not available (the domain has no MTA-STS policy)", "=== Success"}},
		{"policy of another host", good, addr, other, roots, false, 1, []string{"=== FAILED", "does not allow this MX"}},
		{"bad policy", good, addr, &sts.Policy{Version: "x"}, roots, false, 1, []string{"=== FAILED", "Invalid policy"}},
		{"untrusted", good, addr, nil, nil, false, 1, []string{"TLS error: ", "=== FAILED"}},
		{"untrusted but skipped", good, addr, nil, nil, true, 0, []string{"=== Success"}},
		{"no spf", "example.com MX 10 mx.example.com\nmx.example.com A 127.0.0.1\n", addr, nil, roots, false, 1, []string{"=== FAILED", "SPF none for 127.0.0.1"}},
		{"no mx", "example.com A 127.0.0.1\n", addr, nil, roots, false, 1, []string{"=== FAILED", "Error looking up MX"}},
		{"null mx", "example.com MX 0 .\n", addr, nil, roots, false, 1, []string{"takes no mail"}},
		{"refused", good, refusing, nil, roots, false, 1, []string{"Error in the server's greeting", "554"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			s := &smtpCheck{port: "25", localname: "localhost", skipTLS: c.skipTLS, l: log.New(&out, "", log.LstdFlags), resolver: zone.MustNew(c.zone),
				tls: &tls.Config{RootCAs: c.roots},
				fetch: func(context.Context, string) (*sts.Policy, error) {
					if c.policy == nil {
						return nil, sts.ErrNoPolicy
					}
					return c.policy, nil
				},
				dial: func(ctx context.Context, network, to string) (net.Conn, error) {
					if to != "mx.example.com:25" {
						t.Errorf("connects to %s", to)
					}
					return (&net.Dialer{}).DialContext(ctx, network, c.addr)
				}}
			if exit := s.run(t.Context(), "Example.COM"); exit != c.exit {
				t.Errorf("exit %d", exit)
			}
			for _, w := range c.says {
				if !strings.Contains(out.String(), w) {
					t.Errorf("does not say %q", w)
				}
			}
			for line := range strings.Lines(out.String()) {
				if !regexp.MustCompile(`^\d{4}/\d\d/\d\d \d\d:\d\d:\d\d `).MatchString(line) {
					t.Errorf("line without time: %q", line)
				}
			}
			if t.Failed() {
				t.Log(out.String())
			}
		})
	}
}
