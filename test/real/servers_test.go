package real

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/internal/dns/zone"
	"blitiri.com.ar/go/chasquid/test/harness"
)

// sendVia submits a message through the server with curl.
func submit(t *testing.T, s *harness.Server, to, msg string) {
	t.Helper()
	curl := harness.Need(t, "curl", "curl")
	cert := filepath.Join(s.Dir, "certs", "mail.example.test", "fullchain.pem")
	harness.Run(t, strings.ReplaceAll(msg, "\n", "\r\n"), curl, "--silent", "--show-error", "--cacert", cert, "--url", "smtps://"+s.SubmissionTLS,
		"--user", "user@example.test:secret", "--mail-from", "user@example.test", "--mail-rcpt", to, "--upload-file", "-")
}

// resolver serves a zone in which remote.test has its MX at 127.0.0.1, and returns the settings that use it.
func resolver(t *testing.T, text string) string {
	t.Helper()
	z := zone.MustNew(text)
	addr, stop, err := z.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return fmt.Sprintf("dns_server: %q\n", addr)
}

const remoteZone = `
remote.test MX 10 mx.remote.test
mx.remote.test A 127.0.0.9
`

// background runs a program for the time of the test and returns what it prints.
func background(t *testing.T, name string, args ...string) *strings.Builder {
	t.Helper()
	cmd := exec.Command(name, args...)
	out := &strings.Builder{}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
		done := make(chan struct{})
		go func() { cmd.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(5 * time.Second):
			syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			<-done
		}
		if t.Failed() {
			t.Logf("%s:\n%s", name, out)
		}
	})
	return out
}

func waitListening(t *testing.T, addr string) {
	t.Helper()
	harness.WaitFor(t, 20*time.Second, "a server on "+addr, func() bool {
		c, err := net.DialTimeout("tcp", addr, time.Second)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

// TestSMTPSink relays to Postfix's sink and compares what it took.
func TestSMTPSink(t *testing.T) {
	sink := harness.Need(t, "smtp-sink", "postfix")
	port := harness.FreePort(t, "127.0.0.9")
	dir := t.TempDir()
	os.Chmod(dir, 0777)
	background(t, sink, "-u", "root", "-D", dir+"/m", "127.0.0.9:"+port, "100")
	waitListening(t, "127.0.0.9:"+port)
	s := harness.New(t, harness.Options{Conf: resolver(t, remoteZone), Args: []string{"-testing__outgoing_smtp_port=" + port}})
	s.Start()
	submit(t, s, "bob@remote.test", testMessage)
	var dump string
	harness.WaitFor(t, deliveryTime, "the message at the sink", func() bool {
		files, _ := filepath.Glob(dir + "/m*")
		for _, f := range files {
			b, _ := os.ReadFile(f)
			dump += string(b)
		}
		return len(files) > 0 && strings.Contains(dump, "end\n")
	})
	if got := original(t, dump, "Subject: t"); !strings.HasPrefix(got, testMessage) {
		t.Errorf("the sink took\n%q\nsent\n%q", got, testMessage)
	}
	harness.WaitFor(t, deliveryTime, "an empty queue", func() bool { return strings.Contains(s.Get("/debug/queue?format=text"), "length: 0") })
	if m := s.Metrics(); m[`chasquid_queue_deliverAttempts{recipient_type="email:remote"}`] != 1 {
		t.Errorf("deliverAttempts{email:remote} is %v", m[`chasquid_queue_deliverAttempts{recipient_type="email:remote"}`])
	}
}

// startPostfix runs a real Postfix in a directory of its own, which delivers for remote.test to a Maildir, and relays
// everything else to relay. It returns the directory of its mail.
func startPostfix(t *testing.T, addr, relay string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "postfix")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	mail := filepath.Join(dir, "mail")
	if err := os.Mkdir(mail, 0777); err != nil {
		t.Fatal(err)
	}
	os.Chmod(dir, 0755)
	os.Chmod(mail, 0777)
	host, port, _ := strings.Cut(addr, ":")
	conf := harness.PostfixFiles(t, dir, "["+host+"]:"+port, "myhostname = mx.remote.test\ninet_interfaces = 127.0.0.1\nmynetworks = 127.0.0.0/8\n"+
		"virtual_mailbox_domains = remote.test\nvirtual_mailbox_base = "+mail+"\nvirtual_mailbox_maps = static:all/\nvirtual_uid_maps = static:65534\n"+
		"virtual_gid_maps = static:65534\nrelayhost = "+relay+"\nsmtputf8_enable = yes\nsmtpd_tls_security_level = none\n", "")
	background(t, harness.PostfixMaster, "-c", conf, "-d")
	waitListening(t, addr)
	t.Cleanup(func() {
		if t.Failed() {
			b, _ := os.ReadFile(dir + "/maillog")
			t.Logf("Postfix's log:\n%s", b)
		}
	})
	return mail
}

// TestPostfix relays to a real Postfix and takes mail from it.
func TestPostfix(t *testing.T) {
	port := harness.FreePort(t, "127.0.0.9")
	s := harness.New(t, harness.Options{Conf: resolver(t, remoteZone), Args: []string{"-testing__outgoing_smtp_port=" + port}})
	host, ourPort, _ := strings.Cut(s.SMTP, ":")
	mail := startPostfix(t, "127.0.0.9:"+port, fmt.Sprintf("[%s]:%s", host, ourPort))
	s.Start()
	submit(t, s, "bob@remote.test", testMessage)
	inbox := func() string {
		files, _ := filepath.Glob(filepath.Join(mail, "all", "new", "*"))
		var all strings.Builder
		for _, f := range files {
			b, _ := os.ReadFile(f)
			all.Write(b)
		}
		return all.String()
	}
	harness.WaitFor(t, deliveryTime, "the message in Postfix's mailbox", func() bool { return strings.Contains(inbox(), "end\n") })
	if got := original(t, inbox(), "Subject: t"); got != testMessage {
		t.Errorf("Postfix delivered\n%q\nsent\n%q", got, testMessage)
	}
	source := harness.Need(t, "smtp-source", "postfix")
	harness.Run(t, "", source, "-m", "10", "-s", "2", "-f", "a@[127.0.0.1]", "-t", "user@example.test", "127.0.0.9:"+port)
	delivered(t, s, "user@example.test", 10)
}
