package main

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/internal/acmecert"
	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/config"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/policy"
	"blitiri.com.ar/go/chasquid/test/harness"
	"blitiri.com.ar/go/chasquid/test/patience"
)

// set changes one setting, with others it needs, and fails the test unless the reload says so.
func (w *live) set(name string, lines ...string) {
	w.Helper()
	other := map[string]string{name: lines[0]}
	for _, l := range lines[1:] {
		n, _, _ := strings.Cut(l, " ")
		other[strings.TrimSuffix(n, ":")] = l
	}
	w.write(other)
	st := w.reload()
	if !slices.ContainsFunc(st.Changes, func(c string) bool { return strings.HasPrefix(c, name+": ") }) {
		w.Errorf("the reload says it changed %q, not %s", st.Changes, name)
	}
}

// want fails the test unless got contains want.
func (w *live) want(got, want string) {
	w.Helper()
	if !strings.Contains(got, want) {
		w.Errorf("got %q, want %q", got, want)
	}
}

// check fails the test unless ok.
func (w *live) check(ok bool, format string, a ...any) {
	w.Helper()
	if !ok {
		w.Errorf(format, a...)
	}
}

// moved checks that a listener is where it should be, and no more where it was.
func (w *live) moved(setting string, dial func(addr string) error) {
	w.Helper()
	old, next := w.addr(setting), free(w)
	w.set(setting, fmt.Sprintf("%s: %q", setting, next))
	if err := dial(next); err != nil {
		w.Errorf("the new address: %v", err)
	}
	if c, err := net.Dial("tcp", old); err == nil {
		c.Close()
		w.Errorf("the old address %s is still open", old)
	}
}

func (w *live) greets(addr string) error {
	_, line, err := w.dial(addr)
	if err == nil && !strings.HasPrefix(line, "220 ") {
		err = fmt.Errorf("it says %q", line)
	}
	return err
}

// route is where the mail for a domain goes, and the password for it.
func (w *live) route(domain string) (target, password string) {
	w.Helper()
	r, err := w.sending.route(w.Context(), mail.Recipient{To: address.Address{Local: "x", Domain: domain}}, &mail.Envelope{})
	if err != nil {
		w.Fatal(err)
	}
	password, _ = w.sending.password(r.Target)
	return r.Target + strings.Join(r.Hosts, ","), password
}

// mda delivers by a script, and returns what a message for the user leaves in the file that the script gets as $OUT.
func (w *live) mda(change func(script, out string)) string {
	w.Helper()
	out := filepath.Join(w.TempDir(), "out")
	change(w.script(fmt.Sprintf("mda-%d", time.Now().UnixNano()), `cat >/dev/null; echo "$@" >`+out+".new; mv "+out+".new "+out), out)
	w.want(w.submit("user@example.test"), "250")
	harness.WaitFor(w, patience.Limit(5*time.Second), "the delivery", func() bool { _, err := os.Stat(out); return err == nil })
	b, err := os.ReadFile(out)
	if err != nil {
		w.Fatal(err)
	}
	return string(b)
}

// first is what the SMTP listener says to a client that speaks first.
func (w *live) first(line string) string {
	w.Helper()
	c, err := net.Dial("tcp", w.addr("smtp_address"))
	if err != nil {
		w.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "%s\r\n", line)
	_, got, err := greeted(c)
	if err != nil {
		return err.Error()
	}
	return got
}

// dovecotUsers and dovecotPasswords are lines that name a Dovecot with one answer for everybody.
func (w *live) dovecotUsers(reply string) string {
	return fmt.Sprintf("dovecot_userdb_path: %q", w.fakeDovecot("VERSION\t1\t1\nSPID\t1\n", reply))
}

func (w *live) dovecotPasswords(reply string) string {
	return fmt.Sprintf("dovecot_client_path: %q", w.fakeDovecot("VERSION\t1\t2\nSPID\t1\nDONE\n", reply))
}

const byMDA = `local_delivery: ""`

