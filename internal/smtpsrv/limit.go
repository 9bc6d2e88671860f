package smtpsrv

import (
	"net/netip"
	"sync"
)

// netTable counts connections by network: an IPv4 address or an IPv6 /64, which is what one customer has.
type netTable struct {
	mu   sync.Mutex
	open map[netip.Addr]int
}

func newNetTable() *netTable { return &netTable{open: map[netip.Addr]int{}} }

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
