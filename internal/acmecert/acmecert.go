// Package acmecert gets certificates from an ACME authority (RFC 8555) and renews them in time.
package acmecert

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/remedy"
	"blitiri.com.ar/go/chasquid/internal/vfs"
	"blitiri.com.ar/go/log"
)

// Challenge is how the authority is shown that a name leads here.
type Challenge string

// The challenges: a file on the name's port 80 (RFC 8555 section 8.3), or a handshake on its port 443 (RFC 8737).
const (
	HTTP01    Challenge = "http-01"
	TLSALPN01 Challenge = "tls-alpn-01"
)

// Config says what to get from whom. Without names nothing is done.
type Config struct {
	Dir          string   // where account, keys and certificates are kept
	Names        []string // host names as they are in certificates: lower case, IDNA's ASCII form
	Email        string   // contact of the account; may be empty
	DirectoryURL string
	Roots        *x509.CertPool // whom to trust as the authority's server; nil: the system's
	Challenge    Challenge      // empty is HTTP01
	Address      string         // listened on while a challenge waits for its answer
	KeyID        string         // of an external account; empty: there is none
	MACKey       []byte
	FS           vfs.FS // nil is the real one
	Metrics      *expvarom.Registry

	// Covered reports a name that has a valid certificate from elsewhere: none is asked for. May be nil.
	Covered func(name string) bool
	// Changed is called with all certificates there are, first by New and then whenever one was renewed. May be nil.
	Changed func([]Certificate)

	// obtain gets a chain for a key; nil asks the authority.
	obtain func(ctx context.Context, req request) ([][]byte, error)
}

// Certificate is one of the authority.
type Certificate struct {
	Name string // host name
	Path string // of the file with certificate and key
	TLS  *tls.Certificate
}

// Status is how it stands with one name.
type Status struct {
	Name     string
	NotAfter time.Time // zero: there is no certificate
	Covered  bool      // there is one from elsewhere
	Next     time.Time // when the authority is asked next; zero: not before something changes
	Err      error     // why the last attempt failed, with a Remedy; nil after success
	Since    time.Time // of the first failure in a row
	Failures int
}

// Limits.
const (
	attemptTimeout = 3 * time.Minute // one order, from the directory to the certificate
	look           = time.Minute     // how often names, clock and other certificates are looked at
)

// Manager keeps the certificates of its names valid.
type Manager struct {
	cfg     Config
	metrics *metrics
	kick    chan struct{}

	mu    sync.Mutex
	names []*name
}

// name is what is known of one host name. It is guarded by Manager.mu.
type name struct {
	host      string
	cert      *tls.Certificate
	authority string // directory URL the certificate came from
	path      string
	try       attempts
	err       error
	covered   bool
}

// New loads what was got before. Nothing is asked of the authority until Run.
func New(cfg Config) (*Manager, error) {
	m := &Manager{cfg: cfg, metrics: newMetrics(cfg.Metrics), kick: make(chan struct{}, 1)}
	if cfg.FS == nil {
		m.cfg.FS = vfs.OS
	}
	if cfg.Challenge == "" {
		m.cfg.Challenge = HTTP01
	}
	if cfg.obtain == nil {
		m.cfg.obtain = m.order
	}
	if len(cfg.Names) == 0 {
		return m, nil
	}
	if err := vfs.MkdirAll(m.cfg.FS, cfg.Dir, 0o700); err != nil {
		return nil, &Error{Msg: fmt.Sprintf("making the directory for certificates: %v", err), Fix: "let the server's user write to data_dir", Err: err}
	}
	m.load()
	m.metrics.watch(m)
	m.changed()
	return m, nil
}

// Config returns what the Manager works by.
func (m *Manager) Config() Config { return m.cfg }

// Inspect tells how it stands with the names of a server that need not run, by its files.
func Inspect(cfg Config) []Status {
	cfg.FS = vfs.OS
	m := &Manager{cfg: cfg}
	m.load()
	list := m.Status()
	for i, n := range m.names {
		if n.try.Error != "" {
			list[i].Err = errors.New(n.try.Error)
		}
	}
	return list
}

// load reads what is stored of all names.
func (m *Manager) load() {
	past := m.loadAttempts()
	for _, host := range m.cfg.Names {
		n := &name{host: host, path: m.certPath(host), try: past[host].restarted()}
		cert, authority, err := m.loadCert(n)
		if err != nil {
			log.Errorf("acme: %v (a new one is asked for)", err)
		}
		n.cert, n.authority = cert, authority
		m.names = append(m.names, n)
	}
}

// changed hands out the certificates there are.
func (m *Manager) changed() {
	if m.cfg.Changed == nil {
		return
	}
	m.mu.Lock()
	var list []Certificate
	for _, n := range m.names {
		if n.cert != nil {
			list = append(list, Certificate{Name: n.host, Path: n.path, TLS: n.cert})
		}
	}
	m.mu.Unlock()
	m.cfg.Changed(list)
}