// liveSettings shows of each setting that a reload is enough. What is in config.RestartOnly is shown not to change.
var liveSettings = map[string]func(w *live){
	"hostname": func(w *live) {
		w.set("hostname", `hostname: "new.example.test"`)
		w.want(w.say(w.addr("smtp_address")), "220 new.example.test")
		w.check(w.queue.Config().Hostname == "new.example.test", "notices come from %s", w.queue.Config().Hostname)
	},
	"max_data_size_mb": func(w *live) {
		w.set("max_data_size_mb", "max_data_size_mb: 3")
		w.want(w.say(w.addr("smtp_address"), "EHLO x"), "SIZE 3145728")
	},
	"smtp_address":       func(w *live) { w.moved("smtp_address", w.greets) },
	"submission_address": func(w *live) { w.moved("submission_address", w.greets) },
	"submission_over_tls_address": func(w *live) {
		w.moved("submission_over_tls_address", func(addr string) error { return nil })
		w.login("user")
	},
	"monitoring_address": func(w *live) {
		w.moved("monitoring_address", func(string) error { return nil })
		code, body := w.get("/healthz", "localhost")
		w.check(code == http.StatusOK, "%d %s", code, body)
	},
	"mail_delivery_agent_bin": func(w *live) {
		got := w.mda(func(script, _ string) {
			w.set("mail_delivery_agent_bin", fmt.Sprintf("mail_delivery_agent_bin: %q", script), byMDA)
		})
		w.want(got, "-f user@example.test -d user")
	},
	"mail_delivery_agent_args": func(w *live) {
		got := w.mda(func(script, _ string) {
			w.set("mail_delivery_agent_args", `mail_delivery_agent_args: ["new", "%to%"]`, byMDA, fmt.Sprintf("mail_delivery_agent_bin: %q", script))
		})
		w.want(got, "new user@example.test")
	},
	"suffix_separators": func(w *live) {
		w.check(!w.exists("list=x@example.test") && w.exists("list+x@example.test"), "before")
		w.set("suffix_separators", `suffix_separators: "="`)
		w.check(w.exists("list=x@example.test") && !w.exists("list+x@example.test"), "after")
	},
	"drop_characters": func(w *live) {
		w.check(!w.exists("l_ist@example.test") && w.exists("l.ist@example.test"), "before")
		w.set("drop_characters", `drop_characters: "_"`)
		w.check(w.exists("l_ist@example.test") && !w.exists("l.ist@example.test"), "after")
	},
	"mail_log_path": func(w *live) {
		path := filepath.Join(w.TempDir(), "new.log")
		w.set("mail_log_path", fmt.Sprintf("mail_log_path: %q", path))
		w.submit("user@example.test")
		harness.WaitFor(w, patience.Limit(5*time.Second), "a line in the new log", func() bool { b, _ := os.ReadFile(path); return len(b) > 0 })
		w.check(disks(w.conf())[2].Path == filepath.Dir(path), "%v is watched", disks(w.conf()))
	},
	"dovecot_auth": func(w *live) {
		w.check(!w.exists("somebody@example.test"), "before")
		w.set("dovecot_auth", "dovecot_auth: true", w.dovecotUsers("USER"), w.dovecotPasswords("OK"))
		w.check(w.exists("somebody@example.test"), "after")
		w.write(nil)
		w.reload()
		w.check(!w.exists("somebody@example.test"), "switched off again")
	},
	"dovecot_userdb_path": func(w *live) {
		passwords := w.dovecotPasswords("OK")
		for _, reply := range []string{"NOTFOUND", "USER"} {
			w.set("dovecot_userdb_path", w.dovecotUsers(reply), "dovecot_auth: true", passwords)
			w.check(w.exists("somebody@example.test") == (reply == "USER"), "with %s", reply)
		}
	},
	"dovecot_client_path": func(w *live) {
		users := w.dovecotUsers("USER")
		for _, reply := range []string{"FAIL", "OK"} {
			w.set("dovecot_client_path", w.dovecotPasswords(reply), "dovecot_auth: true", users)
			ok, _, err := w.auth.Authenticate(w.Context(), address.MustParse("somebody@example.test"), "x")
			w.check(ok == (reply == "OK") && err == nil, "with %s: %v %v", reply, ok, err)
		}
	},
	"haproxy_incoming": func(w *live) {
		w.set("haproxy_incoming", "haproxy_incoming: true")
		w.check(!strings.HasPrefix(w.first("EHLO x"), "220"), "a client without header is greeted")
		w.want(w.first("PROXY TCP4 192.0.2.7 192.0.2.1 1234 25"), "220 ")
	},
	"haproxy_trusted": func(w *live) {
		w.set("haproxy_trusted", `haproxy_trusted: "192.0.2.0/24"`, "haproxy_incoming: true")
		w.check(!strings.HasPrefix(w.first("PROXY TCP4 192.0.2.7 192.0.2.1 1234 25"), "220"), "a peer that is not trusted is greeted")
	},
	"max_queue_items": func(w *live) {
		w.set("max_queue_items", "max_queue_items: 7")
		w.check(w.queue.Stats().Capacity == 7, "%d", w.queue.Stats().Capacity)
	},
	"give_up_send_after": func(w *live) {
		w.set("give_up_send_after", `give_up_send_after: "7h"`)
		w.check(w.queue.Config().GiveUpAfter == 7*time.Hour, "%v", w.queue.Config().GiveUpAfter)
	},
	"max_recipients": func(w *live) {
		w.set("max_recipients", "max_recipients: 101")
		w.want(w.say(w.addr("smtp_address"), "EHLO x"), "RCPTMAX=101")
	},
	"max_received_headers": func(w *live) {
		w.set("max_received_headers", "max_received_headers: 1")
		w.want(w.receive("a@out.test", "user@example.test", "Received: x\r\nReceived: y\r\n"+letter), "5.4.6")
	},
	"max_connections": func(w *live) {
		held, _, err := w.dial(w.addr("smtp_address"))
		if err != nil {
			w.Fatal(err)
		}
		defer held.Close()
		w.set("max_connections", "max_connections: 1")
		w.want(w.say(w.addr("smtp_address")), "421 4.7.0")
	},
	"max_connections_per_ip": func(w *live) { // loopback is not limited
		w.set("max_connections_per_ip", "max_connections_per_ip: 3")
		w.check(w.smtp.Config().MaxConnsPerIP == 3, "%d", w.smtp.Config().MaxConnsPerIP)
	},
	"sender_login_match": func(w *live) {
		w.want(talk(w.login("user"), "MAIL FROM:<other@example.test>"), "250")
		w.set("sender_login_match", `sender_login_match: "envelope"`)
		w.want(talk(w.login("user"), "MAIL FROM:<other@example.test>"), "550")
		w.check(w.smtp.Config().MailChecks[0].(*policy.Sender).Match == policy.MatchEnvelope, "another check")
	},
	"submission_rate.messages_per_hour": func(w *live) {
		w.set("submission_rate", "submission_rate { messages_per_hour: 1 }")
		w.want(talk(w.login("other"), "MAIL FROM:<other@example.test>", "RSET", "MAIL FROM:<other@example.test>"), "451 4.7.1")
	},
	"submission_rate.recipients_per_hour": func(w *live) {
		w.set("submission_rate", "submission_rate { recipients_per_hour: 1 }")
		w.want(talk(w.login("other"), "MAIL FROM:<other@example.test>", "RCPT TO:<a@out.test>", "RCPT TO:<b@out.test>"), "451 4.7.1")
	},
	"dmarc_enforce": func(w *live) {
		forged := "From: <a@reject.test>\r\n\r\ntext\r\n."
		w.want(w.receive("a@out.test", "user@example.test", forged), "queued as")
		w.set("dmarc_enforce", "dmarc_enforce: true")
		w.want(w.receive("a@out.test", "user@example.test", forged), "550 5.7.1")
	},
	"long_lines": func(w *live) {
		addr, _ := w.sink()
		w.set("long_lines", `long_lines: "send"`, fmt.Sprintf("route { domain: %q via: %q }", "special.test", addr))
		long := "From: <user@example.test>\r\n\r\n" + strings.Repeat("x", 1200) + "\r\n."
		send := func() string {
			return talk(w.login("user"), "MAIL FROM:<user@example.test>", "RCPT TO:<x@special.test>", "DATA", long)
		}
		w.want(send(), "queued as")
		w.write(nil)
		w.reload()
		w.check(!strings.Contains(send(), "queued as"), "taken")
	},
	"selfcheck": func(w *live) {
		w.selfcheck.Look(w.Context())
		w.check(w.selfcheck.Last("example.test").At.IsZero(), "a report while it is off")
		w.set("selfcheck", `selfcheck: "on"`)
		w.selfcheck.Look(w.Context())
		w.check(!w.selfcheck.Last("example.test").At.IsZero(), "no report while it is on")
	},
	"delay_notice_after": func(w *live) {
		w.set("delay_notice_after", `delay_notice_after: "3h"`)
		w.check(w.queue.Config().DelayNoticeAfter == 3*time.Hour, "%v", w.queue.Config().DelayNoticeAfter)
		w.set("delay_notice_after", `delay_notice_after: "0s"`)
		w.check(w.queue.Config().DelayNoticeAfter < 0, "%v", w.queue.Config().DelayNoticeAfter)
	},
	"min_free_disk_mb": func(w *live) {
		w.set("min_free_disk_mb", "min_free_disk_mb: 1000000000")
		w.want(w.receive("a@out.test", "user@example.test", letter), "452 ")
	},
	"double_bounce_to": func(w *live) {
		w.set("double_bounce_to", `double_bounce_to: "postmaster@example.test"`)
		w.check(w.queue.Config().DoubleBounceTo == address.MustParse("postmaster@example.test"), "%v", w.queue.Config().DoubleBounceTo)
	},
	"max_deliveries": func(w *live) {
		w.set("max_deliveries", "max_deliveries: 3")
		w.check(w.queue.Config().Workers == 3, "%d", w.queue.Config().Workers)
	},
	"max_deliveries_per_destination": func(w *live) {
		w.set("max_deliveries_per_destination", "max_deliveries_per_destination: 3")
		w.check(w.queue.Config().SiteWorkers == 3, "%d", w.queue.Config().SiteWorkers)
	},
	"local_delivery": func(w *live) {
		dir := w.TempDir()
		w.set("local_delivery", fmt.Sprintf(`local_delivery: "maildir:%s/%%to_user%%"`, dir))
		w.submit("user@example.test")
		harness.WaitFor(w, patience.Limit(5*time.Second), "a message in the new Maildir", func() bool {
			l, _ := os.ReadDir(filepath.Join(dir, "user", "new"))
			return len(l) == 1
		})
	},
	"relay_via": func(w *live) {
		w.set("relay_via", `relay_via: "smtp://192.0.2.9:26"`)
		target, _ := w.route("anywhere.test")
		w.want(target, "192.0.2.9:26")
	},
	"relay_password_file": func(w *live) {
		w.files.WriteFile("pw", "one\n")
		w.set("relay_password_file", `relay_password_file: "pw"`, `relay_via: "smtps://joe@relay.test"`)
		_, password := w.route("anywhere.test")
		w.want(password, "one")
		w.files.WriteFile("pw", "two\n")
		st := w.reload()
		_, password = w.route("anywhere.test")
		w.want(password, "two")
		w.want(fmt.Sprint(st.Changes), "relay_password_file pw: its content")
		w.check(!strings.Contains(fmt.Sprint(st.Changes), "two"), "the password is shown")
	},
	"route.domain": func(w *live) {
		w.set("route", `route { domain: "special.test" via: "192.0.2.9:26" }`)
		target, _ := w.route("special.test")
		w.want(target, "192.0.2.9:26")
	},
	"route.via": func(w *live) {
		closed := free(w)
		w.set("route", fmt.Sprintf("route { domain: %q via: %q }", "special.test", closed))
		w.want(w.attempted("x@special.test"), "refused")
		addr, from := w.sink()
		w.set("route", fmt.Sprintf("route { domain: %q via: %q }", "special.test", addr))
		w.submit("x@special.test")
		select {
		case <-from:
		case <-time.After(patience.Limit(5 * time.Second)):
			w.Error("nothing comes to the new route")
		}
	},
	"route.password_file": func(w *live) {
		w.files.WriteFile("pw2", "three\n")
		w.set("route", `route { domain: "special.test" via: "smtps://joe@relay.test" password_file: "pw2" }`)
		_, password := w.route("special.test")
		w.want(password, "three")
	},
	"outgoing_address": func(w *live) {
		addr, from := w.sink()
		w.set("outgoing_address", `outgoing_address: "127.0.0.2"`, fmt.Sprintf("route { domain: %q via: %q }", "special.test", addr))
		w.submit("x@special.test")
		select {
		case got := <-from:
			w.want(got, "127.0.0.2:")
		case <-time.After(patience.Limit(5 * time.Second)):
			w.Error("no connection")
		}
	},
	"srs": func(w *live) {
		rewritten, err := w.queue.Config().SRS.Forward(address.MustParse("a@out.test"), "example.test", time.Now())
		if err != nil {
			w.Fatal(err)
		}
		if _, err := w.sending.reverse(rewritten); err != nil {
			w.Errorf("before: %v", err)
		}
		w.set("srs", `srs: "off"`)
		if _, err := w.sending.reverse(rewritten); err == nil || w.queue.Config().SRS != nil {
			w.Error("senders are still rewritten")
		}
	},
	"srs_secret_file": func(w *live) {
		rewritten, err := w.queue.Config().SRS.Forward(address.MustParse("a@out.test"), "example.test", time.Now())
		if err != nil {
			w.Fatal(err)
		}
		w.files.WriteFile("secret", "another\n")
		w.set("srs_secret_file", `srs_secret_file: "secret"`)
		if _, err := w.sending.reverse(rewritten); err == nil {
			w.Error("the old secret is good")
		}
		w.files.WriteFile("secret", "a third\n")
		w.want(fmt.Sprint(w.reload().Changes), "srs_secret_file: its content")
		if err := os.Remove(filepath.Join(w.files.Dir, "secret")); err != nil {
			w.Fatal(err)
		}
		w.check(len(w.reload().Changes) == 0, "a lost file changes the secret")
	},
	"tls_reports": func(w *live) {
		counted := func() string { return w.metric("chasquid_tlsrpt_sessions_total", "success") }
		before := counted()
		w.reports.Observe(reportOf("before.test"))
		w.check(counted() == before, "counted while they are off: %s", counted())
		w.set("tls_reports", `tls_reports: "on"`)
		w.reports.Observe(reportOf("after.test"))
		w.check(counted() != before, "not counted while they are on")
	},
	"dns_server": func(w *live) {
		w.set("dns_server", `dns_server: "127.0.0.9:5353"`)
		addrs, _ := w.dns.Servers()
		w.want(fmt.Sprint(addrs), "[127.0.0.9:5353]")
	},
	"dns_trust_ad": func(w *live) {
		w.set("dns_server", `dns_server: "192.0.2.53"`)
		_, trusted := w.dns.Servers()
		w.want(fmt.Sprint(trusted), "[false]")
		w.set("dns_trust_ad", "dns_trust_ad: true", `dns_server: "192.0.2.53"`)
		_, trusted = w.dns.Servers()
		w.want(fmt.Sprint(trusted), "[true]")
	},
	"monitoring_web_config": func(w *live) {
		w.files.WriteFile("web.yml", "basic_auth_users:\n  alice: $2y$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG\n")
		w.set("monitoring_web_config", `monitoring_web_config: "web.yml"`)
		code, _ := w.get("/healthz", "localhost")
		w.check(code == http.StatusUnauthorized, "%d without a password", code)
	},
	"monitoring_allowed_hosts": func(w *live) {
		code, _ := w.get("/debug/flags", "pages.example.org")
		w.check(code == http.StatusForbidden, "%d before", code)
		w.set("monitoring_allowed_hosts", `monitoring_allowed_hosts: "pages.example.org"`)
		code, _ = w.get("/debug/flags", "pages.example.org")
		w.check(code == http.StatusOK, "%d after", code)
	},
	"otlp_endpoint": func(w *live) {
		got := make(chan struct{}, 100)
		srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { got <- struct{}{} }))
		defer srv.Close()
		w.set("otlp_endpoint", fmt.Sprintf("otlp_endpoint: %q", srv.URL+"/v1/traces"))
		w.say(w.addr("smtp_address"), "EHLO x", "NONSENSE", "NONSENSE", "NONSENSE")
		w.write(nil)
		w.reload() // what is left is pushed when it ends
		select {
		case <-got:
		case <-time.After(patience.Limit(10 * time.Second)):
			w.Error("no trace is pushed")
		}
	},
	"history_days": func(w *live) {
		w.set("history_days", "history_days: 3")
		w.check(w.history.Settings().Keep == 72*time.Hour, "%v", w.history.Settings())
	},
	"history_max_mb": func(w *live) {
		w.set("history_max_mb", "history_max_mb: 3")
		w.check(w.history.Settings().MaxBytes == 3<<20, "%v", w.history.Settings())
	},
	"history_hash_addresses": func(w *live) {
		w.set("history_hash_addresses", "history_hash_addresses: true")
		w.check(w.history.Settings().HashAddresses, "%v", w.history.Settings())
	},
	"acme.email": func(w *live) {
		w.acme(`email: "a@example.test"`)
		w.acme(`email: "b@example.test"`)
		w.want(w.certs.Load().Config().Email, "b@example.test")
		w.write(nil)
		w.reload()
		w.check(len(w.certs.Load().Config().Names) == 0, "there is still a client")
	},
	"acme.directory_url": func(w *live) {
		w.acme(`directory_url: "https://127.0.0.1:1/b"`)
		w.want(w.certs.Load().Config().DirectoryURL, "/b")
	},
	"acme.hostname": func(w *live) {
		w.acme(`hostname: "b.example.test"`)
		w.want(fmt.Sprint(w.certs.Load().Config().Names), "[b.example.test]")
	},
	"acme.http_address": func(w *live) {
		w.acme(`http_address: "127.0.0.1:8017"`)
		w.want(w.certs.Load().Config().Address, ":8017")
	},
	"acme.challenge": func(w *live) {
		w.acme(`challenge: "tls-alpn-01"`)
		w.check(w.certs.Load().Config().Challenge == acmecert.TLSALPN01, "%v", w.certs.Load().Config().Challenge)
	},
	"acme.tls_alpn_address": func(w *live) {
		w.acme(`tls_alpn_address: "127.0.0.1:8018" challenge: "tls-alpn-01"`)
		w.want(w.certs.Load().Config().Address, ":8018")
	},
	"acme.ca_file": func(w *live) {
		w.acme(fmt.Sprintf("ca_file: %q", filepath.Join(w.files.Dir, "certs/mail.example.test/fullchain.pem")))
		w.check(w.certs.Load().Config().Roots != nil, "the roots are those of the system")
	},
	"acme.eab_key_id": func(w *live) {
		w.files.WriteFile("eab", "a2V5\n")
		w.acme(`eab_key_id: "me" eab_key_file: "eab"`)
		w.want(w.certs.Load().Config().KeyID, "me")
	},
	"acme.eab_key_file": func(w *live) {
		w.files.WriteFile("eab", "a2V5\n")
		w.acme(`eab_key_file: "eab" eab_key_id: "me"`)
		w.want(string(w.certs.Load().Config().MACKey), "key")
		w.files.WriteFile("eab", "a2V5Mg\n")
		w.want(fmt.Sprint(w.reload().Changes), "eab_key_file eab: its content")
		w.want(string(w.certs.Load().Config().MACKey), "key2")
	},
	"timeouts.command": func(w *live) {
		w.set("timeouts", `timeouts { command: "100ms" }`)
		w.check(w.smtp.Config().CommandTimeout == 100*time.Millisecond, "%v", w.smtp.Config().CommandTimeout)
	},
	"timeouts.data": func(w *live) {
		w.set("timeouts", `timeouts { data: "100ms" }`)
		w.check(w.smtp.Config().DataTimeout == 100*time.Millisecond, "%v", w.smtp.Config().DataTimeout)
	},
	"timeouts.session": func(w *live) {
		w.set("timeouts", `timeouts { session: "100ms" }`)
		w.check(w.smtp.Config().SessionTimeout == 100*time.Millisecond, "%v", w.smtp.Config().SessionTimeout)
	},
	"timeouts.post_data_hook": func(w *live) {
		hook := w.script("hooks/post-data", "exec sleep 3")
		defer os.Remove(hook)
		w.set("timeouts", `timeouts { post_data_hook: "100ms" }`)
		w.want(w.receive("a@out.test", "user@example.test", letter), "451 ")
	},
	"timeouts.alias_hook": func(w *live) {
		hook := w.script("hooks/alias-resolve", "exec sleep 3")
		defer os.Remove(hook)
		w.set("timeouts", `timeouts { alias_hook: "100ms" }`)
		_, err := w.aliases.Exists(w.Context(), address.MustParse("user@example.test"))
		w.check(err != nil, "the hook is waited for")
	},
	"timeouts.local_delivery": func(w *live) {
		script := w.script("slow-mda", "exec sleep 3")
		w.set("timeouts", `timeouts { local_delivery: "100ms" }`, byMDA, fmt.Sprintf("mail_delivery_agent_bin: %q", script))
		w.want(w.attempted("user@example.test"), "timed out")
	},
	"timeouts.dial": func(w *live) {
		before := w.sending.now.Load().smtp
		w.set("timeouts", `timeouts { dial: "100ms" }`)
		w.check(w.sending.now.Load().smtp != before, "the courier is the same")
	},
	"timeouts.drain": func(w *live) {
		w.set("timeouts", `timeouts { drain: "3s" }`)
		w.check(w.queue.Config().Grace == 3*time.Second && w.conf().Time.Drain == 3*time.Second, "%v", w.queue.Config().Grace)
	},
}

