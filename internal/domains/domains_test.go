package domains

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"blitiri.com.ar/go/chasquid/internal/expvarom"
)

func (d dir) load(cfg Config) (*Table, []string, error) {
	d.t.Helper()
	cfg.Dir = d.path
	return Load(d.t.Context(), cfg)
}

func (d dir) mustLoad() *Table {
	d.t.Helper()
	t, _, err := d.load(Config{Hostname: "mail.test"})
	if err != nil {
		d.t.Fatal(err)
	}
	return t
}

func names(s *Snapshot) string {
	var list []string
	for _, d := range s.Domains {
		keys := ""
		for _, k := range d.Keys {
			keys += " " + k.Selector + "/" + k.Algo
		}
		list = append(list, d.Name+keys)
	}
	certs := ""
	for _, c := range s.Certs {
		certs += " " + c.Name
	}
	return strings.Join(list, ", ") + ";" + certs
}

// TestCFG8Layout loads a directory with everything in it.
func TestCFG8Layout(t *testing.T) {
	d := newDir(t)
	d.write("certs/README", []byte("not a certificate"))
	d.cert("b.test", 90, "b.test")
	d.cert("a.test", 90, "a.test", "*.a.test")
	d.mkdir("certs/empty")
	d.mkdir("domains/Empty.Test")
	d.mkdir("domains/xn--bcher-kva.example")
	d.mkdir("domains/.git")
	d.write("domains/notes.txt", nil)
	d.write("domains/signed.test/dkim:two.pem", pemKey(t, edKey(t)))
	d.write("domains/signed.test/dkim:one.pem", pemKey(t, rsaKey(t, 1024)))
	d.write("domains/signed.test/other.pem", []byte("not a DKIM key"))
	d.mkdir("real/linked")
	if err := os.Symlink("../real/linked", filepath.Join(d.path, "domains/linked.test")); err != nil {
		t.Fatal(err)
	}
	tab, warnings, err := d.load(Config{})
	if err != nil {
		t.Fatal(err)
	}
	want := "bücher.example, empty.test, linked.test, localhost, signed.test one/rsa-sha256 two/ed25519-sha256; a.test b.test"
	if got := names(tab.Current()); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if len(warnings) != 1 || !strings.HasPrefix(warnings[0], "skipping: ") || !strings.Contains(warnings[0], "certs/empty/fullchain.pem") {
		t.Errorf("warnings %q", warnings)
	}
	dom := tab.Current().Domain("empty.test")
	if dom.Users != filepath.Join(d.path, "domains/Empty.Test/users") || dom.Aliases != filepath.Join(d.path, "domains/Empty.Test/aliases") {
		t.Errorf("files %s %s: want them in the directory as spelled", dom.Users, dom.Aliases)
	}
	if !tab.IsLocal("localhost") || !tab.IsLocal("bücher.example") || tab.IsLocal("other.test") || tab.IsLocal("") {
		t.Error("wrong idea of what is local")
	}
}

// TestRelativePaths holds the texts of start-up errors as existing tooling compares them: relative to the working directory.
func TestRelativePaths(t *testing.T) {
	t.Chdir(t.TempDir())
	_, _, err := Load(t.Context(), Config{})
	if err == nil || !strings.Contains(err.Error(), "open certs/: no such file or directory") {
		t.Error(err)
	}
	if err := os.Mkdir("certs", 0o700); err != nil {
		t.Fatal(err)
	}
	_, _, err = Load(t.Context(), Config{})
	if err == nil || !strings.Contains(err.Error(), `No entries found in "certs/"`) {
		t.Error(err)
	}
}

