package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"blitiri.com.ar/go/chasquid/internal/acmecert"
	"blitiri.com.ar/go/chasquid/internal/domains"
	"blitiri.com.ar/go/chasquid/internal/monitoring"
	"blitiri.com.ar/go/chasquid/internal/remedy"
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
	cfg := acmecert.Config{Metrics: s.reg}
	if conf := s.conf.ACME; conf != nil {
		cfg.Dir = filepath.Join(s.conf.GetDataDir(), acmeDir)
		cfg.Names, cfg.Email, cfg.DirectoryURL, cfg.Roots = conf.Hostnames, conf.Email, conf.DirectoryURL, conf.Roots
		cfg.Challenge, cfg.Address, cfg.KeyID, cfg.MACKey = acmecert.Challenge(conf.Challenge), conf.Address, conf.KeyID, conf.MACKey
		cfg.Covered = func(name string) bool { return s.domains.Current().HasOwnCert(name, time.Now()) }
		cfg.Changed = s.takeCertificates
	}
	var err error
	s.certs, err = acmecert.New(cfg)
	return err
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
	for _, c := range s.certs.Status() {
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
	for _, c := range s.certs.Status() {
		r := monitoring.Renewal{Name: c.Name, NotAfter: c.NotAfter, Covered: c.Covered, Next: c.Next, Since: c.Since, Failures: c.Failures}
		if c.Err != nil {
			r.Error, r.Remedy = c.Err.Error(), remedy.Of(c.Err)
		}
		list = append(list, r)
	}
	return list
}
