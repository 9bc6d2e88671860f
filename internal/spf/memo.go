package spf

import (
	"context"
	"net/netip"
	"strings"
	"sync"
	"time"

	"blitiri.com.ar/go/chasquid/internal/dns"
)

// Limits of what a memo keeps.
const (
	maxMemo    = 4096
	maxMemoTTL = 10 * time.Minute
)

// memo remembers results as long as the records they were made of live. A result is only remembered if nothing but the address
// and the domain went into it.
type memo struct {
	mu sync.Mutex
	m  map[memoKey]memoValue
}

type memoKey struct {
	ip     netip.Addr
	domain string
}

type memoValue struct {
	value, reason string
	expires       time.Time
}

func (m *memo) get(k memoKey, now time.Time) (memoValue, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, ok := m.m[k]
	return v, ok && now.Before(v.expires)
}

func (m *memo) put(k memoKey, v memoValue, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.m == nil {
		m.m = map[memoKey]memoValue{}
	}
	if len(m.m) >= maxMemo {
		m.shrink(now)
	}
	m.m[k] = v
}

// shrink makes room: what has expired goes, and an eighth of the rest, whichever the map yields first.
func (m *memo) shrink(now time.Time) {
	n := maxMemo / 8
	for k, v := range m.m {
		if n > 0 || !now.Before(v.expires) {
			delete(m.m, k)
			n--
		}
	}
}

// tracker is the resolver of one check: it notes how long the answers live and whether they depend on more than the address and
// the domain.
type tracker struct {
	dns.Resolver
	ttl      time.Duration
	personal bool // a macro used the local part or the HELO name
}

func (t *tracker) note(m dns.Meta) { t.ttl = min(t.ttl, m.TTL) }

func (t *tracker) TXT(ctx context.Context, p dns.Purpose, name string) ([]string, dns.Meta, error) {
	txt, m, err := t.Resolver.TXT(ctx, p, name)
	t.note(m)
	for _, s := range txt {
		t.personal = t.personal || strings.Contains(s, "%{") && isSPF(s)
	}
	return txt, m, err
}

func (t *tracker) MX(ctx context.Context, p dns.Purpose, name string) ([]dns.MX, dns.Meta, error) {
	mx, m, err := t.Resolver.MX(ctx, p, name)
	t.note(m)
	return mx, m, err
}

func (t *tracker) IP(ctx context.Context, p dns.Purpose, name string) ([]netip.Addr, dns.Meta, error) {
	ips, m, err := t.Resolver.IP(ctx, p, name)
	t.note(m)
	return ips, m, err
}

func (t *tracker) PTR(ctx context.Context, p dns.Purpose, ip netip.Addr) ([]string, dns.Meta, error) {
	names, m, err := t.Resolver.PTR(ctx, p, ip)
	t.note(m)
	return names, m, err
}
