package cli

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/internal/config"
	"blitiri.com.ar/go/chasquid/internal/dkim"
	"blitiri.com.ar/go/chasquid/internal/dns/zone"
	"blitiri.com.ar/go/chasquid/internal/domains"
)

// quickKey is a DKIM key, as making an RSA key takes its time.
const quickKey = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n"

// setupDir is a configuration directory made by setup.
func setupDir(t *testing.T, options ...string) (dir string, r result) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "etc")
	writeFile(t, filepath.Join(dir, "domains/example.com/dkim:sel.pem"), quickKey)
	words := append([]string{"chasquid", "setup", "example.com", "-C", dir, "-data_dir", filepath.Join(filepath.Dir(dir), "data")}, options...)
	r = run(t, Env{}, words...)
	if r.exit != 0 {
		t.Fatalf("setup: exit %d, %s", r.exit, r.errout)
	}
	return dir, r
}

// TestSetupSkeleton: in an installed skeleton, settings that it lacks are added and the link that leads nowhere is replaced; what it
// sets stays, and once there is a domain nothing is added any more.
func TestSetupSkeleton(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "chasquid.conf")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("smtp_address: \":2525\"\nmail_delivery_agent_bin: \"/bin/true\"\n# end")
	if err := os.Symlink("/nowhere/live/", filepath.Join(dir, "certs")); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(t.TempDir(), "data")
	r := run(t, Env{}, "chasquid", "setup", "example.com", "-password=x", "-C", dir, "-data_dir", data)
	conf, err := config.Load(file, "")
	if r.exit != 0 || err != nil || conf.GetHostname() != "mail.example.com" || conf.GetDataDir() != data || conf.LocalMaildir != "" ||
		conf.GetMailDeliveryAgentBin() != "/bin/true" || conf.GetSmtpAddress()[0] != ":2525" || conf.GetMonitoringAddress() == "" {
		t.Errorf("exit %d, %v, %s\n%s", r.exit, err, r.errout, r.out)
	}
	if _, err := os.Stat(filepath.Join(dir, "certs", "mail.example.com", "fullchain.pem")); err != nil || !strings.Contains(r.out, "/nowhere/live/") {
		t.Errorf("%v\n%s", err, r.out)
	}
	write("smtp_address: \":2525\"\n")
	run(t, Env{}, "chasquid", "setup", "second.example", "-password=x", "-C", dir, "-data_dir", data)
	if text, _ := os.ReadFile(file); string(text) != "smtp_address: \":2525\"\n" {
		t.Errorf("settings were added although there is a domain:\n%s", text)
	}
}

// TestO2Setup: what setup makes passes check, users can log in, and a second run changes nothing.
func TestO2Setup(t *testing.T) {
	dir, r := setupDir(t, "-password=secret", "-user=Ana", "-ip=192.0.2.5,2001:db8::5")
	for _, w := range []string{"mail.example.com.\tA\t192.0.2.5\n", "mail.example.com.\tAAAA\t2001:db8::5\n", "example.com.\tMX\t10 mail.example.com.\n",
		"example.com.\tTXT\t\"v=spf1 mx -all\"\n", "sel._domainkey.example.com.\tTXT\t\"v=DKIM1; k=ed25519; p="} {
		if !strings.Contains(r.out, w) {
			t.Errorf("does not say %q:\n%s", w, r.out)
		}
	}
	if strings.Contains(r.out, "secret") {
		t.Error("shows the password that was given")
	}
	if r := run(t, Env{}, "chasquid-util", "authenticate", "ana@example.com", "--password=secret", "-C="+dir); r.exit != 0 {
		t.Errorf("authenticate: %s", r.errout)
	}
	if r := run(t, Env{}, "chasquid", "check", "-no_dns", "-C", dir); r.exit != 0 || strings.Contains(r.out, "fail ") {
		t.Errorf("check: exit %d\n%s", r.exit, r.out)
	}
	before := snapshot(t, dir)
	if r := run(t, Env{}, "chasquid", "setup", "example.com", "-user=ana", "-C", dir); r.exit != 0 || !strings.Contains(r.out, "left alone") {
		t.Errorf("second setup: exit %d %s", r.exit, r.errout)
	}
	if after := snapshot(t, dir); after != before {
		t.Errorf("a second run changed files:\n%s\n%s", before, after)
	}
	if r := run(t, Env{}, "chasquid", "setup", "second.example", "-password=x", "-C", dir); r.exit != 0 || !strings.Contains(r.out, "second.example.\tMX\t10 mail.example.com.") ||
		!strings.Contains(r.out, "._domainkey.second.example.\tTXT\t\"v=DKIM1; k=rsa; p=") {
		t.Errorf("second domain: exit %d %s%s", r.exit, r.out, r.errout)
	}
	if r := run(t, Env{}, "chasquid", "setup", "bad/domain", "-C", dir); r.exit != 2 {
		t.Errorf("bad domain: exit %d", r.exit)
	}
}

