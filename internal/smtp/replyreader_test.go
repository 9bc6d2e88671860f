package smtp

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"
)

func TestReplyReader(t *testing.T) {
	long := strings.Repeat("x", 5000)
	cases := []struct {
		name, in string
		want     Reply
		err      error
	}{
		{"plain", "250 ok\r\n", Reply{Code: 250, Text: "ok"}, nil},
		{"no text", "250\r\n", Reply{Code: 250}, nil},
		{"empty text", "250 \r\n", Reply{Code: 250}, nil},
		{"bare LF", "250 ok\n", Reply{Code: 250, Text: "ok"}, nil},
		{"enhanced", "550 5.1.1 no such user\r\n", NewReply(550, "5.1.1", "no such user"), nil},
		{"enhanced alone", "250 2.0.0\r\n", NewReply(250, "2.0.0", ""), nil},
		{"enhanced of another class stays text", "550 4.2.2 full\r\n", Reply{Code: 550, Text: "4.2.2 full"}, nil},
		{"not enhanced", "550 5.1 x\r\n", Reply{Code: 550, Text: "5.1 x"}, nil},
		{"lines", "550-5.7.1 one\r\n550-5.7.1 two\r\n550 5.7.1 three\r\n", NewReply(550, "5.7.1", "one\ntwo\nthree"), nil},
		{"lines, code in the first only", "550-5.7.1 one\r\n550 two\r\n", NewReply(550, "5.7.1", "one\ntwo"), nil},
		{"empty line in the middle", "220-a\r\n220-\r\n220 b\r\n", Reply{Code: 220, Text: "a\n\nb"}, nil},
		{"empty lines first", "220-\r\n220 b\r\n", Reply{Code: 220, Text: "\nb"}, nil},
		{"codes differ within the class", "550-a\r\n554 b\r\n", Reply{Code: 554, Text: "a\nb"}, nil},
		{"codes of two classes", "250-a\r\n550 b\r\n", Reply{}, ErrReplySyntax},
		{"text", "hello\r\n", Reply{}, ErrReplySyntax},
		{"no separator", "250ok\r\n", Reply{}, ErrReplySyntax},
		{"short", "25\r\n", Reply{}, ErrReplySyntax},
		{"empty line", "\r\n", Reply{}, ErrReplySyntax},
		{"four digits", "2500 x\r\n", Reply{}, ErrReplySyntax},
		{"code 199", "199 x\r\n", Reply{}, ErrReplySyntax},
		{"code 600", "600 x\r\n", Reply{}, ErrReplySyntax},
		{"binary", "\x00\x01\xff\r\n", Reply{}, ErrReplySyntax},
		{"controls in the text", "250 a\x1b[31mb\x00c\r\n", Reply{Code: 250, Text: "a [31mb c"}, nil},
		{"invalid UTF-8", "250 a\xffb\r\n", Reply{Code: 250, Text: "a?b"}, nil},
		{"bidi override", "250 a\u202eb\r\n", Reply{Code: 250, Text: "a b"}, nil},
		{"UTF-8", "250 é\r\n", Reply{Code: 250, Text: "é"}, nil},
		{"CR in the text", "250 a\rb\r\n", Reply{Code: 250, Text: "a b"}, nil},
		{"nothing", "", Reply{}, io.EOF},
		{"cut in a line", "250 o", Reply{}, io.ErrUnexpectedEOF},
		{"cut between lines", "250-ok\r\n", Reply{}, io.ErrUnexpectedEOF},
		{"long line is cut", "250 " + long + "\r\n", Reply{Code: 250, Text: long[:replyBufSize/2-4]}, nil},
		{"endless line", "250 " + strings.Repeat("x", 1<<20), Reply{}, ErrReplyTooBig},
		{"endless lines", strings.Repeat("250-x\r\n", 1000), Reply{}, ErrReplyTooBig},
	}
	for _, c := range cases {
		for how, wrap := range map[string]func(io.Reader) io.Reader{
			"whole": func(r io.Reader) io.Reader { return r }, "bytes": iotest.OneByteReader, "with EOF": iotest.DataErrReader,
		} {
			rr := NewReplyReader(wrap(strings.NewReader(c.in)))
			_, err := rr.Next()
			if !errors.Is(err, c.err) || (c.err == nil && err != nil) {
				t.Errorf("%s (%s): error %v, want %v", c.name, how, err, c.err)
				continue
			}
			if err == nil && rr.Reply() != c.want {
				t.Errorf("%s (%s): got %+v, want %+v", c.name, how, rr.Reply(), c.want)
			}
		}
	}
}

