package real

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/test/harness"
)

// TestExistingInstallation starts on the directory of an installation of the original, as it is but for the ports: users log in,
// aliases resolve, its delivery agent is run, and the mail in its queue is delivered.
func TestExistingInstallation(t *testing.T) {
	swaks := harness.Need(t, "swaks", "swaks libnet-ssleay-perl libio-socket-ssl-perl")
	s := harness.New(t, harness.Options{Domains: map[string]harness.Domain{}, Certs: map[string]string{"mail.old.test": "mail.old.test"}})
	if err := os.Remove(filepath.Join(s.Dir, "chasquid.conf")); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(s.Dir, os.DirFS("testdata/existing")); err != nil {
		t.Fatal(err)
	}
	// The directory of version control cannot hold fresh mail: the item is as old as the test wants it.
	item := filepath.Join(s.Dir, "data", "queue", "m:Zk9xQ2h0b3J")
	b, err := os.ReadFile(item)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(b), "1795360000", fmt.Sprint(time.Now().Add(-time.Hour).Unix()), 1)
	if err := os.WriteFile(item, []byte(text), 0600); err != nil {
		t.Fatal(err)
	}
	s.SetArgs("-config_overrides", fmt.Sprintf("smtp_address: %q submission_address: %q submission_over_tls_address: %q monitoring_address: %q",
		s.SMTP, s.Submission, s.SubmissionTLS, s.Monitor))
	s.Start()

	box := func(user string) string {
		b, _ := os.ReadFile(filepath.Join(s.Dir, "delivered:"+user+"@old.test"))
		return string(b)
	}
	harness.WaitFor(t, deliveryTime, "the message of the old queue", func() bool { return strings.Contains(box("alice"), "from the old queue\r\n") })
	if !strings.HasPrefix(box("alice"), "From someone@else.test\n") {
		t.Errorf("the delivery agent was not told the sender:\n%s", box("alice"))
	}
	if left, _ := filepath.Glob(filepath.Join(s.Dir, "data", "queue", "m:*")); len(left) != 0 {
		t.Errorf("items left after the import: %q", left)
	}
	send := func(user, password, to string) (string, error) {
		return harness.TryRun(t, "", swaks, "--server", s.Submission, "-tls", "--auth", "PLAIN", "--auth-user", user, "--auth-password", password,
			"--from", user, "--to", to, "--ehlo", "client.test", "--body", "to "+to)
	}
	for _, c := range []struct{ user, password, to, box string }{
		{"alice@old.test", "kept secret", "team@old.test", "alice"},
		{"alice@old.test", "kept secret", "bo_b-detail@old.test", "bob"},
		{"bob@old.test", "plain secret", "nobody.at.all@old.test", "bob"},
	} {
		if out, err := send(c.user, c.password, c.to); err != nil {
			t.Fatalf("%+v: %v\n%s", c, err, out)
		}
		harness.WaitFor(t, deliveryTime, "the message for "+c.to, func() bool { return strings.Contains(box(c.box), "to "+c.to) })
	}
	if !strings.Contains(box("bob"), "to team@old.test") {
		t.Error("the second member of the alias got nothing")
	}
	for _, c := range [][2]string{{"alice@old.test", "wrong"}, {"listen@old.test", ""}, {"listen@old.test", "x"}} {
		if out, err := send(c[0], c[1], "team@old.test"); err == nil {
			t.Errorf("%q logged in with %q:\n%s", c[0], c[1], out)
		}
	}
	log, err := os.ReadFile(filepath.Join(s.Dir, "mail.log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{" auth succeeded for alice@old.test", " auth failed for alice@old.test", "Zk9xQ2h0b3J from=someone@else.test to=alice@old.test sent",
		"Zk9xQ2h0b3J from=someone@else.test all done", "daemon listening on " + s.SMTP} {
		if !strings.Contains(string(log), want) {
			t.Errorf("the mail log lacks %q:\n%s", want, log)
		}
	}
}
