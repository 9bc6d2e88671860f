package domains

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"blitiri.com.ar/go/chasquid/internal/trace"
)

// Cert is one certificate with its key. It is not changed once made.
type Cert struct {
	Name      string // of its directory
	Dir       string
	Leaf      *x509.Certificate
	Names     []string // host names it is for, lower case
	NotBefore time.Time
	NotAfter  time.Time

	tls tls.Certificate
}

// Certificate returns the certificate as crypto/tls wants it.
func (c *Cert) Certificate() *tls.Certificate { return &c.tls }

// readCerts returns the usable certificates in order of their directories, and the errors of those that are not usable any more.
func (t *Table) readCerts(ctx context.Context) (list []*Cert, warnings []string, err error) {
	entries, err := t.readDir("certs")
	if err != nil {
		switch {
		case !t.expects.Load().certsOptional:
			return nil, nil, err
		case errors.Is(err, errEmpty) || errors.Is(err, fs.ErrNotExist):
			return nil, nil, nil
		}
		return nil, []string{err.Error()}, nil
	}
	var errs []error
	seen := map[string]*loaded[*Cert]{}
	for _, e := range entries {
		dir := t.path("certs", e.Name())
		if st, err := os.Stat(dir); e.Type().IsRegular() || err == nil && !st.IsDir() {
			continue
		}
		l, missing := loadCert(dir, e.Name(), t.certs[dir])
		if missing != nil {
			warnings = append(warnings, fmt.Sprintf("skipping: %v", missing))
			continue
		}
		seen[dir] = l
		failures := t.metrics.certErrors.With(e.Name())
		if l.err != nil {
			trace.From(ctx).Printf("%v", l.err)
			errs = append(errs, l.err)
			failures.Inc()
		}
		if l.ok {
			list = append(list, l.value)
			if w := l.value.warning(time.Now()); w != "" {
				warnings = append(warnings, w)
			}
		}
	}
	t.certs = seen
	if len(list) == 0 && len(errs) == 0 && !t.expects.Load().certsOptional {
		errs = append(errs, &Error{Path: t.path("certs"), Msg: "At least one valid certificate is needed", Fix: dirFix("certs")})
	}
	return list, warnings, errors.Join(errs...)
}

// loadCert loads a certificate's directory, unless it is as it was at the last look. If a file is missing from a directory that
// never had a certificate, that is told apart: it is a directory of something else.
func loadCert(dir, name string, last *loaded[*Cert]) (next *loaded[*Cert], missing error) {
	chain, key := filepath.Join(dir, "fullchain.pem"), filepath.Join(dir, "privkey.pem")
	state := FileState(chain, key)
	if last != nil && last.state == state {
		return last, nil
	}
	next = &loaded[*Cert]{state: state}
	for _, f := range []string{chain, key} {
		if _, err := os.Stat(f); err != nil {
			if last == nil || !last.ok {
				return nil, err
			}
			next.err = &Error{Path: f, Msg: fmt.Sprintf("error loading certificate %s: %v", dir, err), Err: err,
				Fix: "put the file back, or remove the directory; until then the certificate loaded earlier is used"}
		}
	}
	if next.err == nil {
		next.value, next.err = newCert(dir, name, chain, key)
	}
	next.ok = next.err == nil
	if !next.ok && last != nil && last.ok {
		next.value, next.ok = last.value, true
	}
	return next, nil
}

func newCert(dir, name, chain, key string) (*Cert, error) {
	pair, err := tls.LoadX509KeyPair(chain, key)
	if err != nil {
		e := &Error{Path: dir, Msg: fmt.Sprintf("error loading certificate %s: %v", dir, err), Err: err,
			Fix: "renew the certificate, or move the directory elsewhere; the two files must belong together"}
		if errors.Is(err, os.ErrPermission) {
			e.Fix = fixRead(key)
		}
		return nil, e
	}
	return MakeCert(name, dir, pair), nil
}

// MakeCert describes a certificate that comes from elsewhere; its Leaf is set. Name and path are for people and metrics.
func MakeCert(name, path string, pair tls.Certificate) *Cert {
	c := &Cert{Name: name, Dir: path, Leaf: pair.Leaf, NotBefore: pair.Leaf.NotBefore, NotAfter: pair.Leaf.NotAfter, tls: pair}
	for _, n := range pair.Leaf.DNSNames {
		c.Names = append(c.Names, strings.ToLower(n))
	}
	return c
}

