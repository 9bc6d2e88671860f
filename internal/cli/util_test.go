package cli

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/internal/control"
	"github.com/google/go-cmp/cmp"
)

// TestCLI2Words: every word with a dash is an option, wherever it stands, and is split at the first '='.
func TestCLI2Words(t *testing.T) {
	options, args := splitArgs([]string{"-C=dir", "user-add", "--password=a=b", "u@d", "-v", "--"})
	want := map[string]string{"-C": "dir", "--password": "a=b", "-v": "", "--": ""}
	if d := cmp.Diff(want, options); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"user-add", "u@d"}, args); d != "" {
		t.Error(d)
	}
}

// TestUtilUsers follows one user through its life; %s in the words is the configuration directory.
func TestUtilUsers(t *testing.T) {
	dir := configDir(t, "")
	users := filepath.Join(dir, "domains/dom/users")
	for _, c := range []struct {
		line        string
		asked       []string
		exit        int
		out, errout string
	}{
		{"", nil, 1, "Unknown argument \"\"\n", "\nUsage:\n*"},
		{"no-such-thing", nil, 1, "Unknown argument \"no-such-thing\"\n", "\nUsage:\n*"},
		{"check-userdb dom", nil, 1, "", "Error: file \"" + users + "\" does not exist\n"},
		{"user-add user", nil, 1, "", "Domain missing, username should be of the form 'user@domain'\n"},
		{"user-add user@", nil, 1, "", "Domain missing, username should be of the form 'user@domain'\n"},
		{"user-add user@../x --password=p", nil, 1, "", "Error: \"../x\" is not a domain\n"},
		{"user-add another@dom --password=p", nil, 0, "Creating database\nAdded user\n", ""},
		{"user-add u\x01@dom --password=p", nil, 1, "", "Error normalizing user: precis: disallowed rune encountered\n"},
		{"user-add user@dom --password=p --receive_only", nil, 1, "", "Cannot specify both --receive_only and --password\n"},
		{"user-add USER@dom --password=passwd", nil, 0, "Added user\n", ""},
		{"authenticate user@dom --password=passwd", nil, 0, "Authentication succeeded\n", ""},
		{"authenticate user@dom --password=nope", nil, 1, "", "Authentication failed\n"},
		{"authenticate other@dom --password=passwd", nil, 1, "", "Authentication failed\n"},
		{"authenticate user@nodom --password=passwd", nil, 1, "", "Authentication failed\n"},
		{"user-add user@dom", []string{"new", "new"}, 0, "Added user\n", ""},
		{"authenticate user@dom", []string{"new", "new"}, 0, "Authentication succeeded\n", ""},
		{"user-add user@dom", []string{"a", "b"}, 1, "", "Passwords don't match\n"},
		{"user-add ro@dom --receive_only", nil, 0, "Added user\n", ""},
		{"authenticate ro@dom --password=x", nil, 1, "", "Authentication failed\n"},
		{"check-userdb dom", nil, 0, "Database loaded (3 users)\n", ""},
		{"user-remove nobody@dom", nil, 1, "", "Unknown user\n"},
		{"user-remove user@nodom", nil, 1, "", "Unknown user\n"},
		{"user-remove user@dom", nil, 0, "Removed user\n", ""},
		{"check-userdb dom", nil, 0, "Database loaded (2 users)\n", ""},
		{"user-remove ro@dom --passwd=x", nil, 1, "", "Unknown option \"--passwd\" for user-remove; --help shows the options\n"},
		{"user-add ro@dom --password x", nil, 1, "", "Unexpected argument \"x\" for user-add*"},
	} {
		words := append([]string{"chasquid-util", "-C=" + dir}, strings.Split(c.line, " ")...)
		if c.line == "" {
			words = words[:2]
		}
		r := run(t, Env{ReadPassword: passwords(c.asked...)}, words...)
		if r.exit != c.exit || r.out != c.out || !like(r.errout, c.errout) {
			t.Errorf("%s: exit %d\nstdout: %q\nstderr: %q", c.line, r.exit, r.out, r.errout)
		}
	}
	info, err := os.Stat(users)
	if err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("users file: %v, %v", info, err)
	}
}

// like compares text with a pattern that may end in "*".
func like(got, pattern string) bool {
	if p, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(got, p)
	}
	return got == pattern
}

