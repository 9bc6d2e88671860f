package smtpsrv

import (
	"net/netip"
	"sync"
	"time"

	"blitiri.com.ar/go/chasquid/internal/lru"
)

// Bounds of what is remembered of networks whose logins failed.
const (
	maxFailing  = 10_000
	failureHalf = 10 * time.Minute // failures count half after this time
	firstBlock  = time.Second      // doubles with each further failure
	longBlock   = 15 * time.Minute
)

// netTable counts connections and failed logins by network: an IPv4 address or an IPv6 /64, which is what one customer has.
type netTable struct {
	mu      sync.Mutex
	open    map[netip.Addr]int
	failing *lru.Map[netip.Addr, failures]
}

func newNetTable() *netTable {
	return &netTable{open: map[netip.Addr]int{}, failing: lru.New[netip.Addr, failures](maxFailing)}
}

type failures struct {
	n    float64 // weighted by age
	last time.Time
}

// network returns the key of an address; ok is false for addresses that are not limited.
func network(ip netip.Addr) (key netip.Addr, ok bool) {
	ip = ip.Unmap().WithZone("")
	if !ip.IsValid() || ip.IsLoopback() {
		return ip, false
	}
	if ip.Is6() {
		p, err := ip.Prefix(64)
		return p.Addr(), err == nil
	}
	return ip, true
}

// enter counts a connection; it reports false, and counts nothing, if the network has max already.
func (t *netTable) enter(ip netip.Addr, max int) bool {
	key, ok := network(ip)
	if !ok {
		return true
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open[key] >= max {
		return false
	}
	t.open[key]++
	return true
}

// leave ends what enter counted.
func (t *netTable) leave(ip netip.Addr) {
	key, ok := network(ip)
	if !ok {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open[key]--; t.open[key] <= 0 {
		delete(t.open, key)
	}
}

// at returns the weight of the failures at a later time.
func (f failures) at(now time.Time) float64 {
	n := f.n
	for age := now.Sub(f.last); age >= failureHalf && n > 0.1; age -= failureHalf {
		n /= 2
	}
	return n
}

// failed counts a failed login.
func (t *netTable) failed(ip netip.Addr, now time.Time) {
	key, ok := network(ip)
	if !ok {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	f, _ := t.failing.Get(key)
	t.failing.Put(key, failures{n: f.at(now) + 1, last: now})
}

// blocked reports that a network with more failures than allowed has to wait before its next login.
func (t *netTable) blocked(ip netip.Addr, allowed int, now time.Time) bool {
	key, ok := network(ip)
	if !ok || allowed < 0 {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	f, _ := t.failing.Peek(key)
	over := int(f.at(now)) - allowed
	if over < 0 {
		return false
	}
	wait := longBlock
	if over < 10 {
		wait = min(firstBlock<<over, longBlock)
	}
	return now.Sub(f.last) < wait
}
