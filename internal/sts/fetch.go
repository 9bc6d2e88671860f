package sts

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/dns"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// Limits of a fetch (RFC 8461 section 3.3).
const (
	fetchBudget = time.Minute
	maxPolicy   = 10 << 10 // bytes read of a policy
	maxHeader   = 16 << 10 // bytes of the HTTP header
)

// ErrNoPolicy says that the domain has no MTA-STS.
var ErrNoPolicy = errors.New("the domain has no MTA-STS policy")

// FetchError says why the policy of a domain that has one cannot be used.
type FetchError struct {
	Kind string // the result type of RFC 8460 section 4.3.2.2
	Err  error
}

func (e *FetchError) Error() string      { return "fetching the MTA-STS policy: " + e.Err.Error() }
func (e *FetchError) Unwrap() error      { return e.Err }
func (e *FetchError) ResultType() string { return e.Kind }

// The kinds of FetchError.
const (
	kindFetch   = "sts-policy-fetch-error"
	kindInvalid = "sts-policy-invalid"
	kindPKIX    = "sts-webpki-invalid"
)

// Fetch gets the policy of a domain (Unicode or A-labels) and its id. The error is ErrNoPolicy, a *FetchError, or one of the
// resolver.
func Fetch(ctx context.Context, r dns.Resolver, client *http.Client, domain string) (*Policy, string, error) {
	ascii, err := address.DomainToASCII(domain)
	if err != nil || strings.HasPrefix(ascii, "[") {
		return nil, "", ErrNoPolicy
	}
	ctx, cancel := context.WithTimeout(ctx, fetchBudget)
	defer cancel()
	id, err := lookupID(ctx, r, ascii)
	if err != nil {
		return nil, "", err
	}
	p, err := get(ctx, client, "https://mta-sts."+ascii+"/.well-known/mta-sts.txt")
	if err != nil {
		return nil, "", err
	}
	trace.From(ctx).Debugf("policy %q: mode %s, mx %q, for %v", id, p.Mode, p.MXs, p.MaxAge)
	return p, id, nil
}

// lookupID returns the id of the policy a domain has (RFC 8461 section 3.1). Existing installations take a record without id.
func lookupID(ctx context.Context, r dns.Resolver, ascii string) (string, error) {
	txt, _, err := r.TXT(ctx, dns.ForSTS, "_mta-sts."+ascii)
	if errors.Is(err, dns.ErrNotFound) {
		return "", ErrNoPolicy
	}
	if err != nil {
		return "", err
	}
	return recordID(txt)
}

func recordID(txt []string) (string, error) {
	found := ""
	n := 0
	for _, t := range txt {
		if strings.HasPrefix(t, "v=STSv1;") {
			found = t
			n++
		}
	}
	if n != 1 {
		return "", ErrNoPolicy // RFC 8461 section 3.1: of several records none counts
	}
	for part := range strings.SplitSeq(found, ";") {
		if name, value, ok := strings.Cut(part, "="); ok && strings.Trim(name, " \t") == "id" {
			return limit(strings.Trim(value, " \t"), 32), nil
		}
	}
	return "", nil
}

func limit(s string, n int) string { return s[:min(len(s), n)] }

// get fetches and parses a policy.
func get(ctx context.Context, client *http.Client, url string) (*Policy, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, &FetchError{kindFetch, err}
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, &FetchError{kindOf(err), err}
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK { // redirects are not followed either (RFC 8461 section 3.3)
		return nil, &FetchError{kindFetch, fmt.Errorf("HTTP status %d", resp.StatusCode)}
	}
	if mt, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type")); err != nil || mt != "text/plain" {
		return nil, &FetchError{kindInvalid, errors.New("the media type is not text/plain")}
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxPolicy))
	if err != nil {
		return nil, &FetchError{kindFetch, err}
	}
	p, err := Parse(string(body))
	if err != nil {
		return nil, &FetchError{kindInvalid, err}
	}
	return p, nil
}

// kindOf tells a certificate that does not prove the host from other failures.
func kindOf(err error) string {
	var ce *tls.CertificateVerificationError
	var he x509.HostnameError
	var ue x509.UnknownAuthorityError
	var ie x509.CertificateInvalidError
	if errors.As(err, &ce) || errors.As(err, &he) || errors.As(err, &ue) || errors.As(err, &ie) {
		return kindPKIX
	}
	return kindFetch
}

// NewClient makes the client for fetching policies: no redirects, no proxy, no compression, certificates verified against roots
// (nil: the system's), names resolved by r, and no connections to addresses that are not out on the Internet unless private is set.
func NewClient(r dns.Resolver, roots *x509.CertPool, private bool) *http.Client {
	d := &dns.Dialer{Resolver: r, Purpose: dns.ForSTS, Private: private}
	return &http.Client{
		Timeout:       fetchBudget,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DialContext:            d.DialContext,
			TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout:    20 * time.Second,
			ResponseHeaderTimeout:  30 * time.Second,
			MaxResponseHeaderBytes: maxHeader,
			DisableKeepAlives:      true,
			DisableCompression:     true,
		},
	}
}
