package dkim

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"blitiri.com.ar/go/chasquid/internal/dns"
)

// failure is a result that is not pass, with its reason. The reasons are our own words: they stand in headers.
type failure struct {
	value, reason string
	err           error // detail for the trace
}

func (f *failure) Error() string {
	if f.err != nil {
		return f.value + ": " + f.reason + ": " + f.err.Error()
	}
	return f.value + ": " + f.reason
}

func permError(reason string) *failure { return &failure{PermError, reason, nil} }

// publicKey is a usable key record (RFC 6376 section 3.6.1).
type publicKey struct {
	key     crypto.PublicKey // *rsa.PublicKey or ed25519.PublicKey
	strict  bool             // t=s: the domain of i= must equal d=
	testing bool             // t=y
}

// algorithm is the one the key is for.
func (k publicKey) algorithm() string {
	if _, ok := k.key.(ed25519.PublicKey); ok {
		return Ed25519SHA256
	}
	return RSASHA256
}

// verify checks a signature of the hash.
func (k publicKey) verify(digest, sig []byte) bool {
	switch key := k.key.(type) {
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(key, crypto.SHA256, digest, sig) == nil
	case ed25519.PublicKey:
		return ed25519.Verify(key, digest, sig) // RFC 8463 section 3: the hash is what is signed
	}
	return false
}

// lookupKeys returns the usable keys of a selector for an algorithm. Every TXT record that parses counts.
func lookupKeys(ctx context.Context, r dns.Resolver, domain, selector, algorithm string) ([]publicKey, *failure) {
	txt, _, err := r.TXT(ctx, dns.ForDKIM, selector+"._domainkey."+domain)
	switch {
	case errors.Is(err, dns.ErrNotFound):
		return nil, &failure{PermError, "no key for signature", err}
	case err != nil:
		return nil, &failure{TempError, "key unavailable", err}
	}
	var keys []publicKey
	var why *failure
	for i, t := range txt {
		if i == maxKeys {
			break
		}
		k, f := parseRecord(t)
		if f == nil && k.algorithm() != algorithm {
			f = permError("key is for another algorithm")
		}
		if f == nil {
			keys = append(keys, k)
		} else if why == nil {
			why = f
		}
	}
	if len(keys) == 0 {
		if why == nil {
			why = permError("no key for signature")
		}
		return nil, why
	}
	return keys, nil
}

// parseRecord parses a key record.
func parseRecord(s string) (publicKey, *failure) {
	l, err := parseTags(s)
	if err != nil {
		return publicKey{}, &failure{PermError, "malformed key record", err}
	}
	if v, ok := l.get("v"); ok && (v != "DKIM1" || l[0].name != "v") {
		return publicKey{}, permError("unknown version of the key record")
	}
	if h := l.list("h"); h != nil && !slices.Contains(h, "sha256") {
		return publicKey{}, permError("the key is not for SHA-256")
	}
	if s := l.list("s"); s != nil && !slices.Contains(s, "*") && !slices.Contains(s, "email") {
		return publicKey{}, permError("the key is not for mail")
	}
	p, ok := l.get("p")
	if !ok {
		return publicKey{}, permError("key record without key")
	}
	if p == "" {
		return publicKey{}, permError("key revoked")
	}
	der, err := base64.StdEncoding.DecodeString(compact(p))
	if err != nil {
		return publicKey{}, &failure{PermError, "malformed key", err}
	}
	flags := l.list("t")
	k := publicKey{strict: slices.Contains(flags, "s"), testing: slices.Contains(flags, "y")}
	kind, ok := l.get("k")
	switch {
	case !ok || kind == "rsa":
		key, f := parseRSA(der)
		k.key = key
		return k, f
	case kind == "ed25519":
		if len(der) != ed25519.PublicKeySize {
			return publicKey{}, permError("malformed key")
		}
		k.key = ed25519.PublicKey(der)
		return k, nil
	}
	return publicKey{}, permError("unknown kind of key")
}

// parseRSA takes a SubjectPublicKeyInfo, as everybody publishes, or an RSAPublicKey, as RFC 6376 says in one place.
func parseRSA(der []byte) (*rsa.PublicKey, *failure) {
	var key *rsa.PublicKey
	pub, err := x509.ParsePKIXPublicKey(der)
	if err == nil {
		key, _ = pub.(*rsa.PublicKey)
	} else {
		key, err = x509.ParsePKCS1PublicKey(der)
	}
	if key == nil {
		return nil, &failure{PermError, "malformed key", err}
	}
	switch n := key.N.BitLen(); {
	case n < MinRSABits:
		return nil, permError(fmt.Sprintf("the key has fewer than %d bits", MinRSABits))
	case n > MaxRSABits:
		return nil, permError(fmt.Sprintf("the key has more than %d bits", MaxRSABits))
	case key.E < 3 || key.E%2 == 0:
		return nil, permError("malformed key")
	}
	return key, nil
}

// digest hashes the parts.
func digest(parts ...[]byte) []byte {
	h := sha256.New()
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

// Record returns the text of the DNS record that publishes the key, without quotes.
func Record(pub crypto.PublicKey) (string, error) {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		der, err := x509.MarshalPKIXPublicKey(k)
		if err != nil {
			return "", fmt.Errorf("encoding the public key: %w", err)
		}
		return "v=DKIM1; k=rsa; p=" + base64.StdEncoding.EncodeToString(der), nil
	case ed25519.PublicKey:
		return "v=DKIM1; k=ed25519; p=" + base64.StdEncoding.EncodeToString(k), nil
	}
	return "", fmt.Errorf("%w: %T", ErrKeyType, pub)
}

// CheckRecord reports why a published record does not serve the key: the record is malformed, or is of another key.
func CheckRecord(txt string, pub crypto.PublicKey) error {
	k, f := parseRecord(txt)
	if f != nil {
		return f
	}
	eq, ok := k.key.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !eq.Equal(pub) {
		return errors.New("the record is of another key")
	}
	return nil
}

// lowerDomain returns a domain as d= and i= are compared.
func lowerDomain(d string) string { return strings.ToLower(strings.TrimSuffix(d, ".")) }

// QuoteTXT writes the text of a record as strings of at most 255 bytes (RFC 1035 section 3.3), as a zone file needs them.
func QuoteTXT(text string) string {
	var parts []string
	for len(text) > 255 {
		parts, text = append(parts, strconv.Quote(text[:255])), text[255:]
	}
	return strings.Join(append(parts, strconv.Quote(text)), " ")
}