// snapshot is the names and contents of all files.
func snapshot(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(filepath.Join(dir, path))
		b.WriteString(path + "\n" + string(data))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestSetupACME(t *testing.T) {
	dir, r := setupDir(t, "-acme_email=a@example.com")
	if !strings.Contains(r.out, "with the password ") {
		t.Errorf("the user cannot know the password:\n%s", r.out)
	}
	if _, err := os.Stat(filepath.Join(dir, "certs/mail.example.com")); err == nil {
		t.Error("made a certificate that will be fetched")
	}
	if r := run(t, Env{}, "chasquid", "check", "-no_dns", "-C", dir); r.exit != 0 {
		t.Errorf("check: %s", r.out)
	}
}

// TestO1Check breaks one thing at a time: check says which.
func TestO1Check(t *testing.T) {
	base, _ := setupDir(t, "-password=x")
	files := os.DirFS(base)
	for _, c := range []struct {
		name   string
		breaks func(t *testing.T, dir string)
		exit   int
		says   string
	}{
		{"nothing", func(*testing.T, string) {}, 0, "0 failures"},
		{"no settings", func(t *testing.T, dir string) { os.Remove(filepath.Join(dir, "chasquid.conf")) }, 1, "fail  settings: failed to read config"},
		{"unknown setting", addTo("chasquid.conf", "colour: 1\n"), 1, "fail  settings: "},
		{"no certificates", func(t *testing.T, dir string) { os.RemoveAll(filepath.Join(dir, "certs")) }, 1, "certs/"},
		{"bad key", addTo("certs/mail.example.com/privkey.pem", "x", "x"), 1, "fail  domains and certificates: "},
		{"expired certificate", expiredCert, 1, "it ended on"},
		{"key for all to see", func(t *testing.T, dir string) {
			os.Chmod(filepath.Join(dir, "certs/mail.example.com/privkey.pem"), 0o644)
		}, 0, "can be read by everybody"},
		{"bad users", addTo("domains/example.com/users", "nonsense"), 1, "users file error"},
		{"bad aliases", addTo("domains/example.com/aliases", "a line\n"), 1, "missing ':' in line"},
		{"bad dkim key", addTo("domains/example.com/dkim:bad.pem", "x"), 1, "error decoding PEM block"},
		{"hook without x", addTo("hooks/post-data", "#!/bin/sh\n"), 1, "cannot be executed"},
		{"no mda", addTo("chasquid.conf", "hostname: 'mail.example.com'\nmail_delivery_agent_bin: '/no/such'\nsmtp_address: ':25'\n", "x"), 0, "the program /no/such cannot be run"},
		{"no lmtp", addTo("chasquid.conf", "hostname: 'mail.example.com'\nlocal_delivery: 'lmtp:/no/such'\nsmtp_address: ':25'\n", "x"), 0, "warn  local delivery: "},
		{"bad address", addTo("chasquid.conf", "smtp_address: '127.0.0.1:notaport'\n", "x"), 1, "fail  "},
		{"acme, never started", addTo("chasquid.conf", acmeOn, "x"), 0, "warn  ACME mail2.example.com: there is no certificate yet"},
		{"acme, failing", both(addTo("chasquid.conf", acmeOn, "x"), addTo("../data/acme/attempts.json", `{"mail2.example.com": {"failures": 2, "last": "2026-01-01T00:00:00Z", "error": "403 no"}}`)), 0, "the last attempt failed: 403 no"},
		{"acme, not needed", addTo("chasquid.conf", "acme { http_address: '127.0.0.1:0' }"), 0, "ok    ACME mail.example.com: not needed"},
		{"acme, root is none", addTo("chasquid.conf", "acme { ca_file: 'chasquid.conf' }"), 1, "there is no certificate in"},
		{"empty domain", addTo("domains/empty.example/.keep", ""), 0, "it has no users and no aliases"},
		{"data_dir is a file", addTo("chasquid.conf", "data_dir: 'chasquid.conf'\nsmtp_address: ':25'\n", "x"), 1, "not a directory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "etc")
			if err := os.CopyFS(dir, files); err != nil {
				t.Fatal(err)
			}
			os.Chmod(filepath.Join(dir, "certs/mail.example.com/privkey.pem"), 0o600)
			c.breaks(t, dir)
			r := run(t, Env{}, "chasquid", "check", "-no_dns", "-C", dir)
			if r.exit != c.exit || !strings.Contains(r.out, c.says) {
				t.Errorf("exit %d\n%s%s", r.exit, r.out, r.errout)
			}
		})
	}
}

