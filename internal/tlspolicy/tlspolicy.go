// Package tlspolicy is what a policy source may demand of the next hop before and after TLS is up.
package tlspolicy

import (
	"context"
	"crypto/tls"
)

// Rule is the demand of one source for one domain. The zero value demands nothing.
type Rule struct {
	Source string // "mta-sts", "dane", "ledger", "requiretls"; shown to people

	// AllowMX reports why the host must not be used; nil allows every host.
	AllowMX func(host string) error
	// RequireTLS forbids plain text: a host without STARTTLS, or with a failing handshake, is not used.
	RequireTLS bool
	// RequirePKIX demands a certificate valid for the host under the system's roots.
	RequirePKIX bool
	// AllowConn reports why the connection must not be used; nil allows every connection. state is nil for plain text.
	AllowConn func(host string, state *tls.ConnectionState) error
	// Verify, if set, replaces certificate verification for the host (DANE): nil means authenticated.
	Verify func(host string, state *tls.ConnectionState) error
	// Report, if set, is told what happened, for TLSRPT; err is nil when the rule was satisfied.
	Report func(host string, err error)
}

// Source gives its rule for a domain (lower-case Unicode). An error means "cannot know now": the attempt is deferred.
type Source interface {
	Rule(ctx context.Context, domain string) (Rule, error)
}

// HostSource is a Source whose rule depends on the MX host as well (DANE).
type HostSource interface {
	HostRule(ctx context.Context, domain, host string) (Rule, error)
}