// expirySoon is when an approaching expiry is worth a warning at start and reload.
const expirySoon = 7 * 24 * time.Hour

func (c *Cert) warning(now time.Time) string {
	switch {
	case now.After(c.NotAfter):
		return fmt.Sprintf("certificate %s expired on %s: clients will refuse it; renew it", c.Dir, c.NotAfter.Format(time.DateOnly))
	case now.Before(c.NotBefore):
		return fmt.Sprintf("certificate %s is valid only from %s: check the clock", c.Dir, c.NotBefore.Format(time.DateOnly))
	case c.NotAfter.Sub(now) < expirySoon:
		return fmt.Sprintf("certificate %s expires on %s: check that its renewal works", c.Dir, c.NotAfter.Format(time.DateOnly))
	}
	return ""
}

// certIndex finds certificates by name.
type certIndex map[string][]*Cert

func indexCerts(list []*Cert) certIndex {
	ix := certIndex{}
	for _, c := range list {
		for _, n := range c.Names {
			ix[n] = append(ix[n], c)
		}
	}
	return ix
}

// candidates returns the certificates for a name, exact ones before wildcards (RFC 6125 section 6.4.3).
func (ix certIndex) candidates(name string) []*Cert {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	list := ix[name]
	if _, parent, ok := strings.Cut(name, "."); ok && ix["*."+parent] != nil {
		list = append(list[:len(list):len(list)], ix["*."+parent]...)
	}
	return list
}

// HasCert reports whether some certificate is for the host name and valid now.
func (s *Snapshot) HasCert(host string, now time.Time) bool {
	return slices.ContainsFunc(s.certs.candidates(host), func(c *Cert) bool { return c.valid(now) })
}

// HasOwnCert reports whether a certificate in certs/ is for the host name and valid now.
func (s *Snapshot) HasOwnCert(host string, now time.Time) bool {
	return slices.ContainsFunc(s.certs.candidates(host), func(c *Cert) bool { return c.valid(now) && s.rank(c) == 0 })
}

// rank puts the certificates of certs/ before others, whichever name of them matched.
func (s *Snapshot) rank(c *Cert) int {
	if slices.Contains(s.extra, c) {
		return 1
	}
	return 0
}

func (c *Cert) valid(now time.Time) bool { return now.After(c.NotBefore) && now.Before(c.NotAfter) }

// certificate selects by the name that the client asks for; clients that ask for none, or for one we do not have, get the first.
// What is not valid now is for when there is nothing better.
func (s *Snapshot) certificate(hello *tls.ClientHelloInfo, now time.Time) *Cert {
	list := s.certs.candidates(hello.ServerName)
	if len(s.extra) > 0 && len(list) > 1 {
		list = slices.Clone(list)
		slices.SortStableFunc(list, func(a, b *Cert) int { return s.rank(a) - s.rank(b) })
	}
	if len(list) == 0 {
		list = s.Certs
		if i := slices.IndexFunc(list, func(c *Cert) bool { return c.valid(now) }); i >= 0 {
			return list[i]
		}
	}
	for _, usable := range []func(*Cert) bool{func(c *Cert) bool { return c.valid(now) }, func(*Cert) bool { return true }} {
		for _, c := range list {
			if usable(c) && hello.SupportsCertificate(&c.tls) == nil {
				return c
			}
		}
	}
	if len(list) > 0 {
		return list[0]
	}
	return nil
}

// ErrNoCertificate is what a handshake fails with when there is no certificate at all.
var ErrNoCertificate = errors.New("no certificate")

// TLSConfig returns the configuration for incoming connections: TLS 1.2 at least, no session tickets, the ALPN protocols none or
// smtp, certificates always of the current snapshot. alpn are further ALPN protocols.
func (t *Table) TLSConfig(alpn ...string) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS12,
		SessionTicketsDisabled: true,
		NextProtos:             append([]string{"smtp"}, alpn...),
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			c := t.Current().certificate(hello, time.Now())
			if c == nil {
				return nil, ErrNoCertificate
			}
			return &c.tls, nil
		},
	}
}
