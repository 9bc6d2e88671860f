package config

import (
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
)

var update = flag.Bool("update", false, "rewrite golden files")

// load writes text as a configuration file and loads it.
func load(t *testing.T, text, overrides string) (*Config, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), FileName)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return Load(path, overrides)
}

func mustLoad(t *testing.T, text, overrides string) *Config {
	t.Helper()
	c, err := load(t, text, overrides)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestCFG2Fields holds the names, numbers and types that files of existing installations use.
func TestCFG2Fields(t *testing.T) {
	want := `1 hostname string
2 max_data_size_mb int64
3 smtp_address repeated string
4 submission_address repeated string
5 submission_over_tls_address repeated string
6 monitoring_address string
7 mail_delivery_agent_bin string
8 mail_delivery_agent_args repeated string
9 data_dir string
10 suffix_separators optional string
11 drop_characters optional string
12 mail_log_path string
13 dovecot_auth bool
14 dovecot_userdb_path string
15 dovecot_client_path string
16 haproxy_incoming bool
17 max_queue_items uint32
18 give_up_send_after string
`
	var got strings.Builder
	fields := (&Settings{}).ProtoReflect().Descriptor().Fields()
	for n := 1; n <= 18; n++ {
		fd := fields.ByNumber(protowireNumber(n))
		kind := fd.Kind().String()
		if fd.IsList() {
			kind = "repeated " + kind
		}
		if fd.HasOptionalKeyword() {
			kind = "optional " + kind
		}
		got.WriteString(strings.Join([]string{itoa(n), string(fd.Name()), kind}, " ") + "\n")
	}
	if d := cmp.Diff(want, got.String()); d != "" {
		t.Error(d)
	}
	for i := range fields.Len() {
		if n := fields.Get(i).Number(); n > 18 && n < 100 {
			t.Errorf("field %d: new fields are numbered from 100", n)
		}
	}
}

// TestCFG2Defaults holds what an empty file means.
func TestCFG2Defaults(t *testing.T) {
	c := mustLoad(t, "", "")
	if h, _ := os.Hostname(); c.Hostname != h {
		t.Errorf("hostname %q, want the system's %q", c.Hostname, h)
	}
	c.Hostname = "host"
	golden(t, "testdata/defaults.txt", c.Text())
	if c.GiveUp != 5*24*time.Hour || c.DelayNotice != 4*time.Hour || c.MaxDataSize != 50<<20 {
		t.Errorf("give up %v, delay notice %v, max data size %d", c.GiveUp, c.DelayNotice, c.MaxDataSize)
	}
	if c.Time.Command != 5*time.Minute || c.Time.Session != time.Hour || c.Time.AliasHook != 5*time.Second {
		t.Errorf("times %+v", c.Time)
	}
	if len(c.TrustedProxy) != 8 || c.ACME != nil || c.Relay != nil || !c.SRS || !c.TLSReports {
		t.Errorf("parsed values %+v", c)
	}
}

// TestCFG3Merge holds which values of a layer count as set.
func TestCFG3Merge(t *testing.T) {
	tests := []struct {
		name, file, over string
		want             string // text that the effective settings contain
		not              string // text that they do not contain
	}{
		{"string replaced", `data_dir: "/a"`, `data_dir: "/b"`, `data_dir: "/b"`, "/a"},
		{"empty string is not set", `data_dir: "/a"`, `data_dir: ""`, `data_dir: "/a"`, ""},
		{"zero is not set", `max_data_size_mb: 7`, `max_data_size_mb: 0`, "max_data_size_mb: 7", ""},
		{"negative is not set", `max_data_size_mb: -3`, "", "max_data_size_mb: 50", ""},
		{"negative override is not set", `max_data_size_mb: 7`, "max_data_size_mb: -1", "max_data_size_mb: 7", ""},
		{"true is set", ``, `dovecot_auth: true`, "dovecot_auth: true", ""},
		{"false does not turn off", `haproxy_incoming: true`, `haproxy_incoming: false`, "haproxy_incoming: true", ""},
		{"list replaced, never appended", `smtp_address: ":25" smtp_address: ":26"`, `smtp_address: ":27"`, `smtp_address: ":27"`, `":25"`},
		{"empty list is not set", `smtp_address: ":25"`, `smtp_address: []`, `smtp_address: ":25"`, ""},
		{"list of one empty text is set", `smtp_address: ""`, ``, `smtp_address: ""`, ""},
		{"list syntax", `smtp_address: [":25", ":26"]`, ``, "smtp_address: \":25\"\nsmtp_address: \":26\"\n", "systemd\"\nsubmission_a"},
		{"args replaced as a whole", `mail_delivery_agent_args: "x"`, ``, "mail_delivery_agent_args: \"x\"\ndata_dir", ""},
		{"presence: explicit empty overrides", `suffix_separators: ""`, ``, `suffix_separators: ""`, ""},
		{"presence: in overrides too", `drop_characters: "._"`, `drop_characters: ""`, `drop_characters: ""`, "._"},
		{"presence: unset keeps", ``, ``, `suffix_separators: "+"`, ""},
		{"uint32 zero", `max_queue_items: 5`, `max_queue_items: 0`, "max_queue_items: 5", ""},
		{"give up not positive stays (CFG-4)", `give_up_send_after: "-1h"`, ``, `give_up_send_after: "120h"`, ""},
		{"give up zero stays (CFG-4)", `give_up_send_after: "0"`, ``, `give_up_send_after: "120h"`, ""},
		{"give up override", `give_up_send_after: "10h"`, `give_up_send_after: "20h"`, `give_up_send_after: "20h"`, ""},
		{"block merged field by field", `timeouts { command: "1m" data: "2m" }`, `timeouts { data: "9m" }`, "  command: \"1m\"\n  data: \"9m\"\n  session: \"60m\"", ""},
		{"block added", `acme { email: "a@b.test" } hostname: "m.b.test"`, `acme { ca_file: "" }`, "acme: {\n  email: \"a@b.test\"\n}", ""},
		{"quotes, comments, separators, concatenation", "# c\nhostname: 'a.' \"b\"; data_dir: \"/x\\x2fy\", # d\n", ``, "hostname: \"a.b\"", ""},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			got := mustLoad(t, tc.file, tc.over).Text()
			if !strings.Contains(got, tc.want) {
				t.Errorf("missing %q in:\n%s", tc.want, got)
			}
			if tc.not != "" && strings.Contains(got, tc.not) {
				t.Errorf("unexpected %q in:\n%s", tc.not, got)
			}
		})
	}
}

