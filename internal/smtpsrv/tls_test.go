package smtpsrv

import (
	"crypto/tls"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/mail"
)

// C41: the protocol keyword in Received.
func TestC41Protocols(t *testing.T) {
	for want, has := range map[string][4]bool{ // EHLO, SMTPUTF8, TLS, authenticated
		"SMTP": {}, "ESMTP": {true}, "ESMTPS": {true, false, true}, "ESMTPSA": {true, false, true, true}, "ESMTPA": {true, false, false, true},
		"SMTPS": {false, false, true}, "UTF8SMTP": {true, true}, "UTF8SMTPS": {true, true, true}, "UTF8SMTPSA": {true, true, true, true},
		"UTF8SMTPA": {true, true, false, true},
	} {
		s := &session{}
		s.ESMTP = has[0]
		if has[2] {
			s.TLS = &tls.ConnectionState{}
		}
		if has[3] {
			s.User = "u@d"
		}
		if got := protocol(s, &transaction{utf8: has[1]}); got != want {
			t.Errorf("%v: %s, want %s", has, got, want)
		}
	}
}

// C40, SMTP-51: the layout of Received.
func TestC40Received(t *testing.T) {
	s := &session{srv: &Server{}, thought: time.Date(2026, 2, 3, 4, 5, 6, 0, time.FixedZone("", 3600))}
	s.EHLO, s.ESMTP, s.Hostname, s.Mode = "[IPv6:2001:db8::1]", true, "mx.example.test", "SMTP"
	s.Remote = netip.MustParseAddrPort("[2001:db8::1%eth0]:99")
	s.TLS = &tls.ConnectionState{Version: tls.VersionTLS12, CipherSuite: 0xabcd}
	tx := &transaction{}
	tx.Env = &mail.Envelope{From: address.MustParse("ñ@x.test")}
	tx.ID = "ABC"
	got := string(appendReceived(nil, s, tx))
	want := "Received: from [IPv6:2001:db8::1] ([IPv6:2001:db8::1])\r\n\tby mx.example.test (chasquid) with ESMTPS id ABC\r\n" +
		"\ttls TLS_UNKNOWN_CIPHER_SUITE-0xabcd\r\n\t(over SMTP, TLS-1.2, envelope from \"ñ@x.test\")\r\n\t; Tue, 03 Feb 2026 04:05:06 +0100\r\n"
	if got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	// no line is near the limit, whatever the sender
	tx.Env.From = address.Address{Local: strings.Repeat(`"`, address.MaxLocal), Domain: strings.Repeat("x.", 90) + "test"}
	for _, l := range strings.Split(string(appendReceived(nil, s, tx)), "\r\n") {
		if len(l) > 998 || regexp.MustCompile(`[\x00-\x08\x0a-\x1f]`).MatchString(l) {
			t.Errorf("%d bytes: %q", len(l), l)
		}
	}
}

// C74: nothing below TLS 1.2.
func TestC74OldTLS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ts := newTestServer(t, nil)
		defer ts.close()
		c := ts.dial(SubmissionTLS, "192.0.2.1")
		conf := clientTLS("")
		conf.MinVersion, conf.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
		if err := c.startTLS(conf); err == nil {
			t.Error("TLS 1.1 was accepted")
		}
		c.nc.Close()
		synctest.Wait()
		if n := ts.srv.m.modes[SubmissionTLS].handshakes.With("submission_tls", "none", "no_shared_version").Value(); n != 1 {
			t.Errorf("%v handshakes counted", n)
		}
	})
}

// D49: a handshake that does not come to its end is given up.
func TestD49SlowHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ts := newTestServer(t, nil)
		defer ts.close()
		c := ts.dial(SubmissionTLS, "192.0.2.1")
		c.send("\x16\x03\x01")
		time.Sleep(29 * time.Second)
		synctest.Wait()
		if n := ts.srv.Open(); n != 1 {
			t.Errorf("%d open after 29 s", n)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if n := ts.srv.Open(); n != 0 {
			t.Errorf("%d open after 31 s", n)
		}
		if n := ts.srv.m.modes[SubmissionTLS].handshakes.With("submission_tls", "none", "timeout").Value(); n != 1 {
			t.Errorf("%v time-outs counted", n)
		}
		c.nc.Close()
	})
}