// Status returns how it stands with every name.
func (m *Manager) Status() []Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	var list []Status
	for _, n := range m.names {
		s := Status{Name: n.host, Covered: n.covered, Err: n.err, Since: n.try.Since, Failures: n.try.Failures}
		if n.cert != nil {
			s.NotAfter = n.cert.Leaf.NotAfter
		}
		if !n.covered {
			s.Next = m.due(n)
		}
		list = append(list, s)
	}
	return list
}

// due is when the authority is asked next; m.mu is held.
func (m *Manager) due(n *name) time.Time {
	var leaf *x509.Certificate
	if n.cert != nil && n.authority == m.cfg.DirectoryURL {
		leaf = n.cert.Leaf
	}
	return n.try.due(leaf)
}

// Retry tries again at once what failed, unless the authority asked for more patience. An operator does this.
func (m *Manager) Retry() {
	m.mu.Lock()
	for _, n := range m.names {
		n.try = n.try.asked()
	}
	m.mu.Unlock()
	select {
	case m.kick <- struct{}{}:
	default:
	}
}

// Run gets and renews certificates, one after the other, until ctx ends.
func (m *Manager) Run(ctx context.Context) {
	if len(m.names) == 0 {
		return
	}
	for ctx.Err() == nil {
		wait := look
		for _, n := range m.names {
			if left := m.consider(ctx, n); left < wait {
				wait = left
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-m.kick:
		}
		timer.Stop()
	}
}

// consider gets a certificate for a name if it is time to, and returns how long it is until then.
func (m *Manager) consider(ctx context.Context, n *name) time.Duration {
	covered := m.cfg.Covered != nil && m.cfg.Covered(n.host)
	m.mu.Lock()
	if covered != n.covered {
		n.covered = covered
		if covered {
			n.err, n.try = nil, attempts{}
			log.Infof("acme: %s has a valid certificate in certs/, so none is asked for", n.host)
		}
	}
	due := m.due(n)
	m.mu.Unlock()
	if covered || ctx.Err() != nil {
		return look
	}
	if left := time.Until(due); left > 0 {
		return left
	}
	m.attempt(ctx, n)
	m.mu.Lock()
	defer m.mu.Unlock()
	return max(time.Until(m.due(n)), 0)
}

// attempt asks the authority once and records how that went.
func (m *Manager) attempt(ctx context.Context, n *name) {
	start := time.Now()
	log.Infof("acme: asking for a certificate for %s", n.host)
	m.mu.Lock()
	n.try.Last = start
	m.mu.Unlock()
	m.saveAttempts()
	cert, err := m.renew(ctx, n)
	if err != nil && ctx.Err() != nil {
		return // the server stops; that says nothing about the authority
	}
	m.metrics.done(err)
	m.mu.Lock()
	if err == nil {
		n.cert, n.authority, n.err, n.try = cert, m.cfg.DirectoryURL, nil, attempts{Last: start}
	} else {
		n.err = explain(n.host, m.cfg, err)
		n.try = n.try.failed(time.Now(), err)
	}
	next := m.due(n)
	m.mu.Unlock()
	m.saveAttempts()
	if err == nil {
		log.Infof("acme: there is a certificate for %s, valid until %s; it is renewed on %s", n.host, stamp(cert.Leaf.NotAfter), stamp(next))
		m.changed()
		return
	}
	log.Errorf("acme: %v%s; it is tried again on %s; %s", n.err, remedy.Text(n.err), stamp(next), n.meanwhile())
}

// meanwhile says what clients get until it works.
func (n *name) meanwhile() string {
	switch {
	case n.cert == nil:
		return "until then there is no TLS for this name"
	case time.Now().After(n.cert.Leaf.NotAfter):
		return "until then the expired certificate is in use"
	}
	return "the present certificate is in use, until " + stamp(n.cert.Leaf.NotAfter)
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

// renew gets a certificate and stores it. The key stays the same from one to the next, so that TLSA records of the key stay true.
func (m *Manager) renew(ctx context.Context, n *name) (cert *tls.Certificate, err error) {
	defer func() {
		if p := recover(); p != nil {
			m.metrics.panics.Inc()
			err = fmt.Errorf("panic: %v", p)
			log.Errorf("acme: panic: %v\n%s", p, debug.Stack())
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	account, err := m.accountKey()
	if err != nil {
		return nil, err
	}
	key, err := keyOf(n.cert)
	if err != nil {
		return nil, err
	}
	chain, err := m.cfg.obtain(ctx, request{host: n.host, account: account, key: key})
	if err != nil {
		return nil, err
	}
	cert, err = makeCert(n.host, chain, key, time.Now())
	if err != nil {
		return nil, err
	}
	return cert, m.saveCert(n, cert)
}
