package policy

import (
	"crypto/tls"
	"fmt"
	"testing"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/domaininfo"
	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/vfs"
)

func TestLevel(t *testing.T) { // compat 5.10
	db, err := domaininfo.Open(t.Context(), domaininfo.Config{Dir: "di", FS: vfs.NewMem()})
	if err != nil {
		t.Fatal(err)
	}
	reg := expvarom.New()
	c := NewLevel(db, nil, reg)
	overTLS := &tls.ConnectionState{}
	for i, x := range []struct {
		from, spf, user string
		tls             *tls.ConnectionState
		accept          bool // the message is accepted afterwards
		want, count     string
	}{
		{"a@d.test", "pass", "", nil, true, "", "pass"}, // first contact
		{"a@d.test", "pass", "", overTLS, false, "", "pass"},
		{"a@d.test", "pass", "", nil, true, "", "pass"}, // the one over TLS was not accepted: nothing was learned (N-3)
		{"a@d.test", "pass", "", overTLS, true, "", "pass"},
		{"b@d.test", "pass", "", nil, true, "550 5.7.3", "fail"}, // D6
		{"b@d.test", "softfail", "", nil, true, "", "skip"},      // nobody knows whether it is from there
		{"b@d.test", "", "", nil, true, "", "skip"},
		{"b@d.test", "pass", "u@d.test", nil, true, "", "skip"},
		{"", "pass", "", nil, true, "", "skip"},
		{"b@d.test", "pass", "", overTLS, true, "", "pass"},
		{"a@e.test", "fail", "", overTLS, true, "", "skip"},
		{"a@e.test", "pass", "", nil, true, "", "pass"},
	} {
		from, err := address.ParsePath(x.from)
		if err != nil {
			t.Fatal(err)
		}
		tx := &Transaction{Session: &Session{User: x.user, TLS: x.tls}, Env: &mail.Envelope{From: from}, Results: Results{SPF: x.spf}}
		before := [2]int64{c.legacy.Value(x.count), int64(c.results[levelIndex(x.count)].Value())}
		v := c.Mail(t.Context(), tx)
		if v.Refuse == nil && x.accept {
			c.Accepted(t.Context(), tx)
		}
		after := [2]int64{c.legacy.Value(x.count), int64(c.results[levelIndex(x.count)].Value())}
		if got := verdictCode(v); got != x.want || after != [2]int64{before[0] + 1, before[1] + 1} {
			t.Errorf("%d %s: %s, want %s; counted %v after %v", i, x.from, got, x.want, after, before)
		}
	}
	// While we have no certificate it is not their fault.
	c.offered = func() bool { return false }
	from, _ := address.ParsePath("b@d.test")
	if v := c.Mail(t.Context(), &Transaction{Session: &Session{}, Env: &mail.Envelope{From: from}, Results: Results{SPF: "pass"}}); verdictCode(v) != "451 4.7.0" {
		t.Errorf("without TLS to offer: %s", verdictCode(v))
	}
	if _, ok := db.Lookup("e.test"); !ok {
		t.Error("first contact makes no entry")
	}
}

func levelIndex(name string) levelResult {
	for i, n := range levelNames {
		if n == name {
			return levelResult(i)
		}
	}
	panic(fmt.Sprintf("no result %q", name))
}
