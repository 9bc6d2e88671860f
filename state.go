package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/config"
	"blitiri.com.ar/go/chasquid/internal/courier"
	"blitiri.com.ar/go/chasquid/internal/dane"
	"blitiri.com.ar/go/chasquid/internal/dns"
	"blitiri.com.ar/go/chasquid/internal/domaininfo"
	"blitiri.com.ar/go/chasquid/internal/domains"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/queue/items"
	"blitiri.com.ar/go/chasquid/internal/selfcheck"
	"blitiri.com.ar/go/chasquid/internal/sts"
	"blitiri.com.ar/go/chasquid/internal/tlspolicy"
	"blitiri.com.ar/go/chasquid/internal/tlsrpt"
	"blitiri.com.ar/go/chasquid/internal/trace"
	"blitiri.com.ar/go/chasquid/internal/vfs"
	"blitiri.com.ar/go/log"
)

// openState opens what is remembered of other servers, below the data directory.
func (s *server) openState(ctx context.Context, dir string) error {
	conf := s.conf()
	s.dns = dns.New(dns.Config{Servers: resolvers(conf), TrustAD: conf.GetDnsTrustAd(), Metrics: s.reg})
	var err error
	if s.levels, err = domaininfo.Open(ctx, domaininfo.Config{Dir: filepath.Join(dir, "domaininfo")}); err != nil {
		return fmt.Errorf("Error opening domain info database: %w", err)
	}
	s.reports, err = tlsrpt.New(tlsrpt.Config{Off: !conf.TLSReports, Resolver: s.dns, Hostname: reportHost(conf),
		State: filepath.Join(dir, "tls-reports.json"), Later: s.up.pred != nil, Mail: s.mailReport, Metrics: s.reg})
	if err != nil {
		log.Errorf("The counts for TLS reports start anew: %v", err)
	}
	report := s.reports.Observe
	if s.sts, err = sts.New(sts.Config{Resolver: s.dns, Dir: filepath.Join(dir, "sts-cache"), Report: report, Metrics: s.reg}); err != nil {
		return fmt.Errorf("Failed to initialize STS cache: %w", err)
	}
	s.selfcheck = selfcheck.New(selfcheck.RunnerConfig{Metrics: s.reg, Domains: s.ownDomains, Checks: func() selfcheck.Config {
		return selfcheck.Config{Resolver: s.dns, Hostname: s.conf().GetHostname(), HasCert: func(host string) bool { return s.domains.Current().HasCert(host, time.Now()) }}
	}})
	s.selfcheck.Set(s.conf().GetSelfcheck() == "on")
	s.dane = dane.New(dane.Config{Resolver: s.dns, Report: report, Metrics: s.reg})
	return nil
}

// generationFile holds how many processes have served this data directory: traces that go on after a restart name it.
const generationFile = "generation"

// nextGeneration counts this process. Without the file counting begins anew, which harms nobody.
func nextGeneration(dir string) int64 {
	path := filepath.Join(dir, generationFile)
	b, _ := os.ReadFile(path)
	n, _ := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	n = max(n, 0) + 1
	err := os.MkdirAll(dir, 0700)
	if err == nil {
		err = vfs.WriteFile(vfs.OS, path, fmt.Appendln(nil, n), 0600)
	}
	if err != nil {
		log.Errorf("counting this start: %v", err)
	}
	return n
}

// resolvers are the DNS servers of the settings, none for those of the system.
func resolvers(conf *config.Config) []string {
	servers := make([]string, len(conf.Resolvers))
	for i, r := range conf.Resolvers {
		servers[i] = r.String()
	}
	return servers
}

// reportHost is who sends TLS reports.
func reportHost(conf *config.Config) string {
	host, err := address.DomainToASCII(conf.GetHostname())
	if err != nil {
		return conf.GetHostname()
	}
	return host
}

// mailReport signs a report and puts it into the queue.
func (s *server) mailReport(ctx context.Context, from, to string, msg []byte) error {
	sender, err := address.Parse(from)
	if err != nil {
		return err
	}
	rcpt, err := address.Parse(to)
	if err != nil {
		return err
	}
	signature, err := s.signer.SignMessage(ctx, sender.Domain, bytes.NewReader(msg))
	if err != nil {
		return err
	}
	d, err := s.intake.Begin(ctx)
	if err != nil {
		return err
	}
	defer d.Discard()
	if _, err := d.Write(msg); err != nil {
		return err
	}
	env := &mail.Envelope{From: sender, Rcpts: []mail.Recipient{{To: rcpt, Orig: rcpt}}, Arrived: time.Now(), Trace: trace.NewID(), Source: mail.FromAdmin}
	_, err = d.Commit(ctx, env, signature)
	return err
}

// ownDomains are the local ones that have a directory.
func (s *server) ownDomains() (list []*domains.Domain) {
	for _, d := range s.domains.Current().Domains {
		if d.Dir != "" {
			list = append(list, d)
		}
	}
	return list
}

func (s *server) tlsSources() []tlspolicy.Source         { return []tlspolicy.Source{s.sts} }
func (s *server) tlsHostSources() []tlspolicy.HostSource { return []tlspolicy.HostSource{s.dane} }
func (s *server) ledger() courier.Ledger                 { return s.levels }

// rpcDomaininfoClear forgets the TLS levels of a domain.
func (s *server) rpcDomaininfoClear(ctx context.Context, args url.Values) (url.Values, error) {
	domain, err := address.NormalizeDomain(args.Get("Domain"))
	if err != nil {
		return nil, err
	}
	if err := s.levels.Clear(ctx, domain); errors.Is(err, domaininfo.ErrNotFound) {
		return nil, domaininfo.ErrNotFound
	} else if err != nil {
		return nil, err
	}
	return url.Values{}, nil
}

// importItems takes over the queue files of an installation of the original: each is removed once it is safely in the spool. What
// cannot be read stays where it is, for an operator to look at.
func (s *server) importItems(ctx context.Context) error {
	last := time.Now()
	r, err := items.Import(ctx, items.Config{Store: s.slot, Dir: filepath.Join(s.conf().GetDataDir(), "queue"), Progress: func(done, total int) {
		if time.Since(last) > progressEvery {
			last = time.Now()
			log.Infof("Importing the queue: %d of %d messages", done, total)
		}
	}})
	if r.Done > 0 {
		log.Infof("Imported %d messages from the queue of an earlier version", r.Done)
	}
	if r.Failed > 0 {
		log.Errorf("%d queue files of an earlier version cannot be read and were left in place", r.Failed)
	}
	if err != nil {
		return fmt.Errorf("Error importing the queue of an earlier version: %w", err)
	}
	return nil
}

// progressEvery is how often long work says how far it is.
const progressEvery = 2 * time.Second
