package message

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func show(h *Header) (l []string) {
	for _, f := range h.Fields() {
		l = append(l, fmt.Sprintf("%d %q %q", f.Line(), f.Name(), f.Value()))
	}
	return l
}

func TestRead(t *testing.T) {
	for _, c := range []struct {
		name, in string
		body     string
		fields   []string
		bad      int
	}{
		{"plain", "From: a@b\r\nTo: c\r\n\r\nbody\r\n", "body\r\n", []string{`1 "From" "a@b"`, `2 "To" "c"`}, 0},
		{"folded", "Subject: a\r\n b\r\n\tc\r\nX:\r\n\r\nbody", "body", []string{`1 "Subject" "a b\tc"`, `4 "X" ""`}, 0},
		{"LF", "From: a\n b\n\nbody\n\nmore", "body\n\nmore", []string{`1 "From" "a b"`}, 0},
		{"no body", "From: a\r\n", "", []string{`1 "From" "a"`}, 0},
		{"no final line end", "From: a", "", []string{`1 "From" "a"`}, 0},
		{"empty", "", "", nil, 0},
		{"no header", "\r\nFrom: body", "From: body", nil, 0},
		{"blank before the colon", "From : a\r\nTo\t: b\r\n\r\n", "", []string{`1 "From" "a"`, `2 "To" "b"`}, 0},
		{"junk lines", "From a@b\r\nTo: x\r\nnot a field\r\n folded\r\n\r\n", "", []string{`1 "" "From a@b"`, `2 "To" "x"`, `3 "" "not a field folded"`}, 1},
		{"begins with a fold", " x: y\r\nTo: x\r\n\r\n", "", []string{`1 "" "x: y"`, `2 "To" "x"`}, 1},
		{"no name", ": x\r\nTo: y\r\n\r\n", "", []string{`1 "" ": x"`, `2 "To" "y"`}, 1},
		{"control bytes in the name", "Fr\x00om: x\r\nFrom\xc2\xa0: y\r\n\r\n", "", []string{`1 "" "Fr\x00om: x"`, `2 "" "From\u00a0: y"`}, 1},
		{"lone CR is no line end", "A: x\r\r\nB: y\rC: z\r\n\r\nbody", "body", []string{`1 "A" "x"`, `2 "B" "y\rC: z"`}, 0},
		{"blanks do not end the header", "A: x\r\n \r\nB: y\r\n\r\nbody", "body", []string{`1 "A" "x"`, `3 "B" "y"`}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, r := range []io.Reader{strings.NewReader(c.in), iotest.OneByteReader(strings.NewReader(c.in)), iotest.DataErrReader(strings.NewReader(c.in))} {
				h, err := Read(r)
				if err != nil {
					t.Fatal(err)
				}
				if d := cmp.Diff(c.fields, show(h)); d != "" {
					t.Error(d)
				}
				if body := c.in[h.Len():]; body != c.body {
					t.Errorf("body %q", body)
				}
				if h.BadLine() != c.bad {
					t.Errorf("bad line %d, want %d", h.BadLine(), c.bad)
				}
			}
		})
	}
}

func TestLookups(t *testing.T) {
	h, err := Parse([]byte("Received: 1\r\nSubject: s\r\nrEceIved: 2\r\nReceived-SPF: x\r\nMessage-ID:\r\n <id@x>\r\n\r\n"))
	if err != nil {
		t.Fatal(err)
	}
	if n := h.Count("Received"); n != 2 {
		t.Errorf("Count %d", n)
	}
	var l []string
	for f := range h.All("RECEIVED") {
		l = append(l, f.Value())
	}
	if !slices.Equal(l, []string{"1", "2"}) {
		t.Errorf("All %q", l)
	}
	if f, ok := h.First("subject"); !ok || string(f.Raw()) != "Subject: s\r\n" || string(f.Body()) != " s\r\n" {
		t.Errorf("First %q, %t", f.Raw(), ok)
	}
	if _, ok := h.First("To"); ok {
		t.Error("found To")
	}
	if id := h.MessageID(); id != "id@x" {
		t.Errorf("MessageID %q", id)
	}
}

