// Package migrate takes an installation of the packaged original to this server and back, with the commands of docs/upgrade.md.
package migrate

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/test/harness"
	"blitiri.com.ar/go/chasquid/test/pages"
	"blitiri.com.ar/go/chasquid/test/sandbox"
)

func TestMain(m *testing.M) { sandbox.Main(m) }

// original downloads Debian's chasquid, once for this machine, and returns the package.
func original(t *testing.T) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(cache, "chasquid-test", "original")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	find := func() []string {
		debs, _ := filepath.Glob(filepath.Join(dir, "chasquid_*.deb"))
		return debs
	}
	for _, command := range []string{"apt-get -q download chasquid", "apt-get -q update && apt-get -q download chasquid"} {
		if len(find()) > 0 {
			break
		}
		cmd := exec.Command("sh", "-c", command)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Logf("%s: %v\n%s", command, err, out)
		}
	}
	debs := find()
	if len(debs) == 0 {
		t.Fatal("Debian's chasquid package was not downloaded")
	}
	return debs[0]
}

const zone = `
example.org MX 10 mail.example.org
example.org TXT "v=spf1 mx -all"
_dmarc.example.org TXT "v=DMARC1; p=none"
mail.example.org A 192.0.2.10
10.2.0.192.in-addr.arpa PTR mail.example.org
_mta-sts.example.net TXT "v=STSv1; id=1"
mta-sts.example.net A 198.51.100.80
`

// policy is the MTA-STS policy of the domain outside.
const policy = "version: STSv1\nmode: enforce\nmx: mx.example.net\nmax_age: 86400\n"

// existing makes an installation of the original: its files, users made by its own tool, a delivery agent that can be told to fail.
const existing = `
dpkg-deb --fsys-tarfile /root/chasquid_*.deb | tar -x --keep-directory-symlink -C /
echo 'chasquid:x:100:101::/var/lib/chasquid:/usr/sbin/nologin' >>/etc/passwd
echo 'chasquid:x:101:' >>/etc/group
install -d -o chasquid -g chasquid -m 700 /var/lib/chasquid
cat >/etc/chasquid/chasquid.conf <<END
hostname: "mail.example.org"
monitoring_address: "127.0.0.1:1099"
mail_delivery_agent_bin: "/etc/chasquid/deliver"
mail_delivery_agent_args: ["-f", "%from%", "-d", "%to%"]
suffix_separators: "+-"
END
cat >/etc/chasquid/deliver <<'END'
#!/bin/sh
[ ! -e /tmp/agent-down ] || exit 75
file=$(mktemp /tmp/box/"$4".XXXXXX) && cat >"$file"
END
printf '#!/bin/sh\necho "X-Hook: $AUTH_AS"\n' >/etc/chasquid/hooks/post-data
chmod 755 /etc/chasquid/deliver /etc/chasquid/hooks/post-data
install -d -m 777 /tmp/box
install -d /etc/chasquid/certs/mail.example.org /etc/chasquid/domains/example.org
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 90 -subj /CN=mail.example.org -addext subjectAltName=DNS:mail.example.org \
  -keyout /etc/chasquid/certs/mail.example.org/privkey.pem -out /etc/chasquid/certs/mail.example.org/fullchain.pem 2>/dev/null
openssl genpkey -algorithm ed25519 -out /etc/chasquid/domains/example.org/dkim:2024.pem
chasquid-util user-add alice@example.org --password='correct horse'
chasquid-util user-add bob@example.org --password=battery
printf '%s\n' 'team: alice, bob' 'away: carol@example.net' 'both: bob, dora@example.net' '*: bob' >/etc/chasquid/domains/example.org/aliases
chown -R chasquid: /etc/chasquid/certs/mail.example.org /etc/chasquid/domains /var/lib/chasquid
`

// installation is the box with what is being moved.
type installation struct {
	*sandbox.Box
	t *testing.T
}

var passwords = map[string]string{"alice@example.org": "correct horse", "bob@example.org": "battery"}

// body is the content of message n: 8-bit text, leading dots, and for one of them more than memory is used for.
func body(n int) string {
	text := fmt.Sprintf("Message %d, größer\r\n.\r\n..two\r\n", n)
	if n%4 == 0 {
		text += strings.Repeat("0123456789 abcdefghij\r\n", 20000)
	}
	return text
}

// submit sends message n as a user, through the submission port.
func (i *installation) submit(n int, from string, to ...string) {
	i.t.Helper()
	i.Write(fmt.Sprintf("/root/%d", n), fmt.Sprintf("From: <%s>\r\nTo: <%s>\r\nSubject: number %d\r\nDate: Sun, 29 Nov 2026 10:00:00 +0000\r\n"+
		"Message-ID: <%d@client.example>\r\n\r\n%s", from, to[0], n, n, body(n)))
	i.Run(fmt.Sprintf("swaks --silent 2 --server 127.0.0.1:587 -tls --helo client.example --auth PLAIN --auth-user %s --auth-password '%s' --from %s --to %s --data - </root/%d",
		from, passwords[from], from, strings.Join(to, ","), n))
}

