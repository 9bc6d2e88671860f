// Package selfcheck judges what the DNS says of our own domains, as others see them.
package selfcheck

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/dkim"
	"blitiri.com.ar/go/chasquid/internal/dmarc"
	"blitiri.com.ar/go/chasquid/internal/dns"
	"blitiri.com.ar/go/chasquid/internal/domains"
	"blitiri.com.ar/go/chasquid/internal/spf"
	"blitiri.com.ar/go/chasquid/internal/sts"
)

// The checks. Their values are metric labels.
const (
	MX          = "mx"
	SPF         = "spf"
	DKIM        = "dkim_dns"
	DMARC       = "dmarc"
	PTR         = "ptr"
	STS         = "sts_policy"
	Certificate = "certificate"
)

// Result of one check.
type Result uint8

// The results.
const (
	OK      Result = iota
	Unknown        // it could not be looked up, which says nothing
	Warn           // it works, but not everywhere or not well
	Fail
)

// Finding is what one check found.
type Finding struct {
	Check  string
	Result Result
	Text   string
	Fix    string // what to do, empty if nothing
}

// Config of the checks.
type Config struct {
	Resolver dns.Resolver
	Hostname string                 // of this server
	HasCert  func(host string) bool // whether a valid certificate is for the host name; nil: certificates are not looked at
}

// lookupTime bounds what is looked up for one domain.
const lookupTime = 20 * time.Second

// checks collects what is found.
type checks struct {
	Config
	host  string // Hostname in A-labels
	check string
	found []Finding
}

func (c *checks) add(r Result, fix, format string, args ...any) {
	c.found = append(c.found, Finding{c.check, r, fmt.Sprintf(format, args...), fix})
}
func (c *checks) ok(format string, args ...any)        { c.add(OK, "", format, args...) }
func (c *checks) warn(fix, format string, args ...any) { c.add(Warn, fix, format, args...) }
func (c *checks) fail(fix, format string, args ...any) { c.add(Fail, fix, format, args...) }

// lookupFailed tells of a look-up that gave no answer, which is not the same as the answer that there is nothing.
func (c *checks) lookupFailed(what string, err error) {
	c.add(Unknown, "check the resolver and try again", "%s could not be looked up: %v", what, err)
}

// start makes the checks of one domain.
func (conf Config) start(ctx context.Context) (*checks, context.Context, context.CancelFunc, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	host, err := address.DomainToASCII(strings.TrimSuffix(conf.Hostname, "."))
	return &checks{Config: conf, host: strings.ToLower(host)}, ctx, cancel, err
}

// Host looks at the name of this server: it has addresses, and they have that name.
func (conf Config) Host(ctx context.Context) []Finding {
	c, ctx, cancel, err := conf.start(ctx)
	defer cancel()
	c.check = PTR
	if err != nil {
		c.fail("set hostname to a name of this machine", "%v", err)
		return c.found
	}
	c.reverse(ctx)
	return c.found
}

// Domain looks at the records of one of our domains.
func (conf Config) Domain(ctx context.Context, d *domains.Domain) []Finding {
	c, ctx, cancel, err := conf.start(ctx)
	defer cancel()
	c.check = MX
	domain, derr := address.DomainToASCII(d.Name)
	if err = errors.Join(err, derr); err != nil {
		c.fail("", "%v", err)
		return c.found
	}
	mxs := c.mx(ctx, domain)
	c.check = SPF
	c.spf(ctx, domain)
	c.check = DKIM
	for _, key := range d.Keys {
		c.key(ctx, domain, key)
	}
	c.check = DMARC
	c.dmarc(ctx, domain)
	c.check = STS
	c.sts(ctx, domain, mxs)
	c.check = Certificate
	c.certificate()
	return c.found
}

func (c *checks) reverse(ctx context.Context) {
	ips, _, err := c.Resolver.IP(ctx, dns.Other, c.host)
	if errors.Is(err, dns.ErrNotFound) {
		c.warn("publish A and AAAA records, or set hostname", "the name has no address")
		return
	} else if err != nil {
		c.lookupFailed("the name", err)
		return
	}
	for _, ip := range ips {
		names, _, err := c.Resolver.PTR(ctx, dns.ForPTR, ip)
		switch {
		case errors.Is(err, dns.ErrNotFound):
			c.warn("ask whoever gave you the address for the reverse name "+c.host, "%v has no reverse name; many servers take no mail from it", ip)
		case err != nil:
			c.lookupFailed("the reverse name of "+ip.String(), err)
		case !slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(strings.TrimSuffix(n, "."), c.host) }):
			c.warn("ask for the reverse name "+c.host, "the reverse name of %v is %s", ip, strings.Join(names, " "))
		default:
			c.ok("%v and its reverse name fit", ip)
		}
	}
}

