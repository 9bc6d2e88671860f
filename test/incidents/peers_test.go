package incidents

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"net"
	"net/smtp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/internal/dns/zone"
	"blitiri.com.ar/go/chasquid/test/harness"
	miekg "github.com/miekg/dns"
)

// resolver is a DNS server that can be made to stop answering.
type resolver struct {
	*zone.Zone
	addr string
	dead atomic.Bool
}

func newResolver(t *testing.T, text string) *resolver {
	t.Helper()
	r := &resolver{Zone: zone.MustNew(text)}
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.addr = pc.LocalAddr().String()
	srv := &miekg.Server{PacketConn: pc, Handler: miekg.HandlerFunc(func(w miekg.ResponseWriter, q *miekg.Msg) {
		if !r.dead.Load() {
			r.ServeDNS(w, q)
		}
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		srv.ActivateAndServe()
	}()
	t.Cleanup(func() {
		pc.Close()
		<-done
	})
	return r
}

// peer is another mail server. It takes everything, but for what a reply is set for.
type peer struct {
	addr, port string
	rcpt       string // instead of 250 to RCPT
}

// newPeer serves on the address; with port 0, on a free one.
func newPeer(t *testing.T, addr, rcpt string) *peer {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	p := &peer{addr: l.Addr().String(), rcpt: rcpt}
	_, p.port, _ = net.SplitHostPort(p.addr)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go p.session(c)
		}
	}()
	return p
}

// session answers what has arrived in one write.
func (p *peer) session(c net.Conn) {
	defer c.Close()
	r, w := bufio.NewReader(c), bufio.NewWriter(c)
	w.WriteString("220 peer.test ESMTP\r\n")
	good := 0
	for {
		if r.Buffered() == 0 {
			w.Flush()
		}
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		switch verb := strings.ToUpper(line[:min(4, len(line))]); {
		case verb == "EHLO":
			w.WriteString("250-peer.test\r\n250-PIPELINING\r\n250 ENHANCEDSTATUSCODES\r\n")
		case verb == "RCPT" && p.rcpt != "":
			w.WriteString(p.rcpt + "\r\n")
		case verb == "RCPT":
			good++
			w.WriteString("250 2.1.5 ok\r\n")
		case verb == "DATA" && good == 0:
			w.WriteString("554 5.5.1 no recipients\r\n")
		case verb == "DATA":
			w.WriteString("354 go ahead\r\n")
			w.Flush()
			for line != ".\r\n" {
				if line, err = r.ReadString('\n'); err != nil {
					return
				}
			}
			w.WriteString("250 2.0.0 ok\r\n")
		case verb == "QUIT":
			w.WriteString("221 2.0.0 bye\r\n")
			w.Flush()
			return
		default:
			if verb == "RSET" || verb == "MAIL" {
				good = 0
			}
			w.WriteString("250 2.0.0 ok\r\n")
		}
	}
}

const text = "From: <%s>\r\nSubject: incident\r\nDate: Mon, 02 Jan 2006 15:04:05 +0000\r\n\r\nA test.\r\n"

// submit sends a message as a user does.
func submit(s *harness.Server, user string, to ...string) error {
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: 10 * time.Second}, Config: &tls.Config{RootCAs: s.CA, ServerName: "mail.example.test"}}
	conn, err := d.Dial("tcp", s.SubmissionTLS)
	if err != nil {
		return err
	}
	defer conn.Close()
	c, err := smtp.NewClient(conn, "127.0.0.1")
	if err != nil {
		return err
	}
	if err := c.Auth(smtp.PlainAuth("", user, "secret", "127.0.0.1")); err != nil {
		return err
	}
	return send(c, user, to)
}

// arrive sends a message as another server does.
func arrive(s *harness.Server, from string, to ...string) error {
	c, err := smtp.Dial(s.SMTP)
	if err != nil {
		return err
	}
	defer c.Close()
	return send(c, from, to)
}

func send(c *smtp.Client, from string, to []string) error {
	if err := c.Mail(from); err != nil {
		return err
	}
	for _, a := range to {
		if err := c.Rcpt(a); err != nil {
			return err
		}
	}
	w, err := c.Data()
	if err != nil {
		return err
	}
	fmt.Fprintf(w, text, from)
	if err := w.Close(); err != nil {
		return err
	}
	return c.Quit()
}

// flood sends n messages over one connection without waiting for more than it must.
func flood(s *harness.Server, n int, from, to string) error {
	c, err := net.Dial("tcp", s.SMTP)
	if err != nil {
		return err
	}
	defer c.Close()
	r := bufio.NewReader(c)
	expect := func(code string) error {
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				return err
			}
			if !strings.HasPrefix(line, code) {
				return fmt.Errorf("want %s, got %s", code, line)
			}
			if line[3] == ' ' {
				return nil
			}
		}
	}
	body := fmt.Sprintf(text, from) + ".\r\n"
	if err := expect("220"); err != nil {
		return err
	}
	fmt.Fprintf(c, "EHLO flood.test\r\n")
	if err := expect("250"); err != nil {
		return err
	}
	for range n {
		fmt.Fprintf(c, "MAIL FROM:<%s>\r\nRCPT TO:<%s>\r\nDATA\r\n", from, to)
		for _, code := range []string{"250", "250", "354"} {
			if err := expect(code); err != nil {
				return err
			}
		}
		fmt.Fprint(c, body)
		if err := expect("250"); err != nil {
			return err
		}
	}
	return nil
}
