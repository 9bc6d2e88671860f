package smtp

import "testing"

func TestReplyWire(t *testing.T) {
	cases := []struct {
		r    Reply
		want string
	}{
		{NewReply(250, "2.0.0", "ok"), "250 2.0.0 ok\r\n"},
		{NewReply(220, "", "hello"), "220 hello\r\n"},
		{NewReply(334, "", ""), "334 \r\n"},
		{NewReply(250, "", "a\nb\nc"), "250-a\r\n250-b\r\n250 c\r\n"},
		{NewReply(550, "5.1.1", "a\nb"), "550-5.1.1 a\r\n550 5.1.1 b\r\n"},
	}
	for _, c := range cases {
		if got := string(c.r.AppendTo(nil)); got != c.want {
			t.Errorf("%v: %q, want %q", c.r, got, c.want)
		}
	}
}

func TestReplyClass(t *testing.T) {
	for code, want := range map[int][3]bool{200: {true}, 354: {true}, 421: {false, true}, 451: {false, true}, 500: {false, false, true}, 599: {false, false, true}, 0: {}, 600: {}} {
		r := Reply{Code: code}
		if got := [3]bool{r.Positive(), r.Temporary(), r.Permanent()}; got != want {
			t.Errorf("%d: %v, want %v", code, got, want)
		}
	}
	if !(Reply{}).IsZero() || (Reply{Code: 250}).IsZero() {
		t.Error("IsZero")
	}
	if got := NewReply(550, "5.1.1", "no\nsuch user").String(); got != "550 5.1.1 no such user" {
		t.Errorf("%q", got)
	}
}

func TestParseEnhancedCode(t *testing.T) {
	for _, s := range []string{"2.0.0", "4.10.250", "5.7.999"} {
		if e, ok := ParseEnhancedCode(s); !ok || e.String() != s {
			t.Errorf("%q: %v, %v", s, e, ok)
		}
	}
	for _, s := range []string{"", "1.0.0", "3.0.0", "5.1", "5.1.1.1", "5.1.1000", "5.-1.1", "5.a.1", "5..1"} {
		if e, ok := ParseEnhancedCode(s); ok {
			t.Errorf("%q: %v", s, e)
		}
	}
}
