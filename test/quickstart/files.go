package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"blitiri.com.ar/go/chasquid/internal/auth/userdb"
)

const (
	localUser = "user"
	domain    = "example.test"
)

func (s *site) certFile() string { return filepath.Join(s.dir, "certs", "localhost", "fullchain.pem") }
func (s *site) keyFile() string  { return filepath.Join(s.dir, "certs", "localhost", "privkey.pem") }

// maildir is where mail for the user lands.
func (s *site) maildir() string { return filepath.Join(s.dir, "mail", domain, localUser) }

// prepare makes what is missing of the directory, and reads the password if it was there.
func (s *site) prepare() error {
	for _, d := range []string{"domains/" + domain, "domains/localhost", "data", "mail", "certs/localhost"} {
		if err := os.MkdirAll(filepath.Join(s.dir, d), 0o700); err != nil {
			return err
		}
	}
	s.user = localUser + "@" + domain
	for _, step := range []func() error{s.writeConfig, s.writeCert, s.writeUsers} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// writeConfig writes the configuration anew, so that it fits the addresses asked for.
func (s *site) writeConfig() error {
	conf := fmt.Sprintf(`# Made by make run, and made anew each time.
hostname: "localhost"
smtp_address: %q
submission_address: %q
submission_over_tls_address: %q
monitoring_address: %q
data_dir: "data"
mail_log_path: "<stdout>"
local_delivery: "maildir:mail/%%to_domain%%/%%to_user%%"
`, s.smtp, s.submission, s.submissionTLS, s.monitoring)
	return os.WriteFile(filepath.Join(s.dir, "chasquid.conf"), []byte(conf), 0o600)
}

// writeCert makes a self-signed certificate, unless there is one that is still good for a while.
func (s *site) writeCert() error {
	if pair, err := tls.LoadX509KeyPair(s.certFile(), s.keyFile()); err == nil && time.Until(pair.Leaf.NotAfter) > 24*time.Hour {
		return nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))
	if err != nil {
		return err
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost", domain},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
		NotBefore:   time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.keyFile(), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600); err != nil {
		return err
	}
	return os.WriteFile(s.certFile(), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
}

// writeUsers makes the user in both domains with a random password, which is kept in a file for the next time.
func (s *site) writeUsers() error {
	passwordFile := filepath.Join(s.dir, "password")
	b, err := os.ReadFile(passwordFile)
	if s.password = strings.TrimSpace(string(b)); errors.Is(err, fs.ErrNotExist) || s.password == "" {
		s.password = strings.ToLower(rand.Text()[:12])
		err = os.WriteFile(passwordFile, []byte(s.password+"\n"), 0o600)
	}
	if err != nil {
		return err
	}
	for _, d := range []string{domain, "localhost"} {
		file := filepath.Join(s.dir, "domains", d, "users")
		db, err := userdb.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			db, err = &userdb.DB{}, nil
		}
		if err != nil {
			return err
		}
		p, err := userdb.NewScrypt(s.password)
		if err != nil {
			return err
		}
		if err := db.Set(localUser, p); err != nil {
			return err
		}
		if err := db.WriteFile(file); err != nil {
			return err
		}
	}
	return nil
}
