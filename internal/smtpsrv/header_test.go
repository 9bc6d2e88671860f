package smtpsrv

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

// filtered passes a message through a header filter in pieces of the given size.
func filtered(in []byte, size int, fix bool) (string, *headerFilter) {
	var out bytes.Buffer
	h := &headerFilter{w: &out, hostname: "mx.example.test", also: "other.test"}
	if fix {
		h.fixups = &fixups{id: "ID", host: "mx.example.test", now: time.Unix(0, 0).UTC()}
	}
	for len(in) > 0 {
		n := min(size, len(in))
		h.write(bytes.Clone(in[:n]))
		in = in[n:]
	}
	h.end()
	return out.String(), h
}

// The pieces in which a message arrives change nothing; without anything to remove it passes byte for byte (C39).
func checkFilter(t *testing.T, in []byte) {
	t.Helper()
	for _, fix := range []bool{false, true} {
		want, wh := filtered(in, len(in)+1, fix)
		for _, size := range []int{1, 2, 3, 7, maxHeaderPart} {
			got, h := filtered(in, size, fix)
			if wh.tooBig || h.tooBig {
				if wh.tooBig != h.tooBig {
					t.Fatalf("too big: %v by %d, %v at once", h.tooBig, size, wh.tooBig)
				}
				continue
			}
			if got != want {
				t.Fatalf("%q by %d (fix %v): %q, at once %q", in, size, fix, got, want)
			}
			if h.received != wh.received || h.eightBit != wh.eightBit || h.noHeader != wh.noHeader || h.messageID() != wh.messageID() || h.hasDate != wh.hasDate {
				t.Fatalf("%q by %d: %+v, at once %+v", in, size, h, wh)
			}
		}
		if !fix && !wh.tooBig && !bytes.Contains(bytes.ToLower(in), []byte("authentication-results")) && want != string(in) {
			t.Fatalf("%q came out as %q", in, want)
		}
	}
}

func TestHeaderFilterPieces(t *testing.T) {
	for _, in := range []string{
		"", "\r\n", "a", "a: b", "a: b\r\n", "a: b\r\n\r\nbody", " folded first\r\na: b\r\n", "no header\r\na: b\r\n",
		"Message-ID:\r\n <x@y>\r\nReceived: a\r\n\tb\r\nDATE: x\r\n\r\nReceived: body\r\n",
		"Authentication-Results: mx.example.test;\r\n x\r\nTo: y\r\n\r\n",
		"To: y\r\nAuthentication-Results: elsewhere;\r\n x",
		"To: y\nAuthentication-Results: other.test; x\nCc: z\n\nbody\n",
		"Bcc: x\r\n y\r\nTo: z\r\nresent-bcc: q",
		"To: " + strings.Repeat("x", 3*maxHeaderPart) + "\r\nBcc: " + strings.Repeat("y", 3*maxHeaderPart) + "\r\nCc: z\r\n\r\n",
		"Authentication-Results: mx.example.test " + strings.Repeat("z", 2*maxHeldField) + "\r\nTo: y\r\n\r\n",
		"Authentication-Results: (" + strings.Repeat("c", 2*maxHeldField) + ") mx.example.test\r\nTo: y\r\n\r\n",
		"Authentication-Results: fine " + strings.Repeat("z", 2*maxHeldField) + "\r\nTo: y\r\n\r\n",
		"Subject: \xc3\xb1\r\n\r\n",
		strings.Repeat("n", 2*maxHeaderPart) + ": a name too long\r\n",
		"no header " + strings.Repeat("\xff", 2*maxHeaderPart) + "\r\n",
		": x\r\n\r\n", "a:\r\n:\r\n\r\n",
	} {
		checkFilter(t, []byte(in))
	}
}

func TestHeaderFilterFixups(t *testing.T) {
	const added = "Date: Thu, 01 Jan 1970 00:00:00 +0000\r\nMessage-ID: <ID@mx.example.test>\r\n"
	cases := []struct{ in, want string }{
		{"", added},
		{"\r\nbody\r\n", added + "\r\nbody\r\n"},
		{"To: x\r\n\r\nbody", "To: x\r\n" + added + "\r\nbody"},
		{"To: x", "To: x\r\n" + added},
		{"Date: d\r\nMessage-Id: <i>\r\nBcc: x\r\n y\r\nTo: z\r\n\r\n", "Date: d\r\nMessage-Id: <i>\r\nTo: z\r\n\r\n"},
		{"Bcc: x", "\r\n" + added},
		{"not a header\r\nTo: x\r\n", "not a header\r\nTo: x\r\n"},
	}
	for _, c := range cases {
		if got, _ := filtered([]byte(c.in), 5, true); got != c.want && !(c.in == "Bcc: x" && got == added) {
			t.Errorf("%q: %q, want %q", c.in, got, c.want)
		}
	}
}

func TestMessageID(t *testing.T) {
	for in, want := range map[string]string{
		"Message-ID: <a@b>\r\n\r\n":                           "a@b",
		"message-id : (c) <a@b> x\r\n\r\n":                    "a@b",
		"Message-ID:\r\n  <a@b>\r\n\r\n":                      "a@b",
		"Message-ID: bare@id\r\n\r\n":                         "bare@id",
		"Message-ID: <a\x1b[0m@\xff b>\r\n\r\n":               "a[0m@b",
		"Message-ID: <first>\r\nMessage-ID: <second>\r\n\r\n": "first",
		"Subject: x\r\n\r\nMessage-ID: <body>\r\n":            "",
	} {
		if _, h := filtered([]byte(in), 3, false); h.messageID() != want {
			t.Errorf("%q: %q, want %q", in, h.messageID(), want)
		}
	}
	if _, h := filtered([]byte("Message-ID: <"+strings.Repeat("x", 5000)+">\r\n\r\n"), 100, false); len(h.messageID()) > maxMessageID {
		t.Errorf("%d bytes", len(h.messageID()))
	}
}

