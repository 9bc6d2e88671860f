package auth

import (
	"net/netip"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
)

var (
	alice, bob = address.MustParse("alice@d.test"), address.MustParse("bob@d.test")
	home, evil = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.66")
	epoch      = time.Unix(1e9, 0)
)

// try makes one attempt with a known result and returns how long it was told to wait.
func try(t *Throttle, now time.Time, from netip.Addr, user address.Address, ok bool) time.Duration {
	a, wait := t.Begin(now, from, user)
	if a != nil {
		a.Done(now, ok)
	}
	return wait
}

// guess fails as fast as it is let, for a day, and returns how many passwords it could try.
func guess(t *Throttle, now time.Time, from func(i int) netip.Addr, user address.Address) (tries int, end time.Time) {
	end = now.Add(24 * time.Hour)
	for i := 0; now.Before(end); i++ {
		if wait := try(t, now, from(i), user, false); wait > 0 {
			now = now.Add(wait)
			continue
		}
		tries++
	}
	return tries, end
}

// D19: guessing from one network is slow, whatever the accounts; a legitimate user still gets in, even from there.
func TestD19NetworkGuessing(t *testing.T) {
	th := NewThrottle(0, nil)
	if try(th, epoch, evil, bob, true) != 0 {
		t.Fatal("bob cannot log in")
	}
	tries, now := guess(th, epoch, func(int) netip.Addr { return evil }, alice)
	if tries < 50 || tries > 200 {
		t.Errorf("%d tries a day", tries)
	}
	if w := try(th, now, home, alice, true); w != 0 {
		t.Errorf("alice has to wait %v at home", w)
	}
	try(th, now, evil, alice, false)
	if w := try(th, now, evil, bob, true); w != 0 {
		t.Errorf("bob has to wait %v where he was before", w)
	}
	if w := try(th, now, evil, address.MustParse("carol@d.test"), true); w <= 0 || w > 15*time.Minute {
		t.Errorf("carol has to wait %v", w)
	}
	if w := try(th, now.Add(31*time.Minute), evil, alice, false); w != 0 {
		t.Errorf("nothing is forgotten: %v", w)
	}
}

// Guessing one account from everywhere is slow, too, and does not lock out its owner.
func TestAccountGuessing(t *testing.T) {
	th := NewThrottle(0, nil)
	try(th, epoch, home, alice, true)
	tries, now := guess(th, epoch, func(i int) netip.Addr {
		return netip.AddrFrom4([4]byte{203, byte(i >> 16), byte(i >> 8), byte(i)})
	}, alice)
	if tries > 1600 {
		t.Errorf("%d tries a day", tries)
	}
	if w := try(th, now, home, alice, true); w != 0 {
		t.Errorf("alice has to wait %v", w)
	}
	if w := try(th, now, evil, bob, false); w != 0 {
		t.Errorf("bob has to wait %v", w)
	}
	for i := range accountLimit.free { // her success has made up for all that
		if w := try(th, now, netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), alice, false); w != 0 {
			t.Errorf("failure %d after her login has to wait %v", i, w)
		}
	}
}

// Attempts that have no result yet count: sixty-four at once are not sixty-four guesses.
func TestParallelGuessing(t *testing.T) {
	th := NewThrottle(0, nil)
	var running []*Attempt
	for range 64 {
		if a, wait := th.Begin(epoch, evil, alice); a != nil {
			running = append(running, a)
		} else if wait <= 0 {
			t.Fatal("refused without a wait")
		}
	}
	if len(running) != networkLimit.free {
		t.Errorf("%d run at once", len(running))
	}
	for _, a := range running {
		a.Cancel() // as when the backend is down: they were no guesses
		a.Done(epoch, false)
	}
	if w := try(th, epoch, evil, alice, true); w != 0 {
		t.Errorf("cancelled attempts count: %v", w)
	}
}

func TestTrustEnds(t *testing.T) {
	th := NewThrottle(0, nil)
	try(th, epoch, evil, bob, true)
	n := 0
	for range 100 {
		if try(th, epoch, evil, bob, false) == 0 {
			n++
		}
	}
	if n != trustedFails {
		t.Errorf("%d guesses at a trusted pair", n)
	}
	th = NewThrottle(0, nil)
	try(th, epoch, evil, bob, true)
	now := epoch.Add(trustFor + time.Hour)
	for range networkLimit.free {
		try(th, now, evil, alice, false)
	}
	if try(th, now, evil, bob, true) == 0 {
		t.Error("trust has no end")
	}
}

func TestNetworks(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.1": "192.0.2.1/32", "2001:db8:1:2:3::4": "2001:db8:1:2::/64", "fe80::1%eth0": "fe80::/64",
	} {
		if got := networkOf(netip.MustParseAddr(in)).String(); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
	th := NewThrottle(0, nil)
	for range 20 { // another address of the same /64 each time, and the same IPv4 in its other form
		try(th, epoch, netip.MustParseAddr("2001:db8::1").Next(), alice, false)
		try(th, epoch, evil, alice, false)
	}
	carol := address.MustParse("carol@d.test")
	if try(th, epoch, netip.MustParseAddr("2001:db8::ffff"), carol, true) == 0 || try(th, epoch, netip.MustParseAddr("::ffff:198.51.100.66"), carol, true) == 0 {
		t.Error("not counted for the network")
	}
	for range 50 { // a webmail on this machine logs in everybody
		try(th, epoch, netip.MustParseAddr("127.0.0.1"), bob, false)
	}
	if w := try(th, epoch, netip.MustParseAddr("127.0.0.1"), carol, true); w != 0 {
		t.Errorf("carol cannot use the webmail: %v", w)
	}
	if w := try(th, epoch, netip.Addr{}, carol, true); w != 0 {
		t.Errorf("no address: %v", w)
	}
}

// D40: memory is bounded whoever comes.
func TestD40ThrottleIsBounded(t *testing.T) {
	th := NewThrottle(100, nil)
	for i := range 10000 {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		try(th, epoch, a, address.Address{Local: a.String(), Domain: "d.test"}, i%2 == 0)
	}
	if th.networks.Len() != 100 || th.accounts.Len() != 100 || th.pairs.Len() > 100 {
		t.Errorf("%d networks, %d accounts, %d pairs", th.networks.Len(), th.accounts.Len(), th.pairs.Len())
	}
}
