package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/textproto"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/config"
	"blitiri.com.ar/go/chasquid/internal/dns/zone"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/reload"
	"blitiri.com.ar/go/chasquid/internal/tlspolicy"
	"blitiri.com.ar/go/chasquid/test/harness"
	"blitiri.com.ar/go/chasquid/test/patience"
	"blitiri.com.ar/go/log"
)

// live is a server in this process, whose settings a test changes.
type live struct {
	*testing.T
	*server
	files *harness.Server
	base  map[string]string // setting to its lines
	stop  func()
}

// records is what the server of the tests finds in DNS.
const records = `
	out.test.      MX 10 mx.out.test.
	mx.out.test.   A 127.0.0.1
	reject.test.   MX 10 mx.out.test.
	_dmarc.reject.test. TXT "v=DMARC1; p=reject"
`

// startLive starts a server in this process.
func startLive(t *testing.T) *live {
	t.Helper()
	addr, stopDNS, err := zone.MustNew(records).Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stopDNS)
	files := harness.New(t, harness.Options{Domains: map[string]harness.Domain{"example.test": {
		Users: map[string]string{"user": "secret", "other": "secret"}, Aliases: "list: user\n", DKIM: true}}})
	w := &live{T: t, files: files, base: map[string]string{
		"hostname":                    `hostname: "mail.example.test"`,
		"smtp_address":                fmt.Sprintf("smtp_address: %q", free(t)),
		"submission_address":          fmt.Sprintf("submission_address: %q", free(t)),
		"submission_over_tls_address": fmt.Sprintf("submission_over_tls_address: %q", free(t)),
		"monitoring_address":          fmt.Sprintf("monitoring_address: %q", free(t)),
		"data_dir":                    fmt.Sprintf("data_dir: %q", files.DataDir),
		"mail_log_path":               fmt.Sprintf("mail_log_path: %q", filepath.Join(files.Dir, "mail.log")),
		"local_delivery":              fmt.Sprintf(`local_delivery: "maildir:%s/mail/%%to_domain%%/%%to_user%%"`, files.Dir),
		"dns_server":                  fmt.Sprintf("dns_server: %q", addr),
		"min_free_disk_mb":            "min_free_disk_mb: 1",
		"tls_reports":                 `tls_reports: "off"`,
		"selfcheck":                   `selfcheck: "off"`,
	}}
	w.write(nil)
	t.Chdir(files.Dir)
	conf, err := config.Load(config.FileName, "")
	if err != nil {
		t.Fatal(err)
	}
	old := log.Default
	log.Default = log.New(quietLog{})
	f := &flags{configDir: files.Dir, smtpPort: harness.FreePort(t, "127.0.0.1"), reloadEvery: time.Hour}
	ctx, cancel := context.WithCancel(t.Context())
	if w.server, err = newServer(ctx, f, conf, build{version: "test"}, origin{}); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- w.server.serve(ctx, cancel) }()
	w.stop = func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the server: %v", err)
		}
		log.Default = old
	}
	select {
	case <-w.settings.started:
	case err := <-ended:
		t.Fatal(err)
	}
	return w
}

type quietLog struct{}

func (quietLog) Write(b []byte) (int, error) { return len(b), nil }
func (quietLog) Close() error                { return nil }

// write writes the configuration: that of the start with other lines for some settings.
func (w *live) write(other map[string]string) {
	w.Helper()
	lines := maps.Clone(w.base)
	maps.Copy(lines, other)
	var text []string
	for _, name := range slices.Sorted(maps.Keys(lines)) {
		text = append(text, lines[name])
	}
	w.files.WriteFile(config.FileName, strings.Join(text, "\n")+"\n")
}

// reload takes the configuration as it is written and fails the test unless that goes well.
func (w *live) reload() reload.Status {
	w.Helper()
	st := w.reloadNow(w.Context(), reload.Operator)
	if err := st.Err(); err != nil {
		w.Fatalf("reload: %v", err)
	}
	return st
}

// dial connects to an SMTP listener and reads the greeting.
func (w *live) dial(addr string) (*textproto.Conn, string, error) {
	c, err := net.DialTimeout("tcp", addr, patience.Limit(time.Second))
	if err != nil {
		return nil, "", err
	}
	w.Cleanup(func() { c.Close() })
	return greeted(c)
}

func greeted(c net.Conn) (*textproto.Conn, string, error) {
	c.SetDeadline(time.Now().Add(patience.Limit(10 * time.Second)))
	tc := textproto.NewConn(c)
	line, err := tc.ReadLine()
	return tc, line, err
}

// say sends commands to an SMTP listener, each after the answer to the one before, and returns the answers.
func (w *live) say(addr string, commands ...string) string {
	c, line, err := w.dial(addr)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	return line + "\n" + talk(c, commands...)
}

func talk(c *textproto.Conn, commands ...string) string {
	var out []string
	for _, cmd := range commands {
		c.W.WriteString(cmd + "\r\n")
		c.W.Flush()
		code, text, err := c.ReadResponse(0)
		if err != nil {
			return strings.Join(append(out, err.Error()), "\n")
		}
		out = append(out, fmt.Sprintf("%d %s", code, text))
	}
	return strings.Join(out, "\n")
}

