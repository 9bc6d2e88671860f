package dkim

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"blitiri.com.ar/go/chasquid/internal/dns/zone"
	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/message"
	"blitiri.com.ar/go/chasquid/test/patience"
	"github.com/google/go-cmp/cmp"
)

var bg = context.Background()

// crlfText turns the LF text of a test into wire form.
func crlfText(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") }

// verify verifies a message in wire form.
func verify(t testing.TB, z *zone.Zone, msg string) Verification {
	t.Helper()
	h, err := message.Parse([]byte(msg))
	if err != nil {
		t.Fatal(err)
	}
	v, err := NewVerifier(z, nil).Verify(bg, h, func() (io.Reader, error) { return strings.NewReader(msg[h.Len():]), nil })
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func outcome(v Verification) string {
	var l []string
	for _, r := range v.Results {
		s := r.Value
		if r.Reason != "" {
			s += ": " + r.Reason
		}
		l = append(l, s)
	}
	return strings.Join(l, "; ")
}

// TestPublished verifies the messages in testdata, published elsewhere.
func TestPublished(t *testing.T) {
	files, _ := filepath.Glob("testdata/*.txt")
	if len(files) < 2 {
		t.Fatal("test data missing")
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(data), "=== zone\n")
		zoneText, rest, _ := strings.Cut(rest, "=== message\n")
		msg, want, _ := strings.Cut(rest, "=== want\n")
		got := strings.Join(verify(t, zone.MustNew(zoneText), crlfText(msg)).AuthRes(), "\n") + "\n"
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s:\n%s", f, d)
		}
	}
}

// testKeys are made once: RSA keys cost time.
var testKeys = sync.OnceValue(func() (k struct {
	rsa2048, rsa1024 *rsa.PrivateKey
	ed               ed25519.PrivateKey
}) {
	k.rsa2048, _ = rsa.GenerateKey(rand.Reader, 2048)
	k.rsa1024, _ = rsa.GenerateKey(rand.Reader, 1024)
	_, k.ed, _ = ed25519.GenerateKey(rand.Reader)
	return k
})

