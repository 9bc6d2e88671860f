package courier

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// RouterConfig of a Router.
type RouterConfig struct {
	Local func(domain string) bool // whether a domain (lower-case Unicode) is one of ours; nil: none is

	// LocalTarget says how local mail is delivered: "maildir:TEMPLATE", "lmtp:ADDRESS", or "" for the MDA command.
	LocalTarget string

	// Routes are exceptions by destination domain: "mx", "host", "host:port", "smtp://…", "smtps://…" (ParseSmarthost).
	// A key ".example.org" is for every domain below example.org; the longest one that fits counts.
	Routes map[string]string

	// RelayVia takes what is neither local nor in Routes; written as a value of Routes. Empty: "mx".
	RelayVia string
}

// Router decides where recipients go. It does not change; another one takes its place when the configuration does.
type Router struct{ cfg RouterConfig }

// NewRouter returns a router. An error names the route that cannot be understood.
func NewRouter(cfg RouterConfig) (*Router, error) {
	routes := make(map[string]string, len(cfg.Routes))
	for domain, via := range cfg.Routes {
		bare, below := strings.CutPrefix(domain, ".")
		d, err := address.NormalizeDomain(bare)
		if err != nil {
			return nil, fmt.Errorf("route for %q: %w", domain, err)
		}
		if below {
			d = "." + d
		}
		if err := checkVia(via); err != nil {
			return nil, fmt.Errorf("route for %q: %w", domain, err)
		}
		routes[d] = via
	}
	cfg.Routes = routes
	if cfg.RelayVia != "" {
		if err := checkVia(cfg.RelayVia); err != nil {
			return nil, fmt.Errorf("relay: %w", err)
		}
	}
	if scheme, rest, _ := strings.Cut(cfg.LocalTarget, ":"); cfg.LocalTarget != "" {
		switch {
		case scheme != "maildir" && scheme != "lmtp":
			return nil, fmt.Errorf("local delivery %q is neither maildir: nor lmtp:", cfg.LocalTarget)
		case rest == "":
			return nil, fmt.Errorf("local delivery %q: nothing follows the colon", cfg.LocalTarget)
		}
	}
	return &Router{cfg}, nil
}

// checkVia reports what is wrong with a value of Routes.
func checkVia(via string) error {
	switch {
	case via == "mx":
		return nil
	case strings.Contains(via, "://"):
		_, err := ParseSmarthost(via)
		return err
	case via == "":
		return errors.New("it leads nowhere")
	}
	_, err := parseHost(via, 25)
	return err
}

// Route says where a recipient goes and why. It asks nobody: the servers behind an MX route are found when it is used.
func (r *Router) Route(ctx context.Context, rcpt mail.Recipient, env *mail.Envelope) (mail.Route, error) {
	route, err := r.route(rcpt)
	if err != nil {
		return route, trace.From(ctx).Errorf("no route for %s: %w", rcpt.Target(), err)
	}
	return route, nil
}

func (r *Router) route(rcpt mail.Recipient) (mail.Route, error) {
	domain := rcpt.To.Domain
	switch {
	case rcpt.Kind == mail.Pipe:
		if strings.TrimSpace(rcpt.Command) == "" {
			return mail.Route{}, errors.New("the alias names no command")
		}
		return mail.Route{Transport: mail.Command, Target: rcpt.Command, Why: "an alias gives it to a command"}, nil
	case rcpt.To.IsNull():
		return mail.Route{}, errors.New("the recipient has no address")
	case rcpt.Kind == mail.Forward:
		if len(rcpt.Via) == 0 {
			return mail.Route{}, errors.New("the forward names no server")
		}
		return mail.Route{Transport: mail.Relay, Domain: domain, Hosts: rcpt.Via, Why: "an alias sends it through " + strings.Join(rcpt.Via, ", ")}, nil
	case domain == "" || r.cfg.Local != nil && r.cfg.Local(domain):
		why := domain + " is a local domain"
		if domain == "" {
			why = "an address without a domain is local"
		}
		return mail.Route{Transport: mail.Local, Domain: domain, Target: r.cfg.LocalTarget, Why: why}, nil
	}
	if via, key := r.exception(domain); via != "" {
		return viaRoute(domain, via, "the route for "+key)
	}
	if rcpt.To.IsLiteral() {
		return mail.Route{Transport: mail.SMTP, Domain: domain, Why: "the address names the server"}, nil
	}
	if r.cfg.RelayVia != "" {
		return viaRoute(domain, r.cfg.RelayVia, "relay_via")
	}
	return mail.Route{Transport: mail.SMTP, Domain: domain, Why: "by the MX records of " + domain}, nil
}

// exception finds the route for a domain and the key that it stands under.
func (r *Router) exception(domain string) (via, key string) {
	if via, ok := r.cfg.Routes[domain]; ok {
		return via, domain
	}
	for rest := domain; len(r.cfg.Routes) > 0; {
		i := strings.IndexByte(rest, '.')
		if i < 0 {
			return "", ""
		}
		if via, ok := r.cfg.Routes[rest[i:]]; ok {
			return via, rest[i:]
		}
		rest = rest[i+1:]
	}
	return "", ""
}

// viaRoute is the route that a value of Routes means.
func viaRoute(domain, via, why string) (mail.Route, error) {
	switch {
	case via == "mx":
		return mail.Route{Transport: mail.SMTP, Domain: domain, Why: why + " says by MX records"}, nil
	case strings.Contains(via, "://"):
		h, err := ParseSmarthost(via)
		if err != nil {
			return mail.Route{}, err
		}
		return mail.Route{Transport: mail.Relay, Domain: domain, Hosts: []string{h.Host}, Target: via, Why: why + " says through " + via}, nil
	}
	return mail.Route{Transport: mail.Relay, Domain: domain, Hosts: []string{via}, Why: why + " says through " + via}, nil
}
