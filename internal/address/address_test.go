package address

import (
	"errors"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	long := strings.Repeat("a", 64)
	label := strings.Repeat("d", 63)
	cases := []struct {
		in   string
		want Address
		err  error
	}{
		{"user@example.com", Address{"user", "example.com"}, nil},
		{"User.Name+tag@Example.COM", Address{"User.Name+tag", "example.com"}, nil}, // C11
		{"postmaster", Address{"postmaster", ""}, nil},                              // C18
		{`"a b"@x.test`, Address{"a b", "x.test"}, nil},                             // C15
		{`"rcpt"@d.test`, Address{"rcpt", "d.test"}, nil},                           // C15
		{`"a>b@c"@d.test`, Address{"a>b@c", "d.test"}, nil},
		{`"a\"\\b"@d.test`, Address{`a"\b`, "d.test"}, nil},
		{"a@[192.0.2.1]", Address{"a", "[192.0.2.1]"}, nil},               // C16
		{"a@[IPv6:2001:DB8::1]", Address{"a", "[IPv6:2001:db8::1]"}, nil}, // C16
		{"a@[ipv6:::1]", Address{"a", "[IPv6:::1]"}, nil},
		{"ñandú@ñandú.test", Address{"ñandú", "ñandú.test"}, nil},
		{"x@xn--and-6ma2c.test", Address{"x", "ñandú.test"}, nil}, // C57
		{"x@ÑANDÚ.TEST", Address{"x", "ñandú.test"}, nil},
		{long + "@d.test", Address{long, "d.test"}, nil}, // C20
		{long + "a@d.test", Address{}, ErrTooBig},
		{"a@" + label + ".test", Address{"a", label + ".test"}, nil},
		{"a@" + label + "d.test", Address{}, ErrDomain},
		{"a@" + strings.Repeat("1234567.", 42) + "test", Address{}, ErrTooBig},
		{"a@" + strings.Repeat("1234567.", 31) + "tests", Address{"a", strings.Repeat("1234567.", 31) + "tests"}, nil}, // 253
		{"a@" + strings.Repeat("1234567.", 31) + "tests1", Address{}, ErrDomain},
		{"user%other@d.test", Address{"user%other", "d.test"}, nil}, // a local part like any other (D18)
		{"", Address{}, ErrSyntax},
		{"@d.test", Address{}, ErrSyntax},
		{"a@", Address{}, ErrDomain},
		{"a@@d.test", Address{}, ErrDomain},
		{"a@b@d.test", Address{}, ErrDomain},
		{"a b@d.test", Address{}, ErrSyntax},
		{".a@d.test", Address{}, ErrSyntax},
		{"a.@d.test", Address{}, ErrSyntax},
		{"a..b@d.test", Address{}, ErrSyntax},
		{`""@d.test`, Address{}, ErrSyntax},
		{`"a@d.test`, Address{}, ErrSyntax},
		{`"a\`, Address{}, ErrSyntax},
		{`"a"b@d.test`, Address{}, ErrSyntax},
		{"\"a\x00b\"@d.test", Address{}, ErrSyntax}, // D14
		{"a\x00@d.test", Address{}, ErrSyntax},
		{"a\r\n@d.test", Address{}, ErrSyntax},
		{"a@d.test\r\n", Address{}, ErrDomain},
		{"a\u0085b@d.test", Address{}, ErrSyntax},
		{"a\u2028b@d.test", Address{}, ErrSyntax},
		{"a\xff@d.test", Address{}, ErrSyntax},  // C55
		{"a@d/../e.test", Address{}, ErrDomain}, // D16
		{"a@..", Address{}, ErrDomain},
		{"a@.", Address{}, ErrDomain},
		{"a@d.test.", Address{}, ErrDomain},
		{"a@-d.test", Address{}, ErrDomain},
		{"a@d_x.test", Address{"a", "d_x.test"}, nil},
		{"a@\u202ed.test", Address{}, ErrDomain},
		{"a@d\u3002test", Address{}, ErrDomain},
		{"a@d\u2215e.test", Address{}, ErrDomain},
		{"a@xn--xn--foo-.test", Address{}, ErrDomain},
		{"a@xn--xn--and-6ma2c-.test", Address{}, ErrDomain},
		{"a@xn---.test", Address{}, ErrDomain},
		{"a@[192.0.2.1", Address{}, ErrDomain},
		{"a@[192.0.2.256]", Address{}, ErrDomain},
		{"a@[2001:db8::1]", Address{}, ErrDomain},
		{"a@[IPv6:192.0.2.1]", Address{}, ErrDomain},
		{"a@[IPv6:fe80::1%eth0]", Address{}, ErrDomain},
	}
	for _, c := range cases {
		got, err := Parse(c.in)
		if got != c.want || !errors.Is(err, c.err) {
			t.Errorf("Parse(%q) = %#v, %v; want %#v, %v", c.in, got, err, c.want, c.err)
		}
	}
}

func TestParsePath(t *testing.T) {
	for in, want := range map[string]Address{
		"":             {},
		"<>":           {},
		"<a@b>":        {"a", "b"},
		"a@b":          {"a", "b"},
		`<"<>"@b>`:     {"<>", "b"},
		"<postmaster>": {"postmaster", ""},
	} {
		if got, err := ParsePath(in); got != want || err != nil {
			t.Errorf("ParsePath(%q) = %#v, %v", in, got, err)
		}
	}
	for _, in := range []string{"<", ">", "<a@b", "a@b>", "<<a@b>>", "< >"} {
		if got, err := ParsePath(in); err == nil {
			t.Errorf("ParsePath(%q) = %#v, want an error", in, got)
		}
	}
}

func TestStrings(t *testing.T) {
	cases := []struct {
		a              Address
		str, path, log string
		ascii, literal bool
	}{
		{Address{}, "", "<>", "<>", true, false},
		{Address{"a", ""}, "a", "<a>", "a", true, false},
		{Address{"a", "b"}, "a@b", "<a@b>", "a@b", true, false},
		{Address{"a b", "c"}, `"a b"@c`, `<"a b"@c>`, `"a b"@c`, true, false},
		{Address{`a"\`, "c"}, `"a\"\\"@c`, `<"a\"\\"@c>`, `"a\"\\"@c`, true, false},
		{Address{".a", "c"}, `".a"@c`, `<".a"@c>`, `".a"@c`, true, false},
		{Address{"", "c"}, `""@c`, `<""@c>`, `""@c`, true, false},
		{Address{"ñ", "c"}, "ñ@c", "<ñ@c>", "ñ@c", false, false},
		{Address{"n", "ñ"}, "n@ñ", "<n@ñ>", "n@ñ", false, false},
		{Address{"a", "[192.0.2.1]"}, "a@[192.0.2.1]", "<a@[192.0.2.1]>", "a@[192.0.2.1]", true, true},
	}
	for _, c := range cases {
		if c.a.String() != c.str || c.a.Path() != c.path || c.a.LogString() != c.log {
			t.Errorf("%#v: %q %q %q", c.a, c.a.String(), c.a.Path(), c.a.LogString())
		}
		if c.a.ASCII() != c.ascii || c.a.IsLiteral() != c.literal {
			t.Errorf("%#v: ASCII %v, IsLiteral %v", c.a, c.a.ASCII(), c.a.IsLiteral())
		}
	}
}

func TestASCIIDomain(t *testing.T) {
	if a, err := (Address{"ñ", "ñandú.test"}).WithASCIIDomain(); err != nil || a != (Address{"ñ", "xn--and-6ma2c.test"}) {
		t.Errorf("got %v, %v", a, err)
	}
	if a, err := (Address{"a", "b.test"}).WithASCIIDomain(); err != nil || a != (Address{"a", "b.test"}) {
		t.Errorf("got %v, %v", a, err)
	}
	if a, err := (Address{"a", strings.Repeat("ñ", 64)}).WithASCIIDomain(); err == nil || a != (Address{}) {
		t.Errorf("over-long label: got %v, %v", a, err)
	}
	for in, want := range map[string]string{
		"mail.example.org": "mail.example.org", "MAIL.Example.ORG": "mail.example.org", "Ñandú.test": "xn--and-6ma2c.test",
		"XN--and-6ma2c.test": "xn--and-6ma2c.test", "_dmarc.x": "_dmarc.x",
		"": "", "[192.0.2.1]": "", "a..b": "", "a.": "", "-a.b": "", "a b": "", "xn--a": "",
	} {
		if got, err := ASCIIDomain(in); got != want || (err == nil) != (want != "") {
			t.Errorf("ASCIIDomain(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
}

// The profile lower-cases, maps widths and composes; it refuses spaces, symbols and compatibility characters (SMTP-66).
func TestNormalizeUser(t *testing.T) {
	for in, want := range map[string]string{
		"user": "user", "User.Name-x_y+z": "user.name-x_y+z", "ÑANDÚ": "ñandú", "ｕｓｅｒ": "user", "n\u0303": "ñ", "*": "*",
	} {
		if got, err := NormalizeUser(in); got != want || err != nil {
			t.Errorf("NormalizeUser(%q) = %q, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "a b", "henry\u2163", "\u265a", "a\x00", "\xff", "á\u05d0"} {
		if got, err := NormalizeUser(in); !errors.Is(err, ErrUser) {
			t.Errorf("NormalizeUser(%q) = %q, %v; want ErrUser", in, got, err)
		}
	}
}

func TestNormalize(t *testing.T) {
	for in, want := range map[Address]Address{
		{"USER", "EXAMPLE.com"}: {"user", "example.com"},
		{"Postmaster", ""}:      {"postmaster", ""},
	} {
		if got, err := in.Normalize(); got != want || err != nil {
			t.Errorf("%v: %v, %v", in, got, err)
		}
	}
	for _, in := range []Address{{"a b", "x"}, {"a", "b/c"}} {
		if got, err := in.Normalize(); err == nil || got != (Address{}) {
			t.Errorf("%v: %v, %v", in, got, err)
		}
	}
}

// The addresses of nearly all mail are parsed and normalised without allocating.
func TestNoAllocations(t *testing.T) {
	n := testing.AllocsPerRun(100, func() {
		a, err := ParsePath("<some.user+tag@mail.example.org>")
		if err == nil {
			_, err = a.Normalize()
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"a@b", `"a b"@x`, "ñ@ñ.test", "x@[IPv6:::1]", "x@xn--and-6ma2c", "postmaster", `"\""@d`, "a@K.test", "a@ß", "a@ǅ.x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := Parse(s)
		if err != nil {
			if a != (Address{}) {
				t.Fatalf("error with an address: %#v", a)
			}
			return
		}
		out := a.String()
		if strings.ContainsAny(out, "\r\n\x00") || strings.ContainsAny(a.Domain, "/\\ @") || len(a.Local) > MaxLocal {
			t.Fatalf("%q: unsafe %q", s, out)
		}
		if a.Domain == "" && strings.Contains(s, "@") && s[0] != '"' {
			t.Fatalf("%q lost its domain", s)
		}
		if _, err := a.WithASCIIDomain(); err != nil {
			t.Fatalf("%q: no A-label form: %v", s, err)
		}
		if d, err := NormalizeDomain(a.Domain); a.Domain != "" && (err != nil || d != a.Domain) {
			t.Fatalf("%q: domain %q is not stable: %q, %v", s, a.Domain, d, err)
		}
		if len(out) <= 300 {
			if b, err := Parse(out); err != nil || b != a {
				t.Fatalf("%q: %#v does not survive %q: %#v, %v", s, a, out, b, err)
			}
		}
		n, err := a.Normalize()
		if err != nil {
			return
		}
		if m, err := n.Normalize(); err != nil || m != n {
			t.Fatalf("%q: normal form %#v is not stable: %#v, %v", s, n, m, err)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	b.ReportAllocs()
	for range b.N {
		if _, err := ParsePath("<some.user@mail.example.org>"); err != nil {
			b.Fatal(err)
		}
	}
}

// TestAppendTo checks that the form without allocation is the same.
func TestAppendTo(t *testing.T) {
	for _, s := range []string{"", "a@b.test", `"a b"@b.test`, "postmaster", "x@[192.0.2.1]"} {
		a := MustParse(s)
		if got := string(a.AppendTo([]byte("to="))); got != "to="+a.String() {
			t.Errorf("%q: AppendTo gives %q, String %q", s, got, a.String())
		}
	}
}