// TestCLI8ConfigDir: spellings and precedence of the option.
func TestCLI8ConfigDir(t *testing.T) {
	good, bad := configDir(t, "hostname: \"good\"\n"), t.TempDir()
	for _, c := range []struct {
		options string
		works   bool
		warned  bool
	}{
		{"-C=" + good, true, false},
		{"--config_dir=" + good, true, false},
		{"--configdir=" + good, true, true},
		{"-C=" + good + " --config_dir=" + bad, true, false},
		{"--configdir=" + good + " -C=" + bad, true, true},
		{"-C=" + bad + " --config_dir=" + good, false, false},
	} {
		r := run(t, Env{}, append([]string{"chasquid-util", "print-config"}, strings.Fields(c.options)...)...)
		if works := r.exit == 0; works != c.works {
			t.Errorf("%s: exit %d, %s", c.options, r.exit, r.errout)
		}
		if warned := strings.Contains(r.errout, "--configdir") && strings.Contains(r.errout, "--config_dir"); warned != c.warned {
			t.Errorf("%s: stderr %q", c.options, r.errout)
		}
	}
}

func TestUtilPrintConfig(t *testing.T) {
	dir := configDir(t, "smtp_address: \":1025\"\nhostname: 'h.example'\n")
	r := run(t, Env{}, "chasquid-util", "print-config", "-C="+dir)
	if r.exit != 0 || !strings.HasPrefix(r.out, "hostname: \"h.example\"\nmax_data_size_mb: 50\nsmtp_address: \":1025\"\n") || !strings.HasSuffix(r.out, "\n\n") {
		t.Errorf("exit %d: %q %q", r.exit, r.out, r.errout)
	}
	r = run(t, Env{}, "chasquid-util", "print-config", "-C="+dir+"/none")
	want := "Error loading config: failed to read config at \"" + dir + "/none/chasquid.conf\": open " + dir + "/none/chasquid.conf: no such file or directory\n"
	if r.exit != 1 || r.errout != want {
		t.Errorf("exit %d: %q", r.exit, r.errout)
	}
}

// TestCLI18Server: what asks the running server.
func TestCLI18Server(t *testing.T) {
	dir := configDir(t, "data_dir: \"data\"\n")
	call := func(_ context.Context, path, method string, args map[string][]string) (map[string][]string, error) {
		if path != "data/localrpc-v1" { // relative to where we are, CLI-12
			t.Errorf("asked at %s", path)
		}
		switch method + " " + strings.Join(append(args["Address"], args["Domain"]...), " ") {
		case "AliasResolve a@d":
			return map[string][]string{"(pipe)": {"cmd -x"}, "(email)": {"z@d", "b@d"}, "(forward)": {"f@g"}}, nil
		case "AliasResolve hook@d":
			return nil, control.RemoteError("exit status 1")
		case "DomaininfoClear d":
			return nil, nil
		}
		return nil, control.RemoteError("does not exist")
	}
	for _, c := range []struct {
		line        string
		exit        int
		out, errout string
	}{
		{"aliases-resolve a@d", 0, "(email)  z@d\n(email)  b@d\n(forward)  f@g\n(pipe)  cmd -x\n", ""},
		{"aliases-resolve hook@d", 1, "", "Error resolving: exit status 1\n"},
		{"domaininfo-remove d", 0, "", ""},
		{"domaininfo-remove other", 1, "", "Error removing domaininfo entry: does not exist\n"},
		{"domaininfo-remove", 1, "", "Error: missing domain parameter\n"},
		{"aliases-resolve a@d -C=/nowhere", 1, "", "Error loading config: *"},
	} {
		r := run(t, Env{Call: call}, append([]string{"chasquid-util", "-C=" + dir}, strings.Fields(c.line)...)...)
		if strings.Contains(c.line, "-C=") {
			r = run(t, Env{Call: call}, append([]string{"chasquid-util"}, strings.Fields(c.line)...)...)
		}
		if r.exit != c.exit || r.out != c.out || !like(r.errout, c.errout) {
			t.Errorf("%s: exit %d\nstdout: %q\nstderr: %q", c.line, r.exit, r.out, r.errout)
		}
	}
}

const message1 = "From: Ana <ana@example.com>\nTo: b@example.org\nSubject: hola\n\nCuerpo\n"

