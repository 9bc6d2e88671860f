package courier

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/tlspolicy"
)

// verifyPKIX checks the peer's certificate chain and name, and puts the chains found into the state.
func verifyPKIX(state *tls.ConnectionState, host string, conf *tls.Config) error {
	if len(state.PeerCertificates) == 0 {
		return errors.New("the server sent no certificate")
	}
	opts := x509.VerifyOptions{DNSName: host, Roots: conf.RootCAs, CurrentTime: time.Now(), Intermediates: x509.NewCertPool()}
	for _, cert := range state.PeerCertificates[1:] {
		opts.Intermediates.AddCert(cert)
	}
	chains, err := state.PeerCertificates[0].Verify(opts)
	state.VerifiedChains = chains
	return err
}

// policy is all that is demanded of the connection to one host: the rules of the domain, of the host, and of the message.
type policy struct {
	rules []tlspolicy.Rule
}

// demandsTLS names the source for which plain text is out of the question, "" if there is none.
func (p *policy) demandsTLS() string {
	for i := range p.rules {
		if r := &p.rules[i]; r.RequireTLS || r.RequirePKIX || r.Verify != nil {
			return r.Source
		}
	}
	return ""
}

// allowHost reports why no rule-abiding mail goes to the host.
func (p *policy) allowHost(host string) (source string, err error) {
	for i := range p.rules {
		if r := &p.rules[i]; r.AllowMX != nil {
			if err := r.AllowMX(host); err != nil {
				tell(r, host, err)
				return r.Source, err
			}
		}
	}
	return "", nil
}

// check decides whether the connection may be used. It returns the level that the rules prove, the rules that vouch for it in
// words, and the source and reason of a refusal. A nil state is plain text.
func (p *policy) check(host string, state *tls.ConnectionState, pkix error, level tlspolicy.Level) (tlspolicy.Level, string, string, error) {
	var vouch []string
	proven := level
	authenticated := state != nil && pkix == nil
	for i := range p.rules {
		r := &p.rules[i]
		if r.Verify == nil || state == nil {
			continue
		}
		if err := r.Verify(host, state); err != nil {
			return level, "", r.Source, err
		}
		authenticated, proven = true, tlspolicy.TLSSecure
		vouch = append(vouch, sourceName(r.Source))
	}
	for i := range p.rules {
		r := &p.rules[i]
		if state == nil && (r.RequireTLS || r.RequirePKIX || r.Verify != nil) {
			return level, "", r.Source, levelError(level, r.Source, tlspolicy.ErrNoSTARTTLS)
		}
		if r.RequirePKIX && !authenticated {
			return level, "", r.Source, levelError(level, r.Source, pkix)
		}
		if r.AllowConn != nil {
			if err := r.AllowConn(host, state); err != nil {
				return level, "", r.Source, err
			}
		}
		if r.Verify == nil && (r.RequireTLS || r.RequirePKIX || r.AllowConn != nil) {
			vouch = append(vouch, sourceName(r.Source))
		}
	}
	return proven, strings.Join(vouch, ", "), "", nil
}

// levelError says that a level is too low for a policy, in the words of existing installations.
func levelError(level tlspolicy.Level, source string, why error) error {
	return fmt.Errorf("invalid security level (%s) for %s policy: %w", level, shortSource(source), why)
}

// report tells every rule what became of the connection; err belongs to the named source only.
func (p *policy) report(host, source string, err error) {
	for i := range p.rules {
		if r := &p.rules[i]; err == nil || r.Source == source {
			tell(r, host, err)
		}
	}
}

func tell(r *tlspolicy.Rule, host string, err error) {
	if r.Report != nil {
		r.Report(host, err)
	}
}

// failed tells every rule that demands TLS that there is none.
func (p *policy) failed(host string, err error) {
	for i := range p.rules {
		if r := &p.rules[i]; r.RequireTLS || r.RequirePKIX || r.Verify != nil || r.AllowConn != nil {
			tell(r, host, err)
		}
	}
}

// sourceName is how people write a policy's name.
func sourceName(source string) string {
	switch source {
	case "mta-sts":
		return "MTA-STS"
	case "dane":
		return "DANE"
	case "requiretls":
		return "REQUIRETLS"
	}
	return source
}

// shortSource is the name in error texts of existing installations.
func shortSource(source string) string {
	if source == "mta-sts" {
		return "STS"
	}
	return sourceName(source)
}

// policyReason is the class of a refusal by a policy.
func policyReason(source string) mail.Reason {
	if source == "mta-sts" {
		return mail.ReasonSTSPolicy
	}
	return mail.ReasonTLS
}

// domainRules asks the sources about a domain. An error means that one cannot know now: nothing is sent.
func (s *SMTP) domainRules(ctx context.Context, domain string) ([]tlspolicy.Rule, error) {
	if len(s.cfg.Sources) == 0 {
		return nil, nil
	}
	begin := time.Now()
	defer func() { s.metrics.took(stagePolicy, begin) }()
	var rules []tlspolicy.Rule
	for _, src := range s.cfg.Sources {
		r, err := src.Rule(ctx, domain)
		if err != nil {
			return nil, err
		}
		if r.Source != "" {
			rules = append(rules, r)
		}
	}
	return rules, nil
}

// hostPolicy adds the rules about one host. A rule that can verify the host by itself (DANE) takes the place of MTA-STS
// (RFC 8461 section 2): the stronger proof decides, whichever way.
func (s *SMTP) hostPolicy(ctx context.Context, domain, host string, rules []tlspolicy.Rule) (policy, error) {
	p := policy{rules: rules}
	for _, src := range s.cfg.HostSources {
		r, err := src.HostRule(ctx, domain, host)
		if err != nil {
			return p, err
		}
		if r.Source == "" {
			continue
		}
		kept := make([]tlspolicy.Rule, 0, len(rules)+1)
		for _, d := range p.rules {
			if r.Verify == nil || d.Source != "mta-sts" {
				kept = append(kept, d)
			}
		}
		p.rules = append(kept, r)
	}
	return p, nil
}
