package main

import (
	"context"
	"crypto/tls"
	"os"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/aliases"
	"blitiri.com.ar/go/chasquid/internal/config"
	"blitiri.com.ar/go/chasquid/internal/policy"
	"blitiri.com.ar/go/chasquid/internal/smtpsrv"
)

// tlsForClients gives the SMTP server the certificates of the present domains.
func (s *server) tlsForClients(cfg *smtpsrv.Config) {
	c := s.domains.TLSConfig(nil)
	cfg.TLS = func(*tls.ClientHelloInfo) (*tls.Config, error) { return c, nil }
}

// checks gives the SMTP server its checks, in the order in which they run.
func (s *server) checks(cfg *smtpsrv.Config) error {
	match, err := policy.ParseMatch(s.conf.GetSenderLoginMatch())
	if err != nil {
		return err
	}
	sender := &policy.Sender{Match: match, Owns: s.owns, Resolver: s.dns}
	s.rate = policy.NewRate(rateLimits(s.conf))
	recipient := &policy.Recipient{Local: s.domains.IsLocal, Exists: s.aliases.Exists, Primary: s.primaryDomain, ErrorReply: aliases.Reply}
	if rw := s.sending.rewriter; rw != nil {
		recipient.Reverse = func(a address.Address) (address.Address, error) { return rw.Reverse(a, time.Now()) }
	}
	level := policy.NewLevel(s.levels, s.reg)
	hook := policy.NewHook(policy.HookConfig{Path: postDataHook, Environ: os.Environ(), Timeout: s.conf.Time.PostDataHook, Local: s.domains.IsLocal,
		Expand: s.aliases.Expand, Metrics: s.reg})
	cfg.MailChecks = []policy.MailCheck{sender, s.rate, level}
	cfg.RcptChecks = []policy.RcptCheck{recipient, s.rate}
	cfg.BodyChecks = []policy.BodyCheck{sender, hook}
	return nil
}

func rateLimits(conf *config.Config) policy.Limits {
	r := conf.GetSubmissionRate()
	return policy.Limits{Messages: int(r.GetMessagesPerHour()), Recipients: int(r.GetRecipientsPerHour())}
}

// owns reports whether mail for from ends at the user: that is who may send as it.
func (s *server) owns(ctx context.Context, user, from address.Address) (bool, error) {
	if !s.domains.IsLocal(from.Domain) {
		return false, nil
	}
	rcpts, err := s.aliases.Resolve(ctx, from)
	if err != nil {
		return false, err
	}
	for _, r := range rcpts {
		if r.To == user {
			return true, nil
		}
	}
	return false, nil
}
