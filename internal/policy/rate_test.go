package policy

import (
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"blitiri.com.ar/go/chasquid/internal/mail"
)

func rateTx(user, from string) *Transaction {
	return &Transaction{Session: &Session{User: user, Remote: netip.MustParseAddrPort(from)}, Env: &mail.Envelope{}}
}

// submit sends messages until one is refused, and returns how many were taken.
func submit(t *testing.T, c *Rate, tx *Transaction) (n int, reason string) {
	for ; n < 1000; n++ {
		if v := c.Mail(t.Context(), tx); v.Refuse != nil {
			if verdictCode(v) != "451 4.7.1" {
				t.Errorf("refused with %s", v.Refuse)
			}
			return n, v.Reason
		}
	}
	return n, ""
}

func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewRate(Limits{Messages: 10, Recipients: 25})
		if n, _ := submit(t, c, rateTx("a@d.test", "192.0.2.1:1")); n != 10 {
			t.Errorf("%d messages of one user", n)
		}
		if n, reason := submit(t, c, rateTx("b@d.test", "192.0.2.1:2")); n != 0 || reason == "" {
			t.Errorf("%d of another user from the same address, %q", n, reason)
		}
		if n, _ := submit(t, c, rateTx("a@d.test", "192.0.2.99:1")); n != 0 {
			t.Errorf("%d of the same user from elsewhere", n)
		}
		if n, _ := submit(t, c, rateTx("b@d.test", "[2001:db8::1]:2")); n != 10 {
			t.Errorf("%d of another user from elsewhere", n)
		}
		if n, _ := submit(t, c, rateTx("c@d.test", "[2001:db8::2]:2")); n != 0 {
			t.Errorf("%d from another address of the same /64", n)
		}
		if n, _ := submit(t, c, rateTx("", "192.0.2.1:1")); n != 1000 {
			t.Errorf("%d from outside: mail coming in is not limited", n)
		}
		for i := range 5 { // a webmail
			if n, _ := submit(t, c, rateTx(fmt.Sprintf("w%d@d.test", i), "127.0.0.1:1")); n != 10 {
				t.Errorf("%d of user %d of the webmail", n, i)
			}
		}
		tx, rcpts := rateTx("d@d.test", "192.0.2.7:1"), 0
		for c.Rcpt(t.Context(), tx, &mail.Recipient{}).Refuse == nil {
			rcpts++
		}
		if rcpts != 25 || c.Mail(t.Context(), tx).Refuse != nil {
			t.Errorf("%d recipients", rcpts)
		}
		time.Sleep(time.Hour)
		if n, _ := submit(t, c, rateTx("a@d.test", "192.0.2.1:1")); n != 10 {
			t.Errorf("%d in the next hour", n)
		}
		c.SetLimits(Limits{Messages: 12})
		if n, _ := submit(t, c, rateTx("a@d.test", "192.0.2.1:1")); n != 2 {
			t.Errorf("%d more after the limit was raised", n)
		}
		if c.Rcpt(t.Context(), tx, &mail.Recipient{}).Refuse != nil {
			t.Error("no limit is a limit")
		}
		c.SetLimits(Limits{})
		if n, _ := submit(t, c, rateTx("a@d.test", "192.0.2.1:1")); n != 1000 {
			t.Errorf("%d without limits", n)
		}
	})
}

func TestD40RateIsBounded(t *testing.T) {
	c := NewRate(Limits{Messages: 1})
	for i := range rateEntries + 1000 {
		c.Mail(t.Context(), rateTx(fmt.Sprint(i), netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 1).String()))
	}
	if c.users.Len() != rateEntries || c.networks.Len() != rateEntries {
		t.Errorf("%d users, %d networks", c.users.Len(), c.networks.Len())
	}
}
