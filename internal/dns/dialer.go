package dns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"
)

// Dialer connects to hosts that strangers name, as the policy and report hosts of other domains: names are looked up with Resolver,
// and unless Private is set there are no connections to addresses that are not out on the Internet.
type Dialer struct {
	Resolver Resolver
	Purpose  Purpose
	Private  bool
}

// ErrPrivate says that a host has no address that may be connected to.
var ErrPrivate = errors.New("the host has no address on the Internet")

// Limits of a Dialer.
const (
	maxDial     = 4 // addresses tried
	dialTimeout = 15 * time.Second
)

// DialContext is as of *net.Dialer.
func (d *Dialer) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	var ips []netip.Addr
	if ip, err := netip.ParseAddr(host); err == nil {
		ips = []netip.Addr{ip}
	} else if ips, _, err = d.Resolver.IP(ctx, d.Purpose, host); err != nil {
		return nil, err
	}
	err = ErrPrivate
	tries := 0
	for _, ip := range ips {
		if !d.Private && !public(ip.Unmap()) {
			continue
		}
		if tries++; tries > maxDial {
			break
		}
		var c net.Conn
		nd := net.Dialer{Timeout: dialTimeout}
		if c, err = nd.DialContext(ctx, network, net.JoinHostPort(ip.String(), port)); err == nil {
			return c, nil
		}
	}
	return nil, err
}

// public reports an address that strangers may make us connect to.
func public(ip netip.Addr) bool {
	return ip.IsGlobalUnicast() && !ip.IsPrivate() && !ip.IsLoopback() && !ip.IsLinkLocalUnicast()
}
