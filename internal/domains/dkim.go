package domains

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// minRSABits is the least size of an RSA key that verifiers accept (RFC 8301 section 3.2).
const minRSABits = 1024

// Key is a DKIM signing key.
type Key struct {
	Domain   string // lower-case Unicode form
	Selector string
	File     string
	Algo     string        // "rsa-sha256" or "ed25519-sha256" (RFC 6376, RFC 8463)
	Signer   crypto.Signer // *rsa.PrivateKey or ed25519.PrivateKey
}

// loadKey reads the key of a file named dkim:SELECTOR.pem: PKCS#8 in PEM, RSA or Ed25519.
func loadKey(domain, path string) (Key, error) {
	selector := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(path), "dkim:"), ".pem")
	fail := func(err error, fix string) (Key, error) {
		return Key{}, &Error{Path: path, Msg: fmt.Sprintf("%s: DKIM loading error: %v", path, err), Err: err, Fix: fix}
	}
	const makeKey = `make a new key with "chasquid-util dkim-keygen" (and publish it), or move the file elsewhere`
	b, err := os.ReadFile(path)
	if err != nil {
		return fail(err, fixRead(path))
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return fail(errors.New("error decoding PEM block"), makeKey)
	}
	if !strings.EqualFold(block.Type, "PRIVATE KEY") {
		return fail(fmt.Errorf("unsupported block type: %q", block.Type),
			"convert the key to PKCS#8: openssl pkcs8 -topk8 -nocrypt -in OLD -out NEW")
	}
	priv, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return fail(err, makeKey)
	}
	k := Key{Domain: domain, Selector: selector, File: path}
	switch p := priv.(type) {
	case *rsa.PrivateKey:
		if p.N.BitLen() < minRSABits {
			return fail(fmt.Errorf("RSA key of %d bits is too short", p.N.BitLen()), makeKey)
		}
		k.Algo, k.Signer = "rsa-sha256", p
	case ed25519.PrivateKey:
		k.Algo, k.Signer = "ed25519-sha256", p
	default:
		return fail(fmt.Errorf("unsupported key type: %T", priv), "use an RSA or Ed25519 key")
	}
	return k, nil
}