// TestR16EverySettingIsLive changes every setting there is while the server runs. A new setting has to be added to liveSettings, or be
// marked in config.proto as one that needs a restart.
func TestR16EverySettingIsLive(t *testing.T) {
	w := startLive(t)
	defer w.stop()
	var names []string
	for _, f := range config.Fields() {
		if f.Type != "block" {
			names = append(names, f.Name)
		}
	}
	for _, name := range names {
		show, live := liveSettings[name]
		fixed := slices.Contains(config.RestartOnly(), name)
		if live == fixed {
			t.Errorf("%s: shown to be live: %v, needs a restart: %v; one of them must be true", name, live, fixed)
		}
		if !live {
			continue
		}
		t.Run(name, func(t *testing.T) {
			sub := *w
			sub.T = t
			defer func() {
				sub.write(nil)
				sub.reload()
			}()
			show(&sub)
		})
	}
	for name := range liveSettings {
		if !slices.Contains(names, name) {
			t.Errorf("%s is no setting", name)
		}
	}
	w.T = t
	dir := w.base["data_dir"]
	w.write(map[string]string{"data_dir": `data_dir: "elsewhere"`, "max_recipients": "max_recipients: 500"})
	st := w.reload()
	if len(st.Restart) != 1 || !strings.HasPrefix(st.Restart[0], "data_dir: ") || len(st.Changes) != 1 || w.conf().DataDir != w.files.DataDir {
		t.Errorf("another data_dir: changes %q, at the restart %q, in force %s", st.Changes, st.Restart, w.conf().DataDir)
	}
	code, page := w.get("/?format=text", "localhost")
	w.want(page, "takes effect at the next restart: data_dir")
	w.check(code == http.StatusOK && w.exists("user@example.test"), "%d", code)
	w.write(map[string]string{"data_dir": dir})
	if st := w.reload(); len(st.Restart) != 0 {
		t.Errorf("after it was taken back: %q", st.Restart)
	}
}