// TestCFG13Fatal holds what keeps the server from starting: text and remedy.
func TestCFG13Fatal(t *testing.T) {
	t.Setenv("GODEBUG", "rsa1024min=0") // to make a key that is too short
	ec, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	key := func(content []byte) func(dir) {
		return func(d dir) { d.write("domains/x.test/dkim:sel.pem", content) }
	}
	tests := []struct {
		name  string
		spoil func(dir)
		want  []string
	}{
		{"no certs", func(d dir) { d.remove("certs") }, []string{"certs/: no such file or directory"}},
		{"certs empty", func(d dir) { d.remove("certs/ok") }, []string{"No entries found in "}},
		{"no certificate", func(d dir) { d.remove("certs/ok/privkey.pem") }, []string{"At least one valid certificate is needed"}},
		{"only files in certs", func(d dir) { d.remove("certs/ok"); d.write("certs/x.pem", nil) }, []string{"At least one valid certificate is needed"}},
		{"garbage in a certificate", func(d dir) { d.write("certs/ok/fullchain.pem", []byte("x")) }, []string{"certs/ok", "failed to find any PEM data"}},
		{"key of another certificate", func(d dir) { _, k := makeCert(t, 9, "y"); d.write("certs/ok/privkey.pem", k) }, []string{"private key does not match public key"}},
		{"no domains", func(d dir) { d.remove("domains") }, []string{"domains/: no such file or directory"}},
		{"domains empty", func(d dir) { d.remove("domains/ok.test") }, []string{"No entries found in ", "domains/"}},
		{"not a domain", func(d dir) { d.mkdir("domains/a b") }, []string{`"a b" is not a domain`}},
		{"an address literal", func(d dir) { d.mkdir("domains/[192.0.2.1]") }, []string{"is not a domain"}},
		{"DKIM: no PEM", key([]byte("x")), []string{"domains/x.test/dkim:sel.pem: DKIM loading error: error decoding PEM block"}},
		{"DKIM: another block", key(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: []byte("x")})), []string{`DKIM loading error: unsupported block type: "RSA PRIVATE KEY"`}},
		{"DKIM: not PKCS#8", key(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")})), []string{"DKIM loading error: asn1"}},
		{"DKIM: another kind of key", key(pemKey(t, ec)), []string{"DKIM loading error: unsupported key type: *ecdsa.PrivateKey"}},
		{"DKIM: too short", key(pemKey(t, rsaKey(t, 768))), []string{"DKIM loading error: RSA key of 768 bits is too short"}},
		{"two at once", func(d dir) { key([]byte("x"))(d); d.mkdir("domains/a b") }, []string{"DKIM loading error", "is not a domain"}},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			d := newDir(t)
			d.cert("ok", 90, "ok.test")
			d.mkdir("domains/ok.test")
			tc.spoil(d)
			tab, _, err := d.load(Config{})
			if err == nil {
				t.Fatalf("loaded: %s", names(tab.Current()))
			}
			for _, w := range tc.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("got %v\nwant %q", err, w)
				}
			}
			var r interface{ Remedy() string }
			if !errors.As(err, &r) || r.Remedy() == "" {
				t.Error("no remedy")
			}
		})
	}
}

// TestDKIMBlockType: the type of the PEM block is compared without regard to case.
func TestDKIMBlockType(t *testing.T) {
	d := newDir(t)
	d.cert("ok", 90, "ok.test")
	text := strings.ReplaceAll(string(pemKey(t, edKey(t))), "PRIVATE KEY", "Private Key")
	d.write("domains/x.test/dkim:sel.pem", []byte(text))
	if got := names(d.mustLoad().Current()); got != "localhost, x.test sel/ed25519-sha256; ok" {
		t.Error(got)
	}
}

func TestCertsOptional(t *testing.T) {
	for _, certs := range []bool{true, false} {
		d := newDir(t)
		if !certs {
			d.remove("certs")
		}
		d.mkdir("domains/x.test")
		tab, warnings, err := d.load(Config{CertsOptional: true})
		if err != nil || len(warnings) > 0 || names(tab.Current()) != "localhost, x.test;" {
			t.Errorf("certs/ there: %v: %v", certs, err)
		}
	}
}

