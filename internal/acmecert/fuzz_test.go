package acmecert

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode"

	"blitiri.com.ar/go/chasquid/internal/vfs"
	"golang.org/x/crypto/acme"
)

// FuzzStored: whatever stands in the files, the server starts, and a bad one is as if it were not there.
func FuzzStored(f *testing.F) {
	key, err := newKey()
	if err != nil {
		f.Fatal(err)
	}
	block, err := keyPEM(key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(block, []byte(`{"a.test":{"last":"2026-01-01T00:00:00Z","failures":3}}`), block)
	f.Add([]byte("Authority: x\n-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"), []byte(`{"a.test":{"failures":-5,"not_before":"9999-01-01T00:00:00Z"}}`), []byte(nil))
	f.Add([]byte{}, []byte(`[]`), []byte("-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, cert, past, account []byte) {
		fs := vfs.NewMem()
		if err := vfs.MkdirAll(fs, "acme", 0o700); err != nil {
			t.Fatal(err)
		}
		for name, data := range map[string][]byte{"a.test.pem": cert, attemptsFile: past, accountFile: account} {
			if err := vfs.WriteFile(fs, "acme/"+name, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		m, err := New(Config{Dir: "acme", Names: []string{"a.test"}, FS: fs})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range m.Status() {
			if s.Next.After(time.Now().Add(longestTold)) && s.NotAfter.IsZero() {
				t.Errorf("not asked before %v", s.Next)
			}
		}
		m.Retry()
		_, _ = m.accountKey()
	})
}

// FuzzAuthority: an authority can answer what it wants. Nothing panics, and the attempt ends.
func FuzzAuthority(f *testing.F) {
	var answers []byte
	srv := httptest.NewTLSServer(nil)
	f.Cleanup(srv.Close)
	base := srv.URL
	srv.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Replay-Nonce", "n")
		// Each answer is a status, a length, and as many bytes; the last byte of the path tells which is meant.
		rest := answers
		for range len(r.URL.Path) % 8 {
			if len(rest) < 2 {
				break
			}
			rest = rest[min(2+int(rest[1]), len(rest)):]
		}
		if len(rest) < 2 {
			return
		}
		w.Header().Set("Location", base+"/here")
		w.Header().Set("Retry-After", string(rest[2:min(2+int(rest[0]%4), len(rest))]))
		w.WriteHeader([]int{200, 201, 204, 400, 403, 404, 429}[rest[0]%7])
		io.WriteString(w, strings.ReplaceAll(string(rest[2:min(2+int(rest[1]), len(rest))]), "BASE", base))
	})
	answer := func(status byte, v any) []byte {
		b, _ := json.Marshal(v)
		return append([]byte{status, byte(min(len(b), 255))}, b...)
	}
	dir := map[string]any{"newNonce": "BASE/n", "newAccount": "BASE/aa", "newOrder": "BASE/ooo"}
	f.Add(append(answer(0, dir), answer(4, map[string]any{"type": "urn:ietf:params:acme:error:rateLimited", "detail": "x"})...))
	f.Add(answer(0, map[string]any{"newNonce": "BASE/n", "newAccount": "BASE/nn", "newOrder": "BASE/nnn", "status": "pending", "authorizations": []string{"BASE/nn"}, "challenges": []any{map[string]string{"type": "http-01", "token": "../x"}}}))
	f.Add([]byte("\x00\xff{\"newOrder\":[1]}"))
	pool := srv.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	f.Fuzz(func(t *testing.T, b []byte) {
		answers = b
		m, err := New(Config{Dir: "acme", Names: []string{"a.test"}, FS: vfs.NewMem(), DirectoryURL: base + "/", Roots: pool, Address: "127.0.0.1:0"})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		if _, err := m.renew(ctx, m.names[0]); err == nil {
			t.Error("a certificate out of nothing")
		} else if strings.HasPrefix(err.Error(), "panic: ") {
			t.Error(err)
		} else if e := explain("a.test", m.cfg, err); e.Fix == "" || strings.ContainsFunc(e.Msg, unicode.IsControl) {
			t.Errorf("%q (%q)", e.Msg, e.Fix)
		}
	})
}

// TestRemedies: every kind of failure has its remedy, and the authority's words are cut and on one line.
func TestRemedies(t *testing.T) {
	problem := func(kind string) error {
		return &acme.Error{StatusCode: 403, ProblemType: "urn:ietf:params:acme:error:" + kind, Detail: strings.Repeat("x\n", 2000)}
	}
	eab, alpn := Config{KeyID: "k"}, Config{Challenge: TLSALPN01}
	for _, c := range []struct {
		err  error
		cfg  Config
		want string
	}{
		{fmt.Errorf("x: %w", problem("rateLimited")), Config{}, "wants us to wait"},
		{&accountError{problem("rateLimited")}, Config{}, "wants us to wait"},
		{&accountError{problem("serverInternal")}, Config{}, "the authority has trouble"},
		{&accountError{problem("externalAccountRequired")}, Config{}, "set acme.eab_key_id"},
		{&accountError{problem("unauthorized")}, eab, "check acme.eab_key_id"},
		{&accountError{problem("unauthorized")}, Config{}, "remove account.key"},
		{&accountError{problem("invalidContact")}, Config{}, "correct acme.email"},
		{&accountError{problem("userActionRequired")}, Config{}, "visit the address"},
		{problem("rejectedIdentifier"), Config{}, "correct acme.hostname"},
		{problem("caa"), Config{}, "CAA record of a.test"},
		{problem("dns"), Config{}, "publish A or AAAA"},
		{problem("somethingNew"), Config{}, "message says why"},
		{&acme.AuthorizationError{Errors: []error{problem("dns")}}, Config{}, "publish A or AAAA"},
		{&acme.AuthorizationError{Errors: []error{problem("caa")}}, Config{}, "CAA record"},
		{&acme.AuthorizationError{Errors: []error{problem("connection")}}, alpn, "port 443 of a.test"},
		{&listenError{syscall.EADDRINUSE}, Config{Challenge: HTTP01}, "forward /.well-known/acme-challenge/"},
		{&listenError{syscall.EADDRINUSE}, alpn, "set acme.tls_alpn_address"},
		{&listenError{syscall.EACCES}, alpn, "CAP_NET_BIND_SERVICE"},
		{&listenError{errors.New("x")}, Config{}, "correct acme.http_address"},
		{&directoryError{&net.DNSError{}}, Config{}, "DNS of this machine"},
		{&directoryError{&acme.Error{StatusCode: 502}}, Config{}, "check acme.directory_url"},
		{&directoryError{context.DeadlineExceeded}, Config{DirectoryURL: "https://ca.test/"}, "reaches https://ca.test/"},
		{fmt.Errorf("x: %w", context.DeadlineExceeded), Config{}, "is slow"},
	} {
		e := explain("a.test", c.cfg, c.err)
		if !strings.Contains(e.Fix, c.want) || len(e.Msg) > maxDetail+100 || strings.Contains(e.Msg, "\n") {
			t.Errorf("%.100v: %q, want %q", c.err, e.Fix, c.want)
		}
	}
}