// commands are the blocks of one section of docs/upgrade.md.
func commands(t *testing.T, section string) (all []string) {
	t.Helper()
	for _, b := range pages.Read(t, "../../docs/upgrade.md") {
		if b.Section == section {
			all = append(all, b.Text)
		}
	}
	if len(all) == 0 {
		t.Fatalf("docs/upgrade.md has no commands under %q", section)
	}
	return all
}

func (i *installation) follow(blocks []string) {
	i.t.Helper()
	for _, text := range blocks {
		i.Run("cd /src\n" + text)
		if strings.Contains(text, "systemctl start") {
			i.greeted()
		}
	}
}

// greeted waits until the server greets. The old unit does not tell when it is ready.
func (i *installation) greeted() {
	i.t.Helper()
	i.Run("swaks --silent 3 --server 127.0.0.1 --quit-after BANNER")
}

var subjectRE = regexp.MustCompile(`(?m)^Subject: number (\d+)\r?$`)

// arrived counts message and recipient, outside and in the boxes of the local users, and checks what arrived.
func (i *installation) arrived() map[string]int {
	i.t.Helper()
	got := map[string]int{}
	note := func(to, data string) {
		m := subjectRE.FindStringSubmatch(data)
		if m == nil {
			return
		}
		var n int
		fmt.Sscan(m[1], &n)
		// Old versions hand lines to delivery agents that end in LF.
		_, text, _ := strings.Cut(strings.ReplaceAll(strings.ReplaceAll(data, "\r\n", "\n"), "\n", "\r\n"), "\r\n\r\n")
		text = strings.TrimRight(text, "\r\n") + "\r\n" // swaks adds an empty line
		if text != body(n) {
			i.t.Errorf("message %d for %s arrived with another body, of %d bytes instead of %d: %.2000q", n, to, len(text), len(body(n)), data)
		}
		got[m[1]+" "+to]++
	}
	for _, m := range i.Sent() {
		for _, to := range m.To {
			note(to, m.Data)
		}
	}
	files, _ := filepath.Glob(i.Path("/tmp/box/*"))
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			i.t.Fatal(err)
		}
		name := filepath.Base(f)
		note(name[:strings.LastIndexByte(name, '.')], string(text))
	}
	return got
}

// expect waits until everything has arrived, and a little longer for what should not.
func (i *installation) expect(want ...string) {
	i.t.Helper()
	missing := func() (l []string) {
		got := i.arrived()
		for _, w := range want {
			if got[w] == 0 {
				l = append(l, w)
			}
		}
		return l
	}
	for deadline := time.Now().Add(sandbox.Patience); len(missing()) > 0; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			i.t.Fatalf("not arrived: %q\n%s\n%s", missing(), i.Log(), i.Read("/var/log/syslog"))
		}
	}
	time.Sleep(300 * time.Millisecond)
	for what, n := range i.arrived() {
		if n != 1 || !slices.Contains(want, what) {
			i.t.Errorf("%s arrived %d times", what, n)
		}
	}
}

// agentDown makes the delivery agent unable to take mail, or able again.
func (i *installation) agentDown(down bool) {
	i.t.Helper()
	i.Run(map[bool]string{true: "touch /tmp/agent-down", false: "rm /tmp/agent-down"}[down])
}

// TestThereAndBack: the mail in the queue of the original is delivered by this server, and the mail in the queue of this server by the
// original, each message once and whole; users, aliases, dashboards and fail2ban find what they know.
func TestThereAndBack(t *testing.T) {
	harness.Need(t, "swaks", "swaks libnet-ssleay-perl libio-socket-ssl-perl")
	harness.Need(t, "fail2ban-regex", "fail2ban")
	i := &installation{sandbox.New(t, sandbox.Options{Zone: zone, Source: true, Files: []string{original(t)}}), t}
	i.Write("/var/www/mta-sts.example.net/.well-known/mta-sts.txt", policy)
	i.Run(existing)
	i.Run("systemctl start chasquid")
	i.greeted()
	old := i.fillOldQueue()

	i.Publish(i.dkimRecord())
	there := commands(t, "From chasquid 1.18 and earlier")
	i.follow(there[:2])
	i.SinkDown(false) // once the old server is stopped: what is waiting is the new one's to deliver
	i.agentDown(false)
	i.follow(there[2:])
	i.expect(old...)
	if left := i.Run("ls -A /var/lib/chasquid/queue | grep ^m: || true"); left != "" {
		t.Errorf("left of the old queue: %s", left)
	}
	t.Run("logins", i.logins)
	t.Run("aliases", i.aliases)
	t.Run("names", i.names)
	t.Run("state", i.state)
	t.Run("fail2ban", i.fail2ban)
	t.Run("signed", i.signed)

	fresh := i.fillNewQueue(old)
	back := commands(t, "Back to the old version")
	i.follow(back[:1])
	i.SinkDown(false)
	i.agentDown(false)
	i.follow(back[1:])
	if v := i.Run("chasquid -version; readlink /usr/bin/chasquid-util || true"); !strings.Contains(v, "chasquid 1.") {
		t.Fatalf("this is not the original: %s", v)
	}
	i.expect(append(old, fresh...)...)
	t.Run("logins after going back", i.logins)
}

