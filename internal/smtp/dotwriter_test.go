package smtp

import (
	"bytes"
	"io"
	"strings"
	"testing"
)

func dotted(t testing.TB, in string, split int) string {
	var out bytes.Buffer
	d := NewDotWriter(&out)
	for i := 0; i < len(in); i += split {
		p := in[i:min(i+split, len(in))]
		if n, err := d.Write([]byte(p)); n != len(p) || err != nil {
			t.Fatalf("Write(%q) = %d, %v", p, n, err)
		}
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestC36DotWriter(t *testing.T) {
	cases := []struct{ in, want string }{
		{"", ".\r\n"},
		{"a\r\n", "a\r\n.\r\n"},
		{"a", "a\r\n.\r\n"},
		{".", "..\r\n.\r\n"},
		{".\r\n", "..\r\n.\r\n"},
		{"..\r\n...\r\n", "...\r\n....\r\n.\r\n"},
		{"a\r\n.b\r\nc.\r\n", "a\r\n..b\r\nc.\r\n.\r\n"},
		{"a\r\n\r\n.\r\nb\r\n", "a\r\n\r\n..\r\nb\r\n.\r\n"},
		// What else might pass for an end of data somewhere (D2).
		{"a\n.\nb\r\n", "a\r\n..\r\nb\r\n.\r\n"},
		{"a\n.\r\nb\r\n", "a\r\n..\r\nb\r\n.\r\n"},
		{"a\r\n.\nb\r\n", "a\r\n..\r\nb\r\n.\r\n"},
		{"a\r.\rb\r\n", "a . b\r\n.\r\n"},
		{"a\r\n.\rb\r\n", "a\r\n.. b\r\n.\r\n"},
		{"a\r\r\n.\r\r\nb\r\n", "a \r\n.. \r\nb\r\n.\r\n"},
		{"a\r", "a \r\n.\r\n"},
		{"\r", " \r\n.\r\n"},
		{"\n", "\r\n.\r\n"},
		{"\n.", "\r\n..\r\n.\r\n"},
	}
	for _, c := range cases {
		for split := 1; split <= len(c.in)+1; split++ {
			if got := dotted(t, c.in, split); got != c.want {
				t.Errorf("%q in pieces of %d: got %q, want %q", c.in, split, got, c.want)
			}
		}
	}
}

type brokenWriter struct{ after int }

func (w *brokenWriter) Write(p []byte) (int, error) {
	if w.after -= len(p); w.after < 0 {
		return 0, io.ErrClosedPipe
	}
	return len(p), nil
}

func TestDotWriterReportsErrors(t *testing.T) {
	d := NewDotWriter(&brokenWriter{after: 3})
	if _, err := d.Write([]byte("a\r\n.b\r\n")); err == nil {
		t.Error("Write succeeded on a broken writer")
	}
	if err := d.Close(); err == nil {
		t.Error("Close succeeded on a broken writer")
	}
}

func TestScan(t *testing.T) {
	cases := []struct {
		in   string
		want Shape
	}{
		{"", Shape{Lines: true}},
		{"a\r\nbcd\r\n", Shape{Lines: true, Longest: 3}},
		{"a\r\nbcd", Shape{Longest: 3}},
		{"a\n", Shape{Longest: 1}},
		{"\n", Shape{}},
		{"a\rb\r\n", Shape{Longest: 3}},
		{"a\r\r\n", Shape{Longest: 2}},
		{"\n\r", Shape{Longest: 1}},
		{".\r\n", Shape{Lines: true, Dots: true, Longest: 1}},
		{"a\r\n.b\r\n", Shape{Lines: true, Dots: true, Longest: 2}},
	}
	for _, c := range cases {
		if got := Scan([]byte(c.in)); got != c.want {
			t.Errorf("Scan(%q) = %+v, want %+v", c.in, got, c.want)
		}
	}
}

func TestEightBit(t *testing.T) {
	b := bytes.Repeat([]byte("a"), 37)
	if EightBit(b) {
		t.Error("ASCII taken for 8-bit")
	}
	for i := range b {
		b[i] = 0x80
		if !EightBit(b) {
			t.Errorf("octet %d not seen", i)
		}
		b[i] = 'a'
	}
}

// A receiver that follows the RFC sees one message, and gets it back unless stray CR or LF had to go.
func FuzzDotWriter(f *testing.F) {
	f.Add([]byte("a\r\n.b\r\n"), 3)
	f.Add([]byte("\n.\r\n\r.\n"), 1)
	f.Fuzz(func(t *testing.T, in []byte, split int) {
		if split < 1 {
			split = 1
		}
		got := dotted(t, string(in), split)
		if whole := dotted(t, string(in), len(in)+1); got != whole {
			t.Fatalf("pieces of %d: %q, whole: %q", split, got, whole)
		}
		body, ok := strings.CutSuffix("\r\n"+got, "\r\n.\r\n")
		if !ok || strings.Contains(body, "\r\n.\r\n") {
			t.Fatalf("not one message: %q", got)
		}
		s := Scan([]byte(got))
		if !s.Lines {
			t.Fatalf("stray CR or LF in %q", got)
		}
		if Scan(in).Lines {
			back := strings.ReplaceAll(body, "\r\n.", "\r\n")
			if back = strings.TrimPrefix(back, "\r\n") + "\r\n"; len(in) > 0 && back != string(in) {
				t.Fatalf("got back %q, want %q", back, in)
			}
		}
	})
}

func BenchmarkDotWriter(b *testing.B) {
	msg := []byte(strings.Repeat(strings.Repeat("x", 74)+"\r\n", 862))
	b.SetBytes(int64(len(msg)))
	var d DotWriter
	for b.Loop() {
		d.Reset(io.Discard)
		d.Write(msg)
		d.Close()
	}
}

func BenchmarkScan(b *testing.B) {
	msg := []byte(strings.Repeat(strings.Repeat("x", 74)+"\r\n", 54))
	b.SetBytes(int64(len(msg)))
	for b.Loop() {
		Scan(msg)
	}
}
