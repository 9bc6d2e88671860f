package tlsrpt

import (
	"context"
	"errors"
	"net/url"
	"strings"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/dns"
)

// maxTargets is how many places one domain's report is sent to.
const maxTargets = 5

// target is where reports go: one of the two.
type target struct {
	Mail string // an address
	URL  string // for HTTPS POST
}

// lookup returns where a domain (A-labels) wants its reports, nothing if it wants none (RFC 8460 section 3).
func lookup(ctx context.Context, r dns.Resolver, domain string) ([]target, error) {
	txt, _, err := r.TXT(ctx, dns.Other, "_smtp._tls."+domain)
	if errors.Is(err, dns.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return parseRecord(txt), nil
}

// parseRecord reads the TXT records; of several policy records none counts.
func parseRecord(txt []string) []target {
	found := ""
	for _, t := range txt {
		if version, _, _ := strings.Cut(t, ";"); strings.TrimRight(version, " \t") != "v=TLSRPTv1" {
			continue
		}
		if found != "" {
			return nil
		}
		found = t
	}
	var l []target
	for field := range strings.SplitSeq(found, ";") {
		name, value, _ := strings.Cut(field, "=")
		if strings.Trim(name, " \t") != "rua" {
			continue
		}
		for uri := range strings.SplitSeq(value, ",") {
			if t, ok := parseURI(strings.Trim(uri, " \t")); ok && len(l) < maxTargets {
				l = append(l, t)
			}
		}
	}
	return l
}

// parseURI takes the two kinds of URI that RFC 8460 section 3 knows.
func parseURI(s string) (target, bool) {
	u, err := url.Parse(s)
	if err != nil {
		return target{}, false
	}
	switch strings.ToLower(u.Scheme) {
	case "mailto":
		text, err := url.PathUnescape(u.Opaque)
		if err != nil {
			return target{}, false
		}
		a, err := address.Parse(text)
		if err != nil || a.Domain == "" {
			return target{}, false
		}
		if a, err = a.WithASCIIDomain(); err != nil || !a.ASCII() {
			return target{}, false // the report is not made for SMTPUTF8
		}
		return target{Mail: a.String()}, true
	case "https":
		if u.Hostname() == "" || u.User != nil {
			return target{}, false
		}
		u.Fragment = ""
		return target{URL: u.String()}, true
	}
	return target{}, false
}
