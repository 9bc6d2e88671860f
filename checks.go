package main

import (
	"crypto/tls"
	"os"

	"blitiri.com.ar/go/chasquid/internal/aliases"
	"blitiri.com.ar/go/chasquid/internal/config"
	"blitiri.com.ar/go/chasquid/internal/dkim"
	"blitiri.com.ar/go/chasquid/internal/dmarc"
	"blitiri.com.ar/go/chasquid/internal/policy"
	"blitiri.com.ar/go/chasquid/internal/smtpsrv"
	"blitiri.com.ar/go/chasquid/internal/spf"
)

// tlsForClients returns the TLS configuration for a client, with the certificates of the present domains.
func (s *server) tlsForClients(*tls.ClientHelloInfo) (*tls.Config, error) { return s.clientTLS, nil }

// checkers are the checks that settings do not change, and what others are made of. Some remember what they found out.
type checkers struct {
	spf    *policy.SPF
	level  *policy.Level
	verify *policy.DKIMVerify
	sign   *policy.DKIMSign
	dmarc  *dmarc.Checker
}

func (s *server) makeCheckers() {
	s.clientTLS = s.domains.TLSConfig()
	s.rate = policy.NewRate(rateLimits(s.conf()))
	s.checkers = checkers{
		spf:    policy.NewSPF(spf.New(spf.Config{Resolver: s.dns, Metrics: s.reg})),
		level:  policy.NewLevel(&s.up.levels, s.hasCertificate, s.reg),
		verify: policy.NewDKIMVerify(dkim.NewVerifier(s.dns, s.reg)),
		sign:   policy.NewDKIMSign(s.signer),
		dmarc:  dmarc.New(s.dns, s.reg),
	}
}

// checks gives the SMTP server its checks, in the order in which they run: what is cheap and final first, what others build on before
// them, and the hook, which sees all their headers, last.
func (s *server) checks(conf *config.Config, cfg *smtpsrv.Config) error {
	match, err := policy.ParseMatch(conf.GetSenderLoginMatch())
	if err != nil {
		return err
	}
	sender := &policy.Sender{Match: match, Owns: s.aliases.Owns, Resolver: s.dns}
	recipient := &policy.Recipient{Local: s.domains.IsLocal, Exists: s.aliases.Exists, Primary: s.primaryDomain, Reverse: s.sending.reverse, ErrorReply: aliases.Reply}
	hook := policy.NewHook(policy.HookConfig{Path: postDataHook, Environ: os.Environ(), Timeout: conf.Time.PostDataHook, Local: s.domains.IsLocal,
		Expand: s.aliases.Expand, Metrics: s.reg})
	k := &s.checkers
	cfg.MailChecks = []policy.MailCheck{sender, k.spf, k.level, s.rate}
	cfg.RcptChecks = []policy.RcptCheck{recipient, s.rate}
	lines := policy.Lines{Local: s.domains.IsLocal, Send: conf.GetLongLines() == "send"}
	cfg.BodyChecks = []policy.BodyCheck{k.verify, policy.NewDMARC(k.dmarc, conf.GetDmarcEnforce()), sender, lines, k.sign, hook}
	return nil
}

func rateLimits(conf *config.Config) policy.Limits {
	r := conf.GetSubmissionRate()
	return policy.Limits{Messages: int(r.GetMessagesPerHour()), Recipients: int(r.GetRecipientsPerHour())}
}
