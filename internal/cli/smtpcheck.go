package cli

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/smtp"
	"slices"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/dns"
	"blitiri.com.ar/go/chasquid/internal/spf"
	"blitiri.com.ar/go/chasquid/internal/sts"
)

// smtpCheck is one run of smtp-check: does the world reach this domain's mail servers, safely?
type smtpCheck struct {
	port, localname string
	skipTLS         bool

	l        *log.Logger
	resolver dns.Resolver
	fetch    func(ctx context.Context, domain string) (*sts.Policy, error)
	dial     func(ctx context.Context, network, addr string) (net.Conn, error)
	tls      *tls.Config // more settings of the handshake, for tests
	problems []string
}

func (s *smtpCheck) flags() *flag.FlagSet {
	fs := flag.NewFlagSet("smtp-check", flag.ContinueOnError)
	fs.StringVar(&s.port, "port", "smtp", "`port` to connect to")
	fs.StringVar(&s.localname, "localname", "localhost", "our `name` in the greeting")
	fs.BoolVar(&s.skipTLS, "skip_tls_check", false, "do not try TLS, for when the servers have no valid certificates")
	// The options of the log, which existing scripts may give.
	fs.Bool("alsologtostderr", false, "accepted, without effect")
	fs.String("logfile", "", "accepted, without effect")
	fs.Bool("logtime", false, "accepted, without effect")
	fs.String("logtosyslog", "", "accepted, without effect")
	fs.Int("v", 0, "accepted, without effect")
	return fs
}

func smtpCheckMain(env *Env, args []string) int {
	s := &smtpCheck{l: log.New(env.Stderr, "", log.LstdFlags)}
	fs := s.flags()
	fs.Usage = func() {
		fmt.Fprint(env.Stderr, "Usage: smtp-check [options] <domain>\n\n"+
			"Checks that a domain's mail servers can be found and reached, that they do TLS with valid certificates, and that MTA-STS and SPF fit.\n\n")
		fs.PrintDefaults()
	}
	if exit, ok := parseFlags(env, fs, args); !ok {
		return exit
	}
	if fs.Arg(0) == "" {
		s.l.Print("Use: smtp-check <domain>")
		return exitError
	}
	s.resolver = env.resolver()
	s.fetch = func(ctx context.Context, domain string) (*sts.Policy, error) {
		p, _, err := sts.Fetch(ctx, s.resolver, sts.NewClient(s.resolver, nil, false), domain)
		return p, err
	}
	s.dial = (&net.Dialer{Timeout: 30 * time.Second}).DialContext
	return s.run(context.Background(), fs.Arg(0))
}

// run does all checks. Some problems are collected, others leave nothing more to check.
func (s *smtpCheck) run(ctx context.Context, domain string) int {
	err := s.check(ctx, domain)
	if err != nil {
		s.problems = append(s.problems, err.Error())
	}
	if len(s.problems) == 0 {
		s.l.Print("=== Success")
		return exitOK
	}
	s.l.Print("=== FAILED")
	for _, p := range s.problems {
		s.l.Printf("%s", p)
	}
	return exitError
}

func (s *smtpCheck) check(ctx context.Context, domain string) error {
	ascii, err := asciiDomain(domain)
	if err != nil {
		return fmt.Errorf("Error converting the domain to ASCII: %w", err)
	}
	policy, err := s.stsPolicy(ctx, ascii)
	if err != nil {
		return err
	}
	mxs, _, err := s.resolver.MX(ctx, dns.ForMX, ascii)
	if err != nil {
		return fmt.Errorf("Error looking up MX: %w", err)
	}
	slices.SortStableFunc(mxs, func(a, b dns.MX) int { return int(a.Pref) - int(b.Pref) })
	for _, mx := range mxs {
		if mx.Host == "" {
			return errors.New("The domain takes no mail: its MX is the null MX")
		}
		if err := s.server(ctx, ascii, mx, policy); err != nil {
			return err
		}
	}
	return nil
}

func (s *smtpCheck) stsPolicy(ctx context.Context, domain string) (*sts.Policy, error) {
	s.l.Print("=== STS policy")
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	policy, err := s.fetch(ctx, domain)
	if err != nil {
		s.l.Printf("Not available (%v)", err)
		return nil, nil
	}
	s.l.Printf("Parsed contents: [%+v]", *policy)
	if err := policy.Check(); err != nil {
		return nil, fmt.Errorf("Invalid policy: %w", err)
	}
	s.l.Print("OK")
	return policy, nil
}

// server checks one mail server of the domain.
func (s *smtpCheck) server(ctx context.Context, domain string, mx dns.MX, policy *sts.Policy) error {
	s.l.Printf("=== MX: %2d  %s", mx.Pref, mx.Host)
	if err := s.spf(ctx, domain, mx.Host); err != nil {
		return err
	}
	if s.skipTLS {
		s.l.Print("TLS check skipped")
	} else if err := s.starttls(ctx, mx.Host); err != nil {
		return err
	}
	if policy == nil {
		return nil
	}
	if policy.Allows(mx.Host) {
		s.l.Print("MX is allowed by the STS policy")
	} else {
		s.problem("%s: the STS policy does not allow this MX; senders that honour it do not deliver here", mx.Host)
	}
	return nil
}

func (s *smtpCheck) problem(format string, args ...any) {
	s.problems = append(s.problems, fmt.Sprintf(format, args...))
	s.l.Printf(format, args...)
}

// spf checks that the server may itself send mail of the domain.
func (s *smtpCheck) spf(ctx context.Context, domain, host string) error {
	ips, _, err := s.resolver.IP(ctx, dns.ForMX, host)
	if err != nil {
		return fmt.Errorf("Error looking up the addresses of %s: %w", host, err)
	}
	checker := spf.New(spf.Config{Resolver: s.resolver})
	for _, ip := range ips {
		r := checker.Check(ctx, ip, domain, address.Address{Local: "test", Domain: domain})
		if r.Value == spf.Pass {
			s.l.Printf("SPF %v for %v: %s", r.Value, ip, r.Reason)
		} else {
			s.problem("SPF %s for %v: %s", r.Value, ip, r.Reason)
		}
	}
	return nil
}

// starttls checks the server's TLS. Without a connection there is nothing to check.
func (s *smtpCheck) starttls(ctx context.Context, host string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	conn, err := s.dial(ctx, "tcp", net.JoinHostPort(host, s.port))
	if err != nil {
		return fmt.Errorf("Error connecting: %w", err)
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	conn.SetDeadline(deadline)
	c, err := smtp.NewClient(conn, host)
	if err != nil {
		return fmt.Errorf("Error in the server's greeting: %w", err)
	}
	if err := c.Hello(s.localname); err != nil {
		return fmt.Errorf("Error saying hello: %w", err)
	}
	conf := &tls.Config{}
	if s.tls != nil {
		conf = s.tls.Clone()
	}
	conf.ServerName = host
	if err := c.StartTLS(conf); err != nil {
		s.problem("TLS error: %v", err)
		return nil
	}
	state, _ := c.TLSConnectionState()
	s.l.Printf("TLS OK: %s - %s", tls.VersionName(state.Version), tls.CipherSuiteName(state.CipherSuite))
	return c.Quit()
}
