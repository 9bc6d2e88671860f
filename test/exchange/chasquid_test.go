package exchange

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"blitiri.com.ar/go/chasquid/test/harness"
)

const password = "secret"

// server is a mail server on a host.
type server interface {
	// submit takes a message from one of the server's users, who need not exist where nobody logs in.
	submit(l letter)
	// mailbox returns the messages delivered to a local part of any of the server's domains.
	mailbox(user string) []string
}

// chasquid is a chasquid of any version on a host.
type chasquid struct {
	h    *host
	dir  string
	bin  string
	user string // who logs in to submit
	cert *certificate
	p    *process
}

// domain is a local domain.
type domain struct {
	users   []string
	aliases string
}

// newChasquid makes the files of a server whose mail goes into the Maildirs below mail/USER.
func newChasquid(h *host, bin, conf string, cert *certificate, domains map[string]domain) *chasquid {
	h.t.Helper()
	c := &chasquid{h: h, dir: filepath.Join(h.dir, "chasquid"), bin: bin, cert: cert}
	for name, d := range domains {
		var users strings.Builder
		for _, u := range d.users {
			fmt.Fprintf(&users, "users: { key: %q value: { plain: { password: %q } } }\n", u, password)
		}
		c.write("domains/"+name+"/users", users.String())
		c.write("domains/"+name+"/aliases", d.aliases)
		if len(d.users) > 0 && c.user == "" {
			c.user = d.users[0] + "@" + name
		}
	}
	c.write("certs/"+h.name+"/fullchain.pem", string(cert.chain))
	c.write("certs/"+h.name+"/privkey.pem", string(cert.key))
	c.write("chasquid.conf", fmt.Sprintf("hostname: %q\nsmtp_address: \":25\"\nsubmission_over_tls_address: \":465\"\nmonitoring_address: \"127.0.0.1:1099\"\n"+
		"data_dir: %q\nmail_log_path: %q\n", h.name, filepath.Join(c.dir, "data"), filepath.Join(c.dir, "mail.log"))+conf)
	if err := os.MkdirAll(filepath.Join(c.dir, "data"), 0700); err != nil {
		h.t.Fatal(err)
	}
	return c
}

// newOurs makes a server of ours.
func newOurs(h *host, conf string, domains map[string]domain) *chasquid {
	h.t.Helper()
	return newChasquid(h, harness.Binary(h.t), fmt.Sprintf("local_delivery: \"maildir:%s/mail/%%to_user%%\"\n", h.dir)+conf, h.n.ca.cert(h.name), domains)
}

// newPackaged makes a server that is Debian's chasquid.
func newPackaged(h *host, domains map[string]domain) *chasquid {
	h.t.Helper()
	mda := h.write("mda", `#!/bin/sh -e
mkdir -p "$1/new"
file=$(mktemp "$1/XXXXXXXX")
{ printf 'Return-Path: <%s>\n' "$2"; tr -d '\r'; } >"$file"
mv "$file" "$1/new/"
`)
	if err := os.Chmod(mda, 0755); err != nil {
		h.t.Fatal(err)
	}
	return newChasquid(h, filepath.Join(unpacked(h.t, "chasquid"), "usr/bin/chasquid"), fmt.Sprintf("mail_delivery_agent_bin: %q\n"+
		"mail_delivery_agent_args: \"%s/mail/%%to_user%%\"\nmail_delivery_agent_args: \"%%from%%\"\n", mda, h.dir), h.n.ca.cert(h.name), domains)
}

func (c *chasquid) write(name, content string) { c.h.write("chasquid/"+name, content) }

// start runs the server and waits until it can be talked to.
func (c *chasquid) start() {
	c.h.t.Helper()
	c.p = c.h.start([]string{"SSL_CERT_FILE=" + c.h.n.ca.file(c.h.n), "SSL_CERT_DIR=/nonexistent"}, c.bin, "-config_dir="+c.dir)
	for _, addr := range []string{c.h.ip + ":25", c.h.ip + ":465", "127.0.0.1:1099"} {
		c.h.waitFor(c.p, addr)
	}
}