// TestTLSReady: STARTTLS is offered from the moment on when there is a certificate, also in sessions that run.
func TestTLSReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ready atomic.Bool
		ts := newTestServer(t, func(c *Config) { c.TLSReady = ready.Load })
		defer ts.close()
		c := ts.dial(SMTP, "192.0.2.1")
		defer c.nc.Close()
		c.reply()
		for _, want := range []bool{false, true} {
			ready.Store(want)
			c.send("EHLO client.example\r\n")
			if got := strings.Contains(strings.Join(c.reply(), "\n"), "STARTTLS"); got != want {
				t.Errorf("offered: %v, want %v", got, want)
			}
			c.send("STARTTLS\r\n")
			if r := c.reply(); want == strings.HasPrefix(r[0], "454 4.7.0 ") {
				t.Errorf("ready %v: %q", want, r)
			}
		}
	})
}

// D48: server names are compared, never used.
func TestD48ServerNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := []string{}
		ts := newTestServer(t, func(c *Config) {
			c.OwnName = func(n string) bool { asked = append(asked, n); return n == "other.example.test" }
		})
		defer ts.close()
		for sni, want := range map[string]string{
			"OTHER.Example.Test": "other.example.test", "../../etc/passwd": "mx.example.test", `evil.test\`: "mx.example.test",
			strings.Repeat("x", 250): "mx.example.test",
		} {
			c := ts.dial(SubmissionTLS, "192.0.2.1")
			if err := c.startTLS(clientTLS(sni)); err == nil { // else Go's own check refused the name
				if r := c.reply(); len(r) != 1 || !strings.HasPrefix(r[0], "220 "+want+" ") {
					t.Errorf("%q: %q", sni, r)
				}
			}
			c.nc.Close()
		}
		if len(asked) == 0 {
			t.Error("no name was looked at")
		}
	})
}

// A listener that its owner closes takes no new connections; those it has go on to their end, and Serve returns with the last.
func TestListenerReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ts := newTestServer(t, nil)
		defer ts.close()
		l := newQueueListener()
		ended := make(chan struct{})
		go func() { ts.srv.Serve(t.Context(), l, SMTP); close(ended) }()
		near, far := net.Pipe()
		l.ch <- addressed{far, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1}}
		c := newClient(t, near)
		c.reply()
		l.Close()
		synctest.Wait()
		if r := c.cmd("NOOP"); !strings.HasPrefix(r, "250 ") {
			t.Errorf("got %q", r)
		}
		select {
		case <-ended:
			t.Error("Serve returned before its session ended")
		default:
		}
		c.cmd("QUIT")
		<-ended
		near.Close()
	})
}

// Configure is for connections to come.
func TestConfigure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ts := newTestServer(t, nil)
		defer ts.close()
		old := ts.dial(SMTP, "192.0.2.1")
		old.reply()
		ts.cfg.Hostname, ts.cfg.MaxSize = "new.example.test", 7
		ts.srv.Configure(ts.cfg)
		if r := old.cmd("EHLO c"); r != "250 HELP" {
			t.Errorf("got %q", r)
		}
		if r := old.cmd("MAIL FROM:<a@b.test> SIZE=8"); !strings.HasPrefix(r, "250 ") {
			t.Errorf("the old session got %q", r)
		}
		c := ts.dial(SMTP, "192.0.2.1")
		if r := c.reply(); len(r) != 1 || !strings.HasPrefix(r[0], "220 new.example.test ") {
			t.Errorf("got %q", r)
		}
		c.cmd("EHLO c")
		if r := c.cmd("MAIL FROM:<a@b.test> SIZE=8"); !strings.HasPrefix(r, "552 ") {
			t.Errorf("the new session got %q", r)
		}
		old.nc.Close()
		c.nc.Close()
	})
}
