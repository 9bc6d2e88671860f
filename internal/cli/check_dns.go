package cli

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

// dnsTimeout bounds what is looked up for one domain.
const dnsTimeout = 20 * time.Second

// lookupFailed tells of a look-up that gave no answer, which is not the same as the answer that there is nothing.
func (k *checker) lookupFailed(about, what string, err error) {
	k.warn(about, "check the resolver and try again", "%s could not be looked up: %v", what, err)
}

// checkHostDNS looks at the name of this server: it has addresses, and they have that name.
func (k *checker) checkHostDNS() {
	ctx, cancel := context.WithTimeout(k.ctx, dnsTimeout)
	defer cancel()
	about := "host " + k.conf.GetHostname()
	host, err := asciiDomain(k.conf.GetHostname())
	if err != nil {
		k.fail(about, "set hostname to a name of this machine", "%v", err)
		return
	}
	ips, _, err := k.resolver.IP(ctx, dns.Other, host)
	if errors.Is(err, dns.ErrNotFound) {
		k.warn(about, "publish A and AAAA records, or set hostname", "the name has no address")
		return
	} else if err != nil {
		k.lookupFailed(about, "the name", err)
		return
	}
	for _, ip := range ips {
		names, _, err := k.resolver.PTR(ctx, dns.ForPTR, ip)
		switch {
		case errors.Is(err, dns.ErrNotFound):
			k.warn(about, "ask whoever gave you the address for the reverse name "+host, "%v has no reverse name; many servers take no mail from it", ip)
		case err != nil:
			k.lookupFailed(about, "the reverse name of "+ip.String(), err)
		case !slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(strings.TrimSuffix(n, "."), host) }):
			k.warn(about, "ask for the reverse name "+host, "the reverse name of %v is %s", ip, strings.Join(names, " "))
		default:
			k.ok(about, "%v and its reverse name fit", ip)
		}
	}
}

// checkDomainDNS looks at the records of one of our domains.
func (k *checker) checkDomainDNS(d *domains.Domain) {
	ctx, cancel := context.WithTimeout(k.ctx, dnsTimeout)
	defer cancel()
	about := "DNS of " + d.Name
	domain, err := address.DomainToASCII(d.Name)
	if err != nil {
		k.fail(about, "", "%v", err)
		return
	}
	mxs := k.checkMX(ctx, about, domain)
	k.checkSPF(ctx, about, domain)
	for _, key := range d.Keys {
		k.checkKey(ctx, about, domain, key)
	}
	k.checkDMARC(ctx, about, domain)
	k.checkSTS(ctx, about, domain, mxs)
}

func (k *checker) checkMX(ctx context.Context, about, domain string) []dns.MX {
	mxs, _, err := k.resolver.MX(ctx, dns.ForMX, domain)
	host, _ := asciiDomain(k.conf.GetHostname())
	switch {
	case errors.Is(err, dns.ErrNotFound):
		k.fail(about, fmt.Sprintf("publish: %s. MX 10 %s.", domain, host), "there is no MX record: others cannot send to the domain")
		return nil
	case err != nil:
		k.lookupFailed(about, "MX", err)
		return nil
	case len(mxs) == 1 && mxs[0].Host == "":
		k.fail(about, fmt.Sprintf("publish: %s. MX 10 %s.", domain, host), "the null MX says that the domain takes no mail")
		return nil
	}
	ours := false
	for _, mx := range mxs {
		ours = ours || mx.Host == host
		if _, _, err := k.resolver.IP(ctx, dns.ForMX, mx.Host); errors.Is(err, dns.ErrNotFound) {
			k.fail(about, "publish A and AAAA records of it", "the MX %s has no address", mx.Host)
		}
	}
	if ours {
		k.ok(about, "MX leads to this server")
	} else {
		k.warn(about, "add it, unless another server hands its mail to this one", "no MX is this server (%s)", host)
	}
	return mxs
}

