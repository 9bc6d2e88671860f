package config

import (
	"errors"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
)

// Ports of relays that do not name one (RFC 8314 section 3.3, RFC 6409, RFC 5321).
const (
	portSMTP           = 25
	portSubmission     = 587
	portSubmissionsTLS = 465
)

func (k *checker) localDelivery() {
	v := k.LocalDelivery
	kind, rest, _ := strings.Cut(v, ":")
	switch {
	case v == "":
		k.mdaArgs()
	case kind == "maildir" && rest != "":
		k.LocalMaildir = k.Path(rest)
		k.placeholders("local_delivery", rest)
		if !strings.Contains(rest, "%to") {
			k.warn("local_delivery: without %%to_user%% all users share one Maildir")
		}
	case kind == "lmtp" && strings.Contains(rest, "/"):
		k.LocalLMTP = k.Path(rest)
	case kind == "lmtp" && checkHostPort(rest) == nil:
		k.LocalLMTP = rest
	default:
		k.bad("local_delivery", v, "not a way to deliver",
			`write "maildir:/var/mail/%to_domain%/%to_user%", "lmtp:/run/dovecot/lmtp" or "lmtp:host:24", or remove it to use mail_delivery_agent_bin`)
	}
}

func (k *checker) mdaArgs() {
	for _, a := range k.MailDeliveryAgentArgs {
		k.placeholders("mail_delivery_agent_args", a)
	}
	if strings.Contains(k.MailDeliveryAgentBin, " ") && !filepath.IsAbs(k.MailDeliveryAgentBin) {
		k.warn("mail_delivery_agent_bin: %q has a space; arguments belong in mail_delivery_agent_args", k.MailDeliveryAgentBin)
	}
}

// placeholders warns of %names% that nothing replaces.
func (k *checker) placeholders(field, s string) {
	for i, part := range strings.Split(s, "%") {
		if i%2 == 0 || strings.ContainsAny(part, " /") {
			continue
		}
		switch part {
		case "", "from", "from_user", "from_domain", "to", "to_user", "to_domain", "to_detail", "to_original":
		default:
			k.warn("%s: nothing replaces %%%s%%", field, part)
		}
	}
}

func (k *checker) sending() {
	k.relay()
	k.routes()
	k.outgoing()
	k.oneOf("srs", k.Srs, "on", "off")
	k.oneOf("tls_reports", k.TlsReports, "on", "off")
	k.SRS, k.TLSReports = k.Srs == "on", k.TlsReports == "on"
	k.SRSSecretFile = k.Path(k.SrsSecretFile)
	if k.SRSSecretFile == "" {
		k.SRSSecretFile = filepath.Join(k.Path(k.DataDir), "srs-secret")
	}
	for _, s := range k.DnsServer {
		a, err := parseResolver(s)
		if err != nil || a.Port() == 0 {
			k.bad("dns_server", s, "not an address", `write "127.0.0.1" or "[2001:db8::53]:53"`)
			continue
		}
		k.Resolvers = append(k.Resolvers, a)
	}
}

func (k *checker) relay() {
	if k.RelayVia == "" {
		if k.RelayPasswordFile != "" {
			k.warn("relay_password_file: it has no effect without relay_via")
		}
		return
	}
	r, err := parseRelay(k.RelayVia)
	if err != nil {
		k.bad("relay_via", redact(k.RelayVia), err.Error(), relayFix)
		return
	}
	k.Relay = r
	k.password(r, "relay_password_file", k.RelayPasswordFile)
}

const relayFix = `write "smtps://user@host:465", "smtp://user@host:587" or "smtp://host:25"`

// password gives the relay the password of the file, which goes with a user and only with one.
func (k *checker) password(r *Relay, field, file string) {
	switch {
	case file != "":
		if r.User == "" {
			k.bad(field, file, "a password without a user", "name the user in the URL: smtps://user@host:465")
			return
		}
		r.Password = k.readPassword(field, file)
	case r.User != "":
		k.bad(field, "", "a user without a password", "write the password into a file and name the file here")
	}
}

func (k *checker) routes() {
	seen := map[string]bool{}
	for _, r := range k.Route {
		name, sub := strings.CutPrefix(r.Domain, ".")
		domain, err := lowerDomain(name)
		if err != nil {
			k.bad("route.domain", r.Domain, "not a domain name", `write "example.org", or ".example.org" for the domains below it`)
			continue
		}
		route := DomainRoute{Domain: domain, Subdomains: sub}
		key := strings.TrimSuffix(r.Domain, name) + domain
		if seen[key] {
			k.bad("route.domain", r.Domain, "it has two routes", "keep one of them")
			continue
		}
		seen[key] = true
		if r.Via != "mx" {
			if route.Relay, err = parseRelay(r.Via); err != nil {
				k.bad("route.via", redact(r.Via), err.Error(), relayFix+`, "host:port" or "mx"`)
				continue
			}
			k.password(route.Relay, "route.password_file", r.PasswordFile)
		}
		k.Routes = append(k.Routes, route)
	}
}

// parseRelay parses smtp://[user@]host[:port], smtps://[user@]host[:port], host or host:port.
func parseRelay(s string) (*Relay, error) {
	if s == "" {
		return nil, errors.New("empty")
	}
	scheme, _, ok := strings.Cut(s, "://")
	if !ok {
		s = "plain://" + s
		scheme = "plain"
	}
	u, err := url.Parse(s)
	if err != nil {
		return nil, errors.New("not a server") // the error would repeat the URL, password included
	}
	if _, ok := u.User.Password(); ok {
		return nil, errors.New("the password does not belong in the URL; put it into the password file")
	}
	if u.Path != "" || u.RawQuery != "" || u.Fragment != "" || !isHostOrIP(u.Hostname()) {
		return nil, errors.New("not a server")
	}
	r := &Relay{Host: u.Hostname(), User: u.User.Username()}
	switch scheme {
	case "smtps":
		r.TLS, r.Port = ImplicitTLS, portSubmissionsTLS
	case "smtp":
		r.Port = portSMTP
		if r.User != "" {
			r.TLS, r.Port = StartTLS, portSubmission
		}
	case "plain":
		r.Port = portSMTP
		if r.User != "" {
			return nil, errors.New("a user needs smtp:// or smtps:// in front")
		}
	default:
		return nil, errors.New("unknown scheme")
	}
	if p := u.Port(); p != "" {
		if r.Port, err = parsePort(p); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func isHostOrIP(h string) bool {
	if _, err := netip.ParseAddr(h); err == nil {
		return true
	}
	return isHostName(h)
}

func (k *checker) outgoing() {
	var four, six bool
	for _, s := range k.OutgoingAddress {
		a, err := netip.ParseAddr(s)
		switch {
		case err != nil:
			k.bad("outgoing_address", s, "not an IP address", `write "192.0.2.1" or "2001:db8::1"`)
			continue
		case a.Is4() && four, a.Is6() && six:
			k.bad("outgoing_address", s, "a second address of its family", "keep one IPv4 and one IPv6 address at most")
			continue
		}
		four, six = four || a.Is4(), six || a.Is6()
		k.OutgoingIPs = append(k.OutgoingIPs, a)
	}
}
