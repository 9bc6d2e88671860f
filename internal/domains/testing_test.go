package domains

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// dir is a configuration directory under construction.
type dir struct {
	t    *testing.T
	path string
}

func newDir(t *testing.T) dir {
	d := dir{t, t.TempDir()}
	d.mkdir("certs")
	d.mkdir("domains")
	return d
}

func (d dir) mkdir(name string) {
	d.t.Helper()
	if err := os.MkdirAll(filepath.Join(d.path, name), 0o755); err != nil {
		d.t.Fatal(err)
	}
}

// write puts a file in place by renaming, as careful programs do.
func (d dir) write(name string, data []byte) {
	d.t.Helper()
	d.mkdir(filepath.Dir(name))
	path := filepath.Join(d.path, name)
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		d.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		d.t.Fatal(err)
	}
}

func (d dir) remove(name string) {
	d.t.Helper()
	if err := os.RemoveAll(filepath.Join(d.path, name)); err != nil {
		d.t.Fatal(err)
	}
}

// cert writes a self-signed certificate for names into certs/<name>, valid for the given days from yesterday.
func (d dir) cert(name string, days int, names ...string) {
	d.t.Helper()
	chain, key := makeCert(d.t, days, names...)
	d.write("certs/"+name+"/fullchain.pem", chain)
	d.write("certs/"+name+"/privkey.pem", key)
}

func makeCert(t *testing.T, days int, names ...string) (chain, key []byte) {
	t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<60))
	start := time.Now().AddDate(0, 0, -1)
	tmpl := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		NotBefore: start, NotAfter: start.AddDate(0, 0, days)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, priv.Public(), priv)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pemKey(t, priv)
}

func pemKey(t *testing.T, k crypto.Signer) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func rsaKey(t *testing.T, bits int) *rsa.PrivateKey {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func edKey(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	_, k, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}
