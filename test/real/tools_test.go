package real

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"blitiri.com.ar/go/chasquid/test/harness"
)

// TestTools runs the tools of the same binary, under their own names and as sub-commands, beside a running server.
func TestTools(t *testing.T) {
	swaks := harness.Need(t, "swaks", "swaks libnet-ssleay-perl libio-socket-ssl-perl")
	s := harness.New(t, harness.Options{Domains: map[string]harness.Domain{"example.test": {Users: map[string]string{"user": "secret"},
		Aliases: "team: user, someone@remote.test\nprog: | true\n"}}, Args: []string{"-testing__reload_every=200ms"}, Conf: resolver(t, "remote.test SERVFAIL")})
	s.Start()
	util := filepath.Join(t.TempDir(), "chasquid-util")
	if err := os.Symlink(harness.Binary(t), util); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) string {
		return harness.Run(t, "", util, append([]string{"-C=" + s.Dir}, args...)...)
	}
	sub := func(args ...string) string { return harness.Run(t, "", harness.Binary(t), args...) }

	if out := run("user-add", "fresh@example.test", "--password=new secret"); !strings.Contains(out, "Added user") {
		t.Errorf("user-add: %s", out)
	}
	harness.WaitFor(t, deliveryTime, "the new user to log in", func() bool {
		_, err := harness.TryRun(t, "", swaks, "--server", s.Submission, "-tls", "--auth", "PLAIN", "--auth-user", "fresh@example.test",
			"--auth-password", "new secret", "--from", "fresh@example.test", "--to", "team@example.test", "--ehlo", "client.test")
		return err == nil
	})
	if out := run("aliases-resolve", "team@example.test"); out != "(email)  user@example.test\n(email)  someone@remote.test\n" {
		t.Errorf("aliases-resolve: %q", out)
	}
	if out := run("aliases-resolve", "prog@example.test"); out != "(pipe)  true\n" {
		t.Errorf("aliases-resolve of a pipe: %q", out)
	}
	harness.WaitFor(t, deliveryTime, "the local copy", func() bool { return len(s.Maildir("user@example.test")) > 0 })
	if out := sub("queue", "ls", "--config_dir="+s.Dir); !strings.Contains(out, "someone@remote.test") || !strings.Contains(out, "dns_error") {
		t.Errorf("queue ls does not show the recipient and why it waits:\n%s", out)
	}
	if out := sub("history", "--config_dir="+s.Dir, "fresh@example.test"); !strings.Contains(out, "team@example.test") {
		t.Errorf("history:\n%s", out)
	}
	if out := sub("explain", "--config_dir="+s.Dir, "team@example.test"); !strings.Contains(out, "someone@remote.test") || !strings.Contains(out, "user@example.test") {
		t.Errorf("explain:\n%s", out)
	}
}
