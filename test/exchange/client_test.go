package exchange

import (
	"bufio"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

// client is one SMTP session of the test with a server.
type client struct {
	t    testing.TB
	conn net.Conn
	r    *bufio.Reader
}

func dialSMTP(t testing.TB, addr string, conf *tls.Config) *client {
	t.Helper()
	var conn net.Conn
	var err error
	d := &net.Dialer{Timeout: time.Minute}
	if conf == nil {
		conn, err = d.Dial("tcp", addr)
	} else {
		conn, err = tls.DialWithDialer(d, "tcp", addr, conf)
	}
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(2 * time.Minute))
	c := &client{t, conn, bufio.NewReader(conn)}
	c.expect("220")
	return c
}

// reply reads one reply.
func (c *client) reply() string {
	c.t.Helper()
	var all strings.Builder
	for {
		line, err := c.r.ReadString('\n')
		if err != nil {
			c.t.Fatalf("after %q: %v", all.String(), err)
		}
		all.WriteString(line)
		if len(line) < 4 || line[3] != '-' {
			return all.String()
		}
	}
}

func (c *client) expect(code string) string {
	c.t.Helper()
	r := c.reply()
	if !strings.HasPrefix(r, code) {
		c.t.Fatalf("the server said %q, want %s", r, code)
	}
	return r
}

// do sends a command and expects an answer.
func (c *client) do(command, code string) string {
	c.t.Helper()
	fmt.Fprintf(c.conn, "%s\r\n", command)
	r := c.reply()
	if !strings.HasPrefix(r, code) {
		c.t.Fatalf("%s: the server said %q, want %s", command, r, code)
	}
	return r
}

// auth logs in.
func (c *client) auth(user, password string) {
	c.t.Helper()
	c.do("AUTH PLAIN "+base64.StdEncoding.EncodeToString([]byte("\x00"+user+"\x00"+password)), "235")
}

// letter is a message with its envelope, as the arguments of MAIL and RCPT: "<a@b.example> NOTIFY=NEVER".
type letter struct {
	from string
	to   []string
	text string // lines end in LF
}

// send sends a message and returns the reply to its data.
func (c *client) send(l letter) string {
	c.t.Helper()
	c.do("MAIL FROM:"+l.from, "250")
	for _, to := range l.to {
		c.do("RCPT TO:"+to, "250")
	}
	c.do("DATA", "354")
	text := strings.ReplaceAll(l.text, "\n", "\r\n")
	if strings.HasPrefix(text, ".") {
		text = "." + text
	}
	return c.do(strings.ReplaceAll(text, "\r\n.", "\r\n..")+".", "")
}

func (c *client) quit() {
	c.do("QUIT", "221")
	c.conn.Close()
}

// now is the time as a Date field has it.
func now() string { return time.Now().Format(time.RFC1123Z) }
