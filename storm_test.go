package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/internal/config"
	"blitiri.com.ar/go/chasquid/internal/reload"
	"blitiri.com.ar/go/chasquid/test/harness"
	"blitiri.com.ar/go/chasquid/test/patience"
)

// stormTime is how long the storm of TestN2Storm lasts.
const stormTime = 2 * time.Second

// TestN2Storm: settings change as fast as they can, by signals and on request, while mail flows: no message is refused or lost, and in
// the end what the file says is in force. The race detector looks on.
func TestN2Storm(t *testing.T) {
	w := startLive(t)
	defer w.stop()
	w.files.WriteFile("web.yml", "basic_auth_users:\n  alice: $2y$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG\n")
	submission, pages := free(w), free(w)
	variants := []map[string]string{
		nil,
		{"hostname": `hostname: "b.example.test"`, "max_recipients": "max_recipients: 200", "timeouts": `timeouts { dial: "1s" drain: "20s" }`},
		{"submission_address": fmt.Sprintf("submission_address: %q", submission), "suffix_separators": `suffix_separators: "="`},
		{"monitoring_web_config": `monitoring_web_config: "web.yml"`, "mail_log_path": fmt.Sprintf("mail_log_path: %q", filepath.Join(w.files.Dir, "b.log"))},
		{"monitoring_address": fmt.Sprintf("monitoring_address: %q", pages), "outgoing_address": `outgoing_address: "127.0.0.2"`, "srs": `srs: "off"`},
		{"dovecot_auth": "dovecot_auth: true", "dns_server": `dns_server: "127.0.0.9"`, "otlp_endpoint": `otlp_endpoint: "http://127.0.0.1:1/"`},
		{"max_deliveries": "max_deliveries: 3", "history_hash_addresses": "history_hash_addresses: true", "tls_reports": `tls_reports: "on"`},
		{"hostname": "hostname: unquoted"}, // refused
	}
	var sent atomic.Int64
	var stop atomic.Bool
	var wg sync.WaitGroup
	smtp := w.addr("smtp_address")
	for range 3 {
		wg.Go(func() {
			for !stop.Load() {
				out := w.say(smtp, "EHLO client.test", "MAIL FROM:<a@out.test>", "RCPT TO:<user@example.test>", "DATA", letter)
				if !strings.Contains(out, "queued as") {
					t.Errorf("a message was not taken: %s", out)
					return
				}
				sent.Add(1)
			}
		})
	}
	wg.Go(func() {
		for !stop.Load() {
			if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
				t.Error(err)
			}
			time.Sleep(3 * time.Millisecond)
		}
	})
	end := time.Now().Add(stormTime)
	reloads := 0
	for i := 0; time.Now().Before(end); i++ {
		w.write(variants[i%len(variants)])
		st := w.reloadNow(t.Context(), reload.Operator)
		if bad := i%len(variants) == len(variants)-1; (st.Err() != nil) != bad {
			t.Errorf("variant %d: %v", i%len(variants), st.Err())
		}
		reloads++
	}
	stop.Store(true)
	wg.Wait()
	w.write(variants[1])
	w.reload()
	want, err := config.Load(filepath.Join(w.files.Dir, config.FileName), "")
	if err != nil {
		t.Fatal(err)
	}
	if d := config.Diff(want, w.conf()); len(d) != 0 {
		t.Errorf("the file and what is in force differ: %v", d)
	}
	n := int(sent.Load())
	harness.WaitFor(t, patience.Limit(10*time.Second), "all messages in the mailbox", func() bool { return len(w.files.Maildir("user@example.test")) >= n })
	if got := len(w.files.Maildir("user@example.test")); got != n || n == 0 {
		t.Errorf("%d messages accepted, %d delivered", n, got)
	}
	t.Logf("%d messages, %d reloads asked for besides the signals", n, reloads)
}

// TestR16SessionsKeepTheirSettings: a session goes on with the settings it began with, also on a listener that is closed; the next one has the new.
func TestR16SessionsKeepTheirSettings(t *testing.T) {
	w := startLive(t)
	defer w.stop()
	c, _, err := w.dial(w.addr("smtp_address"))
	if err != nil {
		t.Fatal(err)
	}
	w.want(talk(c, "EHLO client.test"), "RCPTMAX=1000")
	w.want(talk(c, "MAIL FROM:<a@out.test>", "RCPT TO:<user+x@example.test>"), "250")
	w.write(map[string]string{"smtp_address": fmt.Sprintf("smtp_address: %q", free(w)), "max_recipients": "max_recipients: 100",
		"suffix_separators": `suffix_separators: "="`, "hostname": `hostname: "b.example.test"`})
	w.reload()
	w.want(talk(c, "RCPT TO:<user+y@example.test>", "DATA", letter), "queued as")
	w.want(talk(c, "EHLO client.test"), "RCPTMAX=1000")
	out := w.say(w.addr("smtp_address"), "EHLO client.test", "MAIL FROM:<a@out.test>", "RCPT TO:<user+x@example.test>", "RCPT TO:<user=x@example.test>")
	w.want(out, "220 b.example.test")
	w.want(out, "RCPTMAX=100")
	w.want(out, "550 5.1.1")
	w.check(strings.HasSuffix(out, "250 2.1.5 OK") || strings.Contains(out[strings.LastIndexByte(out, '\n'):], "250"), "the new separator: %s", out)
	harness.WaitFor(t, patience.Limit(5*time.Second), "one copy in the mailbox", func() bool { return len(w.files.Maildir("user@example.test")) == 1 })
}

// TestR16PollWaits: a file that changed a moment ago is left alone by a poll, as its writer may not be done, but taken when somebody asks;
// a file that did not change is not read again.
func TestR16PollWaits(t *testing.T) {
	w := startLive(t)
	defer w.stop()
	poll := func(age time.Duration) (changes []string, in time.Duration) {
		now := time.Now()
		for _, path := range w.settingFiles() { // the secret of rewritten senders was made at the start
			if err := os.Chtimes(path, now, now.Add(-age)); err != nil {
				t.Fatal(err)
			}
		}
		st := w.server.reload.Now(t.Context(), reload.Periodic)
		w.check(st.Err() == nil, "%v", st.Err())
		return st.Changes, time.Since(now)
	}
	w.reload()
	w.write(map[string]string{"max_recipients": "max_recipients: 200"})
	changes, took := poll(0)
	for took > settle/2 { // the machine is busy: then it proves nothing
		w.write(nil)
		poll(time.Hour)
		w.write(map[string]string{"max_recipients": "max_recipients: 200"})
		changes, took = poll(0)
	}
	w.check(len(changes) == 0, "a file that is being written was taken: %q", changes)
	changes, _ = poll(2 * settle)
	w.check(len(changes) == 1, "a file that is written was not taken: %q", changes)
	w.write(map[string]string{"max_recipients": "max_recipients: 300"})
	w.check(len(w.reload().Changes) == 1, "asked for, a new file is not taken at once")
}
