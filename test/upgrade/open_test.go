package upgrade

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/test/harness"
)

func listenOn(t testing.TB, addr string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func port(addr string) string {
	_, p, _ := net.SplitHostPort(addr)
	return p
}

// client is one session, spoken step by step.
type client struct {
	t testing.TB
	c net.Conn
	r *bufio.Reader
}

func dial(t testing.TB, addr string) *client {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(2 * patient))
	cl := &client{t, c, bufio.NewReader(c)}
	cl.want("220")
	cl.say("EHLO client.test", "250")
	return cl
}

func (c *client) write(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c.c, s); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) want(code string) string {
	c.t.Helper()
	for {
		line, err := c.r.ReadString('\n')
		if err != nil || !strings.HasPrefix(line, code) {
			c.t.Fatalf("got %q, %v; want %s", line, err, code)
		}
		if line[3] == ' ' {
			return line
		}
	}
}

func (c *client) say(line, code string) string {
	c.t.Helper()
	c.write(line + "\r\n")
	return c.want(code)
}

// TestOpenTransactions upgrades while messages are in the middle of being received, small ones and large ones. Their ends come after it,
// and go to the process that has the queue then; even when that is the second after it.
func TestOpenTransactions(t *testing.T) {
	s := newSite(t, harness.Options{Conf: "timeouts: { drain: \"40s\" }\n"})
	s.Start()
	big := strings.Repeat(strings.Repeat("x", 70)+"\r\n", 9000) // 648 KB
	type open struct {
		*client
		end string
		id  string
	}
	var opens []open
	for i, body := range []string{"small\r\n", big} {
		c := dial(t, s.SMTP)
		c.say("MAIL FROM:<a@[127.0.0.1]>", "250")
		c.say("RCPT TO:<user@example.test>", "250")
		c.say("DATA", "354")
		c.write(fmt.Sprintf("Subject: data %d\r\nFrom: a@[127.0.0.1]\r\n\r\n%s", i, body))
		opens = append(opens, open{c, body + ".\r\n", ""})
		c = dial(t, s.SMTP)
		c.say("MAIL FROM:<a@[127.0.0.1]>", "250")
		c.say("RCPT TO:<user@example.test>", "250")
		first := fmt.Sprintf("Subject: bdat %d\r\nFrom: a@[127.0.0.1]\r\n\r\n%s", i, body)
		c.say(fmt.Sprintf("BDAT %d\r\n%s", len(first), strings.TrimSuffix(first, "\r\n")), "250")
		opens = append(opens, open{c, fmt.Sprintf("BDAT %d LAST\r\n%s", len(body), body), ""})
	}
	idle := dial(t, s.SMTP)
	for _, version := range []string{v2, v1} {
		s.install(version)
		if r, out, exit := s.upgrade(); exit != 0 || r.To != version {
			t.Fatalf("exit %d: %s", exit, out)
		}
	}
	for i := range opens {
		opens[i].write(opens[i].end)
		line := opens[i].want("250")
		m := regexp.MustCompile(`queued as (\S+)`).FindStringSubmatch(line)
		if m == nil {
			t.Fatal(line)
		}
		opens[i].id = m[1]
	}
	idle.say("MAIL FROM:<a@[127.0.0.1]>", "250")
	idle.say("RCPT TO:<nobody@example.test>", "550")
	idle.say("RCPT TO:<user@example.test>", "250")
	idle.say("DATA", "354")
	idle.say("Subject: after\r\nFrom: a@[127.0.0.1]\r\n\r\nafter\r\n.", "250")
	harness.WaitFor(t, patient, "all five messages", func() bool { return len(s.Maildir("user@example.test")) == 5 })
	all := ""
	for _, msg := range s.Maildir("user@example.test") {
		all += msg
		if strings.Contains(msg, "xxxx") && strings.Count(strings.ReplaceAll(msg, "\r\n", "\n"), strings.Repeat("x", 70)+"\n") != 18000 {
			t.Errorf("a large message was changed on its way: %d bytes", len(msg))
		}
	}
	for _, o := range opens {
		if !strings.Contains(all, "id "+o.id) && !strings.Contains(all, o.id) {
			t.Errorf("no delivered message has the id %s in its Received header", o.id)
		}
	}
	for _, o := range opens {
		o.say("QUIT", "221")
	}
	// The session that is left keeps the first process; the newest one, told to stop, tells it too.
	pid := s.PID()
	if !alive(pid) {
		t.Error("the first process ended though it has a session")
	}
	newest := newestOf(t, s)
	syscall.Kill(newest, syscall.SIGTERM)
	idle.want("421")
	for _, p := range []int{pid, newest} {
		harness.WaitFor(t, patient, fmt.Sprintf("the end of process %d", p), func() bool { return !alive(p) })
	}
}

// newestOf returns the process that serves the pages.
func newestOf(t testing.TB, s *site) int {
	t.Helper()
	m := regexp.MustCompile(`serving, in place of version \S+, process (\d+)`).FindAllStringSubmatch(s.Log(), -1)
	if len(m) == 0 {
		t.Fatal("no upgrade in the log")
	}
	pids := s.whoServes()
	for _, p := range pids {
		if p != 0 && p != s.PID() && fmt.Sprint(p) != m[len(m)-1][1] {
			return p
		}
	}
	t.Fatalf("none of %v is the newest", pids)
	return 0
}