// TestD35HeaderBomb: the limits hold, and time is linear up to them.
func TestD35HeaderBomb(t *testing.T) {
	for name, in := range map[string]string{
		"bytes":         "X: " + strings.Repeat("x", MaxHeader) + "\r\n\r\n",
		"fields":        strings.Repeat("a:\r\n", MaxFields+1) + "\r\n",
		"no end":        strings.Repeat("X: yyyyyyyyyyyyyyyyy\r\n", 1<<20),
		"continuations": "X: y\r\n" + strings.Repeat(" z\r\n", MaxHeader/4),
	} {
		start := time.Now()
		if _, err := Read(strings.NewReader(in)); !errors.Is(err, ErrTooBig) {
			t.Errorf("%s: %v", name, err)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("%s: took %v", name, took)
		}
	}
	h, err := Read(strings.NewReader("X: " + strings.Repeat("x", MaxHeader-7) + "\r\n\r\nbody"))
	if err != nil || h.Len() != MaxHeader {
		t.Errorf("at the limit: %v", err)
	}
}

func TestReadError(t *testing.T) {
	broken := errors.New("broken disk")
	if _, err := Read(io.MultiReader(strings.NewReader("A: b\r\n"), iotest.ErrReader(broken))); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

func TestConverters(t *testing.T) {
	for _, s := range []string{"", "\r", "\n", "\r\n", "a\r\nb", "a\rb\n\r\r\n\n", "\r\r\r\n", "end\r", strings.Repeat("line\r\n", 5000) + "\r", strings.Repeat("x", chunk-1) + "\r\ny"} {
		for name, wrap := range map[string]func(io.Reader) io.Reader{"whole": func(r io.Reader) io.Reader { return r }, "bytes": iotest.OneByteReader, "err": iotest.DataErrReader} {
			got, err := io.ReadAll(ToLF(wrap(strings.NewReader(s))))
			if want := strings.ReplaceAll(s, "\r\n", "\n"); string(got) != want || err != nil {
				t.Errorf("ToLF %s of %.40q: %.40q, %v", name, s, got, err)
			}
			got, err = io.ReadAll(ToCRLF(wrap(strings.NewReader(s))))
			if want := strings.ReplaceAll(strings.ReplaceAll(s, "\r\n", "\n"), "\n", "\r\n"); string(got) != want || err != nil {
				t.Errorf("ToCRLF %s of %.40q: %.40q, %v", name, s, got, err)
			}
		}
	}
}

// TestFilterEqualsHeader: however the bytes are cut, the filter drops exactly the fields that Read finds, and nothing else.
func TestFilterEqualsHeader(t *testing.T) {
	lines := []string{"Bcc: x\r\n", "bCC : x\r\n", "Bcc\t \t: y\r\n", "Bccx: z\r\n", "Bc: z\r\n", "To: a\r\n", " fold\r\n", "\tfold\r\n", "\r\n", "\n", "Bcc: lf\n", "junk\r\n", "Bcc", "\r",
		"Bcc\r\n", "B", ":", "Authentication-Results: us\r\n", "Authentication-Results: them\r\n"}
	rapid.Check(t, func(t *rapid.T) {
		in := strings.Join(rapid.SliceOf(rapid.SampledFrom(lines)).Draw(t, "in"), "")
		cuts := rapid.SliceOf(rapid.IntRange(1, 9)).Draw(t, "cuts")
		checkFilter(t, in, cuts)
	})
}

func checkFilter(t interface{ Fatalf(string, ...any) }, in string, cuts []int) {
	drop := func(f Field) bool { return f.Is("Bcc") || strings.HasPrefix(f.Value(), "us") }
	h, err := Parse([]byte(in))
	if err != nil {
		return
	}
	want, n := "", 0
	at := 0
	for _, f := range h.Fields() {
		at += len(f.Raw())
		if (f.Is("Bcc") || f.Is("Authentication-Results")) && drop(f) {
			n++
			continue
		}
		want += string(f.Raw())
	}
	want += in[at:]
	var out bytes.Buffer
	f := NewFilter(&out, drop, "Authentication-Results", "Bcc")
	for rest, i := in, 0; rest != ""; i++ {
		k := len(rest)
		if i < len(cuts) {
			k = min(k, cuts[i])
		}
		f.Write([]byte(rest[:k]))
		rest = rest[k:]
	}
	f.Close()
	if out.String() != want || f.Dropped() != n {
		t.Fatalf("filtering %q cut %v:\n got %q\nwant %q", in, cuts, out.String(), want)
	}
}

func FuzzFilter(f *testing.F) {
	f.Add("Bcc: a\r\n b\r\nTo: x\r\n\r\nBcc: body\r\n", 3)
	f.Fuzz(func(t *testing.T, in string, cut int) {
		cuts := make([]int, 200)
		for i := range cuts {
			cuts[i] = 1 + (cut&0xffff)%(i+7)
		}
		checkFilter(t, in, cuts)
	})
}

func TestFilterLongField(t *testing.T) {
	long := strings.Repeat("y", 3*maxHeld)
	for _, c := range []struct{ in, want string }{
		{"A: 1\r\nBcc: us " + long + "\r\n more\r\nTo: x\r\n\r\nb", "A: 1\r\nTo: x\r\n\r\nb"},
		{"A: 1\r\nAuthentication-Results: " + long + "\r\n more\r\nTo: x\r\n\r\nb", ""},
		{"Bcc" + strings.Repeat(" ", 2*maxHeld) + ": x\r\n\r\n", ""},
	} {
		var out bytes.Buffer
		f := NewFilter(&out, func(f Field) bool { return f.Is("Bcc") }, "Bcc", "Authentication-Results")
		io.Copy(f, iotest.HalfReader(strings.NewReader(c.in)))
		f.Close()
		want := c.want
		if want == "" {
			want = c.in
		}
		if out.String() != want {
			t.Errorf("%.20q…: %d bytes out, want %d", c.in, out.Len(), len(want))
		}
		if cap(f.held) > 4*maxHeld {
			t.Errorf("held %d bytes", cap(f.held))
		}
	}
}

func TestFilterError(t *testing.T) {
	f := NewFilter(brokenWriter{}, func(Field) bool { return false }, "Bcc")
	if _, err := f.Write([]byte("A: b\r\n")); err == nil {
		t.Error("no error")
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestParseMailboxes(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"a@b.example", "a@b.example"},
		{"<a@b.example>", "a@b.example"},
		{"Joe Q. Public <john.q.public@example.com>", "john.q.public@example.com"},
		{`"a@evil.example" <b@good.example>`, "b@good.example"},
		{`"Joe \"x\" Y" <"odd local"@example.com>`, "odd local@example.com"},
		{"A <a@x>, B <b@y>,, c@z", "a@x b@y c@z"},
		{"Group: a@x, B <b@y>;", "a@x b@y"},
		{"Group:;, a@x", "a@x"},
		{"Undisclosed: ;", "error"},
		{"(c) a (c) @ (c) b.example (x@y)", "a@b.example"},
		{"Pete(A wonderful \\) chap) <pete(his account)@silly.test(his host)>", "pete@silly.test"},
		{"<@relay.example,@b.example:a@good.example>", "a@good.example"},
		{"a . b @ c . d", "a.b@c.d"},
		{"a@[192.0.2.1]", "a@[192.0.2.1]"},
		{"jörg@exämple.com", "jörg@exämple.com"},
		{"=?utf-8?q?a=40evil.example?= <b@good.example>", "b@good.example"},
		// What readers disagree about is an error (standards D24).
		{"a@b, ", "a@b"},
		{"a@evil.example <b@good.example>", "error"},
		{"<a@x> <b@y>", "error"},
		{"<a@x>b@y", "error"},
		{"a@x@y", "error"},
		{"a@x b@y", "error"},
		{"a b@y", "error"},
		{"\"a\"b@y", "error"},
		{"a@", "error"},
		{"@b", "error"},
		{"<>", "error"},
		{"", "error"},
		{"just words", "error"},
		{"a..b@c", "error"},
		{".a@c", "error"},
		{"a@.c", "error"},
		{"a@b..c", "error"},
		{"a@\"b\"", "error"},
		{"a@b\x00.evil", "error"},
		{"\x00a@b", "error"},
		{"a@b;", "error"},
		{"G: a@b", "error"},
		{"G: H: a@b;;", "error"},
		{"<a@b", "error"},
		{"a@b>", "error"},
		{"(unclosed a@b", "error"},
		{"\"unclosed a@b", "error"},
		{"a@[192.0.2.1", "error"},
		{strings.Repeat("(", 30) + strings.Repeat(")", 30) + "a@b", "error"},
		{"\\", "error"}, {"(\\", "error"}, {"\"\\", "error"},
	} {
		l, err := ParseMailboxes(c.in)
		got := ""
		for _, m := range l {
			got += " " + m.Local + "@" + m.Domain
		}
		got = strings.TrimSpace(got)
		if err != nil {
			got = "error"
		}
		if got != c.want {
			t.Errorf("%q: got %q (%v), want %q", c.in, got, err, c.want)
		}
	}
	for _, s := range []string{"a@b.example", " Joe Q. Public <joe@b.example>\r\n", "\"J, Q\" <j@b.example>", "<j@b.example> ", "=?utf-8?q?x?= <j@b.example>", "\"x@y\"\r\n <a@b.example>"} {
		if d, ok := SimpleDomain([]byte(s)); !ok || string(d) != "b.example" {
			t.Errorf("simple %q: %q, %t", s, d, ok)
		}
	}
	if l, _ := ParseMailboxes(`Joe "Q. (x)" Public <a@b>`); len(l) != 1 || l[0].Name != "Joe Q. (x) Public" {
		t.Errorf("display name: %+v", l)
	}
}

// TestD37AddressBlowUp: hostile address lists take linear time. Sixteen times the input may take sixteen times as long, with room for a
// busy machine; quadratic time would be 256 times as long.
func TestD37AddressBlowUp(t *testing.T) {
	best := func(in string) time.Duration {
		least := time.Hour
		for range 5 {
			start := time.Now()
			ParseMailboxes(in)
			least = min(least, time.Since(start))
		}
		return least
	}
	for _, s := range []string{"(", "\"", "\\", "a@", "<", "a:", ",", "a@b,", ".", "[", "a ", "(a)", "=?utf-8?q?", "G:a@b;,"} {
		n := MaxHeader / len(s)
		small, large := best(strings.Repeat(s, n/16)), best(strings.Repeat(s, n))
		if large > 100*max(small, 100*time.Microsecond) {
			t.Errorf("%q: %v for a sixteenth, %v for all", s, small, large)
		}
	}
}

func FuzzHeader(f *testing.F) {
	f.Add([]byte("From: a\r\n b\r\nTo : c\n\r\nbody"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := Parse(b)
		if err != nil {
			return
		}
		var joined []byte
		for _, fd := range h.Fields() {
			joined = append(joined, fd.Raw()...)
			if name := fd.Name(); name != "" && !bytes.HasPrefix(fd.Raw(), []byte(name)) {
				t.Fatalf("field %q named %q", fd.Raw(), name)
			}
			fd.Value()
		}
		// The fields are the header block, byte for byte, but for the empty line.
		if rest := string(h.Bytes()[len(joined):]); !bytes.HasPrefix(b, joined) || rest != "" && rest != "\n" && rest != "\r\n" {
			t.Fatalf("fields make %q, rest %q", joined, rest)
		}
		again, err := Read(iotest.OneByteReader(bytes.NewReader(b)))
		if err != nil || again.Len() != h.Len() || len(again.Fields()) != len(h.Fields()) {
			t.Fatalf("read byte by byte: %v", err)
		}
	})
}

func FuzzMailboxes(f *testing.F) {
	for _, s := range []string{"a@b", "G: a <b@c>, d@e;", "(c)\"q\\\"\"@[x] , <@r:a@b>"} {
		f.Add(s)
	}
	f.Add("\"a b\" c. <x.y@z>")
	f.Fuzz(func(t *testing.T, s string) {
		l, err := ParseMailboxes(s)
		if d, ok := SimpleDomain([]byte(s)); ok && (err != nil || len(l) != 1 || l[0].Domain != string(d)) {
			t.Fatalf("%q: simple domain %q, in full %+v, %v", s, d, l, err)
		}
		for _, m := range l {
			if err == nil && (m.Domain == "" || strings.ContainsAny(m.Domain, "\x00\r\n@<> \t\"")) {
				t.Fatalf("%q: %+v", s, m)
			}
		}
	})
}

const sample = "Received: from a (b [192.0.2.1])\r\n\tby c with ESMTPS id 1;\r\n\tMon, 1 Jan 2024 00:00:00 +0000\r\nFrom: Joe <joe@example.com>\r\nTo: Suzie <s@example.net>\r\n" +
	"Subject: Is dinner ready?\r\nDate: Fri, 11 Jul 2003 21:00:37 -0700\r\nMessage-ID: <1@example.com>\r\nMIME-Version: 1.0\r\nContent-Type: text/plain\r\n\r\nHi.\r\n"

func BenchmarkRead(b *testing.B) {
	b.ReportAllocs()
	r := strings.NewReader(sample)
	for b.Loop() {
		r.Reset(sample)
		h, err := Read(r)
		if err != nil || h.Count("Received") != 1 {
			b.Fatal(err)
		}
	}
}

func BenchmarkFilter(b *testing.B) {
	msg := []byte(sample)
	b.ReportAllocs()
	b.SetBytes(int64(len(msg)))
	for b.Loop() {
		f := NewFilter(io.Discard, func(Field) bool { return true }, "Authentication-Results", "Bcc")
		f.Write(msg)
		f.Close()
	}
}
