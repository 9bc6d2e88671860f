package main

import (
	"crypto/tls"
	"os"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/aliases"
	"blitiri.com.ar/go/chasquid/internal/config"
	"blitiri.com.ar/go/chasquid/internal/dkim"
	"blitiri.com.ar/go/chasquid/internal/dmarc"
	"blitiri.com.ar/go/chasquid/internal/policy"
	"blitiri.com.ar/go/chasquid/internal/smtpsrv"
	"blitiri.com.ar/go/chasquid/internal/spf"
)

// tlsForClients gives the SMTP server the certificates there are at the time.
func (s *server) tlsForClients(cfg *smtpsrv.Config) {
	c := s.domains.TLSConfig()
	cfg.TLS = func(*tls.ClientHelloInfo) (*tls.Config, error) { return c, nil }
	cfg.TLSReady = s.hasCertificate
}

// checks gives the SMTP server its checks, in the order in which they run: what is cheap and final first, what others build on before
// them, and the hook, which sees all their headers, last.
func (s *server) checks(cfg *smtpsrv.Config) error {
	match, err := policy.ParseMatch(s.conf.GetSenderLoginMatch())
	if err != nil {
		return err
	}
	sender := &policy.Sender{Match: match, Owns: s.aliases.Owns, Resolver: s.dns}
	s.rate = policy.NewRate(rateLimits(s.conf))
	recipient := &policy.Recipient{Local: s.domains.IsLocal, Exists: s.aliases.Exists, Primary: s.primaryDomain, ErrorReply: aliases.Reply}
	if rw := s.sending.rewriter; rw != nil {
		recipient.Reverse = func(a address.Address) (address.Address, error) { return rw.Original(a, s.domains.IsLocal, time.Now()) }
	}
	hook := policy.NewHook(policy.HookConfig{Path: postDataHook, Environ: os.Environ(), Timeout: s.conf.Time.PostDataHook, Local: s.domains.IsLocal,
		Expand: s.aliases.Expand, Metrics: s.reg})
	cfg.MailChecks = []policy.MailCheck{
		sender,
		policy.NewSPF(spf.New(spf.Config{Resolver: s.dns, Metrics: s.reg})),
		policy.NewLevel(&s.up.levels, s.hasCertificate, s.reg),
		s.rate,
	}
	cfg.RcptChecks = []policy.RcptCheck{recipient, s.rate}
	cfg.BodyChecks = []policy.BodyCheck{
		policy.NewDKIMVerify(dkim.NewVerifier(s.dns, s.reg)),
		policy.NewDMARC(dmarc.New(s.dns, s.reg), s.conf.GetDmarcEnforce()),
		sender,
		policy.Lines{Local: s.domains.IsLocal, Send: s.conf.GetLongLines() == "send"},
		policy.NewDKIMSign(s.signer),
		hook,
	}
	return nil
}

func rateLimits(conf *config.Config) policy.Limits {
	r := conf.GetSubmissionRate()
	return policy.Limits{Messages: int(r.GetMessagesPerHour()), Recipients: int(r.GetRecipientsPerHour())}
}
