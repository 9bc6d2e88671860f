package wrong

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"testing"
	"time"
)

func certificate(t *testing.T, notAfter time.Time) (chain, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "mail.example.org"}, DNSNames: []string{"mail.example.org"},
		NotBefore: notAfter.AddDate(0, -6, 0), NotAfter: notAfter}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
}

func goodCert(t *testing.T) map[string]string {
	chain, key := certificate(t, time.Now().AddDate(0, 3, 0))
	return map[string]string{"fullchain.pem": chain, "privkey.pem": key}
}

// badCert makes the files of a certificate with something wrong.
func badCert(t *testing.T, what string) map[string]string {
	end, ok := map[string]time.Time{"expired": time.Now().AddDate(0, 0, -2), "soon": time.Now().Add(50 * time.Hour),
		"future": time.Now().AddDate(1, 0, 0), "mismatch": time.Now().AddDate(0, 3, 0)}[what]
	if !ok {
		t.Fatalf("no such certificate: %s", what)
	}
	chain, key := certificate(t, end)
	if what == "mismatch" {
		_, key = certificate(t, end)
	}
	return map[string]string{"fullchain.pem": chain, "privkey.pem": key}
}