// A session's replies share one budget, which Reset (STARTTLS) does not renew.
func TestReplyReaderBudget(t *testing.T) {
	in := strings.Repeat("250 "+strings.Repeat("x", 994)+"\r\n", 100) // 100,000 octets
	rr := NewReplyReader(strings.NewReader(in))
	rr.MaxBytes = 150_000
	for i := range 100 {
		if _, err := rr.Next(); err != nil {
			t.Fatalf("reply %d: %v", i, err)
		}
	}
	rr.Reset(strings.NewReader(in))
	n := 0
	for ; n < 100; n++ {
		if _, err := rr.Next(); err != nil {
			if !errors.Is(err, ErrReplyTooBig) {
				t.Fatalf("got %v, want ErrReplyTooBig", err)
			}
			break
		}
	}
	if n < 40 || n > 55 {
		t.Fatalf("%d replies after Reset, want about 50", n)
	}
}

func TestReplyReaderResetDropsInjectedReplies(t *testing.T) {
	rr := NewReplyReader(strings.NewReader("220 go ahead\r\n250 injected\r\n"))
	if code, err := rr.Next(); code != 220 || err != nil {
		t.Fatal(code, err)
	}
	if n := rr.Reset(strings.NewReader("250 real\r\n")); n != len("250 injected\r\n") {
		t.Errorf("Reset dropped %d octets", n)
	}
	if _, err := rr.Next(); err != nil || rr.Reply().Text != "real" {
		t.Errorf("got %v %v", rr.Reply(), err)
	}
}

func TestReplyReaderAllocs(t *testing.T) {
	src := strings.NewReader("")
	rr := NewReplyReader(src)
	n := testing.AllocsPerRun(100, func() {
		src.Reset("250-mx.example.org\r\n250 2.1.0 ok\r\n")
		rr.Reset(src)
		if _, err := rr.Next(); err != nil {
			t.Fatal(err)
		}
	})
	if n != 0 {
		t.Errorf("%v allocations for one reply", n)
	}
}

func FuzzReplyReader(f *testing.F) {
	for _, s := range []string{"250 ok\r\n", "220-a\r\n220 b\r\n", "550-5.1.1 x\r\n550 5.1.1 y\r\n", "250", "25\r\n", "999 \r\n",
		"250-\r\n250-\r\n250 \r\n", "250 \xff\x00\r\n", "421 4.7.0 \u202e\r\n", strings.Repeat("250-a\r\n", 300)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		whole := NewReplyReader(strings.NewReader(in))
		bytewise := NewReplyReader(iotest.OneByteReader(strings.NewReader(in)))
		for {
			c1, err1 := whole.Next()
			c2, err2 := bytewise.Next()
			if c1 != c2 || (err1 == nil) != (err2 == nil) {
				t.Fatalf("whole: %d %v, byte by byte: %d %v", c1, err1, c2, err2)
			}
			if err1 != nil {
				return
			}
			r := whole.Reply()
			if r != bytewise.Reply() {
				t.Fatalf("%+v != %+v", r, bytewise.Reply())
			}
			if r.Code < 200 || r.Code > 599 || !utf8.ValidString(r.Text) || strings.ContainsAny(r.Text, "\r\x00\x1b") || len(r.Text) > 3*keepReplyText {
				t.Fatalf("bad reply %+v", r)
			}
		}
	})
}
