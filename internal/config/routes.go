package config

import (
	"net"
	"net/url"
	"strconv"
)

// URL writes a relay as the router reads it: without its password, as routes are shown to people.
func (r *Relay) URL() string {
	scheme, user := "smtp://", ""
	if r.TLS == ImplicitTLS {
		scheme = "smtps://"
	}
	if r.User != "" {
		user = url.User(r.User).String() + "@"
	}
	return scheme + user + net.JoinHostPort(r.Host, strconv.Itoa(int(r.Port)))
}

// RelayURL is the relay for everything that is not local, empty if there is none.
func (c *Config) RelayURL() string {
	if c.Relay == nil {
		return ""
	}
	return c.Relay.URL()
}

// RouteTable is the exceptions by destination domain, as the router takes them: ".example.org" stands for the domains below
// example.org, "mx" for the normal way.
func (c *Config) RouteTable() map[string]string {
	table := make(map[string]string, len(c.Routes))
	for _, r := range c.Routes {
		domain, via := r.Domain, "mx"
		if r.Subdomains {
			domain = "." + domain
		}
		if r.Relay != nil {
			via = r.Relay.URL()
		}
		table[domain] = via
	}
	return table
}

// LocalTarget is how local mail is delivered, as the router writes it; empty is by mail_delivery_agent_bin.
func (c *Config) LocalTarget() string {
	switch {
	case c.LocalMaildir != "":
		return "maildir:" + c.LocalMaildir
	case c.LocalLMTP != "":
		return "lmtp:" + c.LocalLMTP
	}
	return ""
}

// RelayPasswords is the passwords of all relays that have one, by URL.
func (c *Config) RelayPasswords() map[string]string {
	m := map[string]string{}
	add := func(r *Relay) {
		if r != nil && r.User != "" {
			m[r.URL()] = r.Password
		}
	}
	add(c.Relay)
	for _, r := range c.Routes {
		add(r.Relay)
	}
	return m
}
