// Package zone answers DNS questions from a text: the Resolver of tests, and a small DNS server for tests over the wire.
package zone

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"blitiri.com.ar/go/chasquid/internal/dns"
	miekg "github.com/miekg/dns"
)

// Zone is a set of records. It implements dns.Resolver and miekg's dns.Handler. It is safe for concurrent use.
type Zone struct {
	mu      sync.Mutex
	records map[string][]miekg.RR // by canonical owner
	special map[string]behaviour
	secure  []string // names whose subtree is validated; "" is everything
	queries []string
}

// behaviour is what a name does instead of answering. The type "" stands for all types.
type behaviour struct {
	fail  error         // what the look-up ends with
	delay time.Duration // how long it takes first
}

// Errors a zone can be told to give.
var (
	ErrServFail = errors.New("SERVFAIL")
	ErrTimeout  = fmt.Errorf("query timed out: %w", context.DeadlineExceeded)
)

// New parses a zone text. Each line is a record as in a master file, with a full name and optional TTL (default 300),
//
//	example.com        MX    10 mx.example.com
//	_dmarc.example.com 60 TXT "v=DMARC1; p=none"
//
// or tells how a name behaves:
//
//	broken.example     SERVFAIL          the look-up fails for now; "SERVFAIL MX" only for one type
//	dead.example       TIMEOUT           likewise, as a time-out
//	slow.example       DELAY 3s          it answers, but not at once
//	signed.example     SECURE            answers for this name and those below it are validated; "." for all
//
// Empty lines and those that begin with ";" or "#" are skipped.
func New(text string) (*Zone, error) {
	z := &Zone{records: map[string][]miekg.RR{}, special: map[string]behaviour{}}
	if err := z.Add(text); err != nil {
		return nil, err
	}
	return z, nil
}

// MustNew is New for constants; it panics on an error.
func MustNew(text string) *Zone {
	z, err := New(text)
	if err != nil {
		panic(err)
	}
	return z
}

// Add parses more lines.
func (z *Zone) Add(text string) error {
	for n, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == ';' || line[0] == '#' {
			continue
		}
		if err := z.addLine(line); err != nil {
			return fmt.Errorf("zone line %d: %w", n+1, err)
		}
	}
	return nil
}

