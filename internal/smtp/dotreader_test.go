package smtp

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
)

// undot reads in through a DotReader in pieces of the given size; rest is what follows the end of data.
func undot(in []byte, size int) (content, rest []byte, done bool, err error) {
	var d DotReader
	for i := 0; i < len(in); {
		end := min(i+size, len(in))
		for i < end {
			run, n, done, err := d.Next(in[i:end])
			content = append(content, run...)
			i += n
			if err != nil || done {
				return content, in[i:], done, err
			}
			if n == 0 {
				panic("no progress")
			}
		}
	}
	return content, nil, false, nil
}

func TestC36DotReader(t *testing.T) {
	cases := []struct{ in, content, rest string }{
		{".\r\n", "", ""},
		{"a\r\n.\r\n", "a\r\n", ""},
		{"a\r\n.\r\nMAIL", "a\r\n", "MAIL"},
		{"..\r\n.\r\n", ".\r\n", ""},
		{"...\r\n.\r\n", "..\r\n", ""},
		{".a\r\n.\r\n", "a\r\n", ""},
		{"a.\r\n.\r\n", "a.\r\n", ""},
		{"\r\n\r\n..\r\n..x\r\n.\r\n", "\r\n\r\n.\r\n.x\r\n", ""},
		{strings.Repeat("x", 998) + "\r\n.\r\n", strings.Repeat("x", 998) + "\r\n", ""}, // C37
		{"a\x00\xff\r\n.\r\n", "a\x00\xff\r\n", ""},
	}
	for _, c := range cases {
		for size := 1; size <= len(c.in); size++ {
			content, rest, done, err := undot([]byte(c.in), size)
			if string(content) != c.content || string(rest) != c.rest || !done || err != nil {
				t.Errorf("%q by %d: %q, %q, %v, %v", c.in, size, content, rest, done, err)
			}
		}
	}
}

func TestD1Smuggling(t *testing.T) {
	cases := []struct {
		in  string
		err error
	}{
		{"a\n.\nb", ErrSmuggling},
		{"a\n.\r\nb", ErrSmuggling},
		{"a\r.\rb", ErrSmuggling},
		{"a\r.\r\nb", ErrSmuggling},
		{"a\r\n.\nb", ErrSmuggling},
		{"a\r\n.\rb", ErrSmuggling},
		{"a\r\n.\r\r\nb", ErrSmuggling},
		{"a\nb", ErrBareLF},
		{"\n", ErrBareLF},
		{"a\rb", ErrBareCR},
		{"a\r\r\n", ErrBareCR},
		{"\r\n\n", ErrBareLF},
	}
	for _, c := range cases {
		if _, _, _, err := undot([]byte(c.in), len(c.in)); !errors.Is(err, c.err) {
			t.Errorf("%q: %v, want %v", c.in, err, c.err)
		}
		if _, _, done, err := undot([]byte(c.in), 1); err == nil || done {
			t.Errorf("%q by 1: done %v, error %v", c.in, done, err)
		}
	}
}

// undotModel is the rule of the DotReader written down as slowly and plainly as can be.
func undotModel(in []byte) (content []byte, used int, done, bad bool) {
	var line []byte
	for i := 0; i < len(in); i++ {
		line = append(line, in[i])
		switch {
		case in[i] == '\n' && (len(line) < 2 || line[len(line)-2] != '\r'):
			return nil, 0, false, true
		case in[i] != '\n' && len(line) > 1 && line[len(line)-2] == '\r':
			return nil, 0, false, true
		case in[i] != '\n':
			continue
		case string(line) == ".\r\n":
			return content, i + 1, true, false
		}
		content = append(content, bytes.TrimPrefix(line, []byte("."))...)
		line = line[:0]
	}
	return append(content, bytes.TrimPrefix(line, []byte("."))...), len(in), false, false
}

func checkUndot(t *testing.T, in []byte) {
	want, used, done, bad := undotModel(in)
	for _, size := range []int{1, 2, 3, len(in) + 1} {
		content, rest, gotDone, err := undot(in, size)
		if (err != nil) != bad || gotDone != done {
			t.Fatalf("%q by %d: done %v, error %v; want %v, bad %v", in, size, gotDone, err, done, bad)
		}
		if bad {
			continue
		}
		// A CR at the very end may have been a line end's or not: the reader holds back only the one after a lone dot.
		if !done {
			content, want = bytes.TrimSuffix(content, []byte("\r")), bytes.TrimSuffix(want, []byte("\r"))
		}
		if !bytes.Equal(content, want) || done && len(in)-len(rest) != used {
			t.Fatalf("%q by %d: %q, %q; want %q", in, size, content, rest, want)
		}
	}
}

// D1: every sequence of CR, LF, dot, NUL and a letter up to length 7 ends the data exactly where CRLF.CRLF stands, or is refused.
func TestD1AllPermutations(t *testing.T) {
	const letters = "\r\n.\x00a"
	in := make([]byte, 0, 7)
	var rec func(n int)
	rec = func(n int) {
		checkUndot(t, in)
		if n == 0 {
			return
		}
		for i := range letters {
			in = append(in, letters[i])
			rec(n - 1)
			in = in[:len(in)-1]
		}
	}
	rec(7)
}

func FuzzDotReader(f *testing.F) {
	for _, s := range []string{"a\r\n.\r\nx", "..\r\n.\r\n", "a\n.\n", "\r\n.\r\r\n", "x\r\n\r\n.y\r\n.\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) { checkUndot(t, in) })
}

// What a DotWriter writes, a DotReader reads back.
func TestDotRoundTrip(t *testing.T) {
	for _, in := range []string{"", "a\r\n", ".\r\n..\r\n...\r\n", "\r\n.\r\n\r\n", "x\r\n.y\r\n"} {
		var b bytes.Buffer
		w := NewDotWriter(&b)
		io.WriteString(w, in)
		w.Close()
		content, rest, done, err := undot(b.Bytes(), 5)
		if string(content) != in || len(rest) != 0 || !done || err != nil {
			t.Errorf("%q came back as %q, %q, %v, %v", in, content, rest, done, err)
		}
	}
}

func BenchmarkDotReader(b *testing.B) {
	in := []byte(strings.Repeat(strings.Repeat("x", 74)+"\r\n", 400) + ".\r\n")
	b.SetBytes(int64(len(in)))
	for b.Loop() {
		var d DotReader
		for p := in; len(p) > 0; {
			_, n, _, _ := d.Next(p)
			p = p[n:]
		}
	}
}
