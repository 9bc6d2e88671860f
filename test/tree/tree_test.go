// Package tree checks the files of the tree that are not code: documents, units, example configuration, hook and scripts.
package tree

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"blitiri.com.ar/go/chasquid/internal/config"
	"blitiri.com.ar/go/chasquid/test/harness"
)

const top = "../.."

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(top, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// run runs a program at the top of the tree.
func run(t *testing.T, env []string, name string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = top
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func mustRun(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := run(t, nil, name, args...)
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return out
}

var (
	linkRE    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	headingRE = regexp.MustCompile(`(?m)^#+ +(.*)$`)
	fenceRE   = regexp.MustCompile("(?ms)^```.*?^```$")
)

// anchors returns the anchors of a page's headings.
func anchors(text string) map[string]bool {
	set := map[string]bool{}
	for _, m := range headingRE.FindAllStringSubmatch(fenceRE.ReplaceAllString(text, ""), -1) {
		a := strings.ToLower(m[1])
		a = regexp.MustCompile(`[^\p{L}\p{N}\s_-]`).ReplaceAllString(a, "")
		set[strings.ReplaceAll(a, " ", "-")] = true
	}
	return set
}

// TestLinks: every relative link of a document leads to a file, and to a heading if it names one.
func TestLinks(t *testing.T) {
	pages, err := filepath.Glob(filepath.Join(top, "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	more, _ := filepath.Glob(filepath.Join(top, "*.md"))
	links := 0
	for _, page := range append(pages, more...) {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range linkRE.FindAllStringSubmatch(fenceRE.ReplaceAllString(string(text), ""), -1) {
			target, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(m[1], "://") || strings.HasPrefix(m[1], "mailto:") {
				continue
			}
			links++
			path := page
			if target != "" {
				path = filepath.Join(filepath.Dir(page), target)
			}
			b, err := os.ReadFile(path)
			if st, statErr := os.Stat(path); statErr != nil {
				t.Errorf("%s: %s: %v", page, m[1], statErr)
			} else if !st.IsDir() && err == nil && anchor != "" && !anchors(string(b))[anchor] {
				t.Errorf("%s: %s: no such heading", page, m[1])
			}
		}
	}
	if links == 0 {
		t.Error("no links found: is the pattern right?")
	}
}

// TestExampleConfig: the example loads, also with each of its commented settings switched on.
func TestExampleConfig(t *testing.T) {
	text := read(t, "etc/chasquid/chasquid.conf")
	dir := t.TempDir()
	os.WriteFile(filepath.Join(dir, "relay-password"), []byte("x\n"), 0o600)
	load := func(text string) (*config.Config, error) {
		path := filepath.Join(dir, config.FileName)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return config.Load(path, "")
	}
	c, err := load(text)
	if err != nil || c.SmtpAddress[0] != ":25" || c.SubmissionAddress[0] != ":587" || c.SubmissionOverTlsAddress[0] != ":465" {
		t.Fatalf("%v: %v", err, c)
	}
	setting := regexp.MustCompile(`^#([a-z_]+)(:| \{)`)
	n := 0
	lines := strings.Split(text, "\n")
	for i, l := range lines {
		if !setting.MatchString(l) {
			continue
		}
		n++
		on := l[1:]
		if strings.HasPrefix(on, "relay_") {
			on = "relay_via: \"smtps://user@relay.example.net:465\"\nrelay_password_file: \"relay-password\"\n"
		}
		if strings.HasPrefix(on, "acme") {
			on += "\nhostname: \"mail.example.org\"\n"
		}
		if _, err := load(strings.Join(append(append(lines[:i:i], on), lines[i+1:]...), "\n")); err != nil {
			t.Errorf("%s: %v", l, err)
		}
	}
	if n < 10 {
		t.Errorf("only %d commented settings found", n)
	}
}

// TestUnits: systemd finds nothing wrong with the units, with the program and manual they name put in place.
func TestUnits(t *testing.T) {
	verify := harness.Need(t, "systemd-analyze", "systemd")
	dir := t.TempDir()
	units, err := filepath.Glob(filepath.Join(top, "etc/systemd/system/*"))
	if err != nil || len(units) != 4 {
		t.Fatalf("%v %v", units, err)
	}
	var files []string
	for _, u := range units {
		b, err := os.ReadFile(u)
		if err != nil {
			t.Fatal(err)
		}
		b = bytes.ReplaceAll(b, []byte("/usr/local/bin/chasquid"), []byte("/bin/true"))
		b = bytes.ReplaceAll(b, []byte("Documentation=man:chasquid(1)\n"), nil)
		f := filepath.Join(dir, filepath.Base(u))
		if err := os.WriteFile(f, b, 0o644); err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	version, err := strconv.Atoi(regexp.MustCompile(`\d+`).FindString(mustRun(t, verify, "--version")))
	if err != nil {
		t.Fatal(err)
	}
	unknown := regexp.MustCompile(`(?m)^.*chasquid.service:\d+: Failed to parse service type, ignoring: notify-reload\n`)
	check := func() {
		t.Helper()
		out, err := run(t, nil, verify, append([]string{"verify"}, files...)...)
		if version < 253 { // the unit has a line for these, too
			out = unknown.ReplaceAllString(out, "")
		}
		if err != nil || out != "" {
			t.Errorf("%v\n%s", err, out)
		}
	}
	check()
	// The same with the drop-in that confines it further.
	if err := os.Mkdir(filepath.Join(dir, "chasquid.service.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "chasquid.service.d", "strict.conf"), []byte(read(t, "etc/systemd/strict.conf")), 0o644); err != nil {
		t.Fatal(err)
	}
	check()
}

// TestSocketNames: the socket units pass the names and ports that the listeners know.
func TestSocketNames(t *testing.T) {
	for name, port := range map[string]string{"smtp": "25", "submission": "587", "submission_tls": "465"} {
		unit := read(t, "etc/systemd/system/chasquid-"+name+".socket")
		if !strings.Contains(unit, "\nFileDescriptorName="+name+"\n") || !strings.Contains(unit, "\nListenStream="+port+"\n") {
			t.Errorf("%s:\n%s", name, unit)
		}
	}
}

// TestFail2ban: the filter finds the client in the lines that the server writes, and nothing in others (LOG-4).
func TestFail2ban(t *testing.T) {
	regex := harness.Need(t, "fail2ban-regex", "fail2ban")
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const stamp = "2026-03-01 10:00:00.000000 _ trace.go:100      "
	hits := write("hits", stamp+strings.Join([]string{
		"SMTP.Conn 192.0.2.1:4711: error: AUTH failed: 535  5.7.8 Incorrect user or password",
		"SMTP.Conn 192.0.2.2:4711: error: RCPT failed: 550  5.1.1 Destination address is unknown (user does not exist)",
		"SMTP.Conn [2001:db8::3]:4711: error: MAIL failed: 550  5.7.23 SPF check failed",
		"SMTP.Conn 2001:db8::4:4711: error: DATA failed: 554  5.6.0 Error parsing message",
		"SMTP.Conn 192.0.2.5:4711: error: Unknown command",
		"SMTP.Conn 192.0.2.6:4711: error: too many errors, breaking connection",
		"SMTP.Conn 192.0.2.7:4711: error: http command, closing connection",
	}, "\n"+stamp)+"\n")
	misses := write("misses", stamp+strings.Join([]string{
		"SMTP.Conn 192.0.2.1:4711: AUTH succeeded for user@example.test",
		"Queue.SendLoop abc: user@example.test sent",
		"SMTP.Conn 192.0.2.1:4711: error: reading: EOF",
	}, "\n"+stamp)+"\n")
	filter, err := filepath.Abs(filepath.Join(top, "etc/fail2ban/filter.d/chasquid.conf"))
	if err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{hits: "7 matched, 0 missed", misses: "0 matched, 3 missed"} {
		out, err := run(t, nil, regex, file, filter)
		if !strings.Contains(out, want) {
			t.Errorf("%s: %v, want %s\n%s", file, err, want, out)
		}
	}
}

// TestLogrotate: logrotate takes the file.
func TestLogrotate(t *testing.T) {
	rotate := harness.Need(t, "logrotate", "logrotate")
	if out, err := run(t, nil, rotate, "-d", "etc/logrotate.d/chasquid"); err != nil || strings.Contains(out, "error") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestMakeHelp: make help says what each target is for.
func TestMakeHelp(t *testing.T) {
	help := mustRun(t, "make", "-s", "help")
	targets := regexp.MustCompile(`(?m)^\.PHONY: (.* .*)$`).FindStringSubmatch(read(t, "Makefile"))
	if targets == nil || len(strings.Fields(targets[1])) < 10 {
		t.Fatal("no list of targets found")
	}
	for _, target := range strings.Fields(targets[1]) {
		if !regexp.MustCompile(`(?m)^` + target + ` +\S+ .*\S$`).MatchString(help) {
			t.Errorf("make help does not explain %s:\n%s", target, help)
		}
	}
}

// TestInstallConfig: the skeleton is installed once and never written over.
func TestInstallConfig(t *testing.T) {
	root := t.TempDir()
	mustRun(t, "scripts/install-config.sh", root)
	for _, f := range []string{"etc/chasquid/chasquid.conf", "etc/chasquid/hooks/post-data", "etc/chasquid/domains/README",
		"etc/systemd/system/chasquid.service", "etc/systemd/system/chasquid-smtp.socket", "etc/fail2ban/filter.d/chasquid.conf", "var/lib/chasquid"} {
		if _, err := os.Stat(filepath.Join(root, f)); err != nil {
			t.Error(err)
		}
	}
	if l, err := os.Readlink(filepath.Join(root, "etc/chasquid/certs")); err != nil || l != "/etc/letsencrypt/live/" {
		t.Error(l, err)
	}
	if st, err := os.Stat(filepath.Join(root, "var/lib/chasquid")); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("%v %v", st.Mode(), err)
	}
	conf := filepath.Join(root, "etc/chasquid/chasquid.conf")
	if err := os.WriteFile(conf, []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	out := mustRun(t, "scripts/install-config.sh", root)
	if b, _ := os.ReadFile(conf); string(b) != "mine" || strings.Contains(out, "installed:") {
		t.Errorf("written over: %q\n%s", b, out)
	}
}