func (z *Zone) addLine(line string) error {
	f := strings.Fields(line)
	if len(f) < 2 {
		return fmt.Errorf("%q has no type", line)
	}
	name := canonical(unescape(f[0]))
	arg := ""
	if len(f) > 2 {
		arg = f[2]
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	switch f[1] {
	case "SERVFAIL":
		z.special[name+"/"+arg] = behaviour{fail: ErrServFail}
		return nil
	case "TIMEOUT":
		z.special[name+"/"+arg] = behaviour{fail: ErrTimeout}
		return nil
	case "DELAY":
		d, err := time.ParseDuration(arg)
		z.special[name+"/"] = behaviour{delay: d}
		return err
	case "SECURE":
		z.secure = append(z.secure, name)
		return nil
	}
	rest := strings.TrimSpace(strings.TrimPrefix(line, f[0]))
	zp := miekg.NewZoneParser(strings.NewReader(f[0]+" "+rest+"\n"), ".", "")
	zp.SetDefaultTTL(300)
	rr, ok := zp.Next()
	if !ok {
		return fmt.Errorf("%q: %v", line, zp.Err())
	}
	z.records[name] = append(z.records[name], rr)
	return nil
}

// Remove forgets the records and the behaviour of a name.
func (z *Zone) Remove(name string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	name = canonical(name)
	delete(z.records, name)
	for k := range z.special {
		if strings.HasPrefix(k, name+"/") {
			delete(z.special, k)
		}
	}
}

// Queries returns the questions asked so far, each as "name TYPE".
func (z *Zone) Queries() []string {
	z.mu.Lock()
	defer z.mu.Unlock()
	return slices.Clone(z.queries)
}

// ResetQueries forgets the questions asked so far.
func (z *Zone) ResetQueries() {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.queries = nil
}

func canonical(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// look returns the records of a name and type, following CNAMEs, and the chain of CNAMEs itself.
func (z *Zone) look(name, qtype string) (chain, found []miekg.RR, b behaviour, secure bool, err error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	name = canonical(name)
	z.queries = append(z.queries, name+" "+qtype)
	secure = true
	for range 10 {
		if s, ok := z.special[name+"/"]; ok {
			b = s
		}
		if s, ok := z.special[name+"/"+qtype]; ok {
			b = s
		}
		if b.fail != nil {
			return chain, nil, b, false, b.fail
		}
		secure = secure && z.isSecure(name)
		var cname *miekg.CNAME
		for _, rr := range z.records[name] {
			if miekg.TypeToString[rr.Header().Rrtype] == qtype {
				found = append(found, rr)
			} else if c, ok := rr.(*miekg.CNAME); ok {
				cname = c
			}
		}
		switch {
		case len(found) > 0:
			return chain, found, b, secure, nil
		case cname != nil:
			chain = append(chain, cname)
			name = canonical(cname.Target)
		case z.exists(name):
			return chain, nil, b, secure, dns.ErrNotFound
		default:
			return chain, nil, b, secure, dns.ErrNXDomain
		}
	}
	return chain, nil, b, false, errLoop
}

var errLoop = errors.New("CNAME loop")

// exists reports a name with records, or with names below it (RFC 8020).
func (z *Zone) exists(name string) bool {
	if len(z.records[name]) > 0 {
		return true
	}
	for n := range z.records {
		if strings.HasSuffix(n, "."+name) {
			return true
		}
	}
	return false
}

func (z *Zone) isSecure(name string) bool {
	return slices.ContainsFunc(z.secure, func(s string) bool { return s == "" || name == s || strings.HasSuffix(name, "."+s) })
}

// lookup is look with the waiting and the errors of a Resolver.
func (z *Zone) lookup(ctx context.Context, name, qtype string) ([]miekg.RR, dns.Meta, error) {
	if !validName(name) {
		return nil, dns.Meta{}, dns.ErrNXDomain
	}
	chain, found, b, secure, err := z.look(name, qtype)
	if b.delay > 0 {
		select {
		case <-time.After(b.delay):
		case <-ctx.Done():
		}
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	meta := dns.Meta{TTL: 5 * time.Minute, Secure: secure}
	for _, rr := range append(chain, found...) {
		meta.TTL = min(meta.TTL, time.Duration(rr.Header().Ttl)*time.Second)
	}
	if err != nil && !errors.Is(err, dns.ErrNotFound) {
		return nil, dns.Meta{}, &dns.TemporaryError{Name: name, Err: err}
	}
	return found, meta, err
}

func validName(name string) bool {
	name = strings.TrimSuffix(name, ".")
	if name == "" || len(name) > 253 {
		return false
	}
	for l := range strings.SplitSeq(name, ".") {
		if l == "" || len(l) > 63 {
			return false
		}
	}
	return true
}

// MX implements dns.Resolver.
func (z *Zone) MX(ctx context.Context, _ dns.Purpose, domain string) (l []dns.MX, _ dns.Meta, _ error) {
	rrs, meta, err := z.lookup(ctx, domain, "MX")
	for _, rr := range rrs {
		mx := rr.(*miekg.MX)
		l = append(l, dns.MX{Pref: mx.Preference, Host: canonical(mx.Mx)})
	}
	slices.SortStableFunc(l, func(a, b dns.MX) int { return int(a.Pref) - int(b.Pref) })
	return l, meta, err
}

// IP implements dns.Resolver.
func (z *Zone) IP(ctx context.Context, _ dns.Purpose, host string) (l []netip.Addr, _ dns.Meta, _ error) {
	a, metaA, errA := z.lookup(ctx, host, "A")
	b, metaB, errB := z.lookup(ctx, host, "AAAA")
	for _, rr := range append(a, b...) {
		switch rr := rr.(type) {
		case *miekg.A:
			ip, _ := netip.AddrFromSlice(rr.A)
			l = append(l, ip.Unmap())
		case *miekg.AAAA:
			ip, _ := netip.AddrFromSlice(rr.AAAA)
			l = append(l, ip)
		}
	}
	meta := dns.Meta{TTL: min(metaA.TTL, metaB.TTL), Secure: metaA.Secure && metaB.Secure}
	switch {
	case len(a) > 0 && len(b) > 0:
		return l, meta, nil
	case len(a) > 0:
		return l, metaA, nil
	case len(b) > 0:
		return l, metaB, nil
	case errA != nil && !errors.Is(errA, dns.ErrNotFound):
		return nil, dns.Meta{}, errA
	case errB != nil && !errors.Is(errB, dns.ErrNotFound):
		return nil, dns.Meta{}, errB
	}
	return nil, meta, errA
}

// TXT implements dns.Resolver.
func (z *Zone) TXT(ctx context.Context, _ dns.Purpose, name string) (l []string, _ dns.Meta, _ error) {
	rrs, meta, err := z.lookup(ctx, name, "TXT")
	for _, rr := range rrs {
		l = append(l, unescape(strings.Join(rr.(*miekg.TXT).Txt, "")))
	}
	return l, meta, err
}

// PTR implements dns.Resolver.
func (z *Zone) PTR(ctx context.Context, _ dns.Purpose, ip netip.Addr) (l []string, _ dns.Meta, _ error) {
	name, err := miekg.ReverseAddr(ip.Unmap().String())
	if err != nil {
		return nil, dns.Meta{}, dns.ErrNXDomain
	}
	rrs, meta, err := z.lookup(ctx, name, "PTR")
	for _, rr := range rrs {
		l = append(l, canonical(rr.(*miekg.PTR).Ptr))
	}
	return l, meta, err
}

// TLSA implements dns.Resolver.
func (z *Zone) TLSA(ctx context.Context, _ dns.Purpose, name string) (l []dns.TLSA, _ dns.Meta, _ error) {
	rrs, meta, err := z.lookup(ctx, name, "TLSA")
	for _, rr := range rrs {
		t := rr.(*miekg.TLSA)
		data, err := hex.DecodeString(t.Certificate)
		if err != nil {
			return nil, dns.Meta{}, &dns.TemporaryError{Name: name, Err: err}
		}
		l = append(l, dns.TLSA{Usage: t.Usage, Selector: t.Selector, Matching: t.MatchingType, Data: data})
	}
	return l, meta, err
}

// unescape undoes the presentation format of a character-string.
func unescape(s string) string {
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+1 == len(s) {
			b = append(b, s[i])
			continue
		}
		var d int
		if n, _ := fmt.Sscanf(s[i+1:min(i+4, len(s))], "%03d", &d); n == 1 && i+3 < len(s) {
			b = append(b, byte(d))
			i += 3
			continue
		}
		i++
		b = append(b, s[i])
	}
	return string(b)
}

// ServeDNS answers one query over the wire. Names of no zone are NXDOMAIN with a SOA whose minimum is 60 s; a TIMEOUT name
// gets no answer at all.
func (z *Zone) ServeDNS(w miekg.ResponseWriter, q *miekg.Msg) {
	m := new(miekg.Msg)
	m.SetReply(q)
	m.RecursionAvailable = true
	if len(q.Question) != 1 {
		m.Rcode = miekg.RcodeFormatError
		w.WriteMsg(m)
		return
	}
	chain, found, b, secure, err := z.look(unescape(q.Question[0].Name), miekg.TypeToString[q.Question[0].Qtype])
	if b.delay > 0 {
		time.Sleep(b.delay)
	}
	m.Answer = append(chain, found...)
	m.AuthenticatedData = secure && q.AuthenticatedData
	switch {
	case err == ErrTimeout:
		return
	case err == nil:
	case errors.Is(err, dns.ErrNotFound):
		if err == error(dns.ErrNXDomain) {
			m.Rcode = miekg.RcodeNameError
		}
		m.Ns = []miekg.RR{&miekg.SOA{
			Hdr: miekg.RR_Header{Name: ".", Rrtype: miekg.TypeSOA, Class: miekg.ClassINET, Ttl: 60},
			Ns:  "ns.invalid.", Mbox: "root.invalid.", Serial: 1, Minttl: 60,
		}}
	default:
		m.Answer, m.Rcode = nil, miekg.RcodeServerFailure
	}
	if opt := q.IsEdns0(); opt != nil {
		m.SetEdns0(4096, opt.Do())
	}
	if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
		size := miekg.MinMsgSize
		if opt := q.IsEdns0(); opt != nil {
			size = int(opt.UDPSize())
		}
		m.Truncate(size)
	}
	w.WriteMsg(m)
}

// Listen serves the zone by UDP and TCP on a loopback address such as "127.0.0.1:0" until the returned function is called.
func (z *Zone) Listen(addr string) (bound string, stop func(), err error) {
	pc, l, err := listenBoth(addr)
	if err != nil {
		return "", nil, err
	}
	udp := &miekg.Server{PacketConn: pc, Handler: z}
	tcp := &miekg.Server{Listener: l, Handler: z}
	var wg sync.WaitGroup
	for _, s := range []*miekg.Server{udp, tcp} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		wg.Go(func() { s.ActivateAndServe() })
		<-started
	}
	return pc.LocalAddr().String(), func() {
		udp.Shutdown()
		tcp.Shutdown()
		wg.Wait()
	}, nil
}

// listenBoth listens on the same port by UDP and TCP. A port that the system chose for one may be taken for the other: then it
// chooses again.
func listenBoth(addr string) (pc net.PacketConn, l net.Listener, err error) {
	for range 20 {
		if pc, err = net.ListenPacket("udp", addr); err != nil {
			return nil, nil, err
		}
		if l, err = net.Listen("tcp", pc.LocalAddr().String()); err == nil {
			return pc, l, nil
		}
		pc.Close()
	}
	return nil, nil, err
}
