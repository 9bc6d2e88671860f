package courier

import (
	"context"
	"crypto/x509"
	"net"
	"net/netip"
	"time"

	"blitiri.com.ar/go/chasquid/internal/dns"
	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/tlspolicy"
)

// DialFunc connects like net.Dialer.DialContext.
type DialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

// Ledger remembers the best TLS level that deliveries to a domain reached. It is safe for concurrent use.
type Ledger interface {
	// CheckOutgoing reports whether a connection of this level may carry mail to the domain: not if a better one was reached before.
	CheckOutgoing(ctx context.Context, domain string, level tlspolicy.Level) bool
	// RecordOutgoing notes that a message was delivered to the domain at this level.
	RecordOutgoing(ctx context.Context, domain string, level tlspolicy.Level)
}

// Config of SMTP. The zero value works but for Resolver and Hostname.
type Config struct {
	Hostname string       // our name in EHLO
	Resolver dns.Resolver // finds mail servers
	Dial     DialFunc     // nil: the operating system's, from SourceAddrs
	Port     uint16       // of servers found by MX; 0: 25

	SourceAddrs []netip.Addr              // at most one of each family; empty: the system chooses
	Own         func(netip.AddrPort) bool // whether an address found by MX is one of ours; nil: only loopback on port 25 is

	Roots       *x509.CertPool // nil: the system's
	Sources     []tlspolicy.Source
	HostSources []tlspolicy.HostSource
	Ledger      Ledger // nil: none

	Password func(target string) (string, error) // the password for a smarthost, by mail.Route.Target; nil: there are none

	SendLongLines bool // text with lines longer than mail.MaxLine is sent as it is, and not refused

	Timeouts    Timeouts
	MaxRcpts    int           // recipients per transaction unless the server allows less; 0: 100
	MaxMessages int           // transactions per connection; 0: 100
	MaxIdle     int           // idle connections kept; 0: 100, negative: none
	IdleTimeout time.Duration // 0: 30 s

	Providers map[string]string // MX host suffix to provider name, for metrics, besides the built-in ones; at most 20 names
	Metrics   *expvarom.Registry
}

// Timeouts of an SMTP client. Zero values stand for the defaults, which are those of RFC 5321 section 4.5.3.2.
type Timeouts struct {
	Connect   time.Duration // for each address: 1 min
	Greeting  time.Duration // the initial 220: 5 min
	Hello     time.Duration // EHLO, STARTTLS, AUTH: 5 min
	TLS       time.Duration // the handshake: 1 min
	Mail      time.Duration // MAIL: 5 min
	Rcpt      time.Duration // RCPT: 5 min
	DataInit  time.Duration // DATA: 2 min
	DataBlock time.Duration // writing a block of the message: 3 min
	DataDone  time.Duration // the answer to the end of the message: 10 min
}

func (t Timeouts) withDefaults() Timeouts {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&t.Connect, time.Minute)
	def(&t.Greeting, 5*time.Minute)
	def(&t.Hello, 5*time.Minute)
	def(&t.TLS, time.Minute)
	def(&t.Mail, 5*time.Minute)
	def(&t.Rcpt, 5*time.Minute)
	def(&t.DataInit, 2*time.Minute)
	def(&t.DataBlock, 3*time.Minute)
	def(&t.DataDone, 10*time.Minute)
	return t
}

// Limits of one delivery attempt, so that no domain's DNS or servers keep a worker for hours.
const (
	maxHosts     = 10                     // servers tried in one attempt
	maxAddrs     = 6                      // addresses tried of one server
	maxSessions  = 5                      // sessions that got as far as MAIL
	attemptLimit = 45 * time.Minute       // no further server is tried after this
	dialStagger  = 250 * time.Millisecond // head start of one address before the next (RFC 8305 section 5)
)

func (c Config) withDefaults() Config {
	if c.Port == 0 {
		c.Port = 25
	}
	if c.MaxRcpts <= 0 {
		c.MaxRcpts = 100
	}
	if c.MaxMessages <= 0 {
		c.MaxMessages = 100
	}
	if c.MaxIdle == 0 {
		c.MaxIdle = 100
	}
	if c.IdleTimeout == 0 {
		c.IdleTimeout = 30 * time.Second
	}
	if c.Dial == nil {
		c.Dial = systemDial(c.SourceAddrs)
	}
	c.Timeouts = c.Timeouts.withDefaults()
	return c
}

// systemDial connects from the source address of the right family, if one is given.
func systemDial(sources []netip.Addr) DialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		d := net.Dialer{KeepAlive: -1}
		if to, err := netip.ParseAddrPort(addr); err == nil {
			for _, src := range sources {
				if src.Is4() == to.Addr().Unmap().Is4() {
					d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(src, 0))
				}
			}
		}
		return d.DialContext(ctx, network, addr)
	}
}
