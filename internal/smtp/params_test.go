package smtp

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

func TestParseParams(t *testing.T) {
	cases := []struct {
		in   string
		want Params
	}{
		{"", nil},
		{"   ", nil},
		{"SIZE=10", Params{{"SIZE", "10", true}}},
		{"size=10  body=8BITMIME smtputf8", Params{{"SIZE", "10", true}, {"BODY", "8BITMIME", true}, {"SMTPUTF8", "", false}}},
		{"AUTH=<>", Params{{"AUTH", "<>", true}}},
		{"X-9=ñ", Params{{"X-9", "ñ", true}}},
	}
	for _, c := range cases {
		got, err := ParseParams(c.in)
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%q: %v, %v", c.in, got, err)
		}
	}
	bad := []string{"SIZE=", "=1", "SIZE=1 SIZE=2", "SIZE=1 size=2", "A=b=c", "-A=1", "A\tB", "A=\x01", "A=\x7f", "ñ=1", "A=\xff", strings.Repeat("A=1 ", 30)}
	for i := range MaxParams + 1 {
		bad[len(bad)-1] += " X" + strings.Repeat("Y", i)
	}
	for _, in := range bad {
		if got, err := ParseParams(in); !errors.Is(err, ErrParam) {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
}

func TestParamsString(t *testing.T) {
	ps, _ := ParseParams("a=1 b c=x")
	if got := ps.String(); got != "A=1 B C=x" {
		t.Errorf("%q", got)
	}
	if v, ok := ps.Get("B"); v != "" || !ok {
		t.Errorf("B: %q, %v", v, ok)
	}
	if ps.Has("D") || (Params)(nil).Has("A") || Params(nil).String() != "" {
		t.Error("found what is not there")
	}
}

func TestXtext(t *testing.T) {
	for in, want := range map[string]string{"a@b": "a@b", "a+b=c": "a+2Bb+3Dc", " ": "+20", "\xff\n": "+FF+0A", "": ""} {
		if got := EncodeXtext(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	for _, bad := range []string{"+", "+2", "+2b", "+ZZ", "a=b", "a b", "\x7f", "ñ"} {
		if got, ok := DecodeXtext(bad); ok {
			t.Errorf("%q decodes as %q", bad, got)
		}
	}
}

func FuzzParams(f *testing.F) {
	f.Add("SIZE=10 BODY=8BITMIME")
	f.Add("NOTIFY=NEVER ORCPT=rfc822;a+40b")
	f.Fuzz(func(t *testing.T, s string) {
		if d, ok := DecodeXtext(s); ok && len(d) > len(s) {
			t.Fatalf("%q grew to %q", s, d)
		}
		if d, ok := DecodeXtext(EncodeXtext(s)); !ok || d != s {
			t.Fatalf("xtext of %q came back as %q", s, d)
		}
		ps, err := ParseParams(s)
		if err != nil {
			return
		}
		again, err := ParseParams(ps.String())
		if err != nil || again.String() != ps.String() {
			t.Fatalf("%q: %q came back as %q, %v", s, ps, again, err)
		}
	})
}
