package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"time"

	"blitiri.com.ar/go/chasquid/internal/acmecert"
	"blitiri.com.ar/go/chasquid/internal/config"
	"blitiri.com.ar/go/chasquid/internal/domains"
	"blitiri.com.ar/go/chasquid/internal/monitoring"
	"blitiri.com.ar/go/chasquid/internal/remedy"
	"blitiri.com.ar/go/log"
)

// acmeDir is where certificates of an ACME authority are kept, below the data directory.
const acmeDir = "acme"

// certificateWarning is how long before its end a certificate counts as missing if it could not be renewed.
const certificateWarning = time.Hour

// acmeName stands before the names of such certificates on pages and in metrics, where certs/ may have one of the same name.
const acmeName = "acme/"

// makeCertificates loads what was got by ACME before; nothing is asked of the authority yet. Without the acme setting it has no names,
// and does nothing.
func (s *server) makeCertificates(context.Context) error {
	m, err := acmecert.New(s.acmeConfig(s.conf()))
	s.certs.Store(m)
	return err
}

// acmeConfig is what the settings say of certificates of an authority.
func (s *server) acmeConfig(conf *config.Config) acmecert.Config {
	cfg := acmecert.Config{Metrics: s.reg}
	if a := conf.ACME; a != nil {
		cfg.Dir = filepath.Join(conf.GetDataDir(), acmeDir)
		cfg.Names, cfg.Email, cfg.DirectoryURL, cfg.Roots = a.Hostnames, a.Email, a.DirectoryURL, a.Roots
		cfg.Challenge, cfg.Address, cfg.KeyID, cfg.MACKey = acmecert.Challenge(a.Challenge), a.Address, a.KeyID, a.MACKey
		cfg.Covered = func(name string) bool { return s.domains.Current().HasOwnCert(name, time.Now()) }
		cfg.Changed = s.takeCertificates
	}
	return cfg
}

// runCertificates gets and renews certificates until the files of the data directory are no longer ours, or other settings come.
func (s *server) runCertificates() {
	m, done := s.certs.Load(), make(chan struct{})
	ctx, stop := context.WithCancel(s.run.base)
	s.settings.renewing = renewing{stop, done}
	s.run.tending.start(ctx, func(ctx context.Context) {
		defer close(done)
		m.Run(ctx)
	})
}

// renewing is certificates being renewed.
type renewing struct {
	stop context.CancelFunc
	done chan struct{} // closed when it has stopped
}

// prepareCertificates gets ready for other settings of the ACME client. An order that is under way is given up then.
func (s *server) prepareCertificates(_ context.Context, c *change) error {
	if reflect.DeepEqual(c.old.ACME, c.new.ACME) {
		return nil
	}
	if c.new.ACME == nil && !s.domains.Current().HasOwn() {
		return c.new.Problem("acme", errors.New("without it there is no certificate"), "put one into certs/ first, or leave the acme block")
	}
	if c.new.ACME != nil {
		if err := os.MkdirAll(filepath.Join(c.new.GetDataDir(), acmeDir), 0o700); err != nil {
			return c.new.Problem("acme", err, "let the server's user write to data_dir")
		}
	}
	c.onSwap(func() {
		s.settings.renewing.stop()
		<-s.settings.renewing.done
		m, err := acmecert.New(s.acmeConfig(c.new))
		if err != nil {
			log.Errorf("acme: %v; the settings from before stay in use until the restart", err)
		} else {
			s.certs.Store(m)
		}
		if c.new.ACME == nil {
			s.takeCertificates(nil)
		}
		s.runCertificates()
	}, nil)
	return nil
}

// takeCertificates puts the authority's certificates in force.
func (s *server) takeCertificates(list []acmecert.Certificate) {
	var extra []*domains.Cert
	for _, c := range list {
		extra = append(extra, domains.MakeCert(acmeName+c.Name, c.Path, *c.TLS))
	}
	s.domains.SetExtra(extra)
}

// hasCertificate reports whether TLS can be offered: without the acme setting there always is a certificate.
func (s *server) hasCertificate() bool { return len(s.domains.Current().Certs) > 0 }

// missingCertificates are the names for which clients get no valid certificate, each with why and what to do.
func (s *server) missingCertificates() (errs []error) {
	for _, c := range s.certs.Load().Status() {
		switch {
		case c.Covered || time.Until(c.NotAfter) > certificateWarning:
		case c.Err != nil:
			errs = append(errs, fmt.Errorf("%w%s; next attempt %s", c.Err, remedy.Text(c.Err), c.Next.UTC().Format(time.DateTime)))
		case c.NotAfter.IsZero():
			errs = append(errs, fmt.Errorf("there is no certificate for %s yet: the authority is being asked", c.Name))
		}
	}
	return errs
}

// renewals is what the pages show of the authority's certificates.
func (s *server) renewals() []monitoring.Renewal {
	var list []monitoring.Renewal
	for _, c := range s.certs.Load().Status() {
		r := monitoring.Renewal{Name: c.Name, NotAfter: c.NotAfter, Covered: c.Covered, Next: c.Next, Since: c.Since, Failures: c.Failures}
		if c.Err != nil {
			r.Error, r.Remedy = c.Err.Error(), remedy.Of(c.Err)
		}
		list = append(list, r)
	}
	return list
}
