package cli

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"blitiri.com.ar/go/chasquid/internal/dns"
)

// result is what a command left behind.
type result struct {
	exit        int
	out, errout string
}

// run runs a tool or sub-command: the first word is how the process is called.
func run(t *testing.T, env Env, words ...string) result {
	t.Helper()
	var out, errout bytes.Buffer
	env.Stdout, env.Stderr, env.NoPorts = &out, &errout, true
	if env.Stdin == nil {
		env.Stdin = strings.NewReader("")
	}
	exit, handled := Main(words[0], words[1:], env)
	if !handled {
		t.Fatalf("%q was taken for the server", words)
	}
	return result{exit, out.String(), errout.String()}
}

// passwords answers prompts in turn.
func passwords(l ...string) func(string) (string, error) {
	return func(string) (string, error) {
		if len(l) == 0 {
			return "", errors.New("nobody there")
		}
		p := l[0]
		l = l[1:]
		return p, nil
	}
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// configDir makes a configuration directory with these settings.
func configDir(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "chasquid.conf"), text)
	return dir
}

var _ dns.Resolver = fixedTXT("")

// TestServerStays: what existing installations call the server with is the server.
func TestServerStays(t *testing.T) {
	for _, args := range [][]string{nil, {"-config_dir=/etc/chasquid"}, {"--version"}, {"-v", "1", "check"}} {
		if exit, handled := Main("/usr/local/bin/chasquid", args, Env{}); handled {
			t.Errorf("chasquid %q is not the server but exits with %d", args, exit)
		}
	}
}

func TestDispatch(t *testing.T) {
	for _, c := range []struct {
		words       []string
		exit        int
		out, errout string
	}{
		{[]string{"/usr/bin/chasquid-util", "--help"}, 0, "\nUsage:\n", ""},
		{[]string{"chasquid", "util", "--help"}, 0, "\nUsage:\n", ""},
		{[]string{"/usr/bin/mda-lmtp"}, 2, "--addr", ""},
		{[]string{"chasquid", "mda-lmtp"}, 2, "--addr", ""},
		{[]string{"/usr/bin/smtp-check"}, 1, "", "Use: smtp-check <domain>"},
		{[]string{"chasquid", "smtp-check"}, 1, "", "Use: smtp-check <domain>"},
		{[]string{"smtp-check", "-help"}, 0, "", "-skip_tls_check"},
		{[]string{"smtp-check", "-wrong"}, 2, "", "-wrong"},
		{[]string{"mda-lmtp", "--wrong"}, 2, "", "-wrong"},
		{[]string{"chasquid", "qeue", "ls"}, 2, "", `no sub-command "qeue ls"`},
		{[]string{"chasquid", "queue"}, 2, "", "no sub-command"},
		{[]string{"chasquid", "help"}, 0, "queue ls", ""},
		{[]string{"chasquid", "help", "queue", "hold"}, 0, "Usage: chasquid queue hold", ""},
		{[]string{"chasquid", "queue", "hold", "-help"}, 0, "Usage: chasquid queue hold", ""},
		{[]string{"chasquid", "queue", "ls", "-nonsense"}, 2, "", "Usage: chasquid queue ls"},
		{[]string{"chasquid", "explain"}, 2, "", "an argument is missing"},
		{[]string{"chasquid", "check", "x"}, 2, "", `unexpected argument "x"`},
	} {
		r := run(t, Env{}, c.words...)
		if r.exit != c.exit || !strings.Contains(r.out, c.out) || !strings.Contains(r.errout, c.errout) {
			t.Errorf("%q: exit %d\nstdout: %s\nstderr: %s", c.words, r.exit, r.out, r.errout)
		}
	}
}
