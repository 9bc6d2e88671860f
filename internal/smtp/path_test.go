package smtp

import (
	"errors"
	"strings"
	"testing"

	"blitiri.com.ar/go/chasquid/internal/address"
)

func TestParsePath(t *testing.T) {
	l64, l65 := strings.Repeat("l", 64), strings.Repeat("l", 65)
	d := strings.Repeat(strings.Repeat("d", 49)+".", 3) // 150 bytes
	cases := []struct {
		in, addr, rest string
		err            error
	}{
		{"<a@b.example>", "a@b.example", "", nil},
		{"<>", "", "", nil},
		{"<> SIZE=1", "", "SIZE=1", nil},
		{"<a@B.Example> BODY=8BITMIME SIZE=5", "a@b.example", "BODY=8BITMIME SIZE=5", nil},
		{"<A.b@x>", "A.b@x", "", nil},                 // C11
		{`<"a b"@x>`, `"a b"@x`, "", nil},             // C15
		{`<"a>b"@x> X`, `"a>b"@x`, "X", nil},          // C15
		{`<"a\"> b"@x>`, `"a\"> b"@x`, "", nil},       //
		{`<"rcpt"@d>`, "rcpt@d", "", nil},             // C15: the same mailbox
		{`<"a@b"@c>`, `"a@b"@c`, "", nil},             // D18: no relaying by a quoted @
		{"<u@[192.0.2.1]>", "u@[192.0.2.1]", "", nil}, // C16
		{"<u@[IPv6:2001:DB8::1]>", "u@[IPv6:2001:db8::1]", "", nil},
		{"<@a.example,@b.example:u@d.example>", "u@d.example", "", nil}, // C17
		{"<@[IPv6:2001:db8::1],@b:u@d> X=1", "u@d", "X=1", nil},
		{"<postmaster>", "postmaster", "", nil}, // C18
		{"<PostMaster>", "PostMaster", "", nil},
		{"<ñandú@ñ.example>", "ñandú@ñ.example", "", nil},
		{"<" + l64 + "@x>", l64 + "@x", "", nil}, // C20
		{"<" + l65 + "@x>", "", "", ErrPathSize},
		{"<" + l64 + "@" + d + "dddddddddddddddddddddddddddddddddddddddd>", "", "", ErrPathSize}, // 257 octets with the brackets
		{"<" + l64 + "@" + d + "ddddddddddddddddddddddddddddddddddddddd>", l64 + "@" + d + strings.Repeat("d", 39), "", nil},

		{"", "", "", ErrNoPath},
		{"a@b", "", "", ErrNotPath},       // C13
		{"Name<a@b>", "", "", ErrNotPath}, // C13
		{"<a@b", "", "", ErrNotPath},
		{`<"a@b>`, "", "", ErrNotPath},
		{"<a@b>x", "", "", ErrPathEnd}, // C14
		{"<a@b>\tSIZE=1", "", "", ErrPathEnd},
		{"<a@b>>", "", "", ErrPathEnd},
		{"<a b@c>", "", "", address.ErrSyntax},
		{"<a@b@c>", "", "", address.ErrDomain},
		{"<.a@b>", "", "", address.ErrSyntax},
		{"<a..b@b>", "", "", address.ErrSyntax},
		{"<@a:>", "", "", ErrPathRoute},
		{"<@a>", "", "", ErrPathRoute},
		{"<@a,b:u@d>", "", "", ErrPathRoute},
		{"<@/:u@d>", "", "", ErrPathRoute},
		{"<a@b/../c>", "", "", address.ErrDomain}, // D16
		{"<a@..>", "", "", address.ErrDomain},
		{"<a@>", "", "", address.ErrDomain},
		{"<@>", "", "", ErrPathRoute},
		{"<a@xn---x>", "", "", address.ErrDomain},
		{"<\xff@b>", "", "", address.ErrSyntax}, // C55
		{"<a@[300.1.1.1]>", "", "", address.ErrDomain},
		{"<u@[2001:db8::1]>", "", "", address.ErrDomain},
		{"<\x1b[0m@b>", "", "", address.ErrSyntax},
	}
	for _, c := range cases {
		a, rest, err := ParsePath(c.in)
		if !errors.Is(err, c.err) || (c.err == nil && err != nil) || a.String() != c.addr || rest != c.rest {
			t.Errorf("%q: %q, %q, %v; want %q, %q, %v", c.in, a, rest, err, c.addr, c.rest, c.err)
		}
	}
}

// D37: an address of any shape takes linear time.
func TestD37LongPath(t *testing.T) {
	for _, s := range []string{"(", `"\\`, "<", "@a,", ".", "[", ":", `\`} {
		ParsePath("<" + strings.Repeat(s, 1<<20/len(s)))
		ParsePath("<" + strings.Repeat(s, 1<<20/len(s)) + ">")
	}
}

func FuzzParsePath(f *testing.F) {
	for _, s := range []string{"<>", "<a@b> X=1", `<"a b\""@[IPv6:::1]>`, "<@a,@b:c@d>", "<postmaster>", "<ñ@ñ.com>"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, _, err := ParsePath(s)
		if err != nil {
			if a != (address.Address{}) {
				t.Fatalf("%q: an address with an error", s)
			}
			return
		}
		if strings.ContainsAny(a.Domain, "/\x00\r\n <>") || strings.ContainsAny(a.Local, "\x00\r\n") {
			t.Fatalf("%q gave %q", s, a)
		}
		again, rest, err := ParsePath(a.Path())
		if err != nil || again != a || rest != "" {
			t.Fatalf("%q: %q parses again as %q, %q, %v", s, a.Path(), again, rest, err)
		}
	})
}
