package cli

import (
	"net"
	"net/url"
	"strconv"

	"blitiri.com.ar/go/chasquid/internal/config"
	"blitiri.com.ar/go/chasquid/internal/courier"
)

// routerConfig is the settings as the router takes them.
func routerConfig(conf *config.Config, local func(domain string) bool) courier.RouterConfig {
	rc := courier.RouterConfig{Local: local, Routes: map[string]string{}, RelayVia: relayURL(conf.Relay)}
	switch {
	case conf.LocalMaildir != "":
		rc.LocalTarget = "maildir:" + conf.LocalMaildir
	case conf.LocalLMTP != "":
		rc.LocalTarget = "lmtp:" + conf.LocalLMTP
	}
	for _, r := range conf.Routes {
		domain, via := r.Domain, relayURL(r.Relay)
		if r.Subdomains {
			domain = "." + domain
		}
		if via == "" {
			via = "mx"
		}
		rc.Routes[domain] = via
	}
	return rc
}

// relayURL is a relay as the router writes it, "" for none.
func relayURL(r *config.Relay) string {
	if r == nil {
		return ""
	}
	u := url.URL{Scheme: "smtp", Host: net.JoinHostPort(r.Host, strconv.Itoa(int(r.Port)))}
	if r.TLS == config.ImplicitTLS {
		u.Scheme = "smtps"
	}
	if r.User != "" {
		u.User = url.User(r.User)
	}
	return u.String()
}