// TestCFG5ReadError holds the text and the cause of a missing file.
func TestCFG5ReadError(t *testing.T) {
	dir := t.TempDir()
	_, err := Load(dir+"/chasquid.conf", "")
	want := `failed to read config at "` + dir + `/chasquid.conf": open ` + dir + `/chasquid.conf: no such file or directory`
	if err == nil || err.Error() != want || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	_, err = Load("/dev/zero", "")
	if err == nil || !strings.Contains(err.Error(), "not a configuration file") {
		t.Errorf("endless file: %v", err)
	}
	if _, err := Load(dir, ""); err == nil {
		t.Error("a directory was read")
	}
}

// TestPrintRoundTrip: what Text writes is read back as the same settings, by the parser and by Load.
func TestPrintRoundTrip(t *testing.T) {
	text := `hostname: "mäil.example" mail_delivery_agent_args: "a\"b\\c\n\t\x01" suffix_separators: "" max_queue_items: 4294967295
		route { domain: "a.test" via: "h:26" } route { domain: ".b.test" via: "mx" } acme { email: "x@y.test" hostname: "a.test" }`
	c := mustLoad(t, text, "")
	var back Settings
	if err := prototext.Unmarshal([]byte(c.Text()), &back); err != nil {
		t.Fatalf("%v in:\n%s", err, c.Text())
	}
	if !proto.Equal(&back, c.Settings) {
		t.Errorf("changed by printing:\n%v\n%v", &back, c.Settings)
	}
	if d := mustLoad(t, c.Text(), ""); !d.Equal(c) {
		t.Error("changed by printing and loading")
	}
}