func record(t testing.TB, key crypto.Signer) string {
	t.Helper()
	r, err := Record(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// txt writes a TXT record line, its text cut into strings.
func txt(name, text string) string {
	var b strings.Builder
	b.WriteString(name + " TXT")
	for len(text) > 200 {
		fmt.Fprintf(&b, ` "%s"`, text[:200])
		text = text[200:]
	}
	fmt.Fprintf(&b, " \"%s\"\n", text)
	return b.String()
}

const plainHeader = "From: Joe <joe@example.com>\nTo: Suzie <suzie@example.net>\nSubject: Is dinner ready?\n  Yes?\nDate: Fri, 11 Jul 2003 21:00:37 -0700\n"

var plain = crlfText(plainHeader + "\nHi.\n\nWe lost the game.  Are you  hungry yet?\n\n\n")

// forge makes a signature with any tags; the ones given replace the defaults, an empty one is left out. The tags "head" and "tail"
// are text put before and after the tags.
func forge(t testing.TB, key crypto.Signer, msg string, set map[string]string) string {
	t.Helper()
	algo, _ := Algorithm(key)
	tag := map[string]string{"v": "1", "a": algo, "c": "relaxed/relaxed", "d": "example.com", "s": "sel", "h": "from:to:subject:date"}
	for k, v := range set {
		tag[k] = v
	}
	h, err := message.Parse([]byte(msg))
	if err != nil {
		t.Fatal(err)
	}
	hc, bc, _ := strings.Cut(tag["c"], "/")
	limit := int64(-1)
	if l := tag["l"]; l != "" {
		fmt.Sscan(l, &limit)
	}
	bh := newBodyHash(bc == "relaxed", limit)
	bh.write([]byte(msg[h.Len():]))
	if _, ok := tag["bh"]; !ok {
		tag["bh"] = base64.StdEncoding.EncodeToString(bh.sum())
	}
	var b strings.Builder
	b.WriteString("DKIM-Signature:" + tag["head"])
	for _, name := range []string{"v", "a", "c", "d", "s", "i", "l", "q", "t", "x", "h", "bh", "z"} {
		if tag[name] != "" {
			fmt.Fprintf(&b, " %s=%s;", name, tag[name])
		}
	}
	b.WriteString(" b=")
	var data []byte
	p := newPicker(h).start()
	for n := range strings.SplitSeq(tag["h"], ":") {
		if f, ok := p.next(strings.TrimSpace(n)); ok {
			data = appendHeader(data, f.Raw(), hc == "relaxed")
		}
	}
	data = append(data, bytes.TrimSuffix(appendHeader(nil, []byte(b.String()+tag["tail"]+"\r\n"), hc == "relaxed"), crlf)...)
	opts := crypto.SignerOpts(crypto.SHA256)
	if algo == Ed25519SHA256 {
		opts = crypto.Hash(0)
	}
	sig, err := key.Sign(rand.Reader, digest(data), opts)
	if err != nil {
		t.Fatal(err)
	}
	return b.String() + base64.StdEncoding.EncodeToString(sig) + tag["tail"] + "\r\n" + msg
}

// TestC108Verify: every tag and every way it can be wrong.
func TestC108Verify(t *testing.T) {
	k := testKeys()
	key := crypto.Signer(k.ed)
	z := zone.MustNew(txt("sel._domainkey.example.com", record(t, key)) + txt("sel._domainkey.xn--bcher-kva.example", record(t, key)))
	bodyLen := newBodyHash(true, -1)
	_, body, _ := strings.Cut(plain, "\r\n\r\n")
	bodyLen.write([]byte(body))
	bodyLen.sum()
	canonical := fmt.Sprint(bodyLen.size)
	past, future := fmt.Sprint(time.Now().Unix()-10), fmt.Sprint(time.Now().Unix()+1000)
	for _, c := range []struct {
		name string
		set  map[string]string
		want string
	}{
		{"plain", nil, "pass"},
		{"simple/simple", map[string]string{"c": "simple/simple"}, "pass"},
		{"simple/relaxed", map[string]string{"c": "simple/relaxed"}, "pass"},
		{"relaxed/simple", map[string]string{"c": "relaxed/simple"}, "pass"},
		{"relaxed alone: the body is simple", map[string]string{"c": "relaxed"}, "pass"},
		{"no c: simple", map[string]string{"c": ""}, "pass"},
		{"unknown c", map[string]string{"c": "nofws/simple"}, "permerror: unknown canonicalization"},
		{"folded", map[string]string{"head": "\r\n ", "tail": ";\r\n "}, "pass"},
		{"folded simple", map[string]string{"head": "\r\n\t", "c": "simple/simple", "tail": ";\r\n x=" + future}, "pass"},
		{"semicolon at the end", map[string]string{"tail": ";"}, "pass"},
		{"unknown tags", map[string]string{"tail": "; y=1; foo_2=bar"}, "pass"},
		{"two semicolons", map[string]string{"tail": ";;"}, "permerror: malformed signature"},
		{"duplicate tag", map[string]string{"tail": "; d=example.com"}, "permerror: malformed signature"},
		{"bad tag name", map[string]string{"tail": "; 1a=b"}, "permerror: malformed signature"},
		{"no equals sign", map[string]string{"tail": "; foo"}, "permerror: malformed signature"},
		{"NUL", map[string]string{"tail": "; foo=\x00"}, "permerror: malformed signature"},
		{"65 tags", map[string]string{"tail": tagBomb(65)}, "permerror: malformed signature"},
		{"v=2", map[string]string{"v": "2"}, "permerror: unknown version of the signature"},
		{"no v", map[string]string{"v": ""}, "permerror: required tag missing"},
		{"no a", map[string]string{"a": ""}, "permerror: required tag missing"},
		{"no d", map[string]string{"d": ""}, "permerror: required tag missing"},
		{"no s", map[string]string{"s": ""}, "permerror: required tag missing"},
		{"no h", map[string]string{"h": ""}, "permerror: required tag missing"},
		{"no bh", map[string]string{"bh": ""}, "permerror: required tag missing"},
		{"bad bh", map[string]string{"bh": "x"}, "permerror: malformed body hash"},
		{"short bh", map[string]string{"bh": "eA=="}, "permerror: malformed body hash"},
		{"other bh", map[string]string{"bh": "2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8="}, "fail: body hash mismatch"},
		{"C109 sha1", map[string]string{"a": "rsa-sha1"}, "permerror: SHA-1 is not secure"},
		{"unknown a", map[string]string{"a": "dsa-sha256"}, "permerror: unknown algorithm"},
		{"a of another key", map[string]string{"a": "rsa-sha256"}, "permerror: key is for another algorithm"},
		{"From not signed", map[string]string{"h": "to:subject"}, "permerror: From is not signed"},
		{"h in odd case", map[string]string{"h": "FROM : tO"}, "pass"},
		{"absent fields in h", map[string]string{"h": "from:from:cc:to:x-none"}, "pass"},
		{"i=", map[string]string{"i": "@example.com"}, "pass"},
		{"i= of a subdomain", map[string]string{"i": "joe@sub.EXAMPLE.com"}, "pass"},
		{"i= of another domain", map[string]string{"i": "joe@example.org"}, "permerror: the identity is not of the domain"},
		{"i= that ends alike", map[string]string{"i": "joe@badexample.com"}, "permerror: the identity is not of the domain"},
		{"i= with the domain as local part", map[string]string{"i": "example.com@evil.example"}, "permerror: the identity is not of the domain"},
		{"i= without @", map[string]string{"i": "example.com"}, "permerror: malformed identity"},
		{"q=", map[string]string{"q": "x/y:dns/txt"}, "pass"},
		{"unknown q", map[string]string{"q": "http"}, "permerror: unknown query method"},
		{"t=", map[string]string{"t": past}, "pass"},
		{"t= in the future", map[string]string{"t": future}, "pass"},
		{"bad t", map[string]string{"t": "yesterday"}, "permerror: malformed number"},
		{"x=", map[string]string{"t": past, "x": future}, "pass"},
		{"R-13 x= in the past", map[string]string{"x": past}, "fail: the signature has expired"},
		{"x= before t=", map[string]string{"x": past, "t": future}, "permerror: the signature expires before it was made"},
		{"bad x", map[string]string{"x": "-1"}, "permerror: malformed number"},
		{"huge x", map[string]string{"x": strings.Repeat("9", 30)}, "permerror: malformed number"},
		{"l= of the whole body", map[string]string{"l": canonical}, "pass"},
		{"D26 l= of less", map[string]string{"l": "3"}, "fail: the body goes on behind what is signed"},
		{"D26 l=0", map[string]string{"l": "0"}, "fail: the body goes on behind what is signed"},
		{"N-1 l= beyond the body", map[string]string{"l": "99999"}, "permerror: the signed length is more than the body has"},
		{"bad l", map[string]string{"l": "3x"}, "permerror: malformed number"},
		{"C116 A-labels", map[string]string{"d": "xn--bcher-kva.example"}, "pass"},
		{"C116 U-labels", map[string]string{"d": "bücher.example"}, "pass"},
		{"domain with blanks", map[string]string{"d": "exam ple.com"}, "pass"}, // folding white space is removed
		{"bad domain", map[string]string{"d": "exa/mple.com"}, "permerror: malformed domain or selector"},
		{"bad selector", map[string]string{"s": "a..b"}, "permerror: malformed domain or selector"},
		{"literal", map[string]string{"d": "[192.0.2.1]"}, "permerror: malformed domain or selector"},
		{"unknown selector", map[string]string{"s": "other"}, "permerror: no key for signature"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := outcome(verify(t, z, forge(t, key, plain, c.set))); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func tagBomb(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "; x%d=", i)
	}
	return b.String()
}

// TestD27Keys: key records and what is wrong with them.
func TestD27Keys(t *testing.T) {
	k := testKeys()
	ed := base64.StdEncoding.EncodeToString(k.ed.Public().(ed25519.PublicKey))
	rsaSPKI := strings.TrimPrefix(record(t, k.rsa2048), "v=DKIM1; k=rsa; p=")
	pkcs1 := base64.StdEncoding.EncodeToString(x509.MarshalPKCS1PublicKey(&k.rsa2048.PublicKey))
	small := "v=DKIM1; p=MFwwDQYJKoZIhvcNAQEBBQADSwAwSAJBAKj34GkxFhD90vcNLYLInFEX6Ppy1tPf9Cnzj4p4WGeKLs1Pt8QuKUpRKfFLfRYC9AIKjbJTWit+CqvjWYzvQwECAwEAAQ=="
	for _, c := range []struct {
		name string
		key  crypto.Signer
		zone []string
		want string
	}{
		{"bare", k.ed, []string{"k=ed25519; p=" + ed}, "pass"},
		{"v last", k.ed, []string{"k=ed25519; p=" + ed + "; v=DKIM1"}, "permerror: unknown version of the key record"},
		{"other version", k.ed, []string{"v=DKIM2; k=ed25519; p=" + ed}, "permerror: unknown version of the key record"},
		{"lower-case version", k.ed, []string{"v=dkim1; k=ed25519; p=" + ed}, "permerror: unknown version of the key record"},
		{"default is RSA", k.rsa2048, []string{"p=" + rsaSPKI}, "pass"},
		{"PKCS#1", k.rsa2048, []string{"p=" + pkcs1}, "pass"},
		{"folded key", k.rsa2048, []string{"p=" + rsaSPKI[:100] + " \\009" + rsaSPKI[100:]}, "pass"},
		{"1024 bits", k.rsa1024, []string{record(t, k.rsa1024)}, "pass"},
		{"512 bits", k.rsa1024, []string{small}, "permerror: the key has fewer than 1024 bits"},
		{"16384 bits", k.rsa1024, []string{hugeKey(16384, 65537)}, "permerror: the key has more than 8192 bits"},
		{"exponent 1", k.rsa1024, []string{hugeKey(2048, 1)}, "permerror: malformed key"},
		{"even exponent", k.rsa1024, []string{hugeKey(2048, 65536)}, "permerror: malformed key"},
		{"bad DER", k.rsa1024, []string{"p=MIGfMA0GCSqGSIb3DQEBAQUAA4GN"}, "permerror: malformed key"},
		{"bad base64", k.rsa1024, []string{"p=%%%"}, "permerror: malformed key"},
		{"Ed25519 key as RSA", k.ed, []string{"p=" + ed}, "permerror: malformed key"},
		{"RSA key as Ed25519", k.ed, []string{"k=ed25519; p=" + rsaSPKI}, "permerror: malformed key"},
		{"unknown kind", k.ed, []string{"k=ml-dsa; p=" + ed}, "permerror: unknown kind of key"},
		{"revoked", k.ed, []string{"v=DKIM1; p="}, "permerror: key revoked"},
		{"no key", k.ed, []string{"v=DKIM1; k=ed25519"}, "permerror: key record without key"},
		{"not a record", k.ed, []string{"hello world"}, "permerror: malformed key record"},
		{"empty record", k.ed, []string{""}, "permerror: malformed key record"},
		{"hashes", k.ed, []string{"h=sha1:sha256:sha3; k=ed25519; p=" + ed}, "pass"},
		{"only SHA-1", k.ed, []string{"h=sha1; k=ed25519; p=" + ed}, "permerror: the key is not for SHA-256"},
		{"services", k.ed, []string{"s=foo:email; k=ed25519; p=" + ed}, "pass"},
		{"any service", k.ed, []string{"s=*; k=ed25519; p=" + ed}, "pass"},
		{"other service", k.ed, []string{"s=tlsrpt; k=ed25519; p=" + ed}, "permerror: the key is not for mail"},
		{"several records", k.ed, []string{"hello", "k=ed25519; p=" + base64.StdEncoding.EncodeToString(make([]byte, 32)), record(t, k.rsa1024), "k=ed25519; p=" + ed}, "pass"},
		{"wrong key", k.ed, []string{"k=ed25519; p=" + base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{9}, 32))}, "fail: signature verification failed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var text string
			for _, r := range c.zone {
				text += txt("sel._domainkey.example.com", r)
			}
			if got := outcome(verify(t, zone.MustNew(text), forge(t, c.key, plain, nil))); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
	strict := zone.MustNew(txt("sel._domainkey.example.com", "t=y:s; k=ed25519; p="+ed))
	for i, want := range map[string]string{"@example.com": "pass", "@sub.example.com": "permerror: the key is not for subdomains"} {
		v := verify(t, strict, forge(t, k.ed, plain, map[string]string{"i": i}))
		if got := outcome(v); got != want {
			t.Errorf("t=s, i=%s: %q, want %q", i, got, want)
		}
		if v.Results[0].Testing != (want == "pass") {
			t.Errorf("t=y, i=%s: testing %t", i, v.Results[0].Testing)
		}
	}
}

// hugeKey makes the record of a key that only looks like one.
func hugeKey(bits, e int) string {
	n := make([]byte, bits/8)
	rand.Read(n)
	n[0] |= 0x80
	n[len(n)-1] |= 1
	k := &rsa.PublicKey{E: e}
	k.N = new(big.Int).SetBytes(n)
	der, err := x509.MarshalPKIXPublicKey(k)
	if err != nil {
		panic(err)
	}
	return "v=DKIM1; p=" + base64.StdEncoding.EncodeToString(der)
}

// TestD27Time: 100 hostile signatures with the biggest keys cost little.
func TestD27Time(t *testing.T) {
	k := testKeys()
	z := zone.MustNew(txt("sel._domainkey.example.com", hugeKey(8192, 1<<31-1)))
	msg := plain
	one, _, _ := strings.Cut(forge(t, k.rsa2048, plain, nil), "From:")
	sig := base64.StdEncoding.EncodeToString(append([]byte{0}, bytes.Repeat([]byte{0x7f}, 1023)...))
	i := strings.LastIndex(one, " b=")
	one = one[:i] + " b=" + sig + "\r\n"
	for range 100 {
		msg = one + msg
	}
	start := time.Now()
	v := verify(t, z, msg)
	took := time.Since(start)
	if v.Found != 100 || len(v.Results) != MaxSignatures || v.Valid() != 0 {
		t.Errorf("found %d, results %d: %s", v.Found, len(v.Results), outcome(v))
	}
	t.Logf("took %v", took)
	if took > patience.Limit(50*time.Millisecond) {
		t.Errorf("took %v", took)
	}
}

// TestD35ManyNames: long h= lists over long headers take linear time.
func TestD35ManyNames(t *testing.T) {
	k := testKeys()
	z := zone.MustNew(txt("sel._domainkey.example.com", record(t, k.ed)))
	msg := strings.Repeat("a:\r\n", 4000) + plain
	start := time.Now()
	got := outcome(verify(t, z, forge(t, k.ed, msg, map[string]string{"h": "from" + strings.Repeat(":a", 60000)})))
	if took := time.Since(start); took > patience.Limit(100*time.Millisecond) || got != "pass" {
		t.Errorf("%s in %v", got, took)
	}
}

// TestChanges: what a change to the message does to its signature.
func TestChanges(t *testing.T) {
	k := testKeys()
	z := zone.MustNew(txt("sel._domainkey.example.com", record(t, k.ed)))
	s := NewSigner(func(string) []Key { return []Key{{"example.com", "sel", k.ed}} }, nil)
	fields, err := s.SignMessage(bg, "example.com", strings.NewReader(plain))
	if err != nil {
		t.Fatal(err)
	}
	signed := string(fields) + plain
	for _, c := range []struct{ name, old, new, want string }{
		{"nothing", "", "", "pass"},
		{"a field on top", "DKIM-Signature", "X-Spam: no\r\nDKIM-Signature", "pass"},
		{"white space in the header", "Is dinner", "Is \t dinner", "pass"},
		{"another fold", "To: Suzie ", "To:\r\n\tSuzie\r\n ", "pass"},
		{"case of a name", "Subject:", "SUBJECT:", "pass"},
		{"blank before the colon", "Subject:", "Subject :", "pass"},
		{"white space in the body", "game.  Are you", "game. Are \t you", "pass"},
		{"white space at the end of a line", "Hi.\r\n", "Hi. \t\r\n", "pass"},
		{"lines at the end", "yet?\r\n\r\n\r\n", "yet?\r\n", "pass"},
		{"another subject", "dinner", "supper", "fail: signature verification failed"},
		{"another From", "DKIM-Signature", "From: Eve <eve@example.com>\r\nDKIM-Signature", "fail: signature verification failed"},
		{"an added Cc (C111)", "Date:", "Cc: eve@example.com\r\nDate:", "fail: signature verification failed"},
		{"an added Message-ID", "Date:", "Message-ID: <x@y>\r\nDate:", "fail: signature verification failed"},
		{"a space in a word of the body", "hungry", "hun gry", "fail: body hash mismatch"},
		{"text at the end", "yet?\r\n\r\n\r\n", "yet?\r\n\r\n\r\nBuy!\r\n", "fail: body hash mismatch"},
		{"an empty line in the body", "Hi.\r\n", "\r\nHi.\r\n", "fail: body hash mismatch"},
	} {
		msg := strings.Replace(signed, c.old, c.new, 1)
		if c.old == "To: Suzie " && msg == signed {
			t.Fatal("no change made")
		}
		if got := outcome(verify(t, z, msg)); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// TestKeyUnavailable: a temporary DNS error is temperror (C118), for each signature alone.
func TestKeyUnavailable(t *testing.T) {
	k := testKeys()
	z := zone.MustNew("sel._domainkey.broken.example SERVFAIL\n" + txt("sel._domainkey.example.com", record(t, k.ed)))
	msg := forge(t, k.ed, plain, map[string]string{"d": "broken.example"})
	one, _, _ := strings.Cut(msg, "From:")
	msg = one + forge(t, k.ed, plain, nil)
	v := verify(t, z, msg)
	if got := outcome(v); got != "temperror: key unavailable; pass" {
		t.Errorf("got %q", got)
	}
	if d := cmp.Diff([]string{"example.com"}, v.Domains()); d != "" {
		t.Error(d)
	}
	lines := v.AuthRes()
	if !strings.HasPrefix(lines[0], "dkim=temperror  reason=\"key unavailable\"\r\n  header.b=") || !strings.HasSuffix(lines[0], "  header.d=broken.example") {
		t.Errorf("line %q", lines[0])
	}
}

// TestAuthResIsClean: what stands in Authentication-Results cannot be chosen freely by a stranger (D13).
func TestAuthResIsClean(t *testing.T) {
	for _, tail := range []string{"b=\"x\r\n y; d=evil", "d=a;s=b;b=(x)", "d=a.example\x7f", "b=x;d=\r\nInjected: yes", "d=x y\";z"} {
		v := verify(t, zone.MustNew(""), "DKIM-Signature: v=1; "+tail+"\r\nFrom: x\r\n\r\n")
		for _, l := range v.AuthRes() {
			l = strings.ReplaceAll(l, "\r\n  header.", "  header.")
			if strings.ContainsAny(l, "\r\n\x7f;()") || strings.Count(l, `"`)%2 != 0 {
				t.Errorf("%q gives %q", tail, l)
			}
		}
	}
	if got := (Verification{}).AuthRes(); !cmp.Equal(got, []string{"dkim=none"}) {
		t.Errorf("none: %q", got)
	}
}

func TestVerifyMetrics(t *testing.T) {
	k := testKeys()
	z := zone.MustNew(txt("sel._domainkey.example.com", record(t, k.ed)))
	v := NewVerifier(z, expvarom.New())
	run := func(msg string, body io.Reader) {
		h, _ := message.Parse([]byte(msg))
		if body == nil {
			body = strings.NewReader(msg[h.Len():])
		}
		v.Verify(bg, h, func() (io.Reader, error) { return body, nil })
	}
	good := forge(t, k.ed, plain, nil)
	run(plain, nil)
	run(plain, nil)
	run(good, nil)
	run(strings.Replace(good, "dinner", "supper", 1), nil)
	run(good, iotest.ErrReader(errors.New("broken disk")))
	got := fmt.Sprint(v.m.notFound.Value(), v.m.found.Value(), v.m.valid.Value(), v.m.errors.Value(), v.m.results[Pass].Value(), v.m.results[Fail].Value(), v.m.results[None].Value())
	if got != "2 3 1 1 1 1 2" {
		t.Errorf("got %s", got)
	}
}
