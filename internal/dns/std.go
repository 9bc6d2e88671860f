package dns

import (
	"context"
	"errors"
	"net"
	"net/netip"
)

// Std gives a Resolver the methods and errors of *net.Resolver, for libraries that want those.
type Std struct {
	Resolver Resolver
	Purpose  Purpose
}

// LookupTXT is as of *net.Resolver.
func (s Std) LookupTXT(ctx context.Context, name string) ([]string, error) {
	txt, _, err := s.Resolver.TXT(ctx, s.Purpose, name)
	return txt, stdError(name, err)
}

// LookupMX is as of *net.Resolver. The null MX has the host ".".
func (s Std) LookupMX(ctx context.Context, name string) ([]*net.MX, error) {
	mx, _, err := s.Resolver.MX(ctx, s.Purpose, name)
	if err != nil {
		return nil, stdError(name, err)
	}
	l := make([]*net.MX, len(mx))
	for i, m := range mx {
		l[i] = &net.MX{Host: m.Host + ".", Pref: m.Pref}
	}
	return l, nil
}

// LookupIPAddr is as of *net.Resolver.
func (s Std) LookupIPAddr(ctx context.Context, host string) ([]net.IPAddr, error) {
	ips, _, err := s.Resolver.IP(ctx, s.Purpose, host)
	if err != nil {
		return nil, stdError(host, err)
	}
	l := make([]net.IPAddr, len(ips))
	for i, ip := range ips {
		l[i].IP = ip.AsSlice()
	}
	return l, nil
}

// LookupAddr is as of *net.Resolver.
func (s Std) LookupAddr(ctx context.Context, addr string) ([]string, error) {
	ip, err := netip.ParseAddr(addr)
	if err != nil {
		return nil, &net.DNSError{Err: "not an address", Name: addr, IsNotFound: true}
	}
	names, _, err := s.Resolver.PTR(ctx, s.Purpose, ip)
	return names, stdError(addr, err)
}

func stdError(name string, err error) error {
	if err == nil {
		return nil
	}
	e := &net.DNSError{UnwrapErr: err, Err: err.Error(), Name: name, IsNotFound: errors.Is(err, ErrNotFound)}
	if t := (*TemporaryError)(nil); errors.As(err, &t) {
		e.IsTemporary, e.IsTimeout, e.Err = true, t.Timeout(), t.Err.Error()
	}
	return e
}