// acmeOn replaces the settings; data_dir is beside the configuration.
const acmeOn = "hostname: 'mail.example.com'\nsmtp_address: ':25'\nacme { hostname: 'mail2.example.com' http_address: '127.0.0.1:0' }\ndata_dir: '../data'\n"

func both(fs ...func(*testing.T, string)) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		for _, f := range fs {
			f(t, dir)
		}
	}
}

// addTo appends to a file, or with a third argument replaces it.
func addTo(name, text string, replace ...string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		t.Helper()
		path := filepath.Join(dir, name)
		old, _ := os.ReadFile(path)
		if len(replace) > 0 {
			old = nil
		}
		writeFile(t, path, string(old)+text)
	}
}

func expiredCert(t *testing.T, dir string) {
	cert, key, err := selfSigned("mail.example.com", time.Now().AddDate(-2, 0, 0))
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "certs/mail.example.com/fullchain.pem"), string(cert))
	writeFile(t, filepath.Join(dir, "certs/mail.example.com/privkey.pem"), string(key))
}

// TestO1CheckDNS: good records are ok, and each bad one is told with what to publish.
func TestO1CheckDNS(t *testing.T) {
	dir, _ := setupDir(t, "-password=x")
	table, _, err := domains.Load(t.Context(), domains.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	key := table.Current().Domain("example.com").Keys[0]
	record, err := dkim.Record(key.Signer.Public())
	if err != nil {
		t.Fatal(err)
	}
	name := key.Selector + "._domainkey.example.com"
	good := map[string]string{
		"host":  "mail.example.com A 192.0.2.5",
		"ptr":   "5.2.0.192.in-addr.arpa PTR mail.example.com",
		"mx":    "example.com MX 10 mail.example.com",
		"spf":   "example.com TXT \"v=spf1 mx -all\"",
		"dkim":  name + " TXT " + dkim.QuoteTXT(record),
		"dmarc": "_dmarc.example.com TXT \"v=DMARC1; p=reject\"",
	}
	for _, c := range []struct {
		name, what, instead string
		exit                int
		says                string
	}{
		{"good", "", "", 0, "0 failures"},
		{"no host", "host", "", 1, "warn  host mail.example.com: the name has no address"},
		{"no ptr", "ptr", "", 0, "has no reverse name"},
		{"other ptr", "ptr", "5.2.0.192.in-addr.arpa PTR x.example.net", 0, "the reverse name of 192.0.2.5 is x.example.net"},
		{"no mx", "mx", "", 1, "publish: example.com. MX 10 mail.example.com."},
		{"null mx", "mx", "example.com MX 0 .", 1, "takes no mail"},
		{"other mx", "mx", "example.com MX 10 other.example.net\nother.example.net A 192.0.2.9", 1, "no MX is this server"},
		{"mx fails", "mx", "example.com SERVFAIL MX", 0, "could not be looked up"},
		{"no spf", "spf", "", 0, "there is no SPF record"},
		{"bad spf", "spf", "example.com TXT \"v=spf1 nonsense -all\"", 1, "the SPF record is in error"},
		{"narrow spf", "spf", "example.com TXT \"v=spf1 -all\"", 1, "add ip4:192.0.2.5 to it"},
		{"no dkim", "dkim", "", 1, "is not published: its signatures fail"},
		{"other dkim", "dkim", name + " TXT \"v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\"", 1, "the record is of another key"},
		{"no dmarc", "dmarc", "", 0, "there is no valid DMARC record"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var text strings.Builder
			for what, line := range good {
				if what == c.what {
					line = c.instead
				}
				text.WriteString(line + "\n")
			}
			r := run(t, Env{Resolver: zone.MustNew(text.String())}, "chasquid", "check", "-C", dir)
			if r.exit != c.exit || !strings.Contains(r.out, c.says) {
				t.Errorf("exit %d\n%s%s", r.exit, r.out, r.errout)
			}
			r = run(t, Env{Resolver: zone.MustNew(text.String())}, "chasquid", "check", "-json", "-C", dir)
			var out struct {
				Failed   int
				Findings []finding
			}
			if err := json.Unmarshal([]byte(r.out), &out); err != nil || len(out.Findings) < 8 || r.exit != c.exit || (out.Failed > 0) != (c.exit == 1) {
				t.Errorf("JSON: exit %d, %v, %s", r.exit, err, r.out)
			}
		})
	}
}
