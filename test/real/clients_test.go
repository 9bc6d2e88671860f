// Package real runs chasquid against the programs it meets in the world: clients, other servers, scrapers and browsers.
package real

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/test/harness"
)

const deliveryTime = 20 * time.Second

// delivered waits for n messages in the Maildir and returns them.
func delivered(t *testing.T, s *harness.Server, addr string, n int) []string {
	t.Helper()
	harness.WaitFor(t, deliveryTime, fmt.Sprintf("%d messages for %s", n, addr), func() bool { return len(s.Maildir(addr)) >= n })
	var out []string
	for _, m := range s.Maildir(addr) {
		out = append(out, m)
	}
	if len(out) != n {
		t.Fatalf("%d messages for %s, want %d", len(out), addr, n)
	}
	return out
}

// original returns the message without the headers added on top: from the line that begins with first.
func original(t *testing.T, msg, first string) string {
	t.Helper()
	i := strings.Index(msg, "\n"+first)
	if i < 0 {
		t.Fatalf("no line begins with %q in:\n%s", first, msg)
	}
	return msg[i+1:]
}

// testMessage has lines that need dot stuffing, long lines, trailing space and 8-bit text.
const testMessage = "Subject: t\nFrom: a@b.test\nTo: user@example.test\nDate: Mon, 2 Jan 2006 15:04:05 +0000\nMessage-ID: <1@b.test>\nMIME-Version: 1.0\n" +
	"Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\n.\n..\n.leading dot\ntrailing space \nümläut\n\n" +
	"long " + "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789\n\nend\n"

// TestSwaks sends through every door with swaks, and compares what arrived octet by octet.
func TestSwaks(t *testing.T) {
	swaks := harness.Need(t, "swaks", "swaks libnet-ssleay-perl libio-socket-ssl-perl")
	s := harness.New(t, harness.Options{})
	s.Start()
	file := filepath.Join(t.TempDir(), "msg")
	if err := os.WriteFile(file, []byte(strings.TrimSuffix(testMessage, "\n")), 0600); err != nil {
		t.Fatal(err)
	}
	n := 0
	for name, args := range map[string][]string{
		"port 25":               {"--server", s.SMTP},
		"port 25 with STARTTLS": {"--server", s.SMTP, "-tls"},
		"submission":            {"--server", s.Submission, "-tls", "--auth", "PLAIN", "--auth-user", "user@example.test", "--auth-password", "secret"},
		"submission LOGIN":      {"--server", s.Submission, "-tls", "--auth", "LOGIN", "--auth-user", "user@example.test", "--auth-password", "secret"},
		"implicit TLS":          {"--server", s.SubmissionTLS, "--tls-on-connect", "--auth", "PLAIN", "--auth-user", "user@example.test", "--auth-password", "secret"},
		"pipelining":            {"--server", s.SMTP, "--pipeline"},
	} {
		from := "user@example.test"
		if strings.HasPrefix(name, "port 25") || name == "pipelining" {
			from = "a@[127.0.0.1]"
		}
		out := harness.Run(t, "", swaks, append([]string{"--from", from, "--to", "user@example.test", "--ehlo", "client.test", "--data", "@" + file}, args...)...)
		if !strings.Contains(out, "queued as ") {
			t.Errorf("%s: no queue id in the reply:\n%s", name, out)
		}
		n++
	}
	for _, m := range delivered(t, s, "user@example.test", n) {
		if got := original(t, m, "Subject: t"); got != testMessage {
			t.Errorf("delivered\n%q\nsent\n%q", got, testMessage)
		}
	}
	for _, bad := range [][]string{
		{"--server", s.Submission, "-tls", "--auth", "PLAIN", "--auth-user", "user@example.test", "--auth-password", "wrong"},
		{"--server", s.Submission, "-tls"},
		{"--server", s.SMTP, "--to", "nobody@example.test"},
		{"--server", s.SMTP, "--to", "user@elsewhere.test"},
	} {
		if out, err := harness.TryRun(t, "", swaks, append([]string{"--from", "a@[127.0.0.1]", "--to", "user@example.test", "--ehlo", "client.test"}, bad...)...); err == nil {
			t.Errorf("accepted with %q:\n%s", bad, out)
		}
	}
}

// TestMsmtp submits as a desktop does.
func TestMsmtp(t *testing.T) {
	msmtp := harness.Need(t, "msmtp", "msmtp")
	s := harness.New(t, harness.Options{})
	s.Start()
	host, port, _ := strings.Cut(s.Submission, ":")
	cert := filepath.Join(s.Dir, "certs", "mail.example.test", "fullchain.pem")
	harness.Run(t, testMessage, msmtp, "--host="+host, "--port="+port, "--auth=plain", "--user=user@example.test", "--passwordeval=echo secret",
		"--tls=on", "--tls-starttls=on", "--tls-trust-file="+cert, "--from=user@example.test", "--domain=client.test", "user@example.test")
	if got := original(t, delivered(t, s, "user@example.test", 1)[0], "Subject: t"); got != testMessage {
		t.Errorf("delivered\n%q\nsent\n%q", got, testMessage)
	}
}

// TestCurl uploads with curl over implicit TLS.
func TestCurl(t *testing.T) {
	curl := harness.Need(t, "curl", "curl")
	s := harness.New(t, harness.Options{})
	s.Start()
	cert := filepath.Join(s.Dir, "certs", "mail.example.test", "fullchain.pem")
	wire := strings.ReplaceAll(testMessage, "\n", "\r\n")
	harness.Run(t, wire, curl, "--silent", "--show-error", "--cacert", cert, "--url", "smtps://"+s.SubmissionTLS, "--user", "user@example.test:secret",
		"--mail-from", "user@example.test", "--mail-rcpt", "user@example.test", "--upload-file", "-")
	if got := original(t, delivered(t, s, "user@example.test", 1)[0], "Subject: t"); got != testMessage {
		t.Errorf("delivered\n%q\nsent\n%q", got, testMessage)
	}
}

