package config

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestRoutes: relays and exceptions as the router takes them, with the passwords by the same names.
func TestRoutes(t *testing.T) {
	c := loadWith(t, `relay_via: "smtps://joe%40example.org@relay.test:4650" relay_password_file: "pw"
		route { domain: "A.Example" via: "[2001:db8::1]:26" }
		route { domain: ".example.net" via: "mx" }
		route { domain: "b.example" via: "smtp://u+v@b.test" password_file: "pw" }
		local_delivery: "lmtp:/run/lmtp"`, "pw", "secret\n")
	if got, want := c.RelayURL(), "smtps://joe%40example.org@relay.test:4650"; got != want {
		t.Errorf("relay %q, want %q", got, want)
	}
	want := map[string]string{"a.example": "smtp://[2001:db8::1]:26", ".example.net": "mx", "b.example": "smtp://u+v@b.test:587"}
	if d := cmp.Diff(want, c.RouteTable()); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(map[string]string{c.RelayURL(): "secret", "smtp://u+v@b.test:587": "secret"}, c.RelayPasswords()); d != "" {
		t.Error(d)
	}
	if got := c.LocalTarget(); got != "lmtp:/run/lmtp" {
		t.Errorf("local target %q", got)
	}
	plain := loadWith(t, `local_delivery: "maildir:mail"`)
	if plain.RelayURL() != "" || plain.LocalTarget() != "maildir:"+plain.Path("mail") || len(plain.RelayPasswords())+len(plain.RouteTable()) > 0 {
		t.Errorf("%q %q %v %v", plain.RelayURL(), plain.LocalTarget(), plain.RelayPasswords(), plain.RouteTable())
	}
}

// TestKeep: settings that cannot change keep their value, and what is derived from them does too.
func TestKeep(t *testing.T) {
	running, next := loadWith(t, `data_dir: "/srv/a" hostname: "a.example"`), loadWith(t, `data_dir: "/srv/b" hostname: "b.example"`)
	c, err := next.Keep(running, "data_dir")
	if err != nil {
		t.Fatal(err)
	}
	if c.DataDir != "/srv/a" || c.SRSSecretFile != "/srv/a/srs-secret" || c.Hostname != "b.example" {
		t.Errorf("%q %q %q", c.DataDir, c.SRSSecretFile, c.Hostname)
	}
	if d := cmp.Diff([]string{"data_dir"}, RestartOnly()); d != "" {
		t.Error(d)
	}
}

// TestContentsCount: a file that is named as before, with another content, is a change; what is in it is not shown.
func TestContentsCount(t *testing.T) {
	const text = `relay_via: "smtps://joe@relay.test" relay_password_file: "pw"
		route { domain: "b.example" via: "smtp://u@b.test" password_file: "pw2" }`
	a := loadWith(t, text, "pw", "one\n", "pw2", "two\n")
	b := loadWith(t, text, "pw", "1\n", "pw2", "2\n")
	var got []string
	for _, c := range Diff(a, b) {
		got = append(got, c.String())
	}
	want := []string{"relay_password_file pw: its content as it was -> its content as it is now",
		"password_file pw2: its content as it was -> its content as it is now"}
	if d := cmp.Diff(want, got); d != "" || a.Equal(b) {
		t.Error(d)
	}
	if len(b.Files()) != 3 || !loadWith(t, "# nothing\n").Empty() || b.Empty() {
		t.Errorf("files %q", b.Files())
	}
}

// loadWith loads a text that lies beside files, given as names and contents.
func loadWith(t *testing.T, text string, files ...string) *Config {
	t.Helper()
	dir := t.TempDir()
	for i := 0; i < len(files); i += 2 {
		if err := os.WriteFile(filepath.Join(dir, files[i]), []byte(files[i+1]), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, FileName)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(path, "")
	if err != nil {
		t.Fatal(err)
	}
	return c
}
