package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"blitiri.com.ar/go/log"
	"golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"
)

// certificates gets and renews certificates from an ACME authority (RFC 8555), for the host names in the settings.
type certificates struct {
	manager *autocert.Manager
	address string // where http-01 challenges are answered
	names   []string
	l       net.Listener // at address
}

// Limits of the server that answers challenges.
const (
	challengeTimeout = 10 * time.Second
	firstAttempt     = time.Minute // how long a name's certificate may take at the start
)

// makeCertificates prepares the client; nothing is asked of the authority yet.
func (s *server) makeCertificates(context.Context) error {
	conf := s.conf.ACME
	if conf == nil {
		return nil
	}
	client := &acme.Client{DirectoryURL: conf.DirectoryURL, UserAgent: "chasquid"}
	if conf.CAFile != "" {
		pem, err := os.ReadFile(conf.CAFile)
		if err != nil {
			return fmt.Errorf("acme ca_file: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return fmt.Errorf("acme ca_file %s: no certificate in it", conf.CAFile)
		}
		client.HTTPClient = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	}
	s.certs = &certificates{address: conf.HTTPAddress, names: conf.Hostnames, manager: &autocert.Manager{Prompt: autocert.AcceptTOS, Email: conf.Email,
		Cache: autocert.DirCache(filepath.Join(s.conf.GetDataDir(), "acme")), HostPolicy: autocert.HostWhitelist(conf.Hostnames...), Client: client}}
	return nil
}

// get is asked for a certificate when certs/ has none for the name.
func (c *certificates) get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if hello.ServerName == "" && len(c.names) > 0 {
		copied := *hello
		copied.ServerName = c.names[0]
		hello = &copied
	}
	return c.manager.GetCertificate(hello)
}

// bind opens the listener for challenges, if it is not open yet.
func (c *certificates) bind(inherited func(key string) ([]net.Listener, error)) error {
	if c.l != nil {
		return nil
	}
	ls, err := inherited(challengeKey(c.address))
	if err == nil && len(ls) == 0 {
		var l net.Listener
		l, err = net.Listen("tcp", c.address)
		ls = []net.Listener{l}
	}
	if err != nil {
		return fmt.Errorf("acme http_address: %w (challenges cannot be answered without it)", err)
	}
	c.l = ls[0]
	return nil
}

// run answers challenges until ctx ends, and gets the certificates at once, so that the first client does not wait for them.
func (c *certificates) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	srv := &http.Server{Handler: c.manager.HTTPHandler(http.NotFoundHandler()), ReadTimeout: challengeTimeout, WriteTimeout: challengeTimeout}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	wg.Go(func() {
		defer stop()
		if err := srv.Serve(c.l); !errors.Is(err, http.ErrServerClosed) {
			log.Errorf("acme: answering challenges: %v", err)
		}
	})
	wg.Go(func() {
		for _, name := range c.names {
			ctx, cancel := context.WithTimeout(ctx, firstAttempt)
			if err := c.first(ctx, name); err != nil {
				log.Errorf("acme: no certificate for %s yet: %v (it is tried again when a client asks for it)", name, err)
			} else {
				log.Infof("acme: there is a certificate for %s", name)
			}
			cancel()
		}
	})
}

// first gets a certificate as a client that asks for it would.
func (c *certificates) first(ctx context.Context, name string) error {
	done := make(chan error, 1)
	go func() {
		_, err := c.manager.GetCertificate(&tls.ClientHelloInfo{ServerName: name, SupportedVersions: []uint16{tls.VersionTLS13},
			CipherSuites: []uint16{tls.TLS_AES_128_GCM_SHA256}, SignatureSchemes: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256}})
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