func (c *checks) mx(ctx context.Context, domain string) []dns.MX {
	mxs, _, err := c.Resolver.MX(ctx, dns.ForMX, domain)
	publish := fmt.Sprintf("publish: %s. MX 10 %s.", domain, c.host)
	switch {
	case errors.Is(err, dns.ErrNotFound):
		c.fail(publish, "there is no MX record: others cannot send to the domain")
		return nil
	case err != nil:
		c.lookupFailed("MX", err)
		return nil
	case len(mxs) == 1 && mxs[0].Host == "":
		c.fail(publish, "the null MX says that the domain takes no mail")
		return nil
	}
	ours := false
	for _, mx := range mxs {
		ours = ours || mx.Host == c.host
		if _, _, err := c.Resolver.IP(ctx, dns.ForMX, mx.Host); errors.Is(err, dns.ErrNotFound) {
			c.fail("publish A and AAAA records of it", "the MX %s has no address", mx.Host)
		}
	}
	if ours {
		c.ok("MX leads to this server")
	} else {
		c.warn("add it, unless another server hands its mail to this one", "no MX is this server (%s)", c.host)
	}
	return mxs
}

// spf asks the record what it says of our own addresses.
func (c *checks) spf(ctx context.Context, domain string) {
	ips, _, err := c.Resolver.IP(ctx, dns.ForSPF, c.host)
	if err != nil {
		ips = []netip.Addr{netip.MustParseAddr("192.0.2.1")} // whatever the record says of it, we learn whether there is one
	}
	checker := spf.New(spf.Config{Resolver: c.Resolver})
	for _, ip := range ips {
		r := checker.Check(ctx, ip, c.host, address.Address{Local: "postmaster", Domain: domain})
		switch {
		case r.Value == spf.None:
			c.warn(fmt.Sprintf("publish: %s. TXT \"v=spf1 mx -all\"", domain), "there is no SPF record")
			return
		case r.Value == spf.PermError:
			c.fail("correct the record", "the SPF record is in error: %s", r.Reason)
			return
		case r.Value == spf.TempError:
			c.lookupFailed("SPF", errors.New(r.Reason))
		case err != nil:
			c.ok("there is an SPF record")
		case r.Value == spf.Pass:
			c.ok("SPF lets %v send", ip)
		default:
			family := 4
			if ip.Is6() {
				family = 6
			}
			c.fail(fmt.Sprintf("add ip%d:%v to it", family, ip), "the SPF record does not let %v send (%s)", ip, r.Value)
		}
	}
}

func (c *checks) key(ctx context.Context, domain string, key domains.Key) {
	name := key.Selector + "._domainkey." + domain
	want, err := dkim.Record(key.Signer.Public())
	if err != nil {
		c.fail("", "DKIM key %s: %v", key.Selector, err)
		return
	}
	publish := fmt.Sprintf("publish: %s. TXT %s", name, dkim.QuoteTXT(want))
	txts, _, err := c.Resolver.TXT(ctx, dns.ForDKIM, name)
	if errors.Is(err, dns.ErrNotFound) {
		c.fail(publish, "the DKIM key %s is not published: its signatures fail", key.Selector)
		return
	} else if err != nil {
		c.lookupFailed("DKIM key "+key.Selector, err)
		return
	}
	var wrong error
	for _, txt := range txts {
		if wrong = dkim.CheckRecord(txt, key.Signer.Public()); wrong == nil {
			c.ok("the DKIM key %s is published", key.Selector)
			return
		}
	}
	c.fail(publish, "the record of the DKIM key %s does not fit: %v", key.Selector, wrong)
}

func (c *checks) dmarc(ctx context.Context, domain string) {
	txts, _, err := c.Resolver.TXT(ctx, dns.ForDMARC, "_dmarc."+domain)
	if err != nil && !errors.Is(err, dns.ErrNotFound) {
		c.lookupFailed("DMARC", err)
		return
	}
	for _, txt := range txts {
		if r, ok := dmarc.ParseRecord(txt); ok {
			c.ok("the DMARC policy is %s", r.Policy)
			return
		}
	}
	c.warn(fmt.Sprintf("publish: _dmarc.%s. TXT \"v=DMARC1; p=quarantine\"", domain), "there is no valid DMARC record; big providers ask for one")
}

func (c *checks) sts(ctx context.Context, domain string, mxs []dns.MX) {
	policy, _, err := sts.Fetch(ctx, c.Resolver, sts.NewClient(c.Resolver, nil, false), domain)
	var fe *sts.FetchError
	switch {
	case errors.Is(err, sts.ErrNoPolicy):
		c.ok("there is no MTA-STS policy, which is optional")
	case errors.As(err, &fe):
		c.fail("correct it, or remove the record _mta-sts."+domain, "the MTA-STS policy cannot be used: %v", err)
	case err != nil:
		c.lookupFailed("MTA-STS", err)
	default:
		for _, mx := range mxs {
			if !policy.Allows(mx.Host) {
				c.fail("add it to the policy, and change the id of the record", "the MTA-STS policy does not allow the MX %s", mx.Host)
				return
			}
		}
		c.ok("the MTA-STS policy (%s) fits", policy.Mode)
	}
}

// certificate wants one for the name that the MX records have.
func (c *checks) certificate() {
	switch {
	case c.HasCert == nil:
	case c.HasCert(c.host):
		c.ok("there is a certificate for %s", c.host)
	default:
		c.fail("get a certificate for it", "no valid certificate is for the host name %s", c.host)
	}
}
