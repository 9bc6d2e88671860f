package dns_test

import (
	"errors"
	"net"
	"strings"
	"testing"

	"blitiri.com.ar/go/chasquid/internal/dns"
	"blitiri.com.ar/go/chasquid/internal/dns/zone"
)

// TestD50Dialer: strangers cannot make us connect to addresses inside.
func TestD50Dialer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	for _, addr := range []string{"127.0.0.1", "10.0.0.1", "192.168.1.1", "172.16.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1", "255.255.255.255", "::1", "fe80::1", "fd00::1", "::"} {
		typ := "A"
		if strings.Contains(addr, ":") {
			typ = "AAAA"
		}
		d := &dns.Dialer{Resolver: zone.MustNew("host.example " + typ + " " + addr)}
		for _, host := range []string{"host.example", addr, "::ffff:127.0.0.1"} {
			if c, err := d.DialContext(bg, "tcp", net.JoinHostPort(host, port)); !errors.Is(err, dns.ErrPrivate) {
				t.Errorf("%s at %s: %v, %v", host, addr, c, err)
			}
		}
	}
	d := &dns.Dialer{Resolver: zone.MustNew("host.example A 127.0.0.1"), Private: true}
	c, err := d.DialContext(bg, "tcp", "host.example:"+port)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	for _, bad := range []string{"absent.example:443", "no port"} {
		if _, err := d.DialContext(bg, "tcp", bad); err == nil {
			t.Errorf("connected to %q", bad)
		}
	}
}
