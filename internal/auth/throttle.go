package auth

import (
	"net/netip"
	"sync"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/lru"
)

// Limits of guessing. After the free failures, each further one doubles the time until the next attempt.
var (
	networkLimit = limit{free: 5, base: time.Second, max: 15 * time.Minute, forget: 30 * time.Minute}
	accountLimit = limit{free: 20, base: time.Second, max: time.Minute, forget: 15 * time.Minute}
)

// Bounds of a Throttle.
const (
	// DefaultThrottleEntries is how many networks, accounts and pairs of both are remembered.
	DefaultThrottleEntries = 50000

	trustFor     = 30 * 24 * time.Hour // how long a success makes a pair of account and network trusted
	trustedFails = 10                  // failures in a row after which it is not any more
	busyWait     = time.Second         // told to those who come while an attempt that counts is running
)

type limit struct {
	free              int
	base, max, forget time.Duration
}

// Throttle slows down guessing of passwords, by network and by account. Who has logged in to an account from a network before is not held up by what
// others do to either. It is safe for concurrent use.
type Throttle struct {
	mu       sync.Mutex
	networks *lru.Map[netip.Prefix, *failures]
	accounts *lru.Map[address.Address, *failures]
	pairs    *lru.Map[pair, *trust]
	slowed   [2]*expvarom.Counter // by network, by account
}

type pair struct {
	network netip.Prefix
	account address.Address
}

// failures of a network or an account.
type failures struct {
	n       int // in a row, recent ones
	running int // attempts that have no result yet: they might fail
	last    time.Time
}

type trust struct {
	since time.Time
	fails int
}

// NewThrottle returns a Throttle that remembers so many networks and accounts; 0: DefaultThrottleEntries.
func NewThrottle(entries int, r *expvarom.Registry) *Throttle {
	if entries == 0 {
		entries = DefaultThrottleEntries
	}
	v := r.CounterVec("chasquid_auth_throttled_total", "Attempts to authenticate that were put off because of failures before.",
		[]string{"scope"}, []string{"network", "account"})
	return &Throttle{
		networks: lru.New[netip.Prefix, *failures](entries),
		accounts: lru.New[address.Address, *failures](entries),
		pairs:    lru.New[pair, *trust](entries),
		slowed:   [2]*expvarom.Counter{v.With("network"), v.With("account")},
	}
}

// Attempt is an authentication that is allowed to go on. Its result must be reported with Done, or it must be taken back with Cancel, which may
// be deferred: only the first report counts.
type Attempt struct {
	t    *Throttle
	key  pair
	net  *failures // nil if not counted
	acct *failures
	once sync.Once
}

// Begin asks whether a client may try a password for an account now. If not, the Attempt is nil and wait says when to come back:
// the reply is temporary, and no password is looked at. Clients of this machine (a webmail, say) are limited by account only.
func (t *Throttle) Begin(now time.Time, client netip.Addr, user address.Address) (a *Attempt, wait time.Duration) {
	client = client.Unmap()
	key := pair{networkOf(client), user}
	t.mu.Lock()
	defer t.mu.Unlock()
	a = &Attempt{t: t, key: key, acct: record(t.accounts, user, accountLimit, now)}
	if !client.IsLoopback() {
		a.net = record(t.networks, key.network, networkLimit, now)
	}
	if tr, ok := t.pairs.Get(key); !ok || now.Sub(tr.since) > trustFor || tr.fails >= trustedFails {
		if a.net != nil {
			if wait = a.net.wait(networkLimit, now); wait > 0 {
				t.slowed[0].Inc()
				return nil, wait
			}
		}
		if wait = a.acct.wait(accountLimit, now); wait > 0 {
			t.slowed[1].Inc()
			return nil, wait
		}
	}
	a.acct.running++
	if a.net != nil {
		a.net.running++
	}
	return a, 0
}

// Done reports the attempt's result. One whose result is unknown, because a backend failed,
// is reported with Cancel.
func (a *Attempt) Done(now time.Time, ok bool) {
	a.end(func() {
		tr, known := a.t.pairs.Get(a.key)
		switch {
		case ok:
			a.t.pairs.Put(a.key, &trust{since: now})
			a.acct.n = 0
			return
		case known:
			tr.fails++
		}
		a.acct.fail(now)
		if a.net != nil {
			a.net.fail(now)
		}
	})
}

// Cancel takes the attempt back: it neither failed nor succeeded.
func (a *Attempt) Cancel() { a.end(func() {}) }

func (a *Attempt) end(report func()) {
	a.once.Do(func() {
		a.t.mu.Lock()
		defer a.t.mu.Unlock()
		a.acct.running--
		if a.net != nil {
			a.net.running--
		}
		report()
	})
}

// record returns the record for a key, making one if need be, without failures too old to count.
func record[K comparable](m *lru.Map[K, *failures], k K, l limit, now time.Time) *failures {
	f, ok := m.Get(k)
	if !ok {
		f = &failures{}
		m.Put(k, f)
	}
	if now.Sub(f.last) > l.forget {
		f.n = 0
	}
	return f
}

// wait is how long the next attempt has to wait; 0: not at all. Past the free failures attempts go one by one.
func (f *failures) wait(l limit, now time.Time) time.Duration {
	if f.n+f.running < l.free {
		return 0
	}
	if f.running > 0 {
		return busyWait
	}
	return max(0, f.last.Add(l.delay(f.n)).Sub(now))
}

func (l limit) delay(n int) time.Duration {
	d := l.base
	for range n - l.free {
		if d *= 2; d >= l.max {
			return l.max
		}
	}
	return d
}

func (f *failures) fail(now time.Time) {
	f.n++
	f.last = now
}

// networkOf is the network a client's failures are counted for: its address, of which 64 bits count for IPv6.
func networkOf(ip netip.Addr) netip.Prefix {
	bits := ip.BitLen()
	if ip.Is6() {
		bits = 64
	}
	p, err := ip.Prefix(bits)
	if err != nil {
		return netip.Prefix{} // an invalid address: all of them share one record
	}
	return p
}
