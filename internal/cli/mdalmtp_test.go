package cli

import (
	"bufio"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// lmtpServer answers each command of a session with the next reply, the greeting being the first, and returns what it got.
func lmtpServer(t *testing.T, network, addr string, replies ...string) (string, func() string) {
	t.Helper()
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	got := make(chan string, 1)
	go func() {
		var b strings.Builder
		defer func() { got <- b.String() }()
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		r := bufio.NewReader(c)
		data := false
		for _, reply := range replies {
			c.Write([]byte(reply + "\r\n"))
			for {
				line, err := r.ReadString('\n')
				if err != nil {
					return
				}
				b.WriteString(line)
				if !data || line == ".\r\n" {
					break
				}
			}
			data = !data && strings.HasSuffix(b.String(), "DATA\r\n")
		}
	}()
	return l.Addr().String(), func() string { return <-got }
}

// TestCLI25Dialog: the dialog, and the message in wire form.
func TestCLI25Dialog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	_, got := lmtpServer(t, "unix", path, "220 hi", "250-me\r\n250 PIPELINING", "250 ok", "250 ok", "354 go", "250 done", "221 bye")
	r := run(t, Env{Stdin: strings.NewReader("Subject: a\n\n.dot\nlast")}, "mda-lmtp", "--addr="+path, "-f", "<>", "-d", "b@c")
	host, _ := os.Hostname()
	want := "LHLO " + host + "\r\nMAIL FROM:<>\r\nRCPT TO:<b@c>\r\nDATA\r\nSubject: a\r\n\r\n..dot\r\nlast\r\n.\r\nQUIT\r\n"
	if g := got(); r.exit != 0 || r.out != "" || g != want {
		t.Errorf("exit %d, %q\n%q", r.exit, r.out, g)
	}
}

// TestCLI26Exit: temporary is 75; permanent only what the server says of this message.
func TestCLI26Exit(t *testing.T) {
	for _, c := range []struct {
		name    string
		replies []string
		exit    int
		out     string
	}{
		{"greeting", []string{"554 no"}, 75, "Delivery failed remotely: 554 \"no\"\n"},
		{"hello", []string{"220 hi", "500 what"}, 75, "Delivery failed remotely: 500 \"what\"\n"},
		{"mail", []string{"220 hi", "250 ok", "550 5.7.1 no"}, 69, "Delivery failed remotely: 550 \"5.7.1 no\"\n"},
		{"rcpt temporary", []string{"220 hi", "250 ok", "250 ok", "452 full"}, 75, "Delivery failed remotely: 452 \"full\"\n"},
		{"rcpt", []string{"220 hi", "250 ok", "250 ok", "550-5.1.1 no\r\n550 5.1.1 user"}, 69, "Delivery failed remotely: 550 \"5.1.1 no\\n5.1.1 user\"\n"},
		{"body temporary", []string{"220 hi", "250 ok", "250 ok", "250 ok", "354 go", "451 later"}, 75, "Delivery failed remotely: 451 \"later\"\n"},
		{"body", []string{"220 hi", "250 ok", "250 ok", "250 ok", "354 go", "552 big"}, 69, "Delivery failed remotely: 552 \"big\"\n"},
		{"hangs up", []string{"220 hi", "250 ok"}, 75, "Delivery failed: *"},
		{"quit does not matter", []string{"220 hi", "250 ok", "250 ok", "250 ok", "354 go", "250 done", "500 no"}, 0, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			addr, _ := lmtpServer(t, "tcp", "127.0.0.1:0", c.replies...)
			r := run(t, Env{Stdin: strings.NewReader(message1)}, "mda-lmtp", "-addr", addr, "-f", "a@b", "-d", "c@d")
			if r.exit != c.exit || !like(r.out, c.out) {
				t.Errorf("exit %d, %q", r.exit, r.out)
			}
		})
	}
	r := run(t, Env{}, "mda-lmtp", "-addr="+t.TempDir()+"/none", "-f", "a", "-d", "b")
	if r.exit != 75 || !strings.HasPrefix(r.out, "Delivery failed: ") {
		t.Errorf("no server: exit %d, %q", r.exit, r.out)
	}
}

// TestCLI24Puny: the whole address is converted.
func TestCLI24Puny(t *testing.T) {
	addr, got := lmtpServer(t, "tcp", "127.0.0.1:0", "220 hi", "250 ok", "250 ok", "250 ok", "354 go", "250 done", "221 bye")
	r := run(t, Env{Stdin: strings.NewReader(message1)}, "mda-lmtp", "-addr", addr, "-to_puny", "-f", "fröm", "-d", "tö")
	if g := got(); r.exit != 0 || !strings.Contains(g, "MAIL FROM:<xn--frm-tna>\r\nRCPT TO:<xn--t-1ga>\r\n") {
		t.Errorf("exit %d: %q", r.exit, g)
	}
	for arg, want := range map[string]string{"-f": "cannot puny-encode from: ", "-d": "cannot puny-encode recipient: "} {
		r := run(t, Env{}, "mda-lmtp", "-addr", addr, "-to_puny", arg, "xn---")
		if r.exit != 2 || !strings.HasPrefix(r.out, want) {
			t.Errorf("%s: exit %d, %q", arg, r.exit, r.out)
		}
	}
	if r := run(t, Env{}, "mda-lmtp", "-addr", addr, "-f", "a\r\nRSET", "-d", "b"); r.exit != 2 {
		t.Errorf("a line break in the sender: exit %d", r.exit)
	}
}
