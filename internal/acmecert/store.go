package acmecert

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"blitiri.com.ar/go/chasquid/internal/vfs"
	"blitiri.com.ar/go/log"
)

// Files below Config.Dir, all of them only for the server's user: account.key, attempts.json, and HOST.pem with key and chain.
const (
	accountFile  = "account.key"
	attemptsFile = "attempts.json"
	fileMode     = 0o600
)

// authorityLine stands before the blocks of a certificate file, where PEM allows text.
const authorityLine = "Authority: "

func (m *Manager) certPath(host string) string { return filepath.Join(m.cfg.Dir, host+".pem") }

// accountKey loads the key of our account, or makes one.
func (m *Manager) accountKey() (crypto.Signer, error) {
	path := filepath.Join(m.cfg.Dir, accountFile)
	data, err := vfs.ReadFile(m.cfg.FS, path)
	if errors.Is(err, fs.ErrNotExist) {
		key, err := newKey()
		if err != nil {
			return nil, err
		}
		block, err := keyPEM(key)
		if err != nil {
			return nil, err
		}
		return key, m.write(path, block)
	}
	if err == nil {
		var key crypto.Signer
		if key, err = parseKey(data); err == nil {
			return key, nil
		}
	}
	return nil, &Error{Msg: fmt.Sprintf("the account's key %s: %v", path, err), Err: err,
		Fix: "restore the file, or remove it: a new account is made then"}
}

func (m *Manager) write(path string, data []byte) error {
	if err := vfs.WriteFile(m.cfg.FS, path, data, fileMode); err != nil {
		return &Error{Msg: fmt.Sprintf("writing %s: %v", path, err), Err: err, Fix: "let the server's user write to data_dir, and see that there is space"}
	}
	return nil
}

// loadCert reads what was stored of a name; nil without error if there is nothing.
func (m *Manager) loadCert(n *name) (cert *tls.Certificate, authority string, err error) {
	data, err := vfs.ReadFile(m.cfg.FS, n.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", err
	}
	pair, err := tls.X509KeyPair(data, data)
	if err == nil {
		err = pair.Leaf.VerifyHostname(n.host)
	}
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", n.path, err)
	}
	first, _, _ := bytes.Cut(data, []byte("\n"))
	authority, _ = strings.CutPrefix(string(first), authorityLine)
	return &pair, authority, nil
}

func (m *Manager) saveCert(n *name, cert *tls.Certificate) error {
	key, err := keyPEM(cert.PrivateKey.(crypto.Signer))
	if err != nil {
		return err
	}
	b := bytes.NewBufferString(authorityLine + m.cfg.DirectoryURL + "\n")
	b.Write(key)
	for _, der := range cert.Certificate {
		if err := pem.Encode(b, &pem.Block{Type: "CERTIFICATE", Bytes: der}); err != nil {
			return err
		}
	}
	return m.write(n.path, b.Bytes())
}

// loadAttempts reads what is remembered of attempts. It is not worth a failed start.
func (m *Manager) loadAttempts() map[string]attempts {
	all := map[string]attempts{}
	path := filepath.Join(m.cfg.Dir, attemptsFile)
	data, err := vfs.ReadFile(m.cfg.FS, path)
	if err == nil {
		err = json.Unmarshal(data, &all)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Errorf("acme: %s: %v (what is remembered of attempts starts anew)", path, err)
	}
	// A clock that was wrong must not keep us from ever asking again.
	for host, a := range all {
		if a.Last.After(time.Now()) || a.NotBefore.After(time.Now().Add(longestTold)) || a.Failures < 0 {
			all[host] = attempts{}
		}
	}
	return all
}

func (m *Manager) saveAttempts() {
	m.mu.Lock()
	all := map[string]attempts{}
	for _, n := range m.names {
		all[n.host] = n.try
	}
	m.mu.Unlock()
	data, err := json.MarshalIndent(all, "", "  ")
	if err == nil {
		err = vfs.WriteFile(m.cfg.FS, filepath.Join(m.cfg.Dir, attemptsFile), append(data, '\n'), fileMode)
	}
	if err != nil {
		log.Errorf("acme: writing what is remembered of attempts: %v", err)
	}
}

func newKey() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// keyOf is the key of a certificate, or a new one.
func keyOf(cert *tls.Certificate) (crypto.Signer, error) {
	if cert != nil {
		if key, ok := cert.PrivateKey.(crypto.Signer); ok {
			return key, nil
		}
	}
	return newKey()
}

func keyPEM(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func parseKey(data []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, errors.New("no key in PEM format")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	if ec, ok := key.(*ecdsa.PrivateKey); ok && ec.Curve == elliptic.P256() {
		return ec, nil
	}
	return nil, errors.New("not an ECDSA key on P-256")
}

// tooShort is a certificate's rest of life below which it is of no use: it would be asked for again and again.
const tooShort = 5 * time.Second

// makeCert checks what the authority gave us: it is for the name and the key, and valid now.
func makeCert(host string, chain [][]byte, key crypto.Signer, now time.Time) (*tls.Certificate, error) {
	if len(chain) == 0 {
		return nil, errors.New("the authority gave no certificate")
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return nil, fmt.Errorf("the authority's certificate cannot be read: %w", err)
	}
	if err := leaf.VerifyHostname(host); err != nil {
		return nil, fmt.Errorf("the authority gave a certificate for another name: %w", err)
	}
	if pub, ok := leaf.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(key.Public()) {
		return nil, errors.New("the authority gave a certificate for another key")
	}
	if now.Before(leaf.NotBefore) || leaf.NotAfter.Sub(now) < tooShort {
		return nil, &Error{Msg: fmt.Sprintf("the authority gave a certificate that is valid from %s to %s only", stamp(leaf.NotBefore), stamp(leaf.NotAfter)),
			Fix: "check the clock of this machine"}
	}
	return &tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: leaf}, nil
}
