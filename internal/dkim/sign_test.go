package dkim

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"

	"blitiri.com.ar/go/chasquid/internal/dns/zone"
	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/message"
)

func signer(keys ...Key) *Signer {
	return NewSigner(func(domain string) []Key {
		if domain != "example.com" && domain != "bücher.example" {
			return nil
		}
		return keys
	}, expvarom.New())
}

// TestSMTP64Layout: the field is laid out as existing installations make it.
func TestSMTP64Layout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := testKeys()
		s := signer(Key{"example.com", "sel", k.rsa2048})
		got, err := s.SignMessage(bg, "example.com", strings.NewReader(crlfText("From: a@example.com\nSubject: x\nTo: b@example.net\n\nbody\n")))
		if err != nil {
			t.Fatal(err)
		}
		want := "^DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed;\r\n" +
			"\td=example.com; s=sel; t=946684800;\r\n" +
			"\th=from:subject:to:from:subject:date:to:cc:message-id;\r\n" +
			"\tbh=[A-Za-z0-9+/]{43}=;\r\n" +
			"\tb=[A-Za-z0-9+/]{70}\r\n" +
			"(\t  [A-Za-z0-9+/]{70}\r\n){3}" +
			"\t  [A-Za-z0-9+/]{62}==;\r\n$"
		if !regexp.MustCompile(want).Match(got) {
			t.Errorf("got\n%q", got)
		}
	})
}

// TestSMTP65Names: which fields are signed, in which order, and how the list is wrapped.
func TestSMTP65Names(t *testing.T) {
	for _, c := range []struct{ header, want string }{
		{"", "from:subject:date:to:cc:message-id"},
		{"From: a\nDate: b\n", "from:date:from:subject:date:to:cc:message-id"},
		{"message-id: 1\nReferences: 2\nFROM: 3\nX-Other: 4\nReceived: 5\nReply-To: 6\nTo: 7\nto: 8\nCc: 9\nin-reply-to: 10\nSubject: 11\nDate: 12\n",
			"from:reply-to:subject:date:to:to:cc:in-reply-to:references:message-id\r\n\t  :from:subject:date:to:cc:message-id"},
		{"List-Id: 1\nList-Help: 2\nList-Unsubscribe: 3\nList-Subscribe: 4\nList-Post: 5\nList-Owner: 6\nList-Archive: 7\nResent-Date: 8\nResent-From: 9\nResent-To: 10\nResent-Cc: 11\n",
			"resent-date:resent-from:resent-to:resent-cc:list-id:list-help\r\n\t  :list-unsubscribe:list-subscribe:list-post:list-owner:list-archive\r\n\t  :from:subject:date:to:cc:message-id"},
	} {
		h, err := message.Parse([]byte(crlfText(c.header + "\n")))
		if err != nil {
			t.Fatal(err)
		}
		names, _ := chooseFields(h)
		if got := string(appendNames(nil, names)); got != c.want {
			t.Errorf("%q:\n got %q\nwant %q", c.header, got, c.want)
		}
		for l := range strings.SplitSeq(c.want, "\r\n\t  ") {
			if len(l) > 70 {
				t.Errorf("line of %d", len(l))
			}
		}
	}
	// The width of exactly 70 fits, 71 does not.
	long := []string{strings.Repeat("x", 60), strings.Repeat("y", 9), "z"}
	if got := string(appendNames(nil, long)); got != long[0]+":"+long[1]+"\r\n\t  :z" {
		t.Errorf("got %q", got)
	}
}

// TestSignAllKeys: every key signs, the last on top, A-labels in d= and s=; each signature verifies.
func TestSignAllKeys(t *testing.T) {
	k := testKeys()
	keys := []Key{{"bücher.example", "one", k.rsa2048}, {"bücher.example", "zwölf", k.ed}}
	msgs := map[string]string{"plain": plain, "no body": crlfText(plainHeader), "only a header": crlfText(plainHeader + "\n"), "no header": "\r\nbody\r\n", "empty": ""}
	z := zone.MustNew(txt("one._domainkey.xn--bcher-kva.example", record(t, k.rsa2048)) + txt("xn--zwlf-6qa._domainkey.xn--bcher-kva.example", record(t, k.ed)))
	for name, msg := range msgs {
		fields, err := signer(keys...).SignMessage(bg, "bücher.example", strings.NewReader(msg))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !strings.HasPrefix(string(fields), "DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/relaxed;\r\n\td=xn--bcher-kva.example; s=xn--zwlf-6qa; t=") {
			t.Errorf("%s: top field\n%s", name, fields)
		}
		v := verify(t, z, string(fields)+msg)
		if got := outcome(v); got != "pass; pass" {
			t.Errorf("%s: %s", name, got)
		}
	}
}

