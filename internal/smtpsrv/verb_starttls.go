package smtpsrv

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"time"

	"blitiri.com.ar/go/chasquid/internal/smtp"
)

// handshakeTimeout bounds a TLS handshake.
const handshakeTimeout = 30 * time.Second

// starttls handles STARTTLS (RFC 3207). What the client sent in the clear is forgotten (section 4.2); had it sent anything after the
// command, the table would have ended the session.
func (s *session) starttls([]byte) answer {
	switch {
	case s.cfg.TLS == nil:
		return bad(502, "5.5.1", "TLS is not available here")
	case s.TLS != nil:
		return bad(503, "5.5.1", "The connection is on TLS already")
	case !s.cfg.tlsReady():
		return bad(454, "4.7.0", "TLS is not available for the moment, please try again later") // RFC 3207 section 4
	}
	s.put(smtp.NewReply(220, "2.0.0", "Ready to start TLS"))
	s.drop(resultAborted)
	s.c.arm(time.Now().Add(handshakeTimeout))
	if err := s.c.flush(); err != nil {
		s.lost(err)
		return answer{then: bye}
	}
	if err := s.handshake(); err != nil {
		s.end = endError
		return answer{then: bye} // RFC 3207 section 4.1: nothing can be said on this connection any more
	}
	s.EHLO, s.ESMTP = "", false
	s.thought = time.Now()
	return answer{}
}

func (c *Config) tlsReady() bool { return c.TLSReady == nil || c.TLSReady() }

// handshake puts TLS on the connection.
func (s *session) handshake() error {
	start := time.Now()
	s.c.armAt(start.Add(handshakeTimeout))
	tc := tls.Server(s.c.raw, s.srv.tls)
	err := tc.HandshakeContext(context.WithValue(s.ctx, configKey{}, s.cfg))
	took := time.Since(start)
	if err != nil {
		s.m.handshakes.With(s.m.label, "none", handshakeResult(err)).Inc()
		s.span.Errorf("TLS handshake: %v", err)
		return err
	}
	s.c.nc = tc
	state := tc.ConnectionState()
	s.TLS = &state
	version := strings.ToLower(strings.NewReplacer("-", "", ".", "_").Replace(tlsVersion(state.Version)))
	s.m.handshakes.With(s.m.label, version, "ok").Inc()
	s.srv.m.stage("tls_handshake", took, s.traceID())
	s.span.Debugf("TLS: %s, %s, server name %.100q", tlsVersion(state.Version), cipherSuite(state.CipherSuite), state.ServerName)
	if name := strings.ToLower(state.ServerName); name != "" && s.cfg.OwnName != nil && s.cfg.OwnName(name) {
		s.Hostname = name
	}
	return nil
}

type configKey struct{}

// alpnConfig is a configuration we were given and the one we use for it.
type alpnConfig struct{ given, used *tls.Config }

// baseTLS returns the configuration handshakes begin with: it asks the session's for the real one.
func (srv *Server) baseTLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, // RFC 8996
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			cfg, _ := hello.Context().Value(configKey{}).(*Config)
			if cfg == nil || cfg.TLS == nil {
				return nil, errors.New("no TLS configuration")
			}
			given, err := cfg.TLS(hello)
			if err != nil || given == nil || len(given.NextProtos) > 0 {
				return given, err
			}
			return srv.withALPN(given), nil
		},
	}
}

// withALPN returns the configuration with "smtp" as its protocol, so that a client that means another one is refused (the cross-protocol
// attack ALPACA). One that names none is served.
func (srv *Server) withALPN(given *tls.Config) *tls.Config {
	if a := srv.alpn.Load(); a != nil && a.given == given {
		return a.used
	}
	used := given.Clone()
	used.NextProtos = []string{"smtp"}
	srv.alpn.Store(&alpnConfig{given, used})
	return used
}

// handshakeResult classes an error for the metrics.
func handshakeResult(err error) string {
	var alert tls.AlertError
	var record tls.RecordHeaderError
	var cert *tls.CertificateVerificationError
	var authority x509.UnknownAuthorityError
	switch {
	case isTimeout(err), errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	case strings.Contains(err.Error(), "unsupported versions"), strings.Contains(err.Error(), "protocol version"):
		return "no_shared_version"
	case errors.As(err, &cert), errors.As(err, &authority), errors.As(err, &alert) && isCertAlert(alert):
		return "cert_error"
	case errors.As(err, &alert), errors.As(err, &record), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		return "client_error"
	}
	if op := new(net.OpError); errors.As(err, &op) && op.Op == "remote error" {
		return "client_error"
	}
	return "other"
}

// isCertAlert reports the alerts with which a client refuses our certificate (RFC 8446 section 6.2).
func isCertAlert(a tls.AlertError) bool { return a >= 42 && a <= 48 }

// pendingInput reports that a plaintext connection has something to read, without waiting or reading it.
func pendingInput(nc net.Conn) bool {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return false
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	pending := false
	rc.Read(func(fd uintptr) bool {
		var b [1]byte
		n, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		pending = err == nil && n > 0
		return true
	})
	return pending
}
