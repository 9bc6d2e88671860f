package srs

import (
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"blitiri.com.ar/go/chasquid/internal/address"
)

var (
	now = time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)
	us  = New([]byte("our secret of 24 bytes.."))
)

func TestForwardAndBack(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"alice@example.org", "SRS0=......=..=example.org=alice@us.test"},
		{"a=b+c@example.org", "SRS0=......=..=example.org=a=b+c@us.test"},
		{"list-bounce+user=dom@l.example.org", "SRS0=......=..=l.example.org=list-bounce+user=dom@us.test"},
		{"bob@ñandú.test", "SRS0=......=..=xn--and-6ma2c.test=bob@us.test"},
		{`"a b"@example.org`, `"SRS0=......=..=example.org=a b"@us.test`},
		{"SRS1+=+=+@s.test", "SRS0=......=..=s.test=SRS1+=+=+@us.test"}, // only looks as if somebody had rewritten it
		{"<>", ""},
		{"me@us.test", "me@us.test"},
	} {
		in := address.MustParse(c.in)
		got, err := us.Forward(in, "us.test", now)
		if err != nil || !matches(got.String(), c.want) {
			t.Errorf("Forward(%s) = %q, %v; want %q", c.in, got, err, c.want)
		}
		if !Is(got) {
			continue
		}
		if _, err := address.Parse(got.String()); err != nil {
			t.Errorf("%q cannot be parsed: %v", got, err)
		}
		back, err := us.Reverse(got, now.Add(20*24*time.Hour))
		if err != nil || back != in {
			t.Errorf("Reverse(%q) = %q, %v", got, back, err)
		}
		got.Local = strings.ToUpper(got.Local)
		if back, err := us.Reverse(got, now); err != nil || !strings.EqualFold(back.String(), in.String()) {
			t.Errorf("Reverse of the upper-case form = %q, %v", back, err)
		}
	}
}

// matches compares, with "." in want standing for any character.
func matches(got, want string) bool {
	if len(got) != len(want) {
		return false
	}
	for i := range want {
		if want[i] != '.' && want[i] != got[i] {
			return false
		}
	}
	return true
}

// A chain of forwarders: the bounce goes from the last to the first and from there to the sender, whatever the length.
func TestChain(t *testing.T) {
	them, third := New([]byte("their secret")), New([]byte("a third secret"))
	sender := address.MustParse("a@s.test")
	a, err1 := them.Forward(sender, "them.test", now)
	b, err2 := us.Forward(a, "us.test", now)
	c, err3 := third.Forward(b, "third.test", now)
	if err1 != nil || err2 != nil || err3 != nil {
		t.Fatal(err1, err2, err3)
	}
	if !strings.HasPrefix(b.Local, "SRS1=") || !strings.HasPrefix(c.Local, "SRS1=") || len(c.Local) != len(b.Local) {
		t.Errorf("chain %s → %s → %s", a, b, c)
	}
	for rw, x := range map[*Rewriter]address.Address{us: b, third: c} {
		first, err := rw.Reverse(x, now)
		if err != nil || first != a {
			t.Fatalf("Reverse(%s) = %s, %v; want %s", x, first, err, a)
		}
	}
	if back, err := them.Reverse(a, now); err != nil || back != sender {
		t.Errorf("Reverse(%s) = %s, %v", a, back, err)
	}
	// Other programs put other separators after SRS0; they come back as they were.
	odd := address.MustParse("SRS0+abcd=12=x.test=u@other.test")
	f, err := us.Forward(odd, "us.test", now)
	if err != nil {
		t.Fatal(err)
	}
	if back, err := us.Reverse(f, now); err != nil || back != odd {
		t.Errorf("Reverse(%s) = %s, %v", f, back, err)
	}
}

// TestHash pins the hash: addresses that were rewritten by an earlier version must go on working.
func TestHash(t *testing.T) {
	key := []byte("0123456789abcdef")
	r := New(key)
	for _, body := range []string{"x", "1a=example.org=alice", strings.Repeat("long", 60)} {
		m := hmac.New(sha256.New, key)
		m.Write([]byte("srs0" + body))
		want := code.EncodeToString(m.Sum(nil))[:hashLen]
		for range 2 {
			if got := r.secrets[0].hash("srs0", strings.ToUpper(body)); got != want {
				t.Errorf("hash of %.20q is %q, want %q", body, got, want)
			}
		}
	}
}

// A chain that passes here twice, or goes round: a bounce to the last address of ours still finds the sender.
func TestOriginal(t *testing.T) {
	them := New([]byte("their secret"))
	sender := address.MustParse("a@s.test")
	local := func(domain string) bool { return domain == "us.test" || domain == "also.us.test" }
	last := sender
	for round := range 5 {
		var err error
		if last, err = us.Forward(last, []string{"us.test", "also.us.test"}[round%2], now); err != nil {
			t.Fatal(err)
		}
		got, err := us.Original(last, local, now)
		if err != nil || got != sender {
			t.Errorf("round %d: Original(%s) = %s, %v", round, last, got, err)
		}
		if last, err = them.Forward(last, "them.test", now); err != nil {
			t.Fatal(err)
		}
	}
	// Of others it undoes one step, as Reverse does.
	first, _ := them.Forward(sender, "them.test", now)
	second, _ := us.Forward(first, "us.test", now)
	if got, err := us.Original(second, local, now); err != nil || got != first {
		t.Errorf("Original(%s) = %s, %v", second, got, err)
	}
	// Within what is ours a wrong hash is found.
	forged := address.MustParse("SRS0=aaaaaa=00=s.test=a@us.test")
	wrapped, _ := us.Forward(forged, "also.us.test", now)
	if got, err := us.Original(wrapped, local, now); !errors.Is(err, ErrForged) {
		t.Errorf("Original(%s) = %s, %v", wrapped, got, err)
	}
	if _, err := us.Original(sender, local, now); !errors.Is(err, ErrNotSRS) {
		t.Errorf("an ordinary address: %v", err)
	}
}