// D25: the ways to write a name that a reader of the field would take for ours.
func TestD25AuthservID(t *testing.T) {
	cases := []struct {
		in, id string
		ok     bool
	}{
		{"a.b; x", "a.b", true},
		{" a.b 1; x", "a.b", true},
		{"\r\n\ta.b\r\n\t; x", "a.b", true},
		{"(c) (d (e) \\) f) a.b(g);", "a.b", true},
		{`"a.b"; x`, "a.b", true},
		{`"a\.b"; x`, "a.b", true},
		{"\"a.\r\n b\";", "a. b", true},
		{"", "", false},
		{" ; x", "", false},
		{"(open", "", false},
		{`"open`, "", false},
	}
	for _, c := range cases {
		if id, ok := authservID([]byte("Authentication-Results:" + c.in)); id != c.id || ok != c.ok {
			t.Errorf("%q: %q, %v", c.in, id, ok)
		}
	}
	h := &headerFilter{hostname: "ñ.example.test", also: "mx.example.test"}
	for id, want := range map[string]bool{"xn--ida.example.test": true, "Ñ.example.test": true, "MX.example.TEST.": true, "mx.example.test.evil": false, "": false} {
		if h.isOurs(id) != want {
			t.Errorf("%q: %v", id, !want)
		}
	}
}

// D35: the work per byte does not grow with what came before.
func TestD35LinearTime(t *testing.T) {
	for _, unit := range []string{"a: b\r\n", "Authentication-Results: (\r\n", "Received: x\r\n", " folded\r\n", "(", "Message-ID: <\r\n", "x\r\n"} {
		in := []byte("a: b\r\n" + strings.Repeat(unit, (1<<20)/len(unit)))
		start := time.Now()
		filtered(in, 1000, true)
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("%q: %v for 1 MiB", unit, took)
		}
	}
}

func FuzzHeaderFilter(f *testing.F) {
	f.Add([]byte("Authentication-Results: mx.example.test; x\r\n y\r\nTo: z\r\n\r\nbody"))
	f.Add([]byte("Bcc: x\r\nMessage-ID: <a@b>\r\n\r\n"))
	f.Add([]byte("a\nb: c\n\n"))
	f.Fuzz(func(t *testing.T, in []byte) { checkFilter(t, in) })
}

// BDAT content is ragged if any CR or LF stands alone, wherever the pieces are cut.
func FuzzRagged(f *testing.F) {
	f.Add([]byte("a\r\nb\r\n"))
	f.Add([]byte("a\nb\r"))
	f.Fuzz(func(t *testing.T, in []byte) {
		want := bytes.ContainsAny(bytes.ReplaceAll(in, []byte("\r\n"), []byte{0}), "\r\n")
		for _, size := range []int{1, 2, 3, len(in) + 1} {
			rx := receiver{max: 1 << 30, draft: &memDraft{in: &memIntake{}}}
			rx.hdr = headerFilter{w: rx.draft}
			for p := in; len(p) > 0; {
				n := min(size, len(p))
				rx.chunk(p[:n])
				p = p[n:]
			}
			rx.end()
			if rx.ragged != want {
				t.Fatalf("%q by %d: %v, want %v", in, size, rx.ragged, want)
			}
		}
	})
}

// C37: lines that are too long for other servers are found, wherever the text is cut.
func TestC37LineMeter(t *testing.T) {
	line := func(n int) string { return strings.Repeat("x", n) + "\r\n" }
	for _, c := range []struct {
		text string
		long bool
	}{
		{"", false},
		{line(998), false},
		{line(999), true},
		{line(998)[:998], false},
		{line(999)[:999], true},
		{strings.Repeat(line(998), 5), false},
		{line(998) + line(999) + line(3), true},
		{strings.Repeat(line(0), 2000), false},
		{line(500) + line(998) + line(499) + line(998), false},
		{line(500) + line(998) + line(499) + line(999) + line(1), true},
		{strings.Repeat(line(76), 300) + line(3000), true},
		{strings.Repeat(line(76), 300) + line(998), false},
	} {
		for _, size := range []int{1, 2, 3, 499, 998, 999, 1000, 1001, 4096, 1 << 20} {
			var m lineMeter
			for p := []byte(c.text); len(p) > 0; {
				n := min(size, len(p))
				m.look(p[:n])
				p = p[n:]
			}
			if m.tooLong() != c.long {
				t.Errorf("%d octets by %d: %v, want %v", len(c.text), size, m.tooLong(), c.long)
			}
		}
	}
}

func TestEightBit(t *testing.T) {
	for n := range 100 {
		b := bytes.Repeat([]byte{'a'}, n)
		if hasEightBit(b) {
			t.Errorf("%d letters", n)
		}
		for i := range b {
			b[i] = 0x80
			if !hasEightBit(b) {
				t.Errorf("octet %d of %d", i, n)
			}
			b[i] = 'a'
		}
	}
}