func TestSignErrors(t *testing.T) {
	k := testKeys()
	h, _ := message.Parse([]byte(plain))
	broken := errors.New("broken disk")
	body := func() (io.Reader, error) { return strings.NewReader("x\r\n"), nil }
	ec, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	for _, c := range []struct {
		name   string
		domain string
		key    Key
		body   func() (io.Reader, error)
		want   error
		counts string
	}{
		{"no keys", "other.example", Key{"example.com", "s", k.ed}, nil, nil, "0 0 0 0"},
		{"body", "example.com", Key{"example.com", "s", k.ed}, func() (io.Reader, error) { return iotest.ErrReader(broken), nil }, broken, "0 1 0 0"},
		{"seek", "example.com", Key{"example.com", "s", k.ed}, func() (io.Reader, error) { return nil, broken }, broken, "0 1 0 0"},
		{"key type", "example.com", Key{"example.com", "s", ec}, body, ErrKeyType, "0 1 0 0"},
		{"token", "example.com", Key{"example.com", "s", failing{k.ed, broken}}, body, broken, "0 1 0 1"},
		{"good", "example.com", Key{"example.com", "s", k.ed}, body, nil, "1 0 1 0"},
	} {
		s := signer(c.key)
		out, err := s.Sign(bg, c.domain, h, c.body)
		if !errors.Is(err, c.want) || err != nil && out != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		ed := s.m.signatures[Ed25519SHA256]
		if got := fmt.Sprint(s.m.signed.Value(), s.m.errors.Value(), ed[0].Value(), ed[1].Value()); got != c.counts {
			t.Errorf("%s: counts %s, want %s", c.name, got, c.counts)
		}
	}
}

type failing struct {
	crypto.Signer
	err error
}

func (f failing) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) { return nil, f.err }

// TestCLI15Keys: what dkim-keygen and dkim-dns rely on.
func TestCLI15Keys(t *testing.T) {
	dir := t.TempDir()
	path := KeyFile(dir, "example.com", "20240301")
	if want := filepath.Join(dir, "domains/example.com/dkim:20240301.pem"); path != want {
		t.Errorf("path %s, want %s", path, want)
	}
	if _, err := Selectors(dir, "example.com"); err == nil || !strings.HasPrefix(err.Error(), "no DKIM keys found in \"") {
		t.Errorf("no keys: %v", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := Generate("dsa"); err == nil || err.Error() != `unsupported algorithm "dsa"` {
		t.Errorf("dsa: %v", err)
	}
	key, err := Generate("ed25519")
	if err != nil {
		t.Fatal(err)
	}
	if err := WriteKey(path, key); err != nil {
		t.Fatal(err)
	}
	if err := WriteKey(path, key); !errors.Is(err, os.ErrExist) {
		t.Errorf("overwriting: %v", err)
	}
	if fi, _ := os.Stat(path); fi.Mode().Perm()&0o007 != 0 {
		t.Errorf("mode %v", fi.Mode())
	}
	if err := WriteKey(KeyFile(dir, "example.com", "a"), testKeys().rsa2048); err != nil {
		t.Fatal(err)
	}
	if l, err := Selectors(dir, "example.com"); err != nil || fmt.Sprint(l) != "[20240301 a]" {
		t.Errorf("selectors %v, %v", l, err)
	}
	data, _ := os.ReadFile(path)
	if !strings.HasPrefix(string(data), "-----BEGIN PRIVATE KEY-----\n") {
		t.Errorf("file:\n%s", data)
	}
	read, err := ParseKey(data)
	if err != nil || !read.(ed25519.PrivateKey).Equal(key) {
		t.Errorf("read back: %v", err)
	}
	line, err := ZoneLine("example.com", "sel", key.Public())
	if err != nil || !regexp.MustCompile(`^sel\._domainkey\.example\.com\tTXT\t"v=DKIM1; k=ed25519; p=[A-Za-z0-9+/]{43}="$`).MatchString(line) {
		t.Errorf("line %q, %v", line, err)
	}
	line, _ = ZoneLine("example.com", "sel", testKeys().rsa2048.Public())
	if !strings.Contains(line, `"v=DKIM1; k=rsa; p=MII`) {
		t.Errorf("line %q", line)
	}
	rec, _ := Record(key.Public())
	if err := CheckRecord(rec, key.Public()); err != nil {
		t.Errorf("own record: %v", err)
	}
	if CheckRecord(rec, testKeys().ed.Public()) == nil || CheckRecord("v=DKIM1; p=", key.Public()) == nil {
		t.Error("foreign record passes")
	}
}

func TestParseKeyErrors(t *testing.T) {
	for in, want := range map[string]string{
		"x": "error decoding PEM block",
		"-----BEGIN RSA PRIVATE KEY-----\neA==\n-----END RSA PRIVATE KEY-----\n": `unsupported block type: "RSA PRIVATE KEY"`,
		"-----BEGIN PRIVATE KEY-----\neA==\n-----END PRIVATE KEY-----\n":         "asn1: ",
	} {
		if _, err := ParseKey([]byte(in)); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%.20q: %v", in, err)
		}
	}
}

func BenchmarkSign(b *testing.B) {
	k := testKeys()
	for _, key := range []crypto.Signer{k.rsa2048, k.ed} {
		s := signer(Key{"example.com", "sel", key})
		algo, _ := Algorithm(key)
		r := strings.NewReader(plain)
		b.Run(algo, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.SignMessage(bg, "example.com", r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