const pythonClient = `
import smtplib, ssl, sys
host, port, cert = sys.argv[1], int(sys.argv[2]), sys.argv[3]
ctx = ssl.create_default_context(cafile=cert)
s = smtplib.SMTP(host, port, local_hostname="client.test")
s.starttls(context=ctx)
s.login("user@example.test", "secret")
assert s.has_extn("size") and s.has_extn("smtputf8") and s.has_extn("pipelining"), s.esmtp_features
msg = sys.stdin.buffer.read().replace(b"\n", b"\r\n")
for _ in range(3):
    refused = s.sendmail("user@example.test", ["user@example.test", "nobody@example.test"], msg, mail_options=["BODY=8BITMIME"])
    assert list(refused) == ["nobody@example.test"] and refused["nobody@example.test"][0] == 550, refused
s.sendmail("user@example.test", ["\u00fcser@example.test"], msg, mail_options=["SMTPUTF8", "BODY=8BITMIME"])
print(s.noop(), s.rset(), s.help()[:3], s.verify("user@example.test"), s.quit())
`

// TestPython sends several messages over one connection with smtplib, with a refused recipient and a UTF-8 address.
func TestPython(t *testing.T) {
	python := harness.Need(t, "python3", "python3")
	s := harness.New(t, harness.Options{Domains: map[string]harness.Domain{"example.test": {Users: map[string]string{"user": "secret", "üser": "x"}}}})
	s.Start()
	script := filepath.Join(t.TempDir(), "client.py")
	if err := os.WriteFile(script, []byte(pythonClient), 0600); err != nil {
		t.Fatal(err)
	}
	host, port, _ := strings.Cut(s.Submission, ":")
	harness.Run(t, testMessage, python, script, host, port, filepath.Join(s.Dir, "certs", "mail.example.test", "fullchain.pem"))
	for _, m := range append(delivered(t, s, "user@example.test", 3), delivered(t, s, "üser@example.test", 1)...) {
		if got := original(t, m, "Subject: t"); got != testMessage {
			t.Errorf("delivered\n%q\nsent\n%q", got, testMessage)
		}
	}
}

// TestSMTPSource takes 2000 messages over 20 sessions from Postfix's load generator.
func TestSMTPSource(t *testing.T) {
	source := harness.Need(t, "smtp-source", "postfix")
	s := harness.New(t, harness.Options{})
	s.Start()
	harness.Run(t, "", source, "-s", "20", "-m", "2000", "-l", "4096", "-f", "a@[127.0.0.1]", "-t", "user@example.test", "inet:"+s.SMTP)
	harness.WaitFor(t, 60*time.Second, "2000 messages delivered", func() bool { return len(s.Maildir("user@example.test")) >= 2000 })
	if n := len(s.Maildir("user@example.test")); n != 2000 {
		t.Errorf("%d messages delivered, want 2000", n)
	}
	if m := s.Metrics(); m["chasquid_queue_putCount"] != 2000 || m["chasquid_queue_itemsWritten"] != 2000 {
		t.Errorf("putCount %v, itemsWritten %v, want 2000", m["chasquid_queue_putCount"], m["chasquid_queue_itemsWritten"])
	}
}

// TestBigMessage passes 45 MiB through with the process small.
func TestBigMessage(t *testing.T) {
	curl := harness.Need(t, "curl", "curl")
	s := harness.New(t, harness.Options{})
	s.Start()
	raw := make([]byte, 33<<20)
	rand.Read(raw)
	var msg bytes.Buffer
	msg.WriteString("Subject: big\r\nFrom: user@example.test\r\nDate: Mon, 2 Jan 2006 15:04:05 +0000\r\nMessage-ID: <2@b.test>\r\n\r\n")
	enc := base64.StdEncoding.EncodeToString(raw)
	for len(enc) > 76 {
		msg.WriteString(enc[:76] + "\r\n")
		enc = enc[76:]
	}
	msg.WriteString(enc + "\r\n")
	file := filepath.Join(t.TempDir(), "big")
	if err := os.WriteFile(file, msg.Bytes(), 0600); err != nil {
		t.Fatal(err)
	}
	cert := filepath.Join(s.Dir, "certs", "mail.example.test", "fullchain.pem")
	harness.Run(t, "", curl, "--silent", "--show-error", "--cacert", cert, "--url", "smtps://"+s.SubmissionTLS, "--user", "user@example.test:secret",
		"--mail-from", "user@example.test", "--mail-rcpt", "user@example.test", "--upload-file", file)
	got := original(t, delivered(t, s, "user@example.test", 1)[0], "Subject: big")
	if want := strings.ReplaceAll(msg.String(), "\r\n", "\n"); got != want {
		t.Errorf("%d bytes delivered differ from the %d sent", len(got), len(want))
	}
	if peak := peakRSS(t, s.PID()); peak > 120<<20 {
		t.Errorf("the process grew to %d MB for a message of %d MB", peak>>20, msg.Len()>>20)
	} else {
		t.Logf("peak memory %d MB for a message of %d MB", peak>>20, msg.Len()>>20)
	}
}

// peakRSS is the largest resident memory of the process so far, in bytes.
func peakRSS(t *testing.T, pid int) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	t.Fatal("no VmHWM")
	return 0
}
