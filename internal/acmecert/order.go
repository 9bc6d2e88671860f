package acmecert

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/acme"
)

// request is one certificate to get.
type request struct {
	host         string
	account, key crypto.Signer
}

// Bounds of what an authority can make us do in one attempt.
const (
	maxRequests    = 200
	maxAnswer      = 1 << 20 // bytes
	requestTimeout = 30 * time.Second
	retries        = 3 // of a request that the authority refuses for now
)

// order gets a certificate: account, order, proof, certificate (RFC 8555 section 7.1).
func (m *Manager) order(ctx context.Context, req request) ([][]byte, error) {
	client := m.client(req.account)
	if err := m.register(ctx, client); err != nil {
		return nil, err
	}
	o, err := client.AuthorizeOrder(ctx, acme.DomainIDs(req.host))
	if err != nil {
		return nil, fmt.Errorf("ordering: %w", err)
	}
	if o.Status == acme.StatusPending {
		for _, url := range o.AuthzURLs {
			if err := m.prove(ctx, client, req.host, url); err != nil {
				return nil, err
			}
		}
		if o, err = m.waitOrder(ctx, client, o); err != nil {
			return nil, err
		}
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{req.host}}, req.key)
	if err != nil {
		return nil, err
	}
	chain, _, err := client.CreateCertFromOrder(ctx, o, csr, true)
	if err != nil {
		return nil, fmt.Errorf("getting the certificate: %w", err)
	}
	return chain, nil
}

func (m *Manager) waitOrder(ctx context.Context, client *acme.Client, o *acme.Order) (*acme.Order, error) {
	done, err := client.WaitOrder(ctx, o.URI)
	if err != nil {
		return nil, fmt.Errorf("waiting for the order: %w", err)
	}
	return done, nil
}

// register makes sure that the account exists: an authority may have forgotten it (section 7.3.1).
func (m *Manager) register(ctx context.Context, client *acme.Client) error {
	account := &acme.Account{}
	if m.cfg.Email != "" {
		account.Contact = []string{"mailto:" + m.cfg.Email}
	}
	if m.cfg.KeyID != "" {
		account.ExternalAccountBinding = &acme.ExternalAccountBinding{KID: m.cfg.KeyID, Key: m.cfg.MACKey}
	}
	if _, err := client.Discover(ctx); err != nil {
		return &directoryError{err}
	}
	if _, err := client.Register(ctx, account, acme.AcceptTOS); err != nil && !errors.Is(err, acme.ErrAccountAlreadyExists) {
		return &accountError{err}
	}
	return nil
}

// prove shows the authority that a name leads here (section 7.5.1).
func (m *Manager) prove(ctx context.Context, client *acme.Client, host, url string) error {
	z, err := client.GetAuthorization(ctx, url)
	if err != nil {
		return fmt.Errorf("reading the authorization: %w", err)
	}
	if z.Status == acme.StatusValid {
		return nil
	}
	for _, c := range z.Challenges {
		if c.Type != string(m.cfg.Challenge) {
			continue
		}
		stop, err := m.answer(client, host, c.Token)
		if err != nil {
			m.abandon(client, url)
			return err
		}
		defer stop()
		if _, err := client.Accept(ctx, c); err != nil {
			return fmt.Errorf("offering the proof: %w", err)
		}
		if _, err := client.WaitAuthorization(ctx, url); err != nil {
			return fmt.Errorf("the proof by %s: %w", m.cfg.Challenge, err)
		}
		return nil
	}
	m.abandon(client, url)
	return &Error{Msg: fmt.Sprintf("the authority does not offer the challenge %s for %s", m.cfg.Challenge, host), Fix: "set another acme.challenge"}
}

// abandon gives an authorization up that we cannot use: pending ones count against limits. It is only a courtesy.
func (m *Manager) abandon(client *acme.Client, url string) {
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	_ = client.RevokeAuthorization(ctx, url)
}

// client makes a client for one attempt: nothing is remembered from one to the next.
func (m *Manager) client(account crypto.Signer) *acme.Client {
	t := &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: m.cfg.Roots}}
	return &acme.Client{Key: account, DirectoryURL: m.cfg.DirectoryURL, UserAgent: "chasquid",
		HTTPClient:   &http.Client{Timeout: requestTimeout, Transport: &bounded{next: t}},
		RetryBackoff: backoff}
}

// backoff repeats a request only if its nonce was too old or the authority has trouble. Limits of rate are for the next attempt.
func backoff(n int, _ *http.Request, res *http.Response) time.Duration {
	if n > retries || res != nil && res.StatusCode == http.StatusTooManyRequests {
		return -1
	}
	if res != nil && res.StatusCode >= 500 {
		return time.Duration(n) * time.Second
	}
	return time.Duration(n) * 50 * time.Millisecond
}

// bounded limits the number of requests and the size of their answers.
type bounded struct {
	next http.RoundTripper
	n    atomic.Int64
}

func (b *bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	if b.n.Add(1) > maxRequests {
		return nil, errors.New("the authority made us ask too many times")
	}
	res, err := b.next.RoundTrip(r)
	if err == nil {
		res.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(res.Body, maxAnswer), res.Body}
	}
	return res, err
}
