package courier

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/dns"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/smtp"
)

// target is one server that may take the mail of a route.
type target struct {
	name  string     // host name in A-labels, or the text of an IP address
	ip    netip.Addr // set if name is one
	port  uint16
	pref  uint16
	named bool // by an operator rather than by DNS: used whatever it resolves to
}

func (t *target) key(relay string) poolKey { return poolKey{t.name, t.port, relay} }

// targets lists the servers of a route in the order in which to try them, and whether their names came from validated DNS.
func (s *SMTP) targets(ctx context.Context, route *mail.Route) (ts []target, secure bool, o *mail.Outcome) {
	if route.Transport == mail.Relay || len(route.Hosts) > 0 {
		return namedTargets(route.Hosts, s.cfg.Port)
	}
	if strings.HasPrefix(route.Domain, "[") { // an address literal (RFC 5321 section 4.1.3)
		ip, err := literalAddr(route.Domain)
		if err != nil {
			bad := refused(mail.ReasonNoMX, 553, "5.1.2", "not an address literal")
			return nil, false, &bad
		}
		return []target{{name: ip.String(), ip: ip, port: s.cfg.Port}}, false, nil
	}
	begin := time.Now()
	defer func() { s.metrics.took(stageMX, begin) }()
	return s.mxTargets(ctx, route.Domain)
}

// mxTargets finds the servers of a domain as RFC 5321 section 5.1 says.
func (s *SMTP) mxTargets(ctx context.Context, domain string) ([]target, bool, *mail.Outcome) {
	ascii, err := address.DomainToASCII(domain)
	if err != nil {
		o := refused(mail.ReasonNoMX, 553, "5.1.2", "the domain name is not valid")
		return nil, false, &o
	}
	mxs, meta, err := s.cfg.Resolver.MX(ctx, dns.ForMX, ascii)
	switch {
	case errors.Is(err, dns.ErrNXDomain):
		o := refused(mail.ReasonNoMX, 550, "5.1.2", "the domain does not exist")
		return nil, false, &o
	case errors.Is(err, dns.ErrNotFound) || err == nil && len(mxs) == 0:
		// The domain itself is the server, if it has an address: that is found out when it is dialled.
		return []target{{name: ascii, port: s.cfg.Port}}, meta.Secure, nil
	case err != nil:
		return nil, false, &mail.Outcome{Reason: mail.ReasonDNS, Err: &StageError{StageDNS, err}}
	}
	ts, looped := s.orderMX(mxs)
	switch {
	case len(ts) > 0:
		return ts, meta.Secure, nil
	case looped:
		o := loopOutcome("the mail servers of the domain are this server")
		return nil, false, &o
	case slices.ContainsFunc(mxs, func(m dns.MX) bool { return m.Host == "" }):
		o := refused(mail.ReasonNoMX, 556, "5.1.10", "the domain does not accept mail (null MX)") // RFC 7505 section 4.2
		return nil, false, &o
	}
	o := refused(mail.ReasonNoMX, 550, "5.4.4", "the domain has no usable mail server")
	return nil, false, &o
}

// orderMX sorts mail exchangers by preference, equal ones at random, except that one with a waiting connection comes first
// among its equals. If we are among them, those that are no better than us are left out, lest mail loop (RFC 5321 section 5.1).
func (s *SMTP) orderMX(mxs []dns.MX) (ts []target, looped bool) {
	own := 1 << 16
	for _, m := range mxs {
		if strings.EqualFold(m.Host, s.env.hostname) {
			own = min(own, int(m.Pref))
		}
	}
	ts = make([]target, 0, min(len(mxs), maxHosts))
	for _, m := range mxs {
		if int(m.Pref) >= own {
			looped = true
		} else if m.Host != "" {
			ts = append(ts, target{name: m.Host, port: s.cfg.Port, pref: m.Pref})
			if c := m.Host[len(m.Host)-1]; c >= '0' && c <= '9' { // an address here is wrong, and seen
				if ip, err := netip.ParseAddr(m.Host); err == nil {
					ts[len(ts)-1].ip = ip.Unmap()
				}
			}
		}
	}
	if len(ts) > 1 {
		rand.Shuffle(len(ts), func(i, j int) { ts[i], ts[j] = ts[j], ts[i] })
		slices.SortStableFunc(ts, func(a, b target) int { return int(a.pref) - int(b.pref) })
		for i := 0; i < len(ts) && ts[i].pref == ts[0].pref; i++ {
			if i > 0 && s.pool.has(ts[i].key("")) {
				ts[0], ts[i] = ts[i], ts[0]
				break
			}
		}
	}
	return ts[:min(len(ts), maxHosts)], looped
}

func loopOutcome(why string) mail.Outcome {
	return refused(mail.ReasonNoMX, 554, "5.4.6", "routing loop: "+why)
}

// namedTargets are servers that an operator or an alias named: "host", "host:port", an IP address, "[IPv6]:port".
func namedTargets(hosts []string, port uint16) ([]target, bool, *mail.Outcome) {
	ts := make([]target, 0, len(hosts))
	for _, h := range hosts {
		t, err := parseHost(h, port)
		if err != nil {
			o := internalError(fmt.Errorf("server %q: %w", h, err))
			return nil, false, &o
		}
		ts = append(ts, t)
	}
	if len(ts) == 0 {
		o := internalError(errors.New("the route names no server"))
		return nil, false, &o
	}
	return ts[:min(len(ts), maxHosts)], true, nil
}

