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
protocol lmtp {
  mail_plugins = sieve
}
plugin {
  sieve = file:%[1]s/sieve/%%n.sieve
}
service lmtp {
  unix_listener lmtp {
    mode = 0600
  }
}
`

// dovecotSieve files by the detail of the recipient (RFC 5233), which it must see, and by the sender.
const dovecotSieve = `require ["fileinto", "envelope", "subaddress", "variables", "mailbox", "reject"];
if envelope :detail :matches "to" "project-*" {
  fileinto :create "Projects.${1}";
} elsif envelope :detail "to" "refuse" {
  reject "not for me";
} elsif envelope :user "from" "bounces" {
  fileinto :create "Bounces";
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
	if _, err := os.Stat("/usr/lib/dovecot/modules/lib90_sieve_plugin.so"); err != nil {
		t.Skip("dovecot's Sieve is not installed (Debian: dovecot-sieve)")
	}
	if os.Getuid() != 0 {
		t.Skip("dovecot's master process wants to be root")
	}
	dir, err := os.MkdirTemp("/tmp", "dovecot") // short: it is part of socket names
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Mkdir(filepath.Join(dir, "sieve"), 0o777); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"conf": fmt.Sprintf(dovecotConfig, dir), "users": "joe::65534:65534::/tmp::\nann::65534:65534::/tmp::\nsue::65534:65534::/tmp::\n",
		"sieve/sue.sieve": dovecotSieve} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "mail"), 0o777); err != nil {
		t.Fatal(err)
	}
	os.Chmod(dir, 0o755)
	os.Chmod(filepath.Join(dir, "sieve"), 0o777) // it compiles there
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

	count := func(where string) int {
		files, _ := filepath.Glob(filepath.Join(dir, "mail", where, "*"))
		return len(files)
	}
	l := NewLocal(LocalConfig{Hostname: "me.test", SuffixSeparators: "+"})
	t.Run("Sieve", func(t *testing.T) {
		for _, c := range []struct {
			orig, from, where string
		}{
			{"sue@local.test", "a@remote.test", "sue/new"},
			{"Sue+project-x@local.test", "a@remote.test", "sue/.Projects.x/new"},
			{"sue+Project-Y.z@local.test", "a@remote.test", "sue/.Projects.Y.z/new"},
			{"sue@local.test", "bounces@remote.test", "sue/.Bounces/new"},
		} {
			job := testJob("Subject: hi\r\n\r\nx\r\n", c.from, "sue@local.test")
			job.Rcpts[0].Orig = address.MustParse(c.orig)
			job.Route = mail.Route{Transport: mail.Local, Target: "lmtp:" + socket}
			if out := l.Deliver(t.Context(), job); out[0].Disposition != mail.Delivered || count(c.where) != 1 {
				log, _ := os.ReadFile(filepath.Join(dir, "log"))
				t.Errorf("%s from %s: %+v, %d messages in %s\n%s", c.orig, c.from, out[0], count(c.where), c.where, log)
			}
		}
		// What an alias led here has the detail of the mailbox it names, or else that of the address it was sent to.
		job := testJob("Subject: hi\r\n\r\nx\r\n", "a@remote.test", "sue@local.test")
		job.Rcpts[0].Orig, job.Rcpts[0].Detail = address.MustParse("team@local.test"), "project-alias"
		job.Route = mail.Route{Transport: mail.Local, Target: "lmtp:" + socket}
		if out := l.Deliver(t.Context(), job); out[0].Disposition != mail.Delivered || count("sue/.Projects.alias/new") != 1 {
			t.Errorf("the detail of an alias: %+v", out[0])
		}
	})

	job := testJob("Return-Path: <forged@x.test>\r\nSubject: hi\r\n\r\n.dot\r\n", "a@remote.test", "joe@local.test", "nobody-here@local.test", "ann@local.test")
	job.Rcpts[2].Orig = address.MustParse("Ann+Lists@local.test")
	job.Route = mail.Route{Transport: mail.Local, Target: "lmtp:" + socket}
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