// fillOldQueue makes the original deliver one message, for what it learns from that, and keep others that it cannot deliver yet.
func (i *installation) fillOldQueue() (arrive []string) {
	i.t.Helper()
	i.submit(1, "alice@example.org", "zoe@example.net")
	i.expect("1 zoe@example.net")
	i.oldNames()
	i.SinkDown(true)
	i.submit(6, "alice@example.org", "bob@example.org", "yan@example.net") // one of both has it already
	i.expect("1 zoe@example.net", "6 bob@example.org")
	i.agentDown(true)
	i.submit(2, "alice@example.org", "zoe@example.net")
	i.submit(3, "bob@example.org", "zoe@example.net", "yan@example.net", "alice+tag@example.org")
	i.submit(4, "bob@example.org", "both@example.org")
	i.Write("/root/5", "From: <xia@example.net>\r\nTo: <away@example.org>\r\nSubject: number 5\r\nDate: Sun, 29 Nov 2026 10:00:00 +0000\r\n\r\n"+body(5))
	i.Outside("swaks --silent 2 --server 192.0.2.10 --helo mx.example.net --from xia@example.net --to away@example.org --data - </root/5")
	failures := func() string { return i.Run("cat /var/lib/chasquid/queue/m:* | grep -c last_failure_message || true") }
	harness.WaitFor(i.t, sandbox.Patience, "the original to try all recipients", func() bool { return failures() == "8\n" })
	return []string{"1 zoe@example.net", "2 zoe@example.net", "3 zoe@example.net", "3 yan@example.net", "3 bob@example.org", "4 bob@example.org", "4 dora@example.net",
		"5 carol@example.net", "6 bob@example.org", "6 yan@example.net"}
}

// fillNewQueue leaves mail in the queue of this server.
func (i *installation) fillNewQueue(before []string) (arrive []string) {
	i.t.Helper()
	i.SinkDown(true)
	i.submit(16, "alice@example.org", "bob@example.org", "yan@example.net")
	i.expect(append(before, "16 bob@example.org")...)
	i.agentDown(true)
	i.submit(12, "alice@example.org", "zoe@example.net")
	i.submit(13, "bob@example.org", "yan@example.net", "team@example.org")
	i.submit(14, "alice@example.org", "away@example.org")
	if n := i.Run("chasquid queue ls -json | jq '[.items[].recipients[] | select(.status == \"PENDING\")] | length'"); n != "6\n" {
		i.t.Errorf("%s recipients wait, want 6:\n%s", n, i.Run("chasquid queue ls -json"))
	}
	return []string{"12 zoe@example.net", "13 yan@example.net", "13 alice@example.org", "13 bob@example.org", "14 carol@example.net", "16 bob@example.org", "16 yan@example.net"}
}

// dkimRecord is the DNS record of the installation's key.
func (i *installation) dkimRecord() string {
	i.t.Helper()
	return i.Run("cd /src; make -s build >&2; ./chasquid util dkim-dns example.org 2>/dev/null | grep TXT")
}

func (i *installation) logins(t *testing.T) {
	for user, password := range passwords {
		i.Run(fmt.Sprintf("swaks --silent 2 --server 127.0.0.1:465 --tls-on-connect --helo client.example --auth PLAIN --auth-user %s --auth-password '%s' --quit-after AUTH", user, password))
	}
	if out, exit := i.Try("swaks --server 127.0.0.1:465 --tls-on-connect --helo x --auth PLAIN --auth-user bob@example.org --auth-password wrong --quit-after AUTH"); exit == 0 {
		t.Errorf("a wrong password is taken:\n%s", out)
	}
}

func (i *installation) aliases(t *testing.T) {
	for address, want := range map[string]string{
		"team@example.org":    "(email)  alice@example.org\n(email)  bob@example.org\n",
		"away@example.org":    "(email)  carol@example.net\n",
		"bo.b-x@example.org":  "(email)  bob@example.org\n",
		"unknown@example.org": "(email)  bob@example.org\n",
	} {
		if got := i.Run("chasquid-util aliases-resolve " + address); got != want {
			t.Errorf("%s: %q, want %q", address, got, want)
		}
	}
}

