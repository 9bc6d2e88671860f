package courier

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

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/mail"
)

const dovecotConfig = `
base_dir = %[1]s/run
state_dir = %[1]s/state
log_path = %[1]s/log
protocols = lmtp
ssl = no
recipient_delimiter = +
lmtp_save_to_detail_mailbox = yes
lda_mailbox_autocreate = yes
mail_location = maildir:%[1]s/mail/%%n
mail_uid = nobody
mail_gid = nogroup
first_valid_uid = 1
passdb {
  driver = passwd-file
  args = username_format=%%n %[1]s/users
}
userdb {
  driver = passwd-file
  args = username_format=%%n %[1]s/users
}
service lmtp {
  unix_listener lmtp {
    mode = 0600
  }
}
`

// A real Dovecot: verdicts per recipient, the detail of user+detail, and the trace fields it adds itself.
func TestRealDovecotLMTP(t *testing.T) {
	bin, err := exec.LookPath("dovecot")
	if err != nil {
		t.Skip("dovecot is not installed")
	}
	if _, err := os.Stat("/usr/lib/dovecot/lmtp"); err != nil {
		t.Skip("dovecot's LMTP server is not installed (Debian: dovecot-lmtpd)")
	}
	if os.Getuid() != 0 {
		t.Skip("dovecot's master process wants to be root")
	}
	dir, err := os.MkdirTemp("/tmp", "dovecot") // short: it is part of socket names
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	for name, text := range map[string]string{"conf": fmt.Sprintf(dovecotConfig, dir), "users": "joe::65534:65534::/tmp::\nann::65534:65534::/tmp::\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "mail"), 0o777); err != nil {
		t.Fatal(err)
	}
	os.Chmod(dir, 0o755)
	os.Chmod(filepath.Join(dir, "mail"), 0o777)
	cmd := exec.Command(bin, "-F", "-c", filepath.Join(dir, "conf"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); cmd.Wait() })
	socket := filepath.Join(dir, "run/lmtp")
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
			break
		}
		if time.Now().After(deadline) {
			log, _ := os.ReadFile(filepath.Join(dir, "log"))
			t.Fatalf("dovecot did not start: %s", log)
		}
	}

	job := testJob("Return-Path: <forged@x.test>\r\nSubject: hi\r\n\r\n.dot\r\n", "a@remote.test", "joe@local.test", "nobody-here@local.test", "ann@local.test")
	job.Rcpts[2].Orig = address.MustParse("Ann+Lists@local.test")
	job.Route = mail.Route{Transport: mail.Local, Target: "lmtp:" + socket}
	l := NewLocal(LocalConfig{Hostname: "me.test", SuffixSeparators: "+"})
	out := l.Deliver(t.Context(), job)
	for i, want := range []mail.Disposition{mail.Delivered, mail.Failed, mail.Delivered} {
		if out[i].Disposition != want {
			log, _ := os.ReadFile(filepath.Join(dir, "log"))
			t.Errorf("recipient %d: %+v\n%s", i, out[i], log)
		}
	}
	if out[1].Reason != mail.ReasonMailbox {
		t.Errorf("unknown user: %v", out[1].Reason)
	}
	for _, where := range []string{"joe/new", "ann/.Lists/new"} {
		files, _ := filepath.Glob(filepath.Join(dir, "mail", where, "*"))
		if len(files) != 1 {
			t.Errorf("%d messages in %s", len(files), where)
			continue
		}
		b, _ := os.ReadFile(files[0])
		if s := string(b); strings.Count(s, "\nReturn-Path:")+strings.Count(s[:12], "Return-Path:") != 1 || !strings.Contains(s, "Return-Path: <a@remote.test>") || !strings.HasSuffix(s, "\n.dot\n") {
			t.Errorf("%s has %q", where, s)
		}
	}
}