// checkSPF asks the record what it says of our own addresses.
func (k *checker) checkSPF(ctx context.Context, about, domain string) {
	host, err := asciiDomain(k.conf.GetHostname())
	if err != nil {
		return
	}
	ips, _, err := k.resolver.IP(ctx, dns.ForSPF, host)
	if err != nil {
		ips = []netip.Addr{netip.MustParseAddr("192.0.2.1")} // whatever the record says of it, we learn whether there is one
	}
	c := spf.New(spf.Config{Resolver: k.resolver})
	for _, ip := range ips {
		r := c.Check(ctx, ip, host, address.Address{Local: "postmaster", Domain: domain})
		switch {
		case r.Value == spf.None:
			k.warn(about, fmt.Sprintf("publish: %s. TXT \"v=spf1 mx -all\"", domain), "there is no SPF record")
			return
		case r.Value == spf.PermError:
			k.fail(about, "correct the record", "the SPF record is in error: %s", r.Reason)
			return
		case r.Value == spf.TempError:
			k.lookupFailed(about, "SPF", errors.New(r.Reason))
		case err != nil:
			k.ok(about, "there is an SPF record")
		case r.Value == spf.Pass:
			k.ok(about, "SPF lets %v send", ip)
		default:
			k.fail(about, fmt.Sprintf("add ip%d:%v to it", 4+2*btoi(ip.Is6()), ip), "the SPF record does not let %v send (%s)", ip, r.Value)
		}
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (k *checker) checkKey(ctx context.Context, about, domain string, key domains.Key) {
	name := key.Selector + "._domainkey." + domain
	want, err := dkim.Record(key.Signer.Public())
	if err != nil {
		k.fail(about, "", "DKIM key %s: %v", key.Selector, err)
		return
	}
	publish := fmt.Sprintf("publish: %s. TXT %s", name, quoteTXT(want))
	txts, _, err := k.resolver.TXT(ctx, dns.ForDKIM, name)
	if errors.Is(err, dns.ErrNotFound) {
		k.fail(about, publish, "the DKIM key %s is not published: its signatures fail", key.Selector)
		return
	} else if err != nil {
		k.lookupFailed(about, "DKIM key "+key.Selector, err)
		return
	}
	var wrong error
	for _, txt := range txts {
		if wrong = dkim.CheckRecord(txt, key.Signer.Public()); wrong == nil {
			k.ok(about, "the DKIM key %s is published", key.Selector)
			return
		}
	}
	k.fail(about, publish, "the record of the DKIM key %s does not fit: %v", key.Selector, wrong)
}

func (k *checker) checkDMARC(ctx context.Context, about, domain string) {
	txts, _, err := k.resolver.TXT(ctx, dns.ForDMARC, "_dmarc."+domain)
	if err != nil && !errors.Is(err, dns.ErrNotFound) {
		k.lookupFailed(about, "DMARC", err)
		return
	}
	for _, txt := range txts {
		if r, ok := dmarc.ParseRecord(txt); ok {
			k.ok(about, "the DMARC policy is %s", r.Policy)
			return
		}
	}
	k.warn(about, fmt.Sprintf("publish: _dmarc.%s. TXT \"v=DMARC1; p=quarantine\"", domain), "there is no valid DMARC record; big providers ask for one")
}

func (k *checker) checkSTS(ctx context.Context, about, domain string, mxs []dns.MX) {
	policy, _, err := sts.Fetch(ctx, k.resolver, sts.NewClient(k.resolver, nil, false), domain)
	var fe *sts.FetchError
	switch {
	case errors.Is(err, sts.ErrNoPolicy):
		k.ok(about, "there is no MTA-STS policy, which is optional")
	case errors.As(err, &fe):
		k.fail(about, "correct it, or remove the record _mta-sts."+domain, "the MTA-STS policy cannot be used: %v", err)
	case err != nil:
		k.lookupFailed(about, "MTA-STS", err)
	default:
		for _, mx := range mxs {
			if !policy.Allows(mx.Host) {
				k.fail(about, "add it to the policy, and change the id of the record", "the MTA-STS policy does not allow the MX %s", mx.Host)
				return
			}
		}
		k.ok(about, "the MTA-STS policy (%s) fits", policy.Mode)
	}
}
