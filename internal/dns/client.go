package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/trace"
	"blitiri.com.ar/go/log"
	miekg "github.com/miekg/dns"
)

// Config says how a Client resolves. The zero value uses the system's servers with the defaults named here.
type Config struct {
	Servers    []string // "host:port" or "host"; if empty those of ResolvConf, which is read again when it changes
	ResolvConf string   // default /etc/resolv.conf
	Hosts      string   // hosts file for addresses of next hops; default /etc/hosts, "-" for none
	TrustAD    bool     // the servers validate and the way to them is safe; without it only loopback servers are believed

	Timeout time.Duration // of one try at one server, doubled in the second round; default 2s
	Budget  time.Duration // of a whole look-up; default 12s

	MaxEntries int           // answers kept; default 20000
	MaxBytes   int           // memory for answers; default 16 MiB
	MinTTL     time.Duration // answers are kept at least so long: the checks of one message ask alike; default 1s
	MaxTTL     time.Duration // and at most so long; default 24h
	FailureTTL time.Duration // temporary failures are remembered so long; default 5s

	Metrics *expvarom.Registry
}

// Limits of a Client that need no setting.
const (
	maxRounds   = 2   // over all servers
	maxServers  = 4   // of those configured
	maxCNAME    = 8   // links followed, in an answer or by asking again
	maxInFlight = 512 // queries under way at a time
	maxNegative = time.Hour
	defNegative = time.Minute // for a negative answer without SOA (RFC 2308 section 5 would not cache it at all)
	udpSize     = 1232        // the size that does not fragment (DNS flag day 2020)
)

// Client is a Resolver that asks recursive servers and remembers their answers. The slices it returns are shared: callers
// must not change them.
type Client struct {
	cfg     Config
	epoch   time.Time
	cache   *cache
	servers atomic.Pointer[serverList]
	hosts   hostsFile
	slots   chan struct{}
	m       *metrics
	recent  recent

	// exchange sends one query to one server; replaced in tests.
	exchange func(ctx context.Context, server string, tcp bool, timeout time.Duration, q *miekg.Msg) (*miekg.Msg, error)
}

// New makes a Client. It opens nothing until it is asked.
func New(cfg Config) *Client {
	setDefault(&cfg.ResolvConf, "/etc/resolv.conf")
	setDefault(&cfg.Hosts, "/etc/hosts")
	setDefault(&cfg.Timeout, 2*time.Second)
	setDefault(&cfg.Budget, 12*time.Second)
	setDefault(&cfg.MaxEntries, 20000)
	setDefault(&cfg.MaxBytes, 16<<20)
	setDefault(&cfg.MinTTL, time.Second)
	setDefault(&cfg.MaxTTL, 24*time.Hour)
	setDefault(&cfg.FailureTTL, 5*time.Second)
	c := &Client{
		cfg:      cfg,
		epoch:    time.Now(),
		cache:    newCache(cfg.MaxEntries, cfg.MaxBytes),
		slots:    make(chan struct{}, maxInFlight),
		exchange: exchange,
	}
	c.servers.Store(newServerList(cfg))
	c.hosts.path = cfg.Hosts
	c.m = newMetrics(cfg.Metrics, c.cache)
	return c
}

// SetServers changes Config.Servers and Config.TrustAD for questions that come from now on. What was answered before is forgotten: other
// servers may say something else, and be believed for other reasons.
func (c *Client) SetServers(servers []string, trustAD bool) {
	cfg := c.cfg
	cfg.Servers, cfg.TrustAD = servers, trustAD
	c.servers.Store(newServerList(cfg))
	c.cache.flush()
}

func setDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// MX implements Resolver. The records are in order of preference.
func (c *Client) MX(ctx context.Context, p Purpose, domain string) ([]MX, Meta, error) {
	e, now := c.get(ctx, p, domain, miekg.TypeMX)
	return e.mx, e.meta(now), e.err
}

// IP implements Resolver. It asks for both families; one of them is enough for an answer.
func (c *Client) IP(ctx context.Context, p Purpose, host string) ([]netip.Addr, Meta, error) {
	if p == ForMX || p == Other {
		if ips := c.local(host); ips != nil {
			return ips, Meta{}, nil
		}
		for _, name := range c.servers.Load().search(host) {
			if e, now := c.get(ctx, p, name, typeIP); e.err == nil {
				return e.ips, e.meta(now), nil
			}
		}
	}
	e, now := c.get(ctx, p, host, typeIP)
	return e.ips, e.meta(now), e.err
}

