package docs

import (
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"blitiri.com.ar/go/chasquid/test/harness"
	"blitiri.com.ar/go/chasquid/test/pages"
	"blitiri.com.ar/go/chasquid/test/sandbox"
)

// installed is the machine that the commands of the pages are run on: a server for example.org with two users and an alias, that has sent a
// mail to example.net and waits for the chance to send another to slow.example.
const installed = `
sed -i 's/^#\(hostname\|monitoring_address\)/\1/; s,^#\(local_delivery: "maildir\),\1,' /etc/chasquid/chasquid.conf
rm -f /etc/chasquid/certs /etc/chasquid/hooks/post-data
mkdir -p /etc/chasquid/certs/mail.example.org /etc/chasquid/domains/example.org /etc/letsencrypt/live /etc/letsencrypt/archive
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 90 -subj /CN=mail.example.org -addext subjectAltName=DNS:mail.example.org \
  -keyout /etc/chasquid/certs/mail.example.org/privkey.pem -out /etc/chasquid/certs/mail.example.org/fullchain.pem 2>/dev/null
chasquid-util user-add you@example.org --password=PASSWORD
chasquid-util user-add ana@example.org --password=PASSWORD
echo 'info: you, ana' >/etc/chasquid/domains/example.org/aliases
cat /etc/chasquid/certs/mail.example.org/fullchain.pem >>/etc/ssl/certs/ca-certificates.crt
chmod 777 /var/mail
chown -R mail: /etc/chasquid/domains /etc/chasquid/certs
systemctl start chasquid
send() {
  printf 'From: you@example.org\nTo: %s\nSubject: hello\n\nHello.\n' "$1" >m
  curl -sS -k --ssl-reqd --crlf --user you@example.org:PASSWORD --mail-from you@example.org --mail-rcpt "$1" -T m smtp://mail.example.org:587
}
send friend@example.net
send somebody@slow.example
`

const installedZone = `
example.org MX 10 mail.example.org
example.org TXT "v=spf1 mx -all"
mail.example.org A 192.0.2.10
_dmarc.example.org TXT "v=DMARC1; p=none"
10.2.0.192.in-addr.arpa PTR mail.example.org
slow.example SERVFAIL
`

// words are those in capitals that stand for something in the commands of the pages.
var words = regexp.MustCompile(`\b(?:ID)\b`)

// installedRunner starts that machine. ID in a block is the id of the message that waits.
func installedRunner(t *testing.T) *runner {
	t.Helper()
	b := sandbox.New(t, sandbox.Options{Install: true, Zone: installedZone})
	b.Run(installed)
	harness.WaitFor(t, sandbox.Patience, "one message to be delivered and one to wait", func() bool {
		return len(b.Sent()) == 1 && strings.TrimSpace(b.Run("chasquid queue ls -json | jq .total")) == "1"
	})
	id := strings.TrimSpace(b.Run("chasquid queue ls -json | jq -r '.items[0].id'"))
	r := &runner{Box: b, t: t}
	r.fill = func(s string) string {
		return words.ReplaceAllStringFunc(s, func(w string) string { return map[string]string{"ID": id}[w] })
	}
	return r
}

// wholePages are held by other tests from beginning to end.
var wholePages = map[string]string{"howto.md": "test/docs TestHowto", "errors.md": "test/wrong TestWrong"}

// TestBlocks: each code block of the documents is run, parsed or checked; or the comment before it says where that is done, or why it is not.
func TestBlocks(t *testing.T) {
	harness.Need(t, "haproxy", "haproxy")
	harness.Need(t, "doveconf", "dovecot-core")
	harness.Need(t, "promtool", "prometheus")
	files, err := filepath.Glob(filepath.Join(top, "docs", "*.md"))
	if err != nil || len(files) < 20 {
		t.Fatal("where are the pages? ", err)
	}
	r := installedRunner(t)
	count := map[string]int{}
	for _, file := range append([]string{filepath.Join(top, "README.md")}, files...) {
		if test, ok := wholePages[filepath.Base(file)]; ok {
			findTest(t, pages.Block{Page: filepath.Base(file)}, test)
			continue
		}
		r.Run("systemctl start chasquid")
		for _, b := range pages.Read(t, file) {
			kind, _ := kindOf(b)
			count[kind]++
			r.run(b)
		}
	}
	t.Logf("blocks: %v", count)
	for _, kind := range []string{shell, settings, aliasing, checkBy, elseRun} {
		if count[kind] == 0 {
			t.Errorf("no block of the kind %s was found", kind)
		}
	}
}

// TestKinds: what a block is can be told from its text or its comment.
func TestKinds(t *testing.T) {
	for text, want := range map[string]string{
		"hostname: \"x\"\n":         settings,
		"# a\n# b\nroute { via: }":  settings,
		"chasquid queue ls\n":       shell,
		"sed s/a:/b/ x\n":           shell,
		"acme { email: \"a@b\" }\n": settings,
	} {
		if got, _ := kindOf(pages.Block{Text: text}); got != want {
			t.Errorf("%q is %s, want %s", text, got, want)
		}
	}
	if kind, rest := kindOf(pages.Block{Note: "not run: why so"}); kind != notRun || rest != "why so" {
		t.Error(kind, rest)
	}
}
