package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"blitiri.com.ar/go/chasquid/internal/opctl"
)

// reloaded is what the server of serve answers.
var reloaded = opctl.Reloaded{
	Errors:  []opctl.ReloadError{{What: "settings", Error: `parsing config: "chasquid.conf" line 3: bad`, Remedy: "put it right"}, {What: "users", Error: "worse"}},
	Changes: []string{"max_recipients: 1 -> 2"}, Restart: []string{"data_dir: a -> b"}, Warnings: []string{"a warning"},
}

// TestReload: the outcome is told with what to do; the server is found although the file is bad.
func TestReload(t *testing.T) {
	dir := serve(t, someQueue(), nil)
	conf := filepath.Join(dir, "chasquid.conf")
	text, err := os.ReadFile(conf)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(conf, append(text, "max_recipients: \"many\"\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	r := run(t, Env{}, "chasquid", "reload", "-C", dir)
	wantErr := "chasquid reload: settings: parsing config: \"chasquid.conf\" line 3: bad\n  To fix: put it right\n" +
		"chasquid reload: users: worse\nWhat was loaded before stays in force.\n"
	wantOut := "Changed:\n  max_recipients: 1 -> 2\nTakes effect at the next restart:\n  data_dir: a -> b\nWorth a look:\n  a warning\n"
	if r.exit != 1 || r.errout != wantErr || r.out != wantOut {
		t.Errorf("exit %d\n%s\n%s", r.exit, r.errout, r.out)
	}
	if r := run(t, Env{}, "chasquid", "reload", "-json", "-C", dir); r.exit != 1 || !strings.Contains(r.out, `"remedy": "put it right"`) || r.errout != "" {
		t.Errorf("exit %d\n%s\n%s", r.exit, r.errout, r.out)
	}
	if err := os.WriteFile(conf, []byte("data_dir: \"elsewhere\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := run(t, Env{}, "chasquid", "reload", "-C", dir); r.exit != 1 || !strings.Contains(r.errout, "A new data_dir is used from the next restart on") {
		t.Errorf("exit %d\n%s", r.exit, r.errout)
	}
}
