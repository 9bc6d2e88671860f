package tree

import (
	"os"
	"os/exec"
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
	log, err := run(t, []string{"BIN=/bin/true", "OUT=" + out, "COMPRESS=none"}, "scripts/deb.sh", "v1.20-3-g0123abc")
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
	c, err := config.Load(filepath.Join(root, "usr/share/chasquid/chasquid.conf"), "")
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
	// They would make dpkg ask, and fail where nobody answers.
	if strings.Contains(string(conffiles), "/etc/chasquid/chasquid.conf\n") || strings.Contains(string(conffiles), "/etc/chasquid/hooks/post-data\n") {
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

// TestDebUpgrade: our package takes the place of Debian's on a machine where that one was configured and has mail in its queue. Nothing is
// asked or lost; removal keeps configuration and data, and a purge keeps the mail.
func TestDebUpgrade(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("installing packages, in a copy of the file system, needs root")
	}
	unshare := harness.Need(t, "unshare", "util-linux")
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), harness.Need(t, "apt-get", "apt"), "-q", "-o", "APT::Sandbox::User=root", "download", "chasquid")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("Debian's package cannot be downloaded: %v\n%s", err, out)
	}
	old, _ := filepath.Glob(filepath.Join(dir, "*.deb"))
	if out, err := run(t, []string{"BIN=" + harness.Binary(t), "OUT=" + filepath.Join(dir, "ours"), "COMPRESS=none"}, "scripts/deb.sh", "v1.20"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	ours, _ := filepath.Glob(filepath.Join(dir, "ours", "*.deb"))
	if len(old) != 1 || len(ours) != 1 {
		t.Fatalf("%v %v", old, ours)
	}
	out, err := run(t, nil, unshare, "--mount", "--net", "--pid", "--fork", "--kill-child", "--propagation", "private", "sh", "test/tree/testdata/upgrade.sh", old[0], ours[0])
	if err != nil || strings.Contains(out, "WRONG") || !strings.HasSuffix(out, "== done\n") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestMakeInstall: everything stands where existing installations have it (OPS-3), the tools work by their links, and a second installation
// keeps the configuration.
func TestMakeInstall(t *testing.T) {
	make := harness.Need(t, "make", "make")
	src, root := t.TempDir(), t.TempDir()
	for _, f := range []string{"Makefile", "README.md", "LICENSE"} {
		if err := os.WriteFile(filepath.Join(src, f), []byte(read(t, f)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"docs", "etc", "monitoring", "scripts"} {
		mustRun(t, "cp", "-a", d, src)
	}
	// What is built is tested elsewhere.
	if err := os.WriteFile(filepath.Join(src, "go"), []byte("#!/bin/sh\ncp "+harness.Binary(t)+" chasquid\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	install := func() {
		t.Helper()
		mustRun(t, make, "-C", src, "install", "DESTDIR="+root, "GO=./go", "VERSION=v1", "SOURCE_DATE_EPOCH=1")
	}
	install()
	for _, f := range []string{"usr/local/bin/chasquid", "usr/local/share/man/man1/chasquid.1", "usr/local/share/man/man5/chasquid.conf.5", "usr/local/share/doc/chasquid/install.md",
		"etc/chasquid/chasquid.conf", "etc/chasquid/hooks/post-data", "etc/systemd/system/chasquid.service", "etc/sysusers.d/chasquid.conf", "etc/tmpfiles.d/chasquid.conf",
		"etc/logrotate.d/chasquid", "etc/fail2ban/filter.d/chasquid.conf"} {
		if _, err := os.Stat(filepath.Join(root, f)); err != nil {
			t.Error(err)
		}
	}
	if st, err := os.Stat(filepath.Join(root, "var/lib/chasquid")); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("%v %v", st, err)
	}
	bin := filepath.Join(root, "usr/local/bin")
	for tool, says := range map[string]string{"chasquid-util": "Usage:", "mda-lmtp": "-addr", "smtp-check": "-port"} {
		if out, _ := run(t, nil, filepath.Join(bin, tool), "--help"); !strings.Contains(out, says) {
			t.Errorf("%s: %s", tool, out)
		}
	}
	conf := filepath.Join(root, "etc/chasquid/chasquid.conf")
	if err := os.WriteFile(conf, []byte("# mine\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	install()
	if b, _ := os.ReadFile(conf); string(b) != "# mine\n" {
		t.Errorf("the second installation wrote over the configuration: %q", b)
	}
}