// stop stops the server as an operator does.
func (c *chasquid) stop() { c.p.stop(syscall.SIGTERM) }

func (c *chasquid) submit(l letter) {
	c.h.t.Helper()
	s := dialSMTP(c.h.t, c.h.ip+":465", &tls.Config{RootCAs: c.h.n.ca.pool(), ServerName: c.h.name})
	s.do("EHLO client.example", "250")
	s.auth(c.user, password)
	if r := s.send(l); !strings.HasPrefix(r, "250") {
		c.h.t.Fatalf("%s says %q", c.h.name, r)
	}
	s.quit()
}

func (c *chasquid) mailbox(user string) []string {
	return readMaildir(c.h.t, filepath.Join(c.h.dir, "mail", user))
}

// readMaildir returns the messages of a Maildir.
func readMaildir(t testing.TB, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "new", "*"))
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, string(b))
	}
	return all
}

// get fetches a page of the monitoring server.
func (c *chasquid) get(path string) string {
	c.h.t.Helper()
	web := &http.Client{Transport: &http.Transport{DialContext: c.h.dial, DisableKeepAlives: true}}
	resp, err := web.Get("http://127.0.0.1:1099" + path)
	if err != nil {
		c.h.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		c.h.t.Fatal(err)
	}
	return string(b)
}

// metric is the value of one line of the metrics; absent is 0.
func (c *chasquid) metric(name string) float64 {
	c.h.t.Helper()
	var v float64
	if m := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + ` (\S+)`).FindStringSubmatch(c.get("/metrics")); m != nil {
		fmt.Sscan(m[1], &v)
	}
	return v
}

// vars is a variable of /debug/vars, decoded into v.
func (c *chasquid) vars(v any) {
	c.h.t.Helper()
	if err := json.Unmarshal([]byte(c.get("/debug/vars")), v); err != nil {
		c.h.t.Fatal(err)
	}
}

// message is what the pages say about a message.
type message struct {
	ID         string
	State      string
	From       string
	Recipients []string
	Events     []event
}

type event struct {
	Kind        string
	Recipients  []string
	Original    string `json:"original_recipient"`
	Disposition string
	Reason      string
	Reply       string
	MTA         string
	TLS         string
	Other       string `json:"other_id"`
	Text        string
	Error       string
}

// messages finds what the history has about a Message-ID, an address or another word.
func (c *chasquid) messages(q string) []message {
	c.h.t.Helper()
	var found struct{ Messages []message }
	if text := c.get("/debug/messages.json?q=" + url.QueryEscape(q)); json.Unmarshal([]byte(text), &found) != nil {
		c.h.t.Fatalf("the history of %s says %s", c.h.name, text)
	}
	for i, m := range found.Messages {
		if m.ID != "" {
			found.Messages[i] = c.message(m.ID)
		}
	}
	return found.Messages
}

// message is the page of one message, which the history may not have yet.
func (c *chasquid) message(id string) (m message) {
	c.h.t.Helper()
	json.Unmarshal([]byte(c.get("/debug/messages/"+id+".json")), &m)
	return m
}

// attempts are the attempts among a message's events.
func (m message) attempts() (l []event) {
	for _, e := range m.Events {
		if e.Kind == "attempt" {
			l = append(l, e)
		}
	}
	return l
}

// settled waits until the history knows one message with this Message-ID and an attempt of it, and returns that.
func (c *chasquid) settled(messageID string) (m message) {
	c.h.t.Helper()
	waitFor(c.h.t, c.h.name+" knows what became of "+messageID, func() bool {
		l := c.messages(messageID)
		if len(l) == 0 || len(l[0].attempts()) == 0 {
			return false
		}
		m = l[0]
		return true
	})
	return m
}