// TestUtilDKIM makes keys, publishes, signs and verifies.
func TestUtilDKIM(t *testing.T) {
	dir := configDir(t, "")
	if err := os.MkdirAll(filepath.Join(dir, "domains/example.com"), 0o755); err != nil {
		t.Fatal(err)
	}
	util := func(stdin string, words ...string) result {
		t.Helper()
		return run(t, Env{Stdin: strings.NewReader(stdin)}, append([]string{"chasquid-util", "-C=" + dir}, words...)...)
	}
	today := time.Now().UTC().Format("20060102")
	file := filepath.Join(dir, "domains/example.com/dkim:"+today+".pem")
	r := util("", "dkim-keygen", "example.com", "--algo=ed25519")
	line := today + "._domainkey.example.com\tTXT\t\"v=DKIM1; k=ed25519; p="
	if r.exit != 0 || !strings.HasPrefix(r.out, "Key written to \""+file+"\"\n\n"+line) {
		t.Fatalf("keygen: exit %d, %q %q", r.exit, r.out, r.errout)
	}
	_, record, _ := strings.Cut(r.out, "\n\n")
	if r := util("", "dkim-dns", "example.com"); r.exit != 0 || r.out != record {
		t.Errorf("dns: exit %d, %q %q", r.exit, r.out, r.errout)
	}
	_, quoted, _ := strings.Cut(strings.TrimSpace(record), "TXT\t")
	txt := strings.Trim(quoted, `"`)
	signed := util(message1, "dkim-sign", "-v")
	if signed.exit != 0 || !regexp.MustCompile(`(?s)^DKIM-Signature: v=1;.*\r\n\t.*\r\n$`).MatchString(signed.out) {
		t.Fatalf("sign: exit %d, %q %q", signed.exit, signed.out, signed.errout)
	}
	if !strings.HasPrefix(signed.errout, "Signing for example.com / "+today+" with ed25519-sha256\n") {
		t.Errorf("sign -v says %q", signed.errout)
	}
	whole := signed.out + message1
	host, _ := os.Hostname()
	r = util(whole, "dkim-verify", "-v", "--txt="+txt)
	if r.exit != 0 || !strings.HasPrefix(r.out, "Authentication-Results: "+host+"\r\n\t;dkim=pass  header.b=") || !strings.HasSuffix(r.out, "  header.d=example.com\r\n") {
		t.Errorf("verify: exit %d, %q", r.exit, r.out)
	}
	if !strings.Contains(r.errout, "Found 1 signatures, 1 valid") {
		t.Errorf("verify -v says %q", r.errout)
	}
	if r = util(whole+"changed\n", "dkim-verify", "--txt="+txt); !strings.Contains(r.out, "\t;dkim=fail  reason=\"") {
		t.Errorf("a changed message: %q", r.out)
	}
	if r = util(message1, "dkim-verify"); !strings.HasSuffix(r.out, "\r\n\t;dkim=none\r\n") {
		t.Errorf("an unsigned message: %q", r.out)
	}
	writeFile(t, filepath.Join(dir, "nopem"), "x")
	for _, c := range []struct{ stdin, line, errout string }{
		{"", "dkim-keygen", "Error: missing domain parameter\n"},
		{"", "dkim-keygen example.com", "Error: key already exists at \"" + file + "\"\n"},
		{"", "dkim-keygen example.com other --algo=rsa1", "Error: unsupported algorithm \"rsa1\"\n"},
		{"", "dkim-dns", "Error: missing domain parameter\n"},
		{"", "dkim-dns other.com", "No DKIM keys found in \"" + dir + "/domains/other.com/dkim:*.pem\"\n"},
		{"", "dkim-dns example.com sel", "Error reading private key from \"" + dir + "/domains/example.com/dkim:sel.pem\": *"},
		{"", "dkim-dns example.com sel " + dir + "/nopem", "Error decoding PEM block\n"},
		{"", "dkim-sign", "Error parsing message: *"},
		{"Subject: x\n\n", "dkim-sign", "Error parsing From: header: *"},
		{"From: <<a\n\n", "dkim-sign", "Error parsing From: header: *"},
		{"not a header\n\n", "dkim-verify", "Error verifying message: *"},
	} {
		if r := util(c.stdin, strings.Fields(c.line)...); r.exit != 1 || !like(r.errout, c.errout) {
			t.Errorf("%s: exit %d, stderr %q", c.line, r.exit, r.errout)
		}
	}
}

func TestNewPassword(t *testing.T) {
	e := Env{ReadPassword: func(string) (string, error) { return "", errors.New("no terminal") }}
	if _, err := e.newPassword(); err == nil || !strings.Contains(err.Error(), "no terminal") {
		t.Errorf("without a terminal: %v", err)
	}
}