// parseHost parses "host", "host:port", "192.0.2.1", "2001:db8::1", "[2001:db8::1]" and "[2001:db8::1]:port".
func parseHost(h string, port uint16) (target, error) {
	if ap, err := netip.ParseAddrPort(h); err == nil {
		return target{name: ap.Addr().Unmap().String(), ip: ap.Addr().Unmap(), port: ap.Port(), named: true}, nil
	}
	bare := strings.TrimSuffix(strings.TrimPrefix(h, "["), "]")
	if len(bare) > 5 && strings.EqualFold(bare[:5], "IPv6:") {
		bare = bare[5:]
	}
	if ip, err := netip.ParseAddr(bare); err == nil && ip.Zone() == "" {
		return target{name: ip.Unmap().String(), ip: ip.Unmap(), port: port, named: true}, nil
	}
	if name, p, ok := strings.Cut(h, ":"); ok {
		n, err := parsePort(p)
		if err != nil {
			return target{}, err
		}
		h, port = name, n
	}
	d, err := address.NormalizeDomain(strings.TrimSuffix(h, "."))
	if err != nil {
		return target{}, err
	}
	ascii, err := address.DomainToASCII(d)
	return target{name: ascii, port: port, named: true}, err
}

func parsePort(s string) (uint16, error) {
	var n int
	for _, c := range s {
		if c < '0' || c > '9' || n > 65535 {
			return 0, errors.New("bad port")
		}
		n = n*10 + int(c-'0')
	}
	if n < 1 || n > 65535 {
		return 0, errors.New("bad port")
	}
	return uint16(n), nil
}

func literalAddr(domain string) (netip.Addr, error) {
	text := strings.TrimSuffix(strings.TrimPrefix(domain, "["), "]")
	if len(text) > 5 && strings.EqualFold(text[:5], "IPv6:") {
		text = text[5:]
	}
	ip, err := netip.ParseAddr(text)
	return ip.Unmap(), err
}

// addrs resolves a target: its addresses, those of both families in turn. own says that some were left out because they are ours.
func (s *SMTP) addrs(ctx context.Context, t *target) (list []netip.AddrPort, own bool, err error) {
	ips := []netip.Addr{t.ip}
	if !t.ip.IsValid() {
		ips, _, err = s.cfg.Resolver.IP(ctx, dns.ForMX, t.name)
		if err != nil {
			return nil, false, err
		}
	}
	var v6, v4 []netip.AddrPort
	for _, ip := range ips {
		ap := netip.AddrPortFrom(ip.Unmap(), t.port)
		switch {
		case !t.named && s.isOwn(ap):
			own = true
		case ip.IsMulticast() || ip.IsUnspecified():
		case ap.Addr().Is4():
			v4 = append(v4, ap)
		default:
			v6 = append(v6, ap)
		}
	}
	rand.Shuffle(len(v4), func(i, j int) { v4[i], v4[j] = v4[j], v4[i] })
	rand.Shuffle(len(v6), func(i, j int) { v6[i], v6[j] = v6[j], v6[i] })
	for i := 0; i < max(len(v4), len(v6)) && len(list) < maxAddrs; i++ {
		if i < len(v6) {
			list = append(list, v6[i])
		}
		if i < len(v4) {
			list = append(list, v4[i])
		}
	}
	if len(list) == 0 && !own {
		err = dns.ErrNotFound
	}
	return list, own, err
}

// isOwn reports an address at which we would talk to ourselves.
func (s *SMTP) isOwn(ap netip.AddrPort) bool {
	if s.cfg.Own != nil {
		return s.cfg.Own(ap)
	}
	return ap.Port() == 25 && (ap.Addr().IsLoopback() || ap.Addr().IsUnspecified())
}

// Site names the place a route leads to: mail of routes with the same site shares servers. It is the sorted names of the mail
// exchangers, the named hosts, or the domain itself if that cannot be known now.
func (s *SMTP) Site(ctx context.Context, route mail.Route) string {
	switch {
	case route.Transport == mail.Local || route.Transport == mail.Command:
		return route.Transport.String()
	case len(route.Hosts) > 0:
		return strings.Join(route.Hosts, ",")
	case strings.HasPrefix(route.Domain, "["):
		return route.Domain
	}
	ascii, err := address.DomainToASCII(route.Domain)
	if err != nil {
		return route.Domain
	}
	mxs, _, err := s.cfg.Resolver.MX(ctx, dns.ForMX, ascii)
	if err != nil || len(mxs) == 0 {
		return ascii
	}
	names := make([]string, len(mxs))
	for i, m := range mxs {
		names[i] = m.Host
	}
	slices.Sort(names)
	return strings.Join(slices.Compact(names), ",")
}

// noAddress is the outcome for a server whose name leads nowhere.
func noAddress(name string, err error) mail.Outcome {
	if errors.Is(err, dns.ErrNotFound) {
		o := refused(mail.ReasonNoMX, 550, "5.4.4", "the mail server has no address")
		if errors.Is(err, dns.ErrNXDomain) {
			o.Reply = smtp.NewReply(550, "5.1.2", "the mail server's name does not exist")
		}
		o.Err = &StageError{StageDNS, fmt.Errorf("%s: %w", name, err)}
		o.MTA = name
		return o
	}
	return mail.Outcome{Reason: mail.ReasonDNS, MTA: name, Err: &StageError{StageDNS, err}}
}