// oldNames keeps what the original calls its variables and metrics.
func (i *installation) oldNames() {
	i.Run(`curl -sS http://127.0.0.1:1099/debug/vars | jq -r 'keys[] | select(startswith("chasquid/"))' >/root/vars
curl -sS http://127.0.0.1:1099/metrics | sed -n 's/^\(chasquid_[A-Za-z0-9_]*\).*/\1/p' | sort -u >/root/metrics`)
}

// names: whatever a dashboard of the original may read is there (MON-5): what the original shows, and what its later versions do.
func (i *installation) names(t *testing.T) {
	later, err := os.ReadFile("../real/testdata/variables.txt")
	if err != nil {
		t.Fatal(err)
	}
	variables := slices.Concat(strings.Fields(i.Read("/root/vars")), strings.Fields(string(later)))
	if len(variables) < 60 {
		t.Fatalf("the original shows too little: %q", variables)
	}
	have := i.Run("curl -sS http://127.0.0.1:1099/debug/vars | jq -r 'keys[]'")
	metrics := i.Run("curl -sS http://127.0.0.1:1099/metrics")
	for _, v := range variables {
		if !strings.Contains("\n"+have, "\n"+v+"\n") {
			t.Errorf("/debug/vars lacks %s", v)
		}
	}
	for _, m := range strings.Fields(i.Read("/root/metrics")) {
		if !regexp.MustCompile(`(?m)^(# HELP )?` + m + `[ {]`).MatchString(metrics) {
			t.Errorf("/metrics lacks %s", m)
		}
	}
}

// state: what the original learnt about TLS is known: its level of the domain outside, and its policy, without fetching it again.
func (i *installation) state(t *testing.T) {
	if out := i.Run("chasquid level ls"); !strings.Contains(out, "example.net") || !strings.Contains(out, "TLS_SECURE") {
		t.Errorf("level ls:\n%s", out)
	}
	if out := i.Run("curl -sS http://127.0.0.1:1099/metrics | grep ^chasquid_sts_cache_hits"); strings.TrimSpace(out) == "chasquid_sts_cache_hits 0" {
		t.Errorf("the policy of the old cache was not used: %s", out)
	}
}

// oldFilter is the expression of the fail2ban filters of existing installations (LOG-4).
const oldFilter = `SMTP.Conn <ADDR>:\d+: error:.*((AUTH|MAIL|RCPT|DATA) failed|Unknown command|too many errors|http command)`

// fail2ban: both filters find the client that guesses passwords and the one that tries unknown users.
func (i *installation) fail2ban(t *testing.T) {
	i.Run("rm -f /etc/chasquid/domains/example.org/aliases; systemctl reload chasquid")
	harness.WaitFor(t, sandbox.Patience, "the catch-all to be gone", func() bool {
		return !strings.Contains(i.Run("chasquid-util aliases-resolve gone@example.org"), "bob@")
	})
	i.Outside("! swaks --silent 3 --server 192.0.2.10:587 -tls --helo x --auth PLAIN --auth-user bob@example.org --auth-password guess --quit-after AUTH\n" +
		"! swaks --silent 3 --server 192.0.2.10 --helo x --from xia@example.net --to nobody.here@example.org --quit-after RCPT")
	i.Run("printf '%s\\n' 'away: carol@example.net' 'team: alice, bob' >/etc/chasquid/domains/example.org/aliases; chown chasquid: /etc/chasquid/domains/example.org/aliases; systemctl reload chasquid")
	i.Run(`grep -a 'SMTP.Conn 198.51.100.25' /var/log/chasquid.service | grep -a 'failed' | sed 's/^/2026-11-29 10:00:00 /' >/root/failed`)
	for _, filter := range []string{"/src/etc/fail2ban/filter.d/chasquid.conf", "'" + oldFilter + "'"} {
		if out := i.Run("fail2ban-regex -v /root/failed " + filter); !strings.Contains(out, "2 matched, 0 missed") {
			t.Errorf("%s:\n%s\n%s", filter, out, i.Read("/root/failed"))
		}
	}
}

// signed: mail that users send now is signed with the key that was there.
func (i *installation) signed(t *testing.T) {
	i.Run("swaks --silent 2 --server 127.0.0.1:587 -tls --helo x --auth PLAIN --auth-user bob@example.org --auth-password battery --from bob@example.org --to zoe@example.net --h-Subject signed")
	harness.WaitFor(t, sandbox.Patience, "the signed message", func() bool {
		return slices.ContainsFunc(i.Sent(), func(m sandbox.Mail) bool {
			return strings.Contains(m.Data, "Subject: signed\r\n") && strings.Contains(m.Data, "d=example.org; s=2024;") && strings.Contains(m.Data, "X-Hook: bob@example.org\r\n")
		})
	})
}
