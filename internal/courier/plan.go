package courier

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/tlspolicy"
)

// Plan is what a delivery along a route would do, in the order in which it would. It is found out by the code that delivers,
// but nobody is connected to.
type Plan struct {
	Servers []PlannedServer
	Demands []string      // what the domain's policies demand of any server, in words
	Refusal *mail.Outcome // set if no server would be tried: what would become of the recipients instead
}

// PlannedServer is one server of a Plan.
type PlannedServer struct {
	Name    string
	Pref    uint16           // of its MX record
	Addrs   []netip.AddrPort // in the order in which they would be tried
	Demands []string         // what is demanded of this server
	Refused string           // why it would not be used; empty: it would
}

// Plan says what Deliver would do for a route of the kinds SMTP and Relay.
func (s *SMTP) Plan(ctx context.Context, route mail.Route) Plan {
	job := mail.Job{Route: route}
	d := newDelivery(ctx, s, &job)
	var p Plan
	if strings.Contains(route.Target, "://") {
		relay, err := ParseSmarthost(route.Target)
		if err != nil {
			o := internalError(fmt.Errorf("smarthost: %w", err))
			p.Refusal = &o
			return p
		}
		d.relay = &relay
	}
	ts, secure, o := s.targets(ctx, &route)
	if o != nil {
		p.Refusal = o
		return p
	}
	d.secure = secure
	if p.Refusal = d.policies(ctx); p.Refusal != nil {
		return p
	}
	p.Demands = demands(d.rules)
	for i := range ts {
		server, last := s.plan(ctx, &route, &ts[i], d.rules)
		p.Servers = append(p.Servers, server)
		if last {
			break
		}
	}
	return p
}

// plan says what would be done with one server; last that none would be tried after it.
func (s *SMTP) plan(ctx context.Context, route *mail.Route, t *target, rules []tlspolicy.Rule) (server PlannedServer, last bool) {
	server = PlannedServer{Name: t.name, Pref: t.pref}
	policy, err := s.hostPolicy(ctx, route.Domain, t.name, rules)
	if err != nil {
		server.Refused = "its security policy cannot be found out now: " + err.Error()
		return server, false
	}
	server.Demands = demands(policy.rules)
	for i := range policy.rules { // not through allowHost, which tells the policy's owner about it
		if r := &policy.rules[i]; r.AllowMX != nil {
			if err := r.AllowMX(t.name); err != nil {
				server.Refused = sourceName(r.Source) + " does not allow it: " + err.Error()
				return server, false
			}
		}
	}
	addrs, own, err := s.addrs(ctx, t)
	switch {
	case err != nil && !t.named:
		server.Refused = noAddress(t.name, err).Err.Error()
	case len(addrs) == 0 && own:
		server.Refused = "it is this server"
		return server, true
	}
	server.Addrs = slices.Clone(addrs)
	return server, false
}

// demands puts rules into words, each as "SOURCE: what it demands".
func demands(rules []tlspolicy.Rule) []string {
	var words []string
	for i := range rules {
		r := &rules[i]
		var w []string
		if r.AllowMX != nil {
			w = append(w, "certain servers")
		}
		switch {
		case r.Verify != nil:
			w = append(w, "TLS with a certificate that it vouches for")
		case r.RequirePKIX:
			w = append(w, "TLS with a valid certificate")
		case r.RequireTLS:
			w = append(w, "TLS")
		}
		if len(w) == 0 {
			w = append(w, "nothing")
		}
		words = append(words, sourceName(r.Source)+": "+strings.Join(w, ", "))
	}
	return words
}
