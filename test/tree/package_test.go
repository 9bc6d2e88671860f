package tree

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"blitiri.com.ar/go/chasquid/internal/config"
	"blitiri.com.ar/go/chasquid/test/harness"
)

// TestDeb builds a package around a stand-in for the binary, unpacks it and looks at what an upgrade of Debian's own relies on.
func TestDeb(t *testing.T) {
	dpkg := harness.Need(t, "dpkg-deb", "dpkg")
	out := t.TempDir()
	log, err := run(t, []string{"BIN=/bin/true", "OUT=" + out}, "scripts/deb.sh", "v1.20-3-g0123abc")
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	debs, _ := filepath.Glob(filepath.Join(out, "*.deb"))
	if len(debs) != 1 {
		t.Fatalf("%v\n%s", debs, log)
	}
	root := t.TempDir()
	mustRun(t, dpkg, "-R", debs[0], root)
	for _, l := range []string{"chasquid-util", "mda-lmtp", "smtp-check"} {
		if to, err := os.Readlink(filepath.Join(root, "usr/bin", l)); err != nil || to != "chasquid" {
			t.Errorf("%s: %s %v", l, to, err)
		}
	}
	field := func(name string) string { return strings.TrimSpace(mustRun(t, dpkg, "-f", debs[0], name)) }
	if v := field("Version"); v != "2:1.20+3+g0123abc" {
		t.Errorf("version %s", v)
	}
	// Later than Debian's, also when there is no tag to name it after.
	mustRun(t, "dpkg", "--compare-versions", field("Version"), "gt", "1.11-2+b2")
	mustRun(t, "dpkg", "--compare-versions", "2:0~20260101+26a8247", "gt", "1.17-1")

	unit, err := os.ReadFile(filepath.Join(root, "lib/systemd/system/chasquid.service"))
	for _, want := range []string{"ExecStart=/usr/bin/chasquid\n", "User=chasquid\n", "Group=chasquid\n", "Requires=chasquid-smtp.socket"} {
		if err != nil || !strings.Contains(string(unit), want) {
			t.Errorf("%v: the unit lacks %q:\n%s", err, want, unit)
		}
	}
	// Addresses in the file would clash with the sockets, which are there in every installation of Debian's package.
	c, err := config.Load(filepath.Join(root, "etc/chasquid/chasquid.conf"), "")
	if err != nil || c.SmtpAddress[0] != "systemd" || c.SubmissionAddress[0] != "systemd" || c.SubmissionOverTlsAddress[0] != "systemd" {
		t.Errorf("%v: %v", err, c)
	}
	for _, name := range []string{"runbook.md", "monitoring/alerts.yml", "monitoring/recording.yml", "monitoring/dashboard.json", "monitoring/prometheus.yml", "monitoring/blackbox.yml"} {
		if st, err := os.Stat(filepath.Join(root, "usr/share/doc/chasquid", name)); err != nil || st.Size() == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	conffiles, err := os.ReadFile(filepath.Join(root, "DEBIAN/conffiles"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range strings.Fields(string(conffiles)) {
		if _, err := os.Stat(filepath.Join(root, f)); err != nil {
			t.Error(err)
		}
	}
	if !strings.Contains(string(conffiles), "/etc/chasquid/chasquid.conf\n") || !strings.Contains(string(conffiles), "/etc/chasquid/hooks/post-data\n") {
		t.Errorf("conffiles:\n%s", conffiles)
	}
}

// TestDependenciesDocumented: every direct dependency is in docs/dependencies.md, and nothing that is none.
func TestDependenciesDocumented(t *testing.T) {
	doc := strings.ReplaceAll(read(t, "docs/dependencies.md"), "golang.org/x/{crypto,net,sync,sys,term,text}",
		"golang.org/x/crypto golang.org/x/net golang.org/x/sync golang.org/x/sys golang.org/x/term golang.org/x/text")
	direct := regexp.MustCompile(`(?m)^\t(\S+) v\S+$`).FindAllStringSubmatch(read(t, "go.mod"), -1)
	if len(direct) < 5 {
		t.Fatalf("only %d direct dependencies found in go.mod", len(direct))
	}
	known := map[string]bool{}
	for _, m := range direct {
		known[m[1]] = true
		if !strings.Contains(doc, m[1]) {
			t.Errorf("%s is not documented", m[1])
		}
	}
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)`").FindAllStringSubmatch(read(t, "docs/dependencies.md"), -1) {
		if !strings.Contains(m[1], "{") && !known[m[1]] {
			t.Errorf("%s is documented and not used", m[1])
		}
	}
}