// TXT implements Resolver. The strings of one record are joined without space (RFC 7208 section 3.3).
func (c *Client) TXT(ctx context.Context, p Purpose, name string) ([]string, Meta, error) {
	e, now := c.get(ctx, p, name, miekg.TypeTXT)
	return e.texts, e.meta(now), e.err
}

// PTR implements Resolver.
func (c *Client) PTR(ctx context.Context, p Purpose, ip netip.Addr) ([]string, Meta, error) {
	e, now := c.get(ctx, p, reverseName(ip), miekg.TypePTR)
	return e.texts, e.meta(now), e.err
}

// TLSA implements Resolver.
func (c *Client) TLSA(ctx context.Context, p Purpose, name string) ([]TLSA, Meta, error) {
	e, now := c.get(ctx, p, name, miekg.TypeTLSA)
	return e.tlsa, e.meta(now), e.err
}

// typeIP stands in the cache for "A and AAAA together"; the number is in the private range of RFC 6895.
const typeIP uint16 = 0xff01

// noName answers for what cannot be a domain name, without asking anybody.
var noName = &entry{err: ErrNXDomain}

// get returns the answer from the cache, or asks for it. Of callers who want the same, one asks and the others wait.
func (c *Client) get(ctx context.Context, p Purpose, name string, qtype uint16) (*entry, time.Duration) {
	name, ok := canonical(name)
	if !ok {
		return noName, 0
	}
	k := key{qtype, name}
	for {
		now := time.Since(c.epoch)
		e, f, lead := c.cache.get(k, now)
		if e != nil {
			return e, now
		}
		if lead {
			return c.lead(ctx, p, k, f)
		}
		select {
		case <-f.done:
			if f.e != nil {
				return f.e, time.Since(c.epoch)
			}
		case <-ctx.Done():
			return &entry{err: &TemporaryError{name, ctx.Err()}}, now
		}
	}
}

// lead asks on behalf of all who want the same. The caller's own end is no answer for the others: one of them asks again.
func (c *Client) lead(ctx context.Context, p Purpose, k key, f *flight) (*entry, time.Duration) {
	var keep *entry
	defer func() { c.cache.finish(k, f, keep, time.Since(c.epoch)) }()
	e := c.fetch(ctx, p, k.name, k.qtype)
	if ctx.Err() == nil || !isTemporary(e.err) {
		keep = e
	}
	return e, time.Since(c.epoch)
}

// fetch asks the servers and makes an entry of what they say; it counts, times and traces.
func (c *Client) fetch(ctx context.Context, p Purpose, name string, qtype uint16) *entry {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Budget)
	defer cancel()
	start := time.Now()
	var e *entry
	if qtype == typeIP {
		e = c.fetchIP(ctx, name)
	} else {
		e = c.fetchType(ctx, name, qtype)
	}
	took := time.Since(start)
	ttl := min(max(e.ttl, c.cfg.MinTTL), c.cfg.MaxTTL)
	if isTemporary(e.err) {
		ttl = c.cfg.FailureTTL
		c.recent.add(Failure{At: time.Now(), Name: name, Type: typeName(qtype), Purpose: p, Took: took, Err: e.err})
	}
	e.expires = time.Since(c.epoch) + ttl
	c.m.lookup(p, e.err, took)
	if span := trace.From(ctx); span != nil {
		span.Debugf("dns: %s %q in %v: %s", typeName(qtype), name, took.Round(time.Microsecond), e)
	}
	return e
}

// fetchIP asks for both families at once.
func (c *Client) fetchIP(ctx context.Context, name string) *entry {
	v6 := &entry{err: &TemporaryError{name, errPanic}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if r := recover(); r != nil {
				log.Errorf("dns: panic looking up %q: %v\n%s", name, r, debug.Stack())
			}
		}()
		v6 = c.fetchType(ctx, name, miekg.TypeAAAA)
	}()
	v4 := c.fetchType(ctx, name, miekg.TypeA)
	<-done
	return mergeIP(v4, v6)
}

// mergeIP joins the answers of the two families: addresses of either are an answer, a failure is stronger than an absence.
func mergeIP(v4, v6 *entry) *entry {
	switch {
	case v4.err == nil && v6.err == nil:
		return &entry{ips: append(v4.ips, v6.ips...), ttl: min(v4.ttl, v6.ttl), secure: v4.secure && v6.secure}
	case v4.err == nil:
		return &entry{ips: v4.ips, ttl: min(v4.ttl, max(v6.ttl, time.Minute)), secure: v4.secure}
	case v6.err == nil:
		return &entry{ips: v6.ips, ttl: min(v6.ttl, max(v4.ttl, time.Minute)), secure: v6.secure}
	case isTemporary(v4.err):
		return v4
	case isTemporary(v6.err):
		return v6
	case v6.err == ErrNXDomain:
		return v6
	}
	return &entry{err: v4.err, ttl: min(v4.ttl, v6.ttl), secure: v4.secure && v6.secure}
}

