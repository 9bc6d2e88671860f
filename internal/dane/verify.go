package dane

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"errors"

	"blitiri.com.ar/go/chasquid/internal/dns"
)

// Certificate usages (RFC 7218 section 2.1). The PKIX ones, 0 and 1, are not for SMTP (RFC 7672 section 3.1.3).
const (
	usageTA = 2
	usageEE = 3
)

// mismatch is a certificate that the records do not prove.
type mismatch struct{ err error }

func (e *mismatch) Error() string      { return "DANE: " + e.err.Error() }
func (e *mismatch) Unwrap() error      { return e.err }
func (e *mismatch) ResultType() string { return "validation-failure" } // RFC 8460 section 4.3.1

var (
	errNoMatch = errors.New("the server's certificate matches none of its TLSA records")
	errNoCert  = errors.New("the server sent no certificate")
)

// isUsable reports a record that can prove a certificate (RFC 7672 section 2.1.1, RFC 7671 section 10.1).
func isUsable(r dns.TLSA) bool {
	if r.Usage != usageTA && r.Usage != usageEE || r.Selector > 1 {
		return false
	}
	switch r.Matching {
	case 0:
		if r.Selector == 0 {
			_, err := x509.ParseCertificate(r.Data)
			return err == nil
		}
		_, err := x509.ParsePKIXPublicKey(r.Data)
		return err == nil
	case 1:
		return len(r.Data) == sha256.Size
	case 2:
		return len(r.Data) == sha512.Size
	}
	return false
}

// matches reports a certificate that the record is about (RFC 6698 section 2.1).
func matches(r dns.TLSA, c *x509.Certificate) bool {
	data := c.Raw
	if r.Selector == 1 {
		data = c.RawSubjectPublicKeyInfo
	}
	switch r.Matching {
	case 0:
		return bytes.Equal(data, r.Data)
	case 1:
		sum := sha256.Sum256(data)
		return bytes.Equal(sum[:], r.Data)
	case 2:
		sum := sha512.Sum512(data)
		return bytes.Equal(sum[:], r.Data)
	}
	return false
}

// verify reports why none of the usable records proves the certificate of the connection; nil means that one does.
func verify(records []dns.TLSA, names []string, state *tls.ConnectionState) error {
	if state == nil || len(state.PeerCertificates) == 0 {
		return &mismatch{errNoCert}
	}
	chain := state.PeerCertificates
	// RFC 7672 section 3.1.1: for DANE-EE neither the name nor the dates in the certificate count.
	for _, r := range records {
		if r.Usage == usageEE && matches(r, chain[0]) {
			return nil
		}
	}
	anchors := anchors(records, chain)
	if len(anchors) == 0 {
		return &mismatch{errNoMatch}
	}
	opts := x509.VerifyOptions{
		Roots:         x509.NewCertPool(),
		Intermediates: x509.NewCertPool(),
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageAny}, // RFC 7671 section 5.2 asks for a path, not for purposes
	}
	for _, c := range anchors {
		opts.Roots.AddCert(c)
	}
	for _, c := range chain[1:] {
		opts.Intermediates.AddCert(c)
	}
	// RFC 7672 section 3.1.2: for DANE-TA the path is checked and one of the names must fit.
	var err error
	for _, name := range names {
		opts.DNSName = name
		if _, err = chain[0].Verify(opts); err == nil {
			return nil
		}
	}
	return &mismatch{err}
}

// anchors returns the certificates that DANE-TA records make trust anchors: those of the chain, those given in full, and those
// signed by a key given in full.
func anchors(records []dns.TLSA, chain []*x509.Certificate) (l []*x509.Certificate) {
	for _, r := range records {
		if r.Usage != usageTA {
			continue
		}
		for _, c := range chain {
			if matches(r, c) {
				l = append(l, c)
			}
		}
		if r.Matching != 0 {
			continue
		}
		if r.Selector == 0 {
			if c, err := x509.ParseCertificate(r.Data); err == nil {
				l = append(l, c)
			}
			continue
		}
		if key, err := x509.ParsePKIXPublicKey(r.Data); err == nil {
			issuer := &x509.Certificate{PublicKey: key, PublicKeyAlgorithm: algorithmOf(key), IsCA: true, BasicConstraintsValid: true, Version: 3}
			for _, c := range chain {
				if issuer.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) == nil {
					l = append(l, c)
				}
			}
		}
	}
	return l
}

func algorithmOf(key crypto.PublicKey) x509.PublicKeyAlgorithm {
	switch key.(type) {
	case *rsa.PublicKey:
		return x509.RSA
	case *ecdsa.PublicKey:
		return x509.ECDSA
	case ed25519.PublicKey:
		return x509.Ed25519
	}
	return x509.UnknownPublicKeyAlgorithm
}