func TestRedacted(t *testing.T) {
	c := mustLoad(t, `hostname: "a.b" otlp_endpoint: "https://u:geheim@host/v1/traces"`, "")
	if got := c.RedactedText(); strings.Contains(got, "geheim") || !strings.Contains(got, "u:xxxxx@host") {
		t.Error(got)
	}
	if !strings.Contains(c.Text(), "geheim") {
		t.Error("Text must show the settings as they are")
	}
	for _, l := range c.Lines() {
		if strings.Contains(l, "geheim") {
			t.Error(l)
		}
	}
}

// TestParsedValues holds the values that the rest of the server gets instead of texts.
func TestParsedValues(t *testing.T) {
	dir := t.TempDir()
	os.WriteFile(filepath.Join(dir, "pw"), []byte("s3cret\nsecond line\n"), 0o600)
	path := filepath.Join(dir, FileName)
	os.WriteFile(path, []byte(`
hostname: "mail.example.org"
data_dir: "data"
local_delivery: "maildir:mail/%to_domain%/%to_user%"
relay_via: "smtps://me@relay.test"
relay_password_file: "pw"
route { domain: "Bücher.example" via: "mx" }
route { domain: ".partner.test" via: "smtp://you@[2001:db8::1]" password_file: "pw" }
route { domain: "c.test" via: "mx1.c.test:2525" }
outgoing_address: ["192.0.2.1", "2001:db8::7"]
dns_server: ["127.0.0.1", "::1", "192.0.2.53:5353"]
haproxy_trusted: ["192.0.2.7", "2001:db8:1::/48"]
srs: "off"
delay_notice_after: "0s"
acme {}
`), 0o600)
	c, err := Load(path, "")
	if err != nil {
		t.Fatal(err)
	}
	type values struct {
		Maildir, SRSFile       string
		Relay                  *Relay
		Routes                 []DomainRoute
		Outgoing, DNS, Trusted string
		SRS                    bool
		Delay                  time.Duration
		ACME                   *ACMEConfig
	}
	want := values{
		Maildir: filepath.Join(dir, "mail/%to_domain%/%to_user%"), SRSFile: filepath.Join(dir, "data/srs-secret"),
		Relay: &Relay{Host: "relay.test", Port: 465, TLS: ImplicitTLS, User: "me", Password: "s3cret"},
		Routes: []DomainRoute{
			{Domain: "bücher.example"},
			{Domain: "partner.test", Subdomains: true, Relay: &Relay{Host: "2001:db8::1", Port: 587, TLS: StartTLS, User: "you", Password: "s3cret"}},
			{Domain: "c.test", Relay: &Relay{Host: "mx1.c.test", Port: 2525}},
		},
		Outgoing: "[192.0.2.1 2001:db8::7]", DNS: "[127.0.0.1:53 [::1]:53 192.0.2.53:5353]",
		Trusted: "[192.0.2.7/32 2001:db8:1::/48]",
		ACME: &ACMEConfig{DirectoryURL: "https://acme-v02.api.letsencrypt.org/directory", Challenge: "http-01", Address: ":80",
			Hostnames: []string{"mail.example.org"}},
	}
	got := values{c.LocalMaildir, c.SRSSecretFile, c.Relay, c.Routes, sprint(c.OutgoingIPs), sprint(c.Resolvers),
		sprint(c.TrustedProxy), c.SRS, c.DelayNotice, c.ACME}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if len(c.Warnings) != 0 {
		t.Errorf("warnings: %q", c.Warnings)
	}
	if strings.Contains(c.Text(), "s3cret") {
		t.Error("the password is in the settings")
	}
}

