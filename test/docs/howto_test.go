package docs

import (
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/test/harness"
	"blitiri.com.ar/go/chasquid/test/pages"
	"blitiri.com.ar/go/chasquid/test/sandbox"
)

var (
	shownPassword = regexp.MustCompile(`with the password (\S+)`)
	notRight      = regexp.MustCompile(`(?m)^(?:warn|fail)\b`)
	shownRecord   = regexp.MustCompile(`(?m)^\S+\.\t(?:A|AAAA|MX|TXT)\t.*$`)
)

// TestHowto follows docs/howto.md on a fresh machine, with nothing but its commands and records, and what they print: in the end
// everything is as it should be, and a signed mail has gone out that an independent program finds good.
func TestHowto(t *testing.T) {
	dkimverify := harness.Need(t, "dkimverify", "python3-dkim python3-dnspython")
	b := sandbox.New(t, sandbox.Options{Source: true, Pebble: true})
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s\n%s", b.Log(), b.Read("/world/pebble.log"))
		}
	})
	password := "PASSWORD"
	r := &runner{Box: b, t: t, fill: func(s string) string { return strings.ReplaceAll(s, "PASSWORD", password) }}
	begin := time.Now()
	for _, block := range pages.Read(t, filepath.Join(top, "docs", "howto.md")) {
		r.run(block)
		switch {
		case strings.HasPrefix(block.Text, "chasquid setup -hostname"):
			if m := shownPassword.FindStringSubmatch(r.out); m != nil {
				password = m[1]
			}
			records := shownRecord.FindAllString(r.out, -1)
			if len(records) != 6 {
				t.Fatalf("setup shows %d records, want those of the table:\n%s", len(records), r.out)
			}
			b.Publish(strings.Join(records, "\n"))
		case strings.HasPrefix(block.Text, "systemctl enable"):
			harness.WaitFor(t, sandbox.Patience, "the certificate", func() bool { return strings.Contains(b.Log(), "there is a certificate for mail.example.org") })
		case strings.HasPrefix(block.Text, "chasquid check"):
			if notRight.MatchString(r.out) {
				t.Errorf("%v: not everything is right:\n%s", block, r.out)
			}
		case strings.Contains(block.Text, "curl") && strings.Contains(block.Text, "smtp://"):
			firstMail(t, b, dkimverify)
		}
	}
	t.Logf("%v without the box", time.Since(begin).Round(time.Second/10))
	if out := b.Run("chasquid queue ls; chasquid history you@example.org"); !strings.Contains(out, "delivered") {
		t.Errorf("the history does not show the delivery:\n%s", out)
	}
}

// firstMail waits for the mail outside, has it verified there, and answers it.
func firstMail(t *testing.T, b *sandbox.Box, dkimverify string) {
	t.Helper()
	harness.WaitFor(t, sandbox.Patience, "the first mail", func() bool { return len(b.Sent()) == 1 })
	m := b.Sent()[0]
	if m.From != "you@example.org" || !strings.Contains(m.Data, "\r\n\r\nIt works.\r\n") {
		t.Errorf("%+v", m)
	}
	b.Write("/root/arrived.eml", m.Data)
	if out := b.Run(dkimverify + " </root/arrived.eml"); !strings.Contains(out, "signature ok") {
		t.Errorf("dkimverify: %s\n%s", out, m.Data)
	}
	b.Write("/root/tampered.eml", strings.Replace(m.Data, "It works", "It burns", 1))
	if out, exit := b.Try(dkimverify + " </root/tampered.eml"); exit == 0 {
		t.Errorf("dkimverify takes anything: %s", out)
	}
	b.Outside("swaks --silent 2 --server mail.example.org --helo mx.example.net -tls --tls-verify --from friend@example.net --to you@example.org --h-Subject answer")
	harness.WaitFor(t, sandbox.Patience, "the answer", func() bool {
		files, _ := filepath.Glob(b.Path("/var/lib/chasquid/mail/example.org/you/new/*"))
		return len(files) == 1
	})
}
