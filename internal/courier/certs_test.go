package courier

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"strings"
	"sync"
	"time"
)

// testCerts makes certificates of a test authority, by the time of the test's bubble. The names are
// "good:HOST", "expired:HOST", "wrong" (another name), "self" (by nobody), "fail-…" (the handshake is meant to fail), "old" (TLS 1.1).
type testCerts struct {
	mu    sync.Mutex
	used  bool
	ca    *x509.Certificate
	caKey *ecdsa.PrivateKey
	pool  *x509.CertPool
}

var testKey = sync.OnceValue(func() *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return k
})

func (c *testCerts) make() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.used {
		return
	}
	c.used, c.caKey = true, testKey()
	c.ca = &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, c.ca, c.ca, c.caKey.Public(), c.caKey)
	if err != nil {
		panic(err)
	}
	if c.ca, err = x509.ParseCertificate(der); err != nil {
		panic(err)
	}
	c.pool = x509.NewCertPool()
	c.pool.AddCert(c.ca)
}

func (c *testCerts) config(name string) *tls.Config {
	c.make()
	kind, host, _ := strings.Cut(name, ":")
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: []string{host}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	if ip := net.ParseIP(host); ip != nil {
		tmpl.DNSNames, tmpl.IPAddresses = nil, []net.IP{ip}
	}
	parent := c.ca
	conf := &tls.Config{}
	switch kind {
	case "expired":
		tmpl.NotAfter = time.Now().Add(-time.Minute)
	case "wrong":
		tmpl.DNSNames = []string{"other.example"}
	case "self":
		parent = tmpl
	case "fail-old":
		conf.MaxVersion = tls.VersionTLS11
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, c.caKey.Public(), c.caKey)
	if err != nil {
		panic(err)
	}
	conf.Certificates = []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: c.caKey}}
	return conf
}