// TestN2Expect: whether certificates must be there can change.
func TestN2Expect(t *testing.T) {
	d := newDir(t)
	d.mkdir("domains/x.test")
	tab, _, err := d.load(Config{CertsOptional: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, optional := range []bool{false, true} {
		tab.Expect("x.test", optional)
		if _, _, err := tab.Reload(t.Context()); (err == nil) != optional {
			t.Errorf("without certificates, optional %t: %v", optional, err)
		}
	}
}

// TestReload walks through the life of a directory. Each step changes files and says what must then be in force.
func TestReload(t *testing.T) {
	d := newDir(t)
	d.cert("one", 90, "one.test")
	d.mkdir("domains/a.test")
	tab := d.mustLoad()
	const start = "a.test, localhost; one"
	oldChain, oldKey := makeCert(t, 90, "one.test")
	steps := []struct {
		name    string
		do      func()
		want    string
		changed bool
		err     string
	}{
		{"nothing", func() {}, start, false, ""},
		{"users file written", func() { d.write("domains/a.test/users", []byte("users: {}")) }, start, false, ""},
		{"domain added", func() { d.mkdir("domains/b.test") }, "a.test, b.test, localhost; one", true, ""},
		{"key added", func() { d.write("domains/b.test/dkim:s.pem", pemKey(t, edKey(t))) }, "a.test, b.test s/ed25519-sha256, localhost; one", true, ""},
		{"key damaged", func() { d.write("domains/b.test/dkim:s.pem", []byte("x")) }, "a.test, b.test s/ed25519-sha256, localhost; one", false, "error decoding PEM block"},
		{"still damaged, another domain added", func() { d.mkdir("domains/c.test") }, "a.test, b.test s/ed25519-sha256, c.test, localhost; one", true, "error decoding PEM block"},
		{"bad domain directory added", func() { d.mkdir("domains/x y") }, "a.test, b.test s/ed25519-sha256, c.test, localhost; one", false, "is not a domain"},
		{"key removed", func() { d.remove("domains/b.test/dkim:s.pem"); d.remove("domains/x y") }, "a.test, b.test, c.test, localhost; one", true, ""},
		{"domain removed", func() { d.remove("domains/b.test") }, "a.test, c.test, localhost; one", true, ""},
		{"certificate added", func() { d.cert("two", 90, "two.test") }, "a.test, c.test, localhost; one two", true, ""},
		{"half a renewal", func() { d.write("certs/one/fullchain.pem", oldChain) }, "a.test, c.test, localhost; one two", false, "private key does not match"},
		{"the other half", func() { d.write("certs/one/privkey.pem", oldKey) }, "a.test, c.test, localhost; one two", true, ""},
		{"file vanished", func() { d.remove("certs/two/privkey.pem") }, "a.test, c.test, localhost; one two", false, "no such file"},
		{"certificate removed", func() { d.remove("certs/two") }, "a.test, c.test, localhost; one", true, ""},
		{"all certificates gone", func() { d.remove("certs/one") }, "a.test, c.test, localhost; one", false, "No entries found"},
		{"all domains gone", func() { d.remove("domains"); d.mkdir("domains") }, "a.test, c.test, localhost; one", false, "No entries found"},
		{"directories gone", func() { d.remove("domains"); d.remove("certs") }, "a.test, c.test, localhost; one", false, "no such file"},
		{"back again", func() { d.cert("one", 90, "one.test"); d.mkdir("domains/a.test") }, start, true, ""},
	}
	for _, s := range steps {
		s.do()
		changed, _, err := tab.Reload(t.Context())
		if got := names(tab.Current()); got != s.want || changed != s.changed {
			t.Errorf("%s: changed %v, got %q, want %v %q", s.name, changed, got, s.changed, s.want)
		}
		if (err == nil) != (s.err == "") || err != nil && !strings.Contains(err.Error(), s.err) {
			t.Errorf("%s: %v, want %q", s.name, err, s.err)
		}
	}
}

// TestSnapshotsDoNotChange: who holds a snapshot keeps seeing the same.
func TestSnapshotsDoNotChange(t *testing.T) {
	d := newDir(t)
	d.cert("one", 90, "one.test")
	d.mkdir("domains/a.test")
	tab := d.mustLoad()
	held := tab.Current()
	before := names(held)
	d.mkdir("domains/b.test")
	d.cert("two", 90, "two.test")
	if changed, _, err := tab.Reload(t.Context()); !changed || err != nil {
		t.Fatal(changed, err)
	}
	if names(held) != before || held.IsLocal("b.test") {
		t.Errorf("changed from %q to %q", before, names(held))
	}
}

func TestSameDomainTwice(t *testing.T) {
	d := newDir(t)
	d.cert("one", 90, "one.test")
	d.mkdir("domains/A.test")
	d.mkdir("domains/a.test")
	tab, warnings, err := d.load(Config{})
	if err != nil || len(warnings) != 1 || !strings.Contains(warnings[0], "the same domain") || names(tab.Current()) != "a.test, localhost; one" {
		t.Errorf("%v %q", err, warnings)
	}
}

func TestMetrics(t *testing.T) {
	d := newDir(t)
	d.cert("one", 90, "one.test")
	d.write("domains/a.test/dkim:s.pem", pemKey(t, edKey(t)))
	d.mkdir("domains/one.test")
	reg := expvarom.New()
	tab, _, err := d.load(Config{Metrics: reg, Hostname: "mail.test", Users: func() int { return 7 }})
	if err != nil {
		t.Fatal(err)
	}
	d.write("certs/one/privkey.pem", []byte("x"))
	tab.Reload(t.Context())
	tab.Reload(t.Context())
	got := map[string]float64{}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.Metric {
			key := f.GetName()
			for _, l := range m.Label {
				key += " " + l.GetValue()
			}
			got[key] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	c := tab.Current().Certs[0]
	for key, want := range map[string]float64{
		"chasquid_tls_certificate_not_after_timestamp_seconds one":  float64(c.NotAfter.Unix()),
		"chasquid_tls_certificate_not_before_timestamp_seconds one": float64(c.NotBefore.Unix()),
		"chasquid_tls_certificate_load_errors_total one":            2,
		"chasquid_tls_domains_without_certificate":                  1, // a.test; neither localhost nor one.test
		"chasquid_config_objects domain":                            3,
		"chasquid_config_objects dkim_key":                          1,
		"chasquid_config_objects certificate":                       1,
		"chasquid_config_objects user":                              7,
	} {
		if v, ok := got[key]; !ok || v != want {
			t.Errorf("%s = %v (there: %v), want %v", key, v, ok, want)
		}
	}
}