// login is a submission session over TLS, logged in as the user.
func (w *live) login(user string) *textproto.Conn {
	w.Helper()
	raw, err := tls.Dial("tcp", w.addr("submission_over_tls_address"), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { raw.Close() })
	c, _, err := greeted(raw)
	if err != nil {
		w.Fatal(err)
	}
	auth := base64.StdEncoding.EncodeToString([]byte("\x00" + user + "@example.test\x00secret"))
	if out := talk(c, "EHLO client.test", "AUTH PLAIN "+auth); !strings.Contains(out, "235 ") {
		w.Fatalf("login: %s", out)
	}
	return c
}

// addr is the present address of a kind of listener.
func (w *live) addr(setting string) string {
	conf := w.conf()
	return map[string][]string{"smtp_address": conf.SmtpAddress, "submission_address": conf.SubmissionAddress,
		"submission_over_tls_address": conf.SubmissionOverTlsAddress, "monitoring_address": {conf.MonitoringAddress}}[setting][0]
}

const letter = "From: <user@example.test>\r\nTo: <you@example.test>\r\nSubject: x\r\n\r\ntext\r\n."

// submit sends a message of the user and returns the last answer.
func (w *live) submit(to string) string {
	w.Helper()
	out := talk(w.login("user"), "MAIL FROM:<user@example.test>", "RCPT TO:<"+to+">", "DATA", letter)
	return out[strings.LastIndexByte(out, '\n')+1:]
}

// receive sends a message from elsewhere and returns the answers.
func (w *live) receive(from, to, content string) string {
	return w.say(w.addr("smtp_address"), "EHLO client.test", "MAIL FROM:<"+from+">", "RCPT TO:<"+to+">", "DATA", content)
}

// attempted submits a message and returns what the queue knows of its first recipient after the first attempt.
func (w *live) attempted(to string) (text string) {
	w.Helper()
	out := w.submit(to)
	id := mail.ID(out[strings.LastIndexByte(out, ' ')+1:])
	harness.WaitFor(w, patience.Limit(5*time.Second), "an attempt for "+to+" after "+out, func() bool {
		it, err := w.queue.Item(id)
		if err != nil {
			text = "gone"
			return true
		}
		text = it.Rcpts[0].LastFailure
		return it.Rcpts[0].Attempts > 0
	})
	return text
}

// get fetches a page and returns status and text.
func (w *live) get(path, host string) (int, string) {
	req, err := http.NewRequestWithContext(w.Context(), http.MethodGet, "http://"+w.addr("monitoring_address")+path, nil)
	if err != nil {
		w.Fatal(err)
	}
	req.Host, req.Close = host, true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

// exists asks whether mail for an address ends at somebody.
func (w *live) exists(addr string) bool {
	ok, err := w.aliases.Exists(w.Context(), address.MustParse(addr))
	return ok && err == nil
}

// script writes a program.
func (w *live) script(name, text string) string {
	w.Helper()
	w.files.WriteFile(name, "#!/bin/sh\n"+text+"\n")
	path := filepath.Join(w.files.Dir, name)
	if err := os.Chmod(path, 0o755); err != nil {
		w.Fatal(err)
	}
	return path
}

// free is an address nobody listens on.
func free(t testing.TB) string { return "127.0.0.1:" + harness.StablePort(t, "127.0.0.1") }

// sink is an SMTP server that takes connections and says nothing; it tells where they come from.
func (w *live) sink() (addr string, from chan string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { l.Close() })
	from = make(chan string, 100)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			from <- c.RemoteAddr().String()
			c.Close()
		}
	}()
	return l.Addr().String(), from
}

// fakeDovecot is a Dovecot with one answer for everybody; it returns the path of its socket.
func (w *live) fakeDovecot(greeting, reply string) string {
	path := filepath.Join(w.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.WriteString(c, greeting)
				for sc := bufio.NewScanner(c); sc.Scan(); {
					if words := strings.Split(sc.Text(), "\t"); words[0] == "USER" || words[0] == "AUTH" {
						io.WriteString(c, reply+"\t"+words[1]+"\n")
					}
				}
			}()
		}
	}()
	return path
}

// reportOf is a session under a policy of the domain.
func reportOf(domain string) tlspolicy.Report {
	return tlspolicy.Report{Domain: domain, Policy: "sts", Host: "mx." + domain}
}

// metric is the present value of a counter with one label.
func (w *live) metric(name, label string) string {
	w.Helper()
	fams, err := w.reg.Gather()
	if err != nil {
		w.Fatal(err)
	}
	for _, f := range fams {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && len(m.GetLabel()) == 1 && m.GetLabel()[0].GetValue() == label {
				return fmt.Sprint(m.GetCounter().GetValue())
			}
		}
	}
	return ""
}

// acme sets an acme block that asks an authority nobody runs.
func (w *live) acme(line string) {
	w.Helper()
	block := map[string]string{"email": `email: "x@example.test"`, "directory_url": `directory_url: "https://127.0.0.1:1/a"`,
		"hostname": `hostname: "a.example.test"`, "http_address": `http_address: "` + free(w) + `"`}
	name, _, _ := strings.Cut(line, ":")
	block[name] = line
	text := "acme {"
	for _, l := range block {
		text += " " + l
	}
	w.set("acme", text+" }")
}