// TestACMESettings: names in the form of certificates, the address of the challenge that was chosen, and the key of the account.
func TestACMESettings(t *testing.T) {
	path := filepath.Join(t.TempDir(), FileName)
	os.WriteFile(filepath.Join(filepath.Dir(path), "key"), []byte("zWNDZM6e+A/8\n"), 0o600)
	os.WriteFile(path, []byte(`hostname: "mail.test"
acme { hostname: ["Mail.Test", "mail.test.", "b\303\274cher.test"] challenge: "tls-alpn-01" tls_alpn_address: "127.0.0.1:8443" eab_key_id: "kid" eab_key_file: "key" }`), 0o600)
	c, err := Load(path, "")
	if err != nil {
		t.Fatal(err)
	}
	want := &ACMEConfig{DirectoryURL: "https://acme-v02.api.letsencrypt.org/directory", Challenge: "tls-alpn-01", Address: "127.0.0.1:8443",
		Hostnames: []string{"mail.test", "xn--bcher-kva.test"}, KeyID: "kid", MACKey: []byte{0xcd, 0x63, 0x43, 0x64, 0xce, 0x9e, 0xf8, 0x0f, 0xfc}}
	if d := cmp.Diff(want, c.ACME); d != "" {
		t.Error(d)
	}
}

func TestWarnings(t *testing.T) {
	tests := []struct{ text, want string }{
		{`max_data_size_mb: -5`, "max_data_size_mb: -5 is not positive"},
		{`give_up_send_after: "-5s"`, "give_up_send_after: -5s is not positive"},
		{`hostname: "host"`, "fully qualified"},
		{`suffix_separators: "+." drop_characters: "."`, "is a suffix separator too"},
		{`max_recipients: 20`, "at least 100 recipients"},
		{`mail_log_path: "<sysolg>"`, "taken as a file name"},
		{`dovecot_client_path: "/x"`, "no effect without dovecot_auth"},
		{`mail_delivery_agent_args: "%rcpt%"`, "nothing replaces %rcpt%"},
		{`give_up_send_after: "2h"`, "no delay notice is ever sent"},
		{`local_delivery: "maildir:/var/mail"`, "share one Maildir"},
		{`relay_password_file: "x"`, "no effect without relay_via"},
		{`max_connections: 10`, "max_connections_per_ip: 100 has no effect"},
	}
	for _, tc := range tests {
		c := mustLoad(t, tc.text, "")
		if !strings.Contains(strings.Join(c.Warnings, "\n"), tc.want) {
			t.Errorf("%s: missing %q in %q", tc.text, tc.want, c.Warnings)
		}
	}
}

// FuzzLoad: no text crashes the loader, errors have a position or a field, and what loads prints and loads again the same.
func FuzzLoad(f *testing.F) {
	for _, s := range []string{"", `hostname: "a"`, "smtp_address: [\":25\", 'x']", "acme { email: 3 }", "route { domain: \".\" via: \"://\" }",
		"timeouts <command: \"\">", "\"", "{", "hostname: \"\\xff\"", "relay_via: \"smtps://u:p@[::1]:99999\"", "#", "dns_server: \"[\""} {
		f.Add(s)
	}
	path := filepath.Join(f.TempDir(), FileName)
	f.Fuzz(func(t *testing.T, text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := Load(path, "")
		if err != nil {
			for _, e := range Errors(err) {
				if e.Fix == "" || e.Msg == "" {
					t.Errorf("unhelpful error %+v", e)
				}
			}
			if len(Errors(err)) == 0 {
				t.Errorf("error of another type: %v", err)
			}
			return
		}
		var back Settings
		if err := prototext.Unmarshal([]byte(c.Text()), &back); err != nil || !proto.Equal(&back, c.Settings) {
			t.Errorf("printing changed it: %v\n%s", err, c.Text())
		}
	})
}