func TestReverseRefuses(t *testing.T) {
	good, _ := us.Forward(address.MustParse("a@s.test"), "us.test", now)
	other, _ := New([]byte("x")).Forward(address.MustParse("a@s.test"), "us.test", now)
	edit := func(old, new string) address.Address {
		return address.Address{Local: strings.Replace(good.Local, old, new, 1), Domain: good.Domain}
	}
	for _, c := range []struct {
		a    address.Address
		at   time.Time
		want error
	}{
		{address.MustParse("alice@us.test"), now, ErrNotSRS},
		{address.MustParse("srs0@us.test"), now, ErrNotSRS},
		{other, now, ErrForged},
		{edit("s.test", "t.test"), now, ErrForged},
		{edit("=a", "=b"), now, ErrForged},
		{edit("SRS0", "SRS1"), now, ErrForged},
		{address.Address{Local: "SRS0==", Domain: "us.test"}, now, ErrForged},
		{address.Address{Local: "SRS0=" + us.secrets[0].hash("srs0", "x"), Domain: "us.test"}, now, ErrForged},
		{address.Address{Local: "SRS0=" + us.secrets[0].hash("srs0", "zz=a=b") + "=zz=a=b", Domain: "us.test"}, now, ErrForged},
		{address.Address{Local: "SRS0=" + us.secrets[0].hash("srs0", "00=..=b") + "=00=..=b", Domain: "us.test"}, now, ErrExpired},
		{good, now.Add(22 * 24 * time.Hour), ErrExpired},
		{good, now.Add(400 * 24 * time.Hour), ErrExpired},
		{good, now.Add(-24 * time.Hour), nil},
		{good, now.Add(-48 * time.Hour), ErrExpired},
	} {
		if _, err := us.Reverse(c.a, c.at); !errors.Is(err, c.want) {
			t.Errorf("Reverse(%s) at %v: %v, want %v", c.a, c.at, err, c.want)
		}
	}
	var none *Rewriter
	if _, err := none.Reverse(good, now); err == nil {
		t.Error("no rewriter accepted an address")
	}
	if New() != nil || New(nil, []byte{}) != nil {
		t.Error("a rewriter without a secret")
	}
	if a, err := none.Forward(good, "x.test", now); a != good || err != nil {
		t.Error("no rewriter rewrote")
	}
}

func TestSecretCanBeReplaced(t *testing.T) {
	a, _ := New([]byte("old")).Forward(address.MustParse("a@s.test"), "us.test", now)
	if _, err := New([]byte("new"), []byte("old")).Reverse(a, now); err != nil {
		t.Error(err)
	}
}

func TestTooLong(t *testing.T) {
	a := address.MustParse(strings.Repeat("a", 40) + "@mail.example.org")
	if got, err := us.Forward(a, "us.test", now); !errors.Is(err, ErrTooLong) || got != a {
		t.Errorf("%s, %v", got, err)
	}
}

// Whatever parses as an address is either left alone or comes back as it was; no bytes make Reverse panic.
func TestRoundTripProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		local := rapid.StringMatching(`(SRS[01][=+-])?[a-zA-Z0-9=+.-]{1,30}`).Draw(t, "local")
		a, err := address.Parse(local + "@" + rapid.SampledFrom([]string{"s.test", "ü.test", "[192.0.2.1]"}).Draw(t, "domain"))
		if err != nil {
			t.Skip()
		}
		f, err := us.Forward(a, "us.test", now)
		if err != nil {
			return
		}
		back, err := us.Reverse(f, now)
		if err != nil || !same(back, a) {
			t.Fatalf("%s became %s, came back as %s (%v)", a, f, back, err)
		}
		us.Reverse(a, now)
	})
}

// same compares; an address that was rewritten three times names its first forwarder, so "SRS1" comes back as what that one made.
func same(back, a address.Address) bool {
	return back == a || strings.HasPrefix(strings.ToLower(a.Local), "srs1") || strings.EqualFold(back.String(), a.String())
}

func FuzzReverse(f *testing.F) {
	f.Add("SRS0=abcdef=12=s.test=a")
	f.Add("SRS1=abcdef=h.test==xx=12=s.test=a")
	f.Fuzz(func(t *testing.T, local string) {
		a := address.Address{Local: local, Domain: "us.test"}
		if _, err := us.Reverse(a, now); err == nil {
			t.Errorf("%q was accepted", local)
		}
		us.Forward(a, "them.test", now)
	})
}

func BenchmarkForward(b *testing.B) {
	a := address.MustParse("joe.user@mail.example.com")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := us.Forward(a, "us.test", now); err != nil {
			b.Fatal(err)
		}
	}
}
