package dkim

import (
	"bytes"
	"crypto"
	"fmt"
	"io"
	"strings"
	"testing"

	"blitiri.com.ar/go/chasquid/internal/dns/zone"
	"blitiri.com.ar/go/chasquid/internal/message"
	"pgregory.net/rapid"
)

// naive is the canonicalisation of RFC 6376 section 3.4 written down plainly.
func naive(body string, relaxed bool) string {
	lines := strings.Split(body, "\r\n")
	if relaxed {
		for i, l := range lines {
			f := strings.FieldsFunc(l, func(r rune) bool { return r == ' ' || r == '\t' })
			lead := ""
			if l != "" && (l[0] == ' ' || l[0] == '\t') {
				lead = " "
			}
			lines[i] = strings.TrimRight(lead+strings.Join(f, " "), " ")
		}
	}
	for len(lines) > 0 && lines[len(lines)-1] == "" {
		lines = lines[:len(lines)-1]
	}
	if len(lines) == 0 {
		if relaxed {
			return ""
		}
		return "\r\n"
	}
	return strings.Join(lines, "\r\n") + "\r\n"
}

// TestC110Canonical: the streaming canonicalisation equals the plain one, however the body is cut, for every length limit.
func TestC110Canonical(t *testing.T) {
	pieces := []string{"a", "bc", " ", "\t", "\r\n", "\r\n\r\n", "\r", "\n", "\r\r\n", "  \r\n", strings.Repeat("x", 3000), strings.Repeat("\r\n", 300), strings.Repeat(" ", 100), "\xff\x00"}
	rapid.Check(t, func(t *rapid.T) {
		body := strings.Join(rapid.SliceOf(rapid.SampledFrom(pieces)).Draw(t, "body"), "")
		relaxed := rapid.Bool().Draw(t, "relaxed")
		want := naive(body, relaxed)
		limit := rapid.Int64Range(-1, 20).Draw(t, "limit")
		h := newBodyHash(relaxed, limit)
		for rest := body; rest != ""; {
			n := min(len(rest), rapid.IntRange(1, 4000).Draw(t, "cut"))
			h.write([]byte(rest[:n]))
			rest = rest[n:]
		}
		sum := h.sum()
		if h.size != int64(len(want)) {
			t.Fatalf("%q: size %d, want %d", body, h.size, len(want))
		}
		if limit >= 0 {
			want = want[:min(int64(len(want)), limit)]
		}
		if !bytes.Equal(sum, digest([]byte(want))) {
			t.Fatalf("%q, limit %d: another hash than of %q", body, limit, want)
		}
	})
}

// TestN5Memory: a body of nothing but line ends is not kept.
func TestN5Memory(t *testing.T) {
	for _, relaxed := range []bool{true, false} {
		h := newBodyHash(relaxed, -1)
		chunk := bytes.Repeat(crlf, 16<<10)
		n := testing.AllocsPerRun(10, func() { h.write(chunk) })
		h.write([]byte("x"))
		h.sum()
		if n > 1 || h.size < int64(10*len(chunk)) {
			t.Errorf("relaxed %t: %v allocations, size %d", relaxed, n, h.size)
		}
	}
}

func FuzzTags(f *testing.F) {
	for _, s := range []string{"v=1; a=b;", " a = b c ;\r\n d=", ";", "a=b;;", "b=x", "a=1;a=2", "A_1=;"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		l, err := parseTags(s)
		if err != nil {
			return
		}
		end := 0
		for _, tag := range l {
			if tag.start < end || tag.end < tag.start || tag.end > len(s) || strings.Trim(s[tag.start:tag.end], fws) != tag.value || strings.Contains(tag.value, ";") {
				t.Fatalf("%q: %+v", s, tag)
			}
			end = tag.end
			if v, ok := l.get(tag.name); !ok || v != tag.value {
				t.Fatalf("%q: duplicate %q", s, tag.name)
			}
		}
	})
}

func FuzzKeyRecord(f *testing.F) {
	f.Add("v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=")
	f.Add("h=sha256; t=s:y; s=*; p=MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDwIRP/UC3SBsEmGqZ9ZJW3/DkMoGeLnQg1fWn7/zYtIxN2SnFCjxOCKG9v3b4jYfcTNh5ijSsq631uBItLa7od+v/RtdC2UzJ1lWT947qR+Rcac2gbto/NMqJ0fzfVjH4OuKhitdY9tf6mcwGjaNBcWToIMmPSPDdQPNUYckcQ2QIDAQAB")
	f.Fuzz(func(t *testing.T, s string) {
		k, fail := parseRecord(s)
		if (fail == nil) != (k.key != nil) && fail == nil {
			t.Fatalf("%q: neither key nor failure", s)
		}
		if fail == nil {
			k.verify(make([]byte, 32), make([]byte, 64))
		}
	})
}

func BenchmarkVerifyNone(b *testing.B) {
	h, _ := message.Parse([]byte(plain))
	v := NewVerifier(zone.MustNew(""), nil)
	b.ReportAllocs()
	for b.Loop() {
		v.Verify(bg, h, nil)
	}
}

func BenchmarkVerify(b *testing.B) {
	k := testKeys()
	for _, key := range []crypto.Signer{k.rsa2048, k.ed} {
		algo, _ := Algorithm(key)
		z := zone.MustNew(txt("sel._domainkey.example.com", record(b, key)))
		msg := forge(b, key, plain, nil)
		h, _ := message.Parse([]byte(msg))
		v := NewVerifier(z, nil)
		b.Run(algo, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				r, _ := v.Verify(bg, h, func() (io.Reader, error) { return strings.NewReader(msg[h.Len():]), nil })
				if r.Valid() != 1 {
					b.Fatal(outcome(r))
				}
			}
		})
	}
}

func BenchmarkBody(b *testing.B) {
	body := []byte(strings.Repeat("This is a line of  quite ordinary text, as long as most of them.\r\n", 500))
	for _, relaxed := range []bool{true, false} {
		b.Run(fmt.Sprintf("relaxed=%t", relaxed), func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				h := newBodyHash(relaxed, -1)
				h.write(body)
				h.sum()
			}
		})
	}
}
