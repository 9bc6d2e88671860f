package dkim

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Algorithms that Generate knows; the first is the default.
var keyAlgorithms = []string{"rsa3072", "rsa4096", "ed25519"}

// Generate makes a key: "rsa3072" (also for ""), "rsa4096" or "ed25519".
func Generate(algo string) (crypto.Signer, error) {
	switch algo {
	case "", keyAlgorithms[0]:
		return rsa.GenerateKey(rand.Reader, 3072)
	case keyAlgorithms[1]:
		return rsa.GenerateKey(rand.Reader, 4096)
	case keyAlgorithms[2]:
		_, priv, err := ed25519.GenerateKey(rand.Reader)
		return priv, err
	}
	return nil, fmt.Errorf("unsupported algorithm %q", algo)
}

// DefaultSelector is the selector of a key made now: the UTC date.
func DefaultSelector(now time.Time) string { return now.UTC().Format("20060102") }

// KeyFile is the path of a key in the configuration directory.
func KeyFile(configDir, domain, selector string) string {
	return filepath.Join(configDir, "domains", domain, "dkim:"+selector+".pem")
}

// Selectors returns the selectors that have a key file in the configuration directory, in lexical order.
func Selectors(configDir, domain string) ([]string, error) {
	pattern := KeyFile(configDir, domain, "*")
	entries, err := os.ReadDir(filepath.Dir(pattern))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("looking for keys: %w", err)
	}
	var l []string
	for _, e := range entries {
		if s, ok := strings.CutPrefix(e.Name(), "dkim:"); ok {
			if s, ok = strings.CutSuffix(s, ".pem"); ok {
				l = append(l, s)
			}
		}
	}
	slices.Sort(l)
	if len(l) == 0 {
		return nil, fmt.Errorf("no DKIM keys found in %q", pattern)
	}
	return l, nil
}

// WriteKey writes a key to a new file (PKCS#8 in PEM, mode 0660 less the umask). An existing file is an error.
func WriteKey(path string, key crypto.Signer) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encoding the key: %w", err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o660)
	if err != nil {
		return err
	}
	if err := pem.Encode(f, &pem.Block{Type: "PRIVATE KEY", Bytes: der}); err != nil {
		f.Close()
		return fmt.Errorf("writing %s: %w", path, err)
	}
	if err := f.Sync(); err != nil {
		f.Close()
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return f.Close()
}

// ParseKey reads a private key: PKCS#8 in PEM, RSA or Ed25519.
func ParseKey(data []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, errors.New("error decoding PEM block")
	}
	if !strings.EqualFold(block.Type, "PRIVATE KEY") {
		return nil, fmt.Errorf("unsupported block type: %q", block.Type)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	switch k := key.(type) {
	case *rsa.PrivateKey:
		return k, nil
	case ed25519.PrivateKey:
		return k, nil
	}
	return nil, fmt.Errorf("%w: %T", ErrKeyType, key)
}

// ZoneLine is the line for the zone file that publishes a key: name, TAB, TXT, TAB, the text in quotes.
func ZoneLine(domain, selector string, pub crypto.PublicKey) (string, error) {
	text, err := Record(pub)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s._domainkey.%s\tTXT\t%q", selector, domain, text), nil
}