// fetchType asks for one type, following CNAMEs that a server left open.
func (c *Client) fetchType(ctx context.Context, name string, qtype uint16) *entry {
	secure, ttl := true, c.cfg.MaxTTL
	for range maxCNAME {
		msg, trusted, err := c.query(ctx, name, qtype)
		if err != nil {
			return &entry{err: &TemporaryError{name, err}}
		}
		e, next := readAnswer(msg, name, qtype)
		secure = secure && trusted && msg.AuthenticatedData
		ttl = min(ttl, e.ttl)
		if next == "" {
			e.ttl, e.secure = ttl, secure
			return e
		}
		name = next
	}
	return &entry{err: &TemporaryError{name, errCNAMELoop}}
}

var (
	errCNAMELoop = errors.New("CNAME loop")
	errNoServer  = errors.New("no DNS server configured")
	errQuestion  = errors.New("answer to another question")
	errPanic     = errors.New("internal error")
)

// rcodeError is a reply code that is no answer.
type rcodeError int

func (e rcodeError) Error() string {
	if s, ok := miekg.RcodeToString[int(e)]; ok {
		return s
	}
	return fmt.Sprintf("RCODE %d", int(e))
}

// query asks the servers in turn until one gives an answer: NOERROR or NXDOMAIN.
func (c *Client) query(ctx context.Context, name string, qtype uint16) (_ *miekg.Msg, trusted bool, err error) {
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		return nil, false, ctx.Err()
	}
	list := c.servers.Load()
	servers, first := list.list()
	err = errNoServer
	timeout := c.cfg.Timeout
	for range maxRounds {
		for i := range servers {
			n := (first + i) % len(servers)
			msg, e := c.ask(ctx, servers[n], timeout, name, qtype)
			if e == nil {
				list.prefer(n)
				return msg, servers[n].trusted, nil
			}
			if ctx.Err() != nil {
				return nil, false, fmt.Errorf("%w (last: %v)", ctx.Err(), e)
			}
			err = fmt.Errorf("%s: %w", servers[n].addr, e)
		}
		timeout *= 2
	}
	return nil, false, err
}

// ask puts the question to one server: by UDP, by TCP when the answer was cut, without EDNS when the server knows none.
func (c *Client) ask(ctx context.Context, s server, timeout time.Duration, name string, qtype uint16) (*miekg.Msg, error) {
	q := new(miekg.Msg)
	q.Id = miekg.Id()
	q.RecursionDesired = true
	q.AuthenticatedData = s.trusted // RFC 6840 section 5.7: tell us whether it validated
	q.Question = []miekg.Question{{Name: escape(name), Qtype: qtype, Qclass: miekg.ClassINET}}
	q.SetEdns0(udpSize, s.trusted)
	msg, err := c.exchange(ctx, s.addr, false, timeout, q)
	if err == nil && msg.Truncated {
		msg, err = c.exchange(ctx, s.addr, true, timeout, q)
	}
	if err == nil && (msg.Rcode == miekg.RcodeFormatError || msg.Rcode == miekg.RcodeNotImplemented) {
		q.Extra = nil // RFC 6891 section 7
		msg, err = c.exchange(ctx, s.addr, false, timeout, q)
		if err == nil && msg.Truncated {
			msg, err = c.exchange(ctx, s.addr, true, timeout, q)
		}
	}
	if err != nil {
		return nil, err
	}
	if len(msg.Question) != 1 || msg.Question[0].Qtype != qtype || !strings.EqualFold(msg.Question[0].Name, q.Question[0].Name) {
		return nil, errQuestion
	}
	if msg.Rcode != miekg.RcodeSuccess && msg.Rcode != miekg.RcodeNameError {
		return nil, rcodeError(msg.Rcode)
	}
	return msg, nil
}

func exchange(ctx context.Context, server string, tcp bool, timeout time.Duration, q *miekg.Msg) (*miekg.Msg, error) {
	cl := miekg.Client{Net: "udp", UDPSize: udpSize, Timeout: timeout}
	if tcp {
		cl.Net = "tcp"
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	msg, _, err := cl.ExchangeContext(ctx, q, server)
	return msg, err
}

func isTemporary(err error) bool {
	var t *TemporaryError
	return errors.As(err, &t)
}

func typeName(t uint16) string {
	if t == typeIP {
		return "A+AAAA"
	}
	return miekg.TypeToString[t]
}
