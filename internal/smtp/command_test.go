package smtp

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func TestParseCommand(t *testing.T) {
	cases := []struct {
		in, verb, arg string
		err           error
	}{
		{"NOOP", "NOOP", "", nil},
		{"noop", "NOOP", "", nil},
		{"mAiL fRoM:<a@b>", "MAIL", "fRoM:<a@b>", nil}, // C10
		{"RSET  \t ", "RSET", "", nil},
		{"RSET x", "RSET", "x", nil},
		{"EHLO   a  b ", "EHLO", "a  b", nil},
		{" NOOP", "", "NOOP", nil}, // no leading blanks
		{"", "", "", nil},
		{"\xc3\xb1oop", "\xc3\xb1OOP", "", nil},
		{"NOOP\x00", "", "", ErrNUL}, // C35
		{"MAIL FROM:<a\x00@b>", "", "", ErrNUL},
		{"NOOP\rRSET", "", "", ErrBareCR}, // C34
		{"NOOP\nRSET", "", "", ErrBareLF},
	}
	for _, c := range cases {
		cmd, err := ParseCommand([]byte(c.in))
		if !errors.Is(err, c.err) || string(cmd.Verb) != c.verb || string(cmd.Arg) != c.arg {
			t.Errorf("%q: verb %q, arg %q, error %v; want %q, %q, %v", c.in, cmd.Verb, cmd.Arg, err, c.verb, c.arg, c.err)
		}
		if err == nil && c.arg == "" && cmd.Arg != nil {
			t.Errorf("%q: an empty argument, want none", c.in)
		}
	}
}

func TestCutKeyword(t *testing.T) {
	cases := []struct {
		in, keyword, rest string
		ok                bool
	}{
		{"FROM:<a@b>", "FROM:", "<a@b>", true},
		{"from: <a@b>", "FROM:", "<a@b>", true},
		{"FROM <a@b>", "FROM:", "", false},
		{"TO:", "TO:", "", true},
		{"T", "TO:", "", false},
		{"", "TO:", "", false},
	}
	for _, c := range cases {
		rest, ok := CutKeyword([]byte(c.in), c.keyword)
		if ok != c.ok || ok && string(rest) != c.rest {
			t.Errorf("%q: %q, %v", c.in, rest, ok)
		}
	}
}

// C4, C5: names nobody can check are fine; what could break out of a header, log or hook is not.
func TestC5ValidHelo(t *testing.T) {
	good := []string{"localhost", "bogus.invalid", "[192.0.2.1]", "[IPv6:2001:db8::1]", "[::1]", "WIN_PC-7.local", "xn--ida-6ma.example", "a."}
	bad := []string{"", "a b", "a\rb", "a\x00", "\xc3\xb1.example", "<script>", "$(id)", "a;b", "a)b", "[", "[]", "[a", "[a_b]", `"x"`, "a/b", "a\x1b[0m",
		strings.Repeat("a", 256)}
	for _, s := range good {
		if !ValidHelo([]byte(s)) {
			t.Errorf("%q refused", s)
		}
	}
	for _, s := range bad {
		if ValidHelo([]byte(s)) {
			t.Errorf("%q taken", s)
		}
	}
}

func TestC51ParseChunk(t *testing.T) {
	cases := []struct {
		in   string
		size int64
		last bool
		err  bool
	}{
		{"0", 0, false, false},
		{"0 LAST", 0, true, false},
		{"86 last", 86, true, false},
		{"007", 7, false, false},
		{"999999999999999999", 999999999999999999, false, false},
		{"9223372036854775808", 0, false, true}, // D3
		{"99999999999999999999999999", 0, false, true},
		{"-1", 0, false, true},
		{"+1", 0, false, true},
		{"", 0, false, true},
		{"1x", 0, false, true},
		{"1 LAST x", 0, false, true},
		{"1 FIRST", 0, false, true},
		{"LAST", 0, false, true},
		{"0x10", 0, false, true},
	}
	for _, c := range cases {
		size, last, err := ParseChunk([]byte(c.in))
		if size != c.size && !c.err || last != c.last || (err != nil) != c.err {
			t.Errorf("%q: %d, %v, %v", c.in, size, last, err)
		}
	}
}

func FuzzParseCommand(f *testing.F) {
	f.Add([]byte("MAIL FROM:<a@b> SIZE=1"))
	f.Add([]byte("noop \t"))
	f.Add([]byte("BDAT 12 LAST"))
	f.Fuzz(func(t *testing.T, in []byte) {
		c, err := ParseCommand(bytes.Clone(in))
		if err != nil {
			return
		}
		if bytes.ContainsAny(c.Verb, "\x00\r\n ") || bytes.ContainsAny(c.Arg, "\x00\r\n") {
			t.Fatalf("%q gave %q %q", in, c.Verb, c.Arg)
		}
		if len(c.Verb)+len(c.Arg) > len(in) {
			t.Fatalf("%q grew", in)
		}
		ParseChunk(c.Arg)
		ValidHelo(c.Arg)
	})
}
