package acmecert

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/crypto/acme"
)

// challengeTimeout bounds each connection to the server that answers challenges.
const challengeTimeout = 10 * time.Second

// answer opens the listener for a challenge and answers it until stop is called. The port is open only while it is needed: at other
// times it can belong to somebody else, and there is nothing to attack.
func (m *Manager) answer(client *acme.Client, host, token string) (stop func(), err error) {
	var handler http.Handler
	var cert tls.Certificate
	if m.cfg.Challenge == TLSALPN01 {
		cert, err = client.TLSALPN01ChallengeCert(token, host)
	} else {
		handler, err = fileHandler(client, token)
	}
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", m.cfg.Address)
	if err != nil {
		return nil, &listenError{err}
	}
	if m.cfg.Challenge == TLSALPN01 {
		return serveTLS(l, host, cert), nil
	}
	srv := &http.Server{Handler: handler, ReadTimeout: challengeTimeout, WriteTimeout: challengeTimeout, MaxHeaderBytes: 8 << 10}
	var wg sync.WaitGroup
	wg.Go(func() { srv.Serve(l) })
	return func() {
		srv.Close()
		wg.Wait()
	}, nil
}

// CheckAddress reports whether challenges can be answered on the address now.
func CheckAddress(c Challenge, address string) error {
	l, err := net.Listen("tcp", address)
	if err == nil {
		return l.Close()
	}
	return &Error{Msg: err.Error(), Fix: fixListen(Config{Challenge: c}, &listenError{err}), Err: err}
}

// fileHandler has the one file that shows that we have the account's key (RFC 8555 section 8.3).
func fileHandler(client *acme.Client, token string) (http.Handler, error) {
	text, err := client.HTTP01ChallengeResponse(token)
	if err != nil {
		return nil, err
	}
	path := client.HTTP01ChallengePath(token)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != path {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		fmt.Fprint(w, text)
	}), nil
}

// serveTLS shows the challenge's certificate to those who ask for the name with the challenge's protocol, and ends every other
// handshake (RFC 8737 section 3).
func serveTLS(l net.Listener, host string, cert tls.Certificate) (stop func()) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{acme.ALPNProto}, SessionTicketsDisabled: true,
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if hello.ServerName != host || len(hello.SupportedProtos) != 1 || hello.SupportedProtos[0] != acme.ALPNProto {
				return nil, errors.New("not the challenge")
			}
			return &cert, nil
		}}
	ctx, cancel := context.WithTimeout(context.Background(), attemptTimeout)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				time.Sleep(10 * time.Millisecond)
				continue
			}
			wg.Go(func() {
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(challengeTimeout))
				// The handshake is all there is to it (section 3).
				_ = tls.Server(conn, conf).HandshakeContext(ctx)
			})
		}
	})
	return func() {
		l.Close()
		cancel()
		wg.Wait()
	}
}
